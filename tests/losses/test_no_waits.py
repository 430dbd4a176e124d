"""Structure module, losses and scores of a training step never make the host wait for a GPU."""

from dataclasses import fields, replace

import pytest
import torch

from esmfold_peft.config import LossWeights
from esmfold_peft.datasets.batch import Batch
from esmfold_peft.datasets.padded import map_tensors
from esmfold_peft.datasets.truth import GroundTruth, ground_truth
from esmfold_peft.geometry.tables import tables
from esmfold_peft.losses.total import fold_loss
from esmfold_peft.metrics.lddt import lddt_ca
from esmfold_peft.model.output import FoldOutput
from esmfold_peft.model.structure_module import StructureModule, StructureModuleOutput
from tests.waits import WaitError, no_waits

FINETUNING = LossWeights(resolved=0.01, violation=1.0, pae=0.1)
SEQUENCES = "ARNDCQEGHILKMFPSTWYV", "DEFYWCC"


@pytest.fixture(params=["cpu", "meta"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device that stands for a GPU, with its tables."""
    device = torch.device(request.param)
    tables(device)
    for module in ("metrics.lddt", "losses.violations"):
        monkeypatch.setattr(f"esmfold_peft.{module}.lists_pairs", lambda device: False)
    return device


def predicted(made: StructureModuleOutput, logits: FoldOutput) -> FoldOutput:
    """What a structure module made, with the logits of another output."""
    names = [f.name for f in fields(made) if f.name != "s"]
    return replace(logits, **{name: getattr(made, name) for name in names})


def learn(module: StructureModule, batch: Batch, truth: GroundTruth, logits: FoldOutput, weights):
    """Coordinates from tracks, losses, scores and gradients."""
    b, n = batch.aatype.shape
    s, z = (torch.randn(*shape, 8, device=batch.mask.device) for shape in ((b, n), (b, n, n)))
    output = predicted(module(s, z, batch.aatype, batch.mask), logits)
    clamp = torch.where(batch.clamped, 10.0, torch.inf)
    terms = fold_loss(output, truth, weights, clamp=clamp)
    terms.total.mean().backward()
    return terms, lddt_ca(output.positions, batch.positions, batch.atom_mask)


@pytest.mark.parametrize(
    ("weights", "atoms"),
    [(LossWeights(), False), (FINETUNING, False), (FINETUNING, True)],
    ids=["initial", "finetuning", "finetuning, pLDDT of atoms"],
)
def test_no_operation_of_losses_and_scores_waits(cases, device, weights, atoms):
    batch, logits = cases.make(*SEQUENCES)
    truth = ground_truth(batch)
    if atoms:
        logits = replace(logits, plddt_logits=logits.pae_logits[:, :, :1].expand(-1, -1, 37, -1))
    module = StructureModule(c_s=8, c_z=8, c_ipa=4, heads=2, layers=2, c_angle=8).to(device)
    logits = map_tensors(logits, lambda tensor: tensor.to(device))
    batch, truth = batch.to(device), truth.to(device)
    with no_waits():
        learn(module, batch, truth, logits, weights)
    assert all(p.grad is not None for p in module.parameters())


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
