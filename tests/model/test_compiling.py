"""A model compiled for training computes what the plain one does, with one graph for each part."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from esmfold_peft.model import compiling
from esmfold_peft.model.compiling import compile_for_training, compiled_for_training

# In a process of its own: the shape checks of the other tests cannot be compiled.
MODEL = """
import functools, sys
from dataclasses import replace
import torch
from torch._dynamo.utils import counters
torch.compile = functools.partial(torch.compile, backend="aot_eager")
from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.adapters.insert import insert_adapter
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.language_model import LanguageModel
from tests.tiny import TINY

def model(compile, recompute, bf16):
    torch.manual_seed(0)
    lm = LanguageModel.random(AttentionShape(layers=2, width=16, heads=2), recompute=recompute)
    structure = replace(TINY.model.structure, layers=2, dropout=0.3)
    evoformer = replace(TINY.model.evoformer, recompute=recompute)
    config = replace(TINY.model, structure=structure, evoformer=evoformer)
    made = FoldingModel(lm, config, bf16=bf16, compile=compile)
    insert_adapter(lm, TINY.adapter)
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return made

def results(made, seed, n=10):
    generator = torch.Generator().manual_seed(seed)
    aatype = torch.randint(0, 20, (2, n), generator=generator)
    mask = torch.arange(n) < torch.tensor([[n], [n - 2 - seed]])
    torch.manual_seed(seed)  # of the dropout, which is drawn outside the compiled code
    made.zero_grad()
    output = made(aatype, torch.arange(n).expand(2, n), mask, recycles=1)
    found = {"positions": output.positions, "rotation": output.frames.rotation,
             "torsions": output.torsions, "plddt": output.plddt_logits, "pae": output.pae_logits}
    sum(tensor.sin().sum() for tensor in found.values()).backward()
    grads = {n: p.grad for n, p in made.named_parameters() if p.grad is not None}
    return {name: tensor.detach() for name, tensor in (found | grads).items()}

for case in sys.argv[1:]:
    torch._dynamo.reset()
    counters.clear()
    recompute, bf16 = case == "recompute", case == "bf16"
    plain, fast = (model(compile, recompute, bf16) for compile in (False, True))
    assert list(plain.state_dict()) == list(fast.state_dict())
    for seed in range(2):
        found, expected = results(fast, seed), results(plain, seed)
        assert found.keys() == expected.keys()
        if bf16:  # rounding differs, and neither is much farther from float32 than the other
            exact = results(model(False, False, False), seed)
            far = [
                sum(float((r[n] - v).norm() / (v.norm() + 1)) for n, v in exact.items())
                for r in (found, expected)
            ]
            assert far[0] <= 3 * far[1], far
            continue
        for name, value in expected.items():
            error = (found[name] - value).norm()
            assert error <= 1e-4 * (value.norm() + 1), (case, name, error, value.norm())
    # Blocks and structure module with gradients and without, the language model with them.
    assert counters["stats"]["unique_graphs"] == 5, counters
    fast.eval()
    results(fast, 0, 7)  # other lengths are not compiled
    assert counters["stats"]["unique_graphs"] == 5, counters
    print(case)
"""


def run(script: str, *arguments: str) -> list[str]:
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split()


@pytest.mark.proof
def test_each_part_of_a_compiled_model_is_one_graph_with_the_plain_gradients():
    # Without both: tests/training/test_compiled_passes.py.
    assert run(MODEL, "bf16", "recompute") == ["bf16", "recompute"]


@pytest.fixture
def compiler(monkeypatch):
    """Stands in for torch.compile: it fails where `fault` is an error, and counts calls."""

    class Compiler:
        fault: Exception | None = None
        calls = 0

        def __call__(self, function, *, fullgraph, dynamic):
            assert (fullgraph, dynamic) == (True, False)

            def compiled(*arguments, **named):
                self.calls += 1
                if self.fault is not None:
                    raise self.fault
                return function(*arguments, **named)

            return compiled

    made = Compiler()
    monkeypatch.setattr(torch, "compile", made)
    monkeypatch.setattr(compiling, "_prepare", lambda: None)
    return made


def double(x: Tensor, *, times: int = 2) -> Tensor:
    return x * times


def test_a_function_that_cannot_be_compiled_runs_without_and_one_line_says_why(compiler, caplog):
    compiler.fault = RuntimeError("no kernel\nfor this card")
    function = compiled_for_training(double)
    assert [function(torch.tensor(k), times=3).item() for k in (1, 2)] == [3, 6]
    assert compiler.calls == 1
    assert [record.getMessage() for record in caplog.records] == [
        "torch.compile: double is not compiled: RuntimeError: no kernel for this card."
        " It runs uncompiled, which is slower."
    ]


def test_too_little_memory_is_no_reason_not_to_compile(compiler):
    compiler.fault = torch.OutOfMemoryError("CUDA out of memory")
    function = compiled_for_training(double)
    with pytest.raises(torch.OutOfMemoryError):
        function(torch.tensor(1))
    compiler.fault = None
    function(torch.tensor(1))
    assert compiler.calls == 2


def test_modules_run_compiled_in_training_with_hooks_and_names_and_copies_of_their_own(compiler):
    module, seen = nn.Linear(1, 1), []
    names = list(module.state_dict())
    module.register_forward_hook(lambda *_: seen.append("hook"))
    compile_for_training(module)
    copied = copy.deepcopy(module)
    with torch.no_grad():
        copied.weight += 1
    x = torch.ones(1, 1)
    assert torch.allclose(copied(x) - module(x), x)
    module.eval()(x)
    assert compiler.calls == 2
    assert seen == ["hook"] * 3
    assert list(module.state_dict()) == names
