"""The released ESMFold's weights: every tensor of every layout arrives, or a line says why not."""

import json
import shutil
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import EsmConfig, EsmForProteinFolding

from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.adapters.insert import insert_adapter
from esmfold_peft.config import AdapterConfig, DataConfig, ModelConfig, TrainConfig
from esmfold_peft.errors import UserError
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.language_model import LanguageModel
from esmfold_peft.protein.residues import RESIDUES_X
from esmfold_peft.runs.build import build_language_model, build_model
from esmfold_peft.weights.esm2_weights import load_esm2, weights_hash
from esmfold_peft.weights.esmfold_weights import (
    find_esmfold,
    folding_hash,
    load_esmfold,
    released_tensors,
)
from esmfold_peft.weights.layouts import is_of_trunk, why_unused

SHAPE = AttentionShape(layers=2, width=40, heads=4)


def edited(config, setting, value):
    """Settings with one of them changed, by its name without `model.`."""
    group, _, name = setting.rpartition(".")
    if not group:
        return replace(config, **{name: value})
    return replace(config, **{group: replace(getattr(config, group), **{name: value})})


# What arrives


def test_every_tensor_of_every_layout_arrives_in_float32(file, esmfold, tiny, folding_model):
    model = folding_model(tiny)
    language_model = weights_hash(model.language_model)
    resolved = model.resolved_head.linear.weight.clone()
    load_esmfold(model, file)
    ours = dict(released_tensors(model))
    theirs = {n: t for n, t in esmfold.state_dict().items() if is_of_trunk(n) and not why_unused(n)}
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == torch.float32
        assert torch.equal(ours[name], tensor), name
    assert weights_hash(model.language_model) == language_model
    assert torch.equal(model.resolved_head.linear.weight, resolved)


def test_the_loaded_model_folds_as_transformers_does(files, esmfold, tiny):
    lm = LanguageModel(SHAPE)
    load_esm2(lm, files["bin"])
    model = FoldingModel(lm, tiny, bf16=False).eval()
    load_esmfold(model, files["bin"])
    aatype = torch.tensor([[RESIDUES_X.index(letter) for letter in "MKTAYIWG"]])
    mask, index = torch.ones(1, 8, dtype=torch.bool), torch.arange(8)[None]
    esmfold.esm.float()
    try:
        with torch.no_grad():
            theirs = esmfold(aatype, mask.long(), index, num_recycles=1)
            ours = model(aatype, index, mask, 1)
    finally:
        esmfold.esm.half()
    assert torch.allclose(ours.positions, theirs.positions[-1], atol=1e-4)
    assert torch.allclose(ours.plddt_logits, theirs.lddt_head[-1].view(1, 8, 37, 50), atol=1e-5)
    assert torch.allclose(ours.pae_logits, theirs.ptm_logits, atol=1e-5)
    assert torch.allclose(ours.distogram_logits, theirs.distogram_logits, atol=1e-5)


def test_the_published_model_has_the_names_of_the_published_file():
    with torch.device("meta"):
        model = FoldingModel(
            LanguageModel(AttentionShape(36, 2560, 40)), ModelConfig(trunk="esmfold_v1"), bf16=False
        )
        config = EsmConfig(
            vocab_size=33, hidden_size=2560, num_hidden_layers=36, num_attention_heads=40,
            intermediate_size=10240, position_embedding_type="rotary", is_folding_model=True,
            esmfold_config={},
        )  # fmt: skip
        theirs = EsmForProteinFolding(config).state_dict()
    theirs = {n: t.shape for n, t in theirs.items() if is_of_trunk(n) and not why_unused(n)}
    assert {name: tensor.shape for name, tensor in released_tensors(model)} == theirs
    # The official file has 3,923 entries, eight of which are not used.
    assert len(theirs) == 3923 - 8


def test_loaded_weights_do_not_follow_the_file(official, tiny, write, folding_model):
    model, path = folding_model(tiny), write(official())
    load_esmfold(model, path)
    loaded = folding_hash(model)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert folding_hash(model) == loaded


