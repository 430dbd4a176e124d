"""A step with `engine.compile` has the plain losses and gradients, with one graph for each part."""

import subprocess
import sys

import pytest

# In a process of its own: the shape checks of the other tests cannot be compiled.
SCRIPT = """
import functools
from dataclasses import replace
import torch
from torch._dynamo.utils import counters
torch.compile = functools.partial(torch.compile, backend="aot_eager")
from esmfold_peft.config import LossWeights
from esmfold_peft.datasets.truth import ground_truth
from esmfold_peft.runs.build import build_model
from esmfold_peft.training.gradients import GradientSum
from esmfold_peft.training.passes import Chains, Passes
from tests.losses.conftest import make_case
from tests.tiny import TINY

def gradients_and_losses(config, batch, seed):
    model = build_model(config)[0].train()
    torch.manual_seed(seed)
    for parameter in model.parameters():  # those of the start have zeros
        parameter.data += 0.1 * torch.randn(parameter.shape)
    passes = Passes(model, config, len(batch.ids), batch.mask.device)
    m, weights = model.read(batch.aatype, batch.mask), model.pack()
    truth = ground_truth(batch, fixed=True)
    chains = Chains(batch, truth, m.detach(), 7, fixed=True)
    recycled = passes.recycle(chains, weights, 1)
    total = GradientSum(m, passes.shared_tensors(weights))
    prediction = passes.differentiate(chains, recycled, weights, 1, total)
    total.as_loss().backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert len(found) == sum(p.requires_grad for p in model.parameters())
    return found | prediction.terms.terms | {"total": prediction.terms.total}

weights = LossWeights(resolved=0.01, violation=1.0, pae=0.1)
plain = replace(TINY, loss=replace(TINY.loss, weights=weights))
compiled = replace(plain, engine=replace(plain.engine, compile=True))
for seed, sequences in enumerate((("ARNDCQEGHI", "GGWDE"), ("LKMFPSTW", "CCFYDEWWYV"))):
    batch, _ = make_case(*sequences, length=12, seed=seed)
    found, expected = (gradients_and_losses(each, batch, seed) for each in (compiled, plain))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = (found[name] - value).norm()
        assert error <= 1e-4 * value.norm() + 1e-5, (name, error, value.norm())
    print(counters["stats"]["unique_graphs"])
"""


@pytest.mark.proof
def test_a_compiled_step_has_the_plain_gradients_with_one_graph_for_each_part():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    # Blocks and structure module with gradients and without, language model, losses.
    assert done.stdout.split() == ["6", "6"], done.stderr[-3000:]
