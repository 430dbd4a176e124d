"""Compiled for inference a model folds as the plain one, by few graphs for all lengths."""

import subprocess
import sys

import pytest

from esmfold_peft.model import inference
from esmfold_peft.model.inference import Query, fold, sequence_features

# In a process of its own: the shape checks of the other tests cannot be compiled.
SCRIPT = """
import functools, sys
from dataclasses import replace
import torch
from torch._dynamo.utils import counters
torch.compile = functools.partial(torch.compile, backend="aot_eager")
from esmfold_peft.adapters.insert import insert_adapter
from esmfold_peft.config import EsmfoldConfig
from esmfold_peft.model import inference
from esmfold_peft.runs.build import build_language_model
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.inference import Query, fold, sequence_features
from tests.tiny import TINY

esmfold = EsmfoldConfig(blocks=2, c_s=32, c_z=16, c_structure=24, heads=4, heads_pair=2)
structure = replace(TINY.model.structure, layers=1)
config = replace(TINY.model, trunk=sys.argv[1], esmfold=esmfold, structure=structure)
torch.manual_seed(0)
model = FoldingModel(build_language_model(config.language_model, seed=0), config, bf16=False)
insert_adapter(model.language_model, TINY.adapter)
for parameter in model.eval().parameters():
    parameter.data += 0.1 * torch.randn(parameter.shape)
letters = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSR"

def folded(lengths):
    queries = [Query(sequence_features("x", letters[:n])) for n in lengths]
    return [vars(one) for one in fold(model, queries, recycles=1, max_tokens=80, pae=True)]

given = [[7, 9], [21, 22, 23], [33, 39]]
plain = [folded(lengths) for lengths in given]
inference.compile_obstacle = lambda device: None
inference._PAYS_FROM = 0
graphs = []
for lengths, expected in zip(given, plain, strict=True):
    for one, other in zip(folded(lengths), expected, strict=True):
        assert one["index"] == other["index"]
        assert (one["positions"] - other["positions"]).norm(dim=-1).max() < 1e-4
        for name, largest in ("atom_plddt", 1e-5), ("pae", 1e-3):
            assert (one[name] - other[name]).abs().max() < largest, name
    graphs.append(counters["stats"]["unique_graphs"])
assert graphs == [3] * 3, graphs  # a block, structure module, language model
print("done")
"""


@pytest.mark.proof
@pytest.mark.parametrize("trunk", ["evoformer", "esmfold_v1"])
def test_batches_of_all_sizes_are_folded_by_one_graph_of_each_part(trunk: str):
    command = [sys.executable, "-c", SCRIPT, trunk]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "done\n", done.stderr[-3000:]


@pytest.fixture
def model(shaken):
    """A model that says when it is compiled, on a machine that could."""
    made, calls = shaken("evoformer").eval(), []
    made.compile_for_inference = lambda: calls.append(made.pairs_asked)
    made.calls = calls
    return made


def ask(model, *lengths: int) -> None:
    queries = [Query(sequence_features("x", "G" * n)) for n in lengths]
    assert len(list(fold(model, queries, recycles=1, max_tokens=1))) == len(lengths)


def test_a_model_is_compiled_once_enough_was_asked_of_it(model, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inference, "compile_obstacle", lambda device: None)
    monkeypatch.setattr(inference, "_PAYS_FROM", 2 * (3 * 25 + 16))
    ask(model, 5, 5)
    ask(model, 5)
    assert model.calls == []
    ask(model, 4)
    assert model.calls == [182]


def test_on_a_cpu_nothing_is_compiled_nor_padded(model, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inference, "_PAYS_FROM", 0)
    seen, read = [], model.read
    monkeypatch.setattr(
        model,
        "read",
        lambda aatype, *rest, **more: seen.append(aatype.shape) or read(aatype, *rest, **more),
    )
    ask(model, 5)
    assert (model.calls, seen) == ([], [(1, 5)])


def test_weights_are_packed_once_for_all_batches(model, monkeypatch: pytest.MonkeyPatch):
    calls, pack = [], model.pack
    monkeypatch.setattr(model, "pack", lambda: calls.append(1) or pack())
    ask(model, 5, 6, 7)
    assert calls == [1]
    ask(model, 5)
    assert calls == [1, 1]  # they may have changed


def test_padding_is_to_a_multiple_that_changes_nothing(model, monkeypatch: pytest.MonkeyPatch):
    def folded():
        queries = [Query(sequence_features("x", letters)) for letters in ("MKTAY", "ACDEFGHIK")]
        return list(fold(model, queries, recycles=1, max_tokens=32, pae=True))

    plain = folded()
    monkeypatch.setattr(inference._Batches, "padded", lambda self, length: -(-length // 16) * 16)
    for one, other in zip(folded(), plain, strict=True):
        assert one.positions.shape == other.positions.shape
        assert (one.positions - other.positions).norm(dim=-1).max() < 1e-4
        assert (one.pae - other.pae).abs().max() < 1e-3
        assert abs(one.ptm - other.ptm) < 1e-5