def test_half_precision_becomes_float32(official, tiny, write, folding_model):
    content = official()
    content["model"] = {name: t.half() for name, t in content["model"].items()}
    model = folding_model(tiny)
    load_esmfold(model, write(content))
    for name, tensor in released_tensors(model):
        assert torch.equal(tensor, content["model"][name].float()), name


def test_a_run_starts_from_the_released_weights(files, tiny, folding_model):
    weights = str(files["bin"])
    language_model = replace(tiny.language_model, weights=weights)
    settings = replace(
        tiny,
        language_model=language_model,
        esmfold=replace(tiny.esmfold, weights=weights),
        freeze=("trunk", "head"),
    )
    model, base = build_model(
        TrainConfig(run=Path("r"), data=DataConfig(train=Path("t")), model=settings)
    )
    expected = folding_model(tiny)
    load_esmfold(expected, files["official"])
    assert dict(released_tensors(model)).keys() == dict(released_tensors(expected)).keys()
    for (name, a), (_, b) in zip(released_tensors(model), released_tensors(expected), strict=True):
        assert torch.equal(a, b), name
    assert base == weights_hash(build_language_model(language_model, seed=5))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all(name.startswith("language_model.adapter.") for name in trained)


def test_the_fingerprint_sees_all_but_the_language_model(tiny, folding_model):
    model = folding_model(edited(tiny, "esmfold.blocks", 1))
    before = folding_hash(model)
    insert_adapter(model.language_model, AdapterConfig())
    with torch.no_grad():
        model.language_model.embed_tokens.weight.add_(1)
    assert folding_hash(model) == before
    for name, parameter in model.named_parameters():
        if not name.startswith("language_model."):
            with torch.no_grad():
                parameter.view(-1)[-1] += 1
            after = folding_hash(model)
            assert after != before, name
            before = after


# What does not fit


@pytest.mark.parametrize(
    ("setting", "ours", "in_file"),
    [
        ("esmfold.blocks", 3, 2),
        ("esmfold.blocks", 1, 2),
        ("esmfold.c_s", 64, 32),
        ("esmfold.c_z", 32, 16),
        ("esmfold.c_structure", 48, 24),
        ("esmfold.heads", 2, 4),
        ("esmfold.heads_pair", 4, 2),
        ("structure.layers", 8, 3),
        ("structure.c_ipa", 8, 4),
        ("structure.heads", 6, 3),
        ("structure.query_points", 4, 2),
        ("structure.value_points", 8, 5),
        ("structure.c_angle", 24, 12),
        ("structure.angle_blocks", 1, 2),
        ("relative_positions", 32, 6),
        ("distogram_bins", 32, 64),
        ("plddt_bins", 40, 50),
        ("pae_bins", 32, 64),
        ("c_plddt", 128, 20),
    ],
)
def test_a_size_is_refused_by_its_setting(files, tiny, setting, ours, in_file, refused):
    message = rf"esmfold_tiny\.pt: model\.{setting} is {ours}, the file has {in_file}$"
    refused(edited(tiny, setting, ours), files["official"], message)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (AttentionShape(3, 40, 4), r"model\.language_model\.layers is 3, the file has 2$"),
        (AttentionShape(2, 48, 4), r"model\.language_model\.width is 48, the file has 40$"),
    ],
)
def test_another_language_model_is_refused(files, tiny, shape, message, folding_model):
    with pytest.raises(UserError, match=message):
        load_esmfold(folding_model(tiny, shape), files["official"])


def test_a_file_made_for_a_published_language_model_names_it(official, tiny, write, refused):
    content = official()
    content["model"] |= {
        "esm_s_combine": torch.zeros(37),
        "esm_s_mlp.0.weight": torch.zeros(2560),
        "esm_s_mlp.0.bias": torch.zeros(2560),
        "esm_s_mlp.1.weight": torch.zeros(32, 2560),
    }
    message = r"has \d+ \(model\.language_model\.name: esm2_t36_3B_UR50D\)$"
    refused(tiny, write(content), message)


