"""A tiny ESMFold of transformers with random weights, and files of it in every published layout."""

import json
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import EsmForProteinFolding
from transformers.utils import logging

from esmfold_peft.errors import UserError
from esmfold_peft.weights.esmfold_weights import folding_hash, load_esmfold
from esmfold_peft.weights.layouts import official_settings
from esmfold_peft.weights.tensor_files import WEIGHTS
from tests.published import esm_config, roughen

LAYOUTS = ("official", "safetensors", "sharded safetensors", "bin", "sharded bin")


@pytest.fixture(scope="session")
def esmfold():
    """transformers' model; every weight is moved, so that no bias is zero."""
    logging.set_verbosity_error()
    structure = {
        "sequence_dim": 24,
        "pairwise_dim": 16,
        "ipa_dim": 4,
        "resnet_dim": 12,
        "num_heads_ipa": 3,
        "num_qk_points": 2,
        "num_v_points": 5,
        "num_blocks": 3,
        "num_resnet_blocks": 2,
    }
    trunk = {
        "num_blocks": 2,
        "sequence_state_dim": 32,
        "pairwise_state_dim": 16,
        "sequence_head_width": 8,
        "pairwise_head_width": 8,
        "position_bins": 6,
        "structure_module": structure,
    }
    settings = {"fp16_esm": True, "lddt_head_hid_dim": 20, "trunk": trunk}
    config = esm_config(2, 40, 4, is_folding_model=True, esmfold_config=settings)
    torch.manual_seed(0)
    return roughen(EsmForProteinFolding(config))


@pytest.fixture(scope="session")
def official(esmfold):
    """Makes the content of the official file: without the language model, with five leftovers."""

    def make(settings=None):
        tensors = {n: t for n, t in esmfold.state_dict().items() if not n.startswith("esm.")}
        for name in ("default_frames", "group_idx", "atom_mask", "lit_positions"):
            tensors[f"trunk.structure_module.{name}"] = torch.zeros(21, 14)
        tensors["positional_encoding._float_tensor"] = torch.zeros(1)
        structure = {"no_blocks": 3, "trans_scale_factor": 10}
        default = {"use_esm_attn_map": False, "trunk": {"structure_module": structure}}
        return {"cfg": {"model": default if settings is None else settings}, "model": tensors}

    return make


@pytest.fixture(scope="session")
def published(esmfold):
    """Makes the content of pytorch_model.bin as it was published, by an older transformers.

    Rotary frequencies are in every layer, and there are leftovers of absolute positions.
    """

    def make():
        tensors = dict(esmfold.state_dict())
        frequencies = tensors.pop("esm.rotary_embeddings.inv_freq")
        for layer in range(2):
            name = f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"
            tensors[name] = frequencies.clone()
        tensors["esm.embeddings.position_ids"] = torch.arange(1026)[None]
        tensors["esm.embeddings.position_embeddings.weight"] = torch.zeros(1026, 40).half()
        return tensors

    return make


def write_shards(folder, tensors, name, write):
    """Two files and their index, as transformers names them."""
    stem, ending = name.split(".")
    files = [f"{stem}-0000{i}-of-00002.{ending}" for i in (1, 2)]
    weight_map = {key: files[i % 2] for i, key in enumerate(tensors)}
    for file in files:
        write({key: t for key, t in tensors.items() if weight_map[key] == file}, folder / file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / f"{name}.index.json").write_text(json.dumps(index))


@pytest.fixture(scope="session")
def files(esmfold, official, published, tmp_path_factory):
    """A file or folder of the model in each of LAYOUTS; not to be written to."""
    root = tmp_path_factory.mktemp("esmfold")
    torch.save(official(), root / "esmfold_tiny.pt")
    saved = root / "safetensors"
    esmfold.save_pretrained(saved)
    for kind in ("sharded safetensors", "bin", "sharded bin"):
        (root / kind).mkdir()
        shutil.copy(saved / "config.json", root / kind)
    torch.save(published(), root / "bin" / WEIGHTS[1])
    tensors = {name: tensor.clone() for name, tensor in published().items()}
    write_shards(root / "sharded safetensors", tensors, WEIGHTS[0], save_file)
    write_shards(root / "sharded bin", tensors, WEIGHTS[1], torch.save)
    return {"official": root / "esmfold_tiny.pt"} | {kind: root / kind for kind in LAYOUTS[1:]}


@pytest.fixture(params=LAYOUTS)
def file(request, files):
    """Each of the files."""
    return files[request.param]


@pytest.fixture(params=LAYOUTS[1:])
def folder(request, files):
    """Each of the files that have the language model."""
    return files[request.param]


@pytest.fixture
def official_esm2():
    """Makes the content of an official ESM-2, as fair-esm publishes it (without the heads)."""

    def make(lm, **settings):
        cfg = Namespace(**official_settings(lm.shape) | settings)
        tensors = {f"encoder.sentence_encoder.{n}": p for n, p in lm.official_tensors()}
        return {"cfg": {"model": cfg}, "model": tensors}

    return make


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty folder of torch.hub, and the addresses that were asked for."""
    asked = []

    def download(url, dst):
        asked.append(url)
        Path(dst).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return tmp_path / "checkpoints", asked


@pytest.fixture
def write(tmp_path):
    """Writes an official file."""

    def write(content):
        path = tmp_path / "esmfold_x.pt"
        torch.save(content, path)
        return path

    return write


@pytest.fixture
def refused(folding_model):
    """Checks that loading fails with a line, and that nothing has been loaded then."""

    def check(config, path, message):
        model = folding_model(config)
        before = folding_hash(model)
        with pytest.raises(UserError, match=message) as failure:
            load_esmfold(model, path)
        assert "\n" not in str(failure.value)
        assert folding_hash(model) == before

    return check
