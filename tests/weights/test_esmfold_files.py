"""ESMFold's files: damaged ones, and pickles of objects that are not torch's."""

import json
import os
import shutil
import sys
from collections import defaultdict
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from esmfold_peft.weights.esmfold_weights import load_esmfold
from esmfold_peft.weights.layouts import look_up, read_published


@pytest.fixture
def eight(tiny):
    """The settings with the published layers of the structure module."""
    return replace(tiny, structure=replace(tiny.structure, layers=8))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_a_damaged_official_file_is_refused(tiny, tmp_path, content, refused):
    (tmp_path / "x.pt").write_bytes(content)
    refused(tiny, tmp_path / "x.pt", r"x\.pt: .")


@pytest.mark.parametrize("part", [0.3, 0.99])
def test_a_truncated_file_is_refused(files, tiny, tmp_path, part, refused):
    whole = files["official"].read_bytes()
    (tmp_path / "x.pt").write_bytes(whole[: int(len(whole) * part)])
    refused(tiny, tmp_path / "x.pt", r"x\.pt: .")
    folder = tmp_path / "folder"
    shutil.copytree(files["safetensors"], folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: int(len(whole) * part)])
    refused(tiny, folder, r"model\.safetensors: .")


def test_an_incomplete_folder_is_refused(files, tiny, tmp_path, refused):
    refused(tiny, tmp_path, r"config\.json: No such file")
    shutil.copy(files["bin"] / "config.json", tmp_path)
    refused(tiny, tmp_path, r"it has neither model\.safetensors nor pytorch_model\.bin$")
    (tmp_path / "notes.txt").write_text("x")
    refused(tiny, tmp_path / "notes.txt", r"neither an official \.pt file nor a Hugging Face")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    refused(tiny, tmp_path, r"gone\.safetensors: .")
    index.write_text(json.dumps({"weight_map": ["a"]}))
    refused(tiny, tmp_path, r"index\.json: weight_map names no files$")


# What is in the pickle


@pytest.fixture
def omegaconf(monkeypatch):
    """A module with omegaconf's classes as its pickles need them; `forget` makes it absent."""
    module = ModuleType("omegaconf_like")

    def kind(name, **extra):
        made = type(name, (), {"__module__": module.__name__, "__qualname__": name, **extra})
        setattr(module, name, made)
        return made

    node, container, metadata = kind("AnyNode"), kind("DictConfig"), kind("ContainerMetadata")

    def wrap(value):
        """A node with its value in `_val`, or a container with nodes in `_content`."""
        made = (container if isinstance(value, dict) else node)()
        made._metadata, made._parent = metadata(), made
        made._metadata.object_type = made._metadata.key_type = dict
        made._metadata.resolver_cache = defaultdict(dict, env={"HOME": "/root"})
        if isinstance(value, dict):
            made._content = {key: wrap(item) for key, item in value.items()}
        else:
            made._val = value
        return made

    module.wrap = wrap
    monkeypatch.setitem(sys.modules, module.__name__, module)
    module.forget = lambda: sys.modules.pop(module.__name__)
    return module


SETTINGS = {
    "_name": "ESMFoldConfig",
    "use_esm_attn_map": False,
    "trunk": {"chunk_size": None, "structure_module": {"no_blocks": 3, "epsilon": 1e-8}},
}


@pytest.mark.parametrize("outer", [False, True], ids=["model", "cfg"])
def test_settings_of_omegaconf_are_read_without_it(
    official, omegaconf, tiny, outer, write, folding_model
):
    content = official(omegaconf.wrap(SETTINGS))
    if outer:
        content["cfg"] = omegaconf.wrap({"model": SETTINGS})
    path = write(content)
    omegaconf.forget()
    load_esmfold(folding_model(tiny), path)
    assert omegaconf.__name__ not in sys.modules
    settings = read_published(path, "ESMFold").esmfold_settings
    assert look_up(settings, "_name") == "ESMFoldConfig"
    assert look_up(settings, "trunk", "structure_module", "no_blocks") == 3
    assert look_up(settings, "trunk", "chunk_size") is None
    assert look_up(settings, "trunk") is None
    assert look_up(settings, "no", "such", "setting") is None


def test_settings_of_omegaconf_are_checked(official, omegaconf, tiny, write, refused):
    other = {**SETTINGS, "bypass_lm": True}
    path = write(official(omegaconf.wrap(other)))
    omegaconf.forget()
    refused(tiny, path, r"bypass_lm is True, the published ESMFold has False$")


def test_settings_without_a_number_of_layers_mean_the_published_eight(
    official, tiny, eight, write, folding_model, refused
):
    path = write(official({}))
    load_esmfold(folding_model(eight), path)
    refused(tiny, path, r"model\.structure\.layers is 3, the file has 8$")


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, argument):
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call


def test_nothing_in_a_pickle_is_run(official, tiny, eight, tmp_path, write, folding_model, refused):
    sentinel = tmp_path / "it ran"
    harmless = official()
    code = f"open({str(sentinel)!r}, 'w')"
    harmless["cfg"]["model"] = {"a": Call(exec, code), "b": Call(eval, code)}
    load_esmfold(folding_model(eight), write(harmless))
    blocked = official()
    blocked["cfg"]["model"]["a"] = Call(os.system, f"touch '{sentinel}'")
    path = write(blocked)
    refused(tiny, path, r"x\.pt: cannot be read \(Weights only load failed: .*system")
    hidden = official()
    hidden["model"]["lm_head.bias"] = Call(exec, code)
    refused(tiny, write(hidden), r'"lm_head\.bias" is no tensor \(Inert\)')
    assert not sentinel.exists()
    torch.load(path, weights_only=False)  # the file is as bad as it seems
    assert sentinel.exists()


def test_the_old_format_of_torch_is_read_if_it_holds_tensors_alone(
    official, tiny, tmp_path, folding_model, refused
):
    path, sentinel = tmp_path / "old.pt", tmp_path / "it ran"
    torch.save(official(), path, _use_new_zipfile_serialization=False)
    load_esmfold(folding_model(tiny), path)
    bad = official({"a": Call(exec, f"open({str(sentinel)!r}, 'w')")})
    torch.save(bad, path, _use_new_zipfile_serialization=False)
    refused(tiny, path, r"old\.pt: cannot be read \(Weights only load failed: .*exec")
    assert not sentinel.exists()
