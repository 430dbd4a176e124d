"""Adapters on disk: the same after a round trip, and nothing that is not exactly right loads."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.adapters.io import load_adapter, save_adapter
from esmfold_peft.errors import UserError
from esmfold_peft.model.language_model import LanguageModel
from esmfold_peft.weights.esm2_weights import weights_hash


def test_each_shared_factor_is_stored_once(make_lm, tmp_path):
    lm = make_lm("lorta", rank=2)
    save_adapter(lm.adapter, tmp_path, weights_hash(lm))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    assert shapes == {"a": (40, 2), "b": (10, 2), "c_h": (4, 2), "c_l": (3, 2), "c_m": (3, 2)}
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_what_a_method_drew_is_stored(make_lm, tmp_path):
    # A seed would give other numbers with another version of PyTorch.
    for kind, names in {"vera": {"projection_a", "projection_b"}, "lora_fa": {"a_query"}}.items():
        lm = make_lm(kind, rank=2)
        save_adapter(lm.adapter, tmp_path / kind, weights_hash(lm))
        tensors = load_file(tmp_path / kind / "adapter_model.safetensors")
        for name in names:
            assert torch.equal(tensors[name], lm.adapter.state_dict()[name])


def test_the_header_describes_the_adapter(make_lm, tmp_path):
    lm = make_lm("lora", rank=2, alpha=6.0, targets=("key", "output"))
    save_adapter(lm.adapter, tmp_path, weights_hash(lm))
    header = json.loads((tmp_path / "adapter_config.json").read_text())
    header.pop("tensors_sha256")
    assert header == {
        "kind": "lora",
        "rank": 2,
        "alpha": 6.0,
        "targets": ["key", "output"],
        "init": "unit",
        "scaling": "alpha/r",
        "modes": ["heads", "matrices", "layers"],
        "orientation": "paper",
        "component_weights": False,
        "tt_rank": 5,
        "bases": 64,
        "norms": False,
        "freeze": [],
        "lr_factors": {},
        "scale": 3.0,
        "shape": {"layers": 3, "width": 40, "heads": 4},
        "base_sha256": weights_hash(lm),
    }


@pytest.fixture
def saved(make_lm, tmp_path):
    lm = make_lm("lorta", rank=2)
    save_adapter(lm.adapter, tmp_path, weights_hash(lm))
    return tmp_path


def edit_header(folder, **changes):
    path = folder / "adapter_config.json"
    header = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in header.items() if value is not ...}))


def edit_tensors(folder, change):
    """Rewrites the tensors with a header that vouches for them."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    edit_header(folder, tensors_sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def assert_refused(make_lm, folder, message):
    """Loading fails with this message and leaves model and trainability alone."""
    lm = make_lm("full")
    with pytest.raises(UserError, match=message):
        load_adapter(lm, folder, weights_hash(lm))
    assert lm.adapter is None
    assert all(p.requires_grad for p in lm.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("c_l"), r'adapter_model\.safetensors: tensor "c_l" is missing'),
        (lambda t: t.update(d=torch.zeros(1)), r'tensor "d" is unexpected'),
        (lambda t: t.update(b=torch.zeros(2, 10)), r'"b" has shape \(2, 10\), expected \(10, 2\)'),
    ],
)
def test_wrong_tensors_are_named(make_lm, saved, change, message):
    edit_tensors(saved, change)
    assert_refused(make_lm, saved, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_sha256": "0" * 64}, "adapter_config.json: base_sha256 is 000.*, here it is"),
        ({"shape": {"layers": 2, "width": 40, "heads": 4}}, r'"c_l" has shape \(3, 2\), expected'),
        ({"shape": {"layers": 3, "width": 40}}, "adapter_config.json: .*heads"),
        (
            {"shape": {"layers": 3, "width": 42, "heads": 4}},
            "config.json: .*twice the heads",
        ),
        ({"rank": 4}, "scale is 0.5, here it is 0.25"),
        ({"rank": "2"}, "json: rank is '2', expected 2"),
        ({"rank": 0}, "json: adapter.rank: 0 is not a positive number"),
        ({"kind": "full"}, "json: kind full is no adapter"),
        ({"targets": ["query", "gate"]}, r'json: .*"targets".*Got value: gate'),
        ({"init": ...}, 'key "init" is missing'),
        ({"dropout": 0.1}, 'key "dropout" is unexpected'),
    ],
)
def test_wrong_headers_are_named(make_lm, saved, changes, message):
    edit_header(saved, **changes)
    assert_refused(make_lm, saved, message)


def test_another_size_of_language_model_is_refused(saved):
    lm = LanguageModel.random(AttentionShape(layers=3, width=40, heads=2))
    with pytest.raises(UserError, match=r"shape is .*'heads': 4}, here it is .*'heads': 2}"):
        load_adapter(lm, saved, weights_hash(lm))


def test_another_base_is_refused(make_lm, saved):
    lm = make_lm("none")
    with torch.no_grad():
        lm.embed_tokens.weight[5, 0] += 1e-3
    with pytest.raises(UserError, match="base_sha256"):
        load_adapter(lm, saved, weights_hash(lm))


def test_files_of_two_saves_are_not_mixed(make_lm, saved):
    path = saved / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: t + 1 for name, t in tensors.items()}, path)
    assert_refused(make_lm, saved, "tensors_sha256")


def test_a_save_that_fails_leaves_the_old_one(make_lm, chains, saved, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full_disk(fd):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full_disk)
    other = make_lm("lora")
    with pytest.raises(UserError, match="no space left"):
        save_adapter(other.adapter, saved, weights_hash(other))
    for name, content in before.items():
        assert (saved / name).read_bytes() == content


def test_a_folder_of_peft_is_recognised(make_lm, saved):
    edit_header(saved, peft_type="LORA")
    assert_refused(make_lm, saved, "an adapter of Hugging Face PEFT; `adapters import` reads it")


@pytest.mark.parametrize("key", ["rank", "init", "modes", "scaling", "shape", "lr_factors"])
def test_nulls_are_named(make_lm, saved, key):
    edit_header(saved, **{key: None})
    assert_refused(make_lm, saved, f"adapter_config.json: {key}(: null is no value| is None)")


def test_a_place_where_no_folder_can_be_is_named(make_lm, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file/a: cannot make this folder"):
        save_adapter(make_lm("lorta").adapter, tmp_path / "file" / "a", "")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_missing_files_are_named(make_lm, saved, name):
    (saved / name).unlink()
    assert_refused(make_lm, saved, f"{name}: No such file")


@pytest.mark.parametrize(
    ("kind", "now", "before"), [("nola", "unit_a", "base_a"), ("tt_lora", "g6_query", "g0_query")]
)
def test_numbers_that_once_meant_something_else_are_not_read(make_lm, tmp_path, kind, now, before):
    # base_a was A₀ itself; the inputs' digits of a train ran the other way.
    lm = make_lm(kind, targets=("query",))
    state = {before if name == now else name: t for name, t in lm.adapter.state_dict().items()}
    save_adapter(lm.adapter, tmp_path, weights_hash(lm), state)
    assert_refused(make_lm, tmp_path, f'tensor "{now}" is missing')
