"""Finding weights, refusing wrong ones, and their fingerprint."""

import json
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file

from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.adapters.insert import insert_adapter
from esmfold_peft.config import AdapterConfig
from esmfold_peft.errors import UserError
from esmfold_peft.model.language_model import LanguageModel
from esmfold_peft.weights.esm2_weights import find_weights, load_esm2, weights_hash
from esmfold_peft.weights.esmfold_weights import find_esmfold
from esmfold_peft.weights.layouts import hugging_face_settings

SHAPE = AttentionShape(layers=2, width=40, heads=4)


def load_on_meta(path):
    """Loads into a model that has no memory yet, so that nothing is drawn in vain."""
    with torch.device("meta"):
        lm = LanguageModel(SHAPE)
    load_esm2(lm, path)
    return lm


@pytest.fixture
def lm():
    return LanguageModel.random(SHAPE, seed=1)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_an_official_file_fills_the_model(lm, official_esm2, tmp_path, zipped):
    path = tmp_path / "esm2_tiny.pt"
    torch.save(official_esm2(lm), path, _use_new_zipfile_serialization=zipped)
    other = LanguageModel.random(SHAPE, seed=2)
    assert weights_hash(other) != weights_hash(lm)
    load_esm2(other, path)
    assert weights_hash(other) == weights_hash(lm)


def test_loaded_weights_do_not_follow_the_file(lm, official_esm2, tmp_path):
    path = tmp_path / "esm2_tiny.pt"
    torch.save(official_esm2(lm), path)
    built = load_on_meta(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert weights_hash(built) == weights_hash(lm)
    assert not any(p.is_meta for p in built.parameters())
    assert not built.token_of_aatype.is_meta


def test_half_precision_files_become_float32(lm, official_esm2, tmp_path):
    path = tmp_path / "esm2_tiny.pt"
    content = official_esm2(lm)
    content["model"] = {name: t.half() for name, t in content["model"].items()}
    torch.save(content, path)
    built = load_on_meta(path)
    for p, q in zip(lm.parameters(), built.parameters(), strict=True):
        assert torch.equal(p.half().float(), q)


def drop(content):
    del content["model"]["encoder.sentence_encoder.layers.1.fc1.bias"]


def add(content):
    content["model"]["encoder.sentence_encoder.emb_layer_norm_before.weight"] = torch.zeros(40)


def reshape(content):
    content["model"]["encoder.sentence_encoder.layers.0.fc1.bias"] = torch.zeros(3)


def widen(content):
    content["cfg"]["model"].encoder_embed_dim = 48


def age(content):
    content["args"] = content.pop("cfg")


def turn(content):
    for layer in range(2):
        name = f"encoder.sentence_encoder.layers.{layer}.self_attn.rot_emb.inv_freq"
        content["model"][name] = torch.full((5,), 1.0 + layer)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (turn, r'"layers\.1\.self_attn\.rot_emb\.inv_freq" is not the rotary frequencies of all'),
        (drop, r'esm2_x\.pt: tensor "layers\.1\.fc1\.bias" is missing'),
        (add, r'esm2_x\.pt: tensor "emb_layer_norm_before\.weight" is unexpected'),
        (reshape, r'"layers\.0\.fc1\.bias" has shape \(3,\), expected \(160,\)'),
        (widen, r"encoder_embed_dim is 48, the language model has 40"),
        (age, r"esm2_x\.pt: not an ESM-2 checkpoint"),
    ],
)
def test_a_wrong_official_file_is_refused_and_nothing_is_loaded(
    lm, official_esm2, tmp_path, damage, message
):
    content = official_esm2(LanguageModel.random(SHAPE, seed=2))
    damage(content)
    torch.save(content, tmp_path / "esm2_x.pt")
    before = weights_hash(lm)
    with pytest.raises(UserError, match=message):
        load_esm2(lm, tmp_path / "esm2_x.pt")
    assert weights_hash(lm) == before


def test_a_file_that_would_run_code_is_refused(lm, tmp_path):
    torch.save({"cfg": print, "model": {}}, tmp_path / "esm2_x.pt")
    with pytest.raises(UserError, match=r"esm2_x\.pt: cannot be read \(Weights only load failed"):
        load_esm2(lm, tmp_path / "esm2_x.pt")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_refused(lm, tmp_path, content):
    (tmp_path / "esm2_x.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"esm2_x\.pt: "):
        load_esm2(lm, tmp_path / "esm2_x.pt")


def test_an_incomplete_hugging_face_folder_is_refused(lm, tmp_path):
    with pytest.raises(UserError, match=r"config\.json: No such file"):
        load_esm2(lm, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match=r"config\.json: model_type is bert"):
        load_esm2(lm, tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not JSON"):
        load_esm2(lm, tmp_path)


def test_sharded_safetensors_load_as_one(lm, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(hugging_face_settings(SHAPE)))
    # fair-esm's names pass through the translation unchanged, so they serve for this test.
    tensors = {f"esm.{name}": p for name, p in lm.official_tensors()}
    weight_map = {}
    for i, name in enumerate(tensors):
        weight_map[name] = f"model-{i % 2}.safetensors"
    for file in set(weight_map.values()):
        part = {n: t for n, t in tensors.items() if weight_map[n] == file}
        save_file(part, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    other = LanguageModel.random(SHAPE, seed=2)
    load_esm2(other, tmp_path)
    assert weights_hash(other) == weights_hash(lm)


def test_the_fingerprint_sees_every_weight_and_not_the_adapter(lm):
    before = weights_hash(lm)
    insert_adapter(lm, AdapterConfig())
    assert weights_hash(lm) == before
    for _, p in lm.base_parameters():
        with torch.no_grad():
            p.view(-1)[-1] += 1
        after = weights_hash(lm)
        assert after != before
        before = after


@pytest.mark.parametrize("name", ["esm2_t6_8M_UR50D", "esmfold_3B_v1"])
def test_pretrained_weights_are_looked_for_in_the_hub_folder(name, hub):
    folder, asked = hub
    for _ in range(2):
        esm2 = name.startswith("esm2")
        path = find_weights(name, "pretrained") if esm2 else find_esmfold("pretrained")
        assert path == folder / f"{name}.pt"
        assert path.read_bytes() == b"weights"
    assert asked == [f"https://dl.fbaipublicfiles.com/fair-esm/models/{name}.pt"]


def test_a_failed_download_says_where_the_file_goes(hub, tmp_path, monkeypatch):
    def download(url, dst):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(UserError, match=r"put the file at .*esm2_t6_8M_UR50D\.pt by hand"):
        find_weights("esm2_t6_8M_UR50D", "pretrained")
    assert list(tmp_path.rglob("*.pt")) == []


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("esm3", "pretrained", '"esm3" is unknown'),
        ("esm2_t6_8M_UR50D", "nowhere.pt", r"nowhere\.pt does not exist"),
    ],
)
def test_weights_that_cannot_be_had_are_named(name, weights, message):
    with pytest.raises(UserError, match=message):
        find_weights(name, weights)
