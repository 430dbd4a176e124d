"""Expected aligned error and TM-score against transformers' port of OpenFold."""

import pytest
import torch
from torch import Tensor
from transformers.models.esm.openfold_utils import loss as reference

from esmfold_peft.model.confidence import predicted_aligned_error, predicted_tm


def random_logits(chains: int, n: int, size: float) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    # Drifting to small errors in some columns, so that frames and residues differ.
    drift = torch.linspace(2, -2, 64) * torch.rand(chains, n, n, 1, generator=generator)
    return size * (torch.randn(chains, n, n, 64, generator=generator) + drift)


@pytest.mark.parametrize("size", [0.5, 2.0, 8.0])
def test_aligned_error(size):
    logits = random_logits(2, 30, size)
    theirs = reference.compute_predicted_aligned_error(logits)["predicted_aligned_error"]
    torch.testing.assert_close(predicted_aligned_error(logits), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [0.5, 2.0, 8.0])
def test_tm_of_every_chain_of_a_padded_batch(size):
    # Theirs gives one number for a batch and counts padding: compare chain by chain.
    lengths = [40, 25, 19, 12, 1]
    logits = random_logits(len(lengths), 40, size)
    mask = torch.arange(40) < torch.tensor(lengths)[:, None]
    ours = predicted_tm(logits, mask)
    for b, n in enumerate(lengths):
        theirs = reference.compute_tm(logits[b, :n, :n])
        assert ours[b].item() == pytest.approx(theirs.item(), abs=1e-5)
