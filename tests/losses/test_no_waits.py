"""Losses never make the host wait for a GPU; see also tests/training/test_step.py."""

from dataclasses import replace

import pytest
import torch

from esmfold_peft.config import LossWeights
from esmfold_peft.datasets.batch import map_tensors
from esmfold_peft.datasets.truth import ground_truth
from esmfold_peft.geometry.tables import tables
from esmfold_peft.losses.total import fold_loss
from tests.waits import WaitError, no_waits


@pytest.mark.parametrize("kind", ["cpu", "meta"])
def test_no_operation_of_the_loss_of_atoms_waits(cases, kind, monkeypatch):
    device = torch.device(kind)
    tables(device)
    for module in ("metrics.lddt", "losses.violations"):
        monkeypatch.setattr(f"esmfold_peft.{module}.lists_pairs", lambda device: False)
    batch, output = cases.make("ARNDCQEGHILKMFPSTWYV", "DEFYWCC")
    output = replace(output, plddt_logits=output.pae_logits[:, :, :1].expand(-1, -1, 37, -1))
    output = map_tensors(output, lambda t: t.to(device).detach().requires_grad_())
    truth, clamp = ground_truth(batch).to(device), torch.full((2,), 10.0, device=device)
    with no_waits():
        fold_loss(output, truth, LossWeights(), clamp=clamp).total.mean().backward()
    assert output.plddt_logits.grad is not None


WAITS = {
    "a list as index": lambda x, mask: x[:, [2, 1, 0]],
    "a mask as index": lambda x, mask: x[mask],
    "a list that becomes a tensor": lambda x, mask: x.new_tensor((1.0, 2.0)),
    "places of a mask": lambda x, mask: mask.nonzero(),
    "a value that is read": lambda x, mask: x.sum().item(),
    "a decision": lambda x, mask: bool(mask.any()),
    "a list": lambda x, mask: x.tolist(),
    "an index of another device": lambda x, mask: x[torch.arange(2)],
}


@pytest.mark.parametrize("code", WAITS.values(), ids=WAITS)
def test_what_waits_is_found(code):
    def found(device: str) -> bool:
        x, mask = torch.zeros(2, 5, 3, device=device), torch.ones(2, 5, device=device).bool()
        try:
            with no_waits():
                code(x, mask)
        except (WaitError, NotImplementedError):
            return True
        return False

    assert found("cpu") or found("meta")
