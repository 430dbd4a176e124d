"""The language model of an ESMFold's folder serves as a language model does."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import EsmModel

from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.adapters.insert import insert_adapter
from esmfold_peft.adapters.io import save_adapter
from esmfold_peft.commands.adapters import merge
from esmfold_peft.config import AdapterConfig, LanguageModelConfig, MergeConfig
from esmfold_peft.errors import UserError
from esmfold_peft.model.language_model import LanguageModel
from esmfold_peft.protein.residues import RESIDUES_X
from esmfold_peft.runs.build import build_language_model
from esmfold_peft.weights.esm2_weights import load_esm2, weights_hash

SHAPE = AttentionShape(layers=2, width=40, heads=4)


@pytest.fixture(scope="module")
def alone(esmfold, tmp_path_factory):
    """A folder of the language model alone."""
    path = tmp_path_factory.mktemp("esm2") / "folder"
    alone = EsmModel(esmfold.config, add_pooling_layer=False)
    alone.load_state_dict(esmfold.esm.state_dict())
    alone.config.is_folding_model = False
    alone.save_pretrained(path)
    return path


def test_the_language_model_is_read_from_the_same_folder(folder, alone):
    lm, expected = LanguageModel.random(SHAPE, seed=2), LanguageModel(SHAPE)
    load_esm2(lm, folder)
    load_esm2(expected, alone)
    for (name, ours), (_, theirs) in zip(
        lm.official_tensors(), expected.official_tensors(), strict=True
    ):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs.half().float()), name
    assert not torch.equal(lm.rotary_frequencies, LanguageModel(SHAPE).rotary_frequencies)


def test_a_single_file_of_the_folder_serves_as_well(files):
    lm, expected = LanguageModel(SHAPE), LanguageModel(SHAPE)
    load_esm2(expected, files["bin"])
    for path in (files["bin"] / "pytorch_model.bin", files["safetensors"] / "model.safetensors"):
        load_esm2(lm, path)
        assert weights_hash(lm) == weights_hash(expected)


def test_only_the_language_models_own_tensors_matter_to_it(files, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(files["safetensors"], folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["trunk.recycle_disto.weight"]
    save_file(tensors, folder / "model.safetensors")
    load_esm2(LanguageModel(SHAPE), folder)
    del tensors["esm.encoder.layer.1.output.dense.bias"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r'tensor "layers\.1\.fc2\.bias" is missing$'):
        load_esm2(LanguageModel(SHAPE), folder)


def test_an_adapter_is_merged_into_the_language_model_of_an_esmfold(files, tmp_path):
    config = LanguageModelConfig(
        name="custom", weights=str(files["bin"]), layers=2, width=40, heads=4
    )
    lm = build_language_model(config, seed=0)
    insert_adapter(lm, AdapterConfig(kind="lora", rank=2))
    with torch.no_grad():
        for factor in lm.adapter.parameters():
            factor.add_(0.3)
    save_adapter(lm.adapter, tmp_path / "adapter", weights_hash(lm))
    settings = {"adapter": tmp_path / "adapter", "language_model": config}
    output = tmp_path / "out"
    with pytest.raises(UserError, match="has no head for masked residues"):
        merge(MergeConfig(output=output, **settings))
    assert merge(MergeConfig(output=output, formats=("transformers",), **settings)) == 0
    model, found = EsmModel.from_pretrained(
        output / "transformers", add_pooling_layer=False, output_loading_info=True
    )
    assert not any(found.values()), found
    tokens = torch.tensor([[0, 5, 9, 14, 20, 2]])
    aatype = torch.tensor([[RESIDUES_X.index(letter) for letter in "AEPM"]])
    with torch.no_grad():
        ours = lm(aatype, torch.ones(1, 4, dtype=torch.bool))[:, :, -1]
        theirs = model(tokens, torch.ones_like(tokens)).last_hidden_state[:, 1:-1]
    assert torch.allclose(ours, theirs, atol=1e-4)
