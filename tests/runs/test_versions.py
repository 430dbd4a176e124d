"""Versions are recorded for what is installed, and asked of nothing that is not."""

import importlib.metadata

import pytest
import torch

from esmfold_peft import __version__
from esmfold_peft.runs.versions import installed_versions


def test_a_checkout_that_is_not_installed_has_its_own_version(monkeypatch: pytest.MonkeyPatch):
    def nothing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("esmfold_peft.runs.versions.version", nothing)
    found = installed_versions(("esmfold-peft", "torch"))
    assert found == {"esmfold-peft": __version__, "torch": None}


def test_versions_are_those_of_the_metadata():
    assert installed_versions(["torch"])["torch"] == importlib.metadata.version("torch")
    assert torch.__version__.startswith(importlib.metadata.version("torch").partition("+")[0])