def drop(content):
    del content["model"]["trunk.blocks.1.tri_mul_in.linear_a_g.bias"]


def drop_a_size(content):
    del content["model"]["trunk.recycle_z_norm.weight"]


def add(content):
    content["model"]["esm_z_mlp.0.weight"] = torch.zeros(4)


def grow_the_transition(content):
    name = "trunk.structure_module.transition.layers.{}.linear_1.weight"
    content["model"][name.format(1)] = content["model"][name.format(0)]


def reshape(content):
    content["model"]["trunk.blocks.0.mlp_seq.mlp.1.bias"] = torch.zeros(3)


def quantize(content):
    content["model"]["lddt_head.2.bias"] = torch.zeros(20, dtype=torch.int8)


def say_no_tensor(content):
    content["model"]["lm_head.bias"] = [1.0, 2.0]


def use_attention_maps(content):
    content["cfg"]["model"]["use_esm_attn_map"] = True


def scale(content):
    content["cfg"]["model"]["trunk"]["structure_module"]["trans_scale_factor"] = 1


def age(content):
    content["args"] = content.pop("cfg")


def empty(content):
    content["model"] = {}


def become_esm2(content):
    content["cfg"]["model"] = Namespace(encoder_layers=2)
    content["model"] = {"encoder.sentence_encoder.embed_tokens.weight": torch.zeros(33, 40)}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop, r'x\.pt: tensor "trunk\.blocks\.1\.tri_mul_in\.linear_a_g\.bias" is missing$'),
        (drop_a_size, r'x\.pt: tensor "trunk\.recycle_z_norm\.weight" is missing$'),
        (add, r'x\.pt: tensor "esm_z_mlp\.0\.weight" is unexpected$'),
        (grow_the_transition, r"transition\.layers\.1\.linear_1\.weight\" is unexpected$"),
        (reshape, r'"trunk\.blocks\.0\.mlp_seq\.mlp\.1\.bias" has shape \(3,\), expected \(128,\)'),
        (quantize, r'"lddt_head\.2\.bias" is of type torch\.int8'),
        (say_no_tensor, r'"lm_head\.bias" is no tensor \(list\)$'),
        (use_attention_maps, r"use_esm_attn_map is True, the published ESMFold has False$"),
        (scale, r"trunk\.structure_module\.trans_scale_factor is 1, the published ESMFold has 10$"),
        (age, r'not an ESMFold checkpoint \(no "cfg" and "model"\)$'),
        (empty, r"there are no tensors in it$"),
        (become_esm2, r"not an ESMFold \(it has no trunk\)$"),
    ],
)
def test_a_wrong_official_file_is_refused_and_nothing_is_loaded(
    official, tiny, damage, message, write, refused
):
    content = official()
    damage(content)
    refused(tiny, write(content), message)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "is_folding_model",
            False,
            r"config\.json: is_folding_model is False, an ESMFold has True",
        ),
        ("model_type", "bert", r"config\.json: model_type is bert, an ESMFold has esm"),
        ("bypass_lm", True, r"bypass_lm is True, the published ESMFold has False"),
        ("embed_aa", False, r"embed_aa is False, the published ESMFold has True"),
        ("esm_ablate_sequence", True, r"esm_ablate_sequence is True"),
    ],
)
def test_a_hugging_face_folder_of_another_architecture_is_refused(
    files, tiny, tmp_path, key, value, message, refused
):
    folder = tmp_path / "folder"
    shutil.copytree(files["bin"], folder)
    config = json.loads((folder / "config.json").read_text())
    (config if key in config else config["esmfold_config"])[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    refused(tiny, folder, message)


# Where the file is


def test_a_path_is_taken_as_it_is_and_must_exist(tmp_path):
    assert find_esmfold(str(tmp_path)) == tmp_path
    with pytest.raises(UserError, match=r"ESMFold weights: nowhere does not exist$"):
        find_esmfold("nowhere")
