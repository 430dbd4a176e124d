"""torch.compile sees forward and backward pass as one graph, with the same gradients."""

import subprocess
import sys

import pytest

from esmfold_peft.adapters.insert import ADAPTERS

# In a process of its own: the type checks that tests switch on are no code for a compiler.
SCRIPT = """
import sys
import torch
from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.adapters.insert import ADAPTERS, insert_adapter
from esmfold_peft.config import AdapterConfig
from esmfold_peft.model.language_model import LanguageModel

kinds = sys.argv[1:] or ADAPTERS
aatype = torch.randint(0, 20, (2, 9))
mask = torch.arange(9) < torch.tensor([[9], [6]])
for kind in kinds:
    method = ADAPTERS[kind]
    torch._dynamo.reset()
    lm = LanguageModel.random(AttentionShape(layers=2, width=16, heads=2))
    adapter = insert_adapter(lm, AdapterConfig(kind=kind, rank=2, targets=method.allowed))
    with torch.no_grad():
        for factor in adapter.parameters():
            factor.add_(0.1)
    gradients = []
    for model in (lm, torch.compile(lm, backend="aot_eager", fullgraph=True)):
        adapter.zero_grad()
        model(aatype, mask)[mask].square().mean().backward()
        gradients.append([p.grad for p in adapter.parameters() if p.requires_grad])
    for one, two in zip(*gradients, strict=True):
        assert (one - two).norm() <= 1e-5 * one.norm(), kind
    print(kind)
"""


def compiled(*kinds: str) -> list[str]:
    """The methods that were compiled; none stands for all."""
    command = [sys.executable, "-c", SCRIPT, *kinds]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


@pytest.mark.slow
def test_lorta_compiles_without_a_break():
    assert compiled("lorta") == ["lorta"]


@pytest.mark.proof
def test_every_adapter_compiles_without_a_break():
    assert compiled() == list(ADAPTERS)
