"""The block of ESMFold's trunk against transformers' port, with the same weights."""

import pytest
import torch
from torch import Tensor, nn
from transformers.models.esm.configuration_esm import TrunkConfig
from transformers.models.esm.modeling_esmfold import EsmFoldTriangularSelfAttentionBlock

from tests.model.trunks.one_block import OneBlock

PUBLISHED = {
    "sequence_state_dim": 1024,
    "sequence_head_width": 32,
    "pairwise_state_dim": 128,
    "pairwise_head_width": 32,
}
SMALL = {
    "sequence_state_dim": 40,
    "sequence_head_width": 8,
    "pairwise_state_dim": 24,
    "pairwise_head_width": 8,
}
LENGTHS = {"one": (17,), "even": (12, 12), "padded": (13, 8, 1)}
UNSEEN = "pair_to_sequence.layernorm.bias"
"""Adds the same to all logits of a head, which softmax ignores: its gradient is rounding errors."""


def randomize(module: nn.Module) -> None:
    """Random everywhere, zero-initialised layers included."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            else:
                parameter.uniform_(0.3, 1).mul_(torch.rand_like(parameter).sub_(0.3).sign_())


def pair(sizes: dict[str, int]) -> tuple[OneBlock, EsmFoldTriangularSelfAttentionBlock]:
    torch.manual_seed(0)
    reference = EsmFoldTriangularSelfAttentionBlock(TrunkConfig(**sizes)).eval()
    randomize(reference)
    ours = OneBlock(
        sizes["sequence_state_dim"],
        sizes["pairwise_state_dim"],
        sizes["sequence_state_dim"] // sizes["sequence_head_width"],
        sizes["pairwise_state_dim"] // sizes["pairwise_head_width"],
        0.0,
    ).eval()
    ours.load_state_dict(reference.state_dict())  # strict: every name and shape is the same
    return ours, reference


def inputs(lengths: tuple[int, ...], sizes: dict[str, int]) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    b, n = len(lengths), max(lengths)
    mask = torch.arange(n) < torch.tensor(lengths)[:, None]
    s = torch.randn(b, n, sizes["sequence_state_dim"])
    return s, torch.randn(b, n, n, sizes["pairwise_state_dim"]), mask


def pairs(mask: Tensor) -> Tensor:
    return mask[:, :, None] & mask[:, None, :]


def error(actual: Tensor, expected: Tensor) -> float:
    assert expected.isfinite().all()
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("sizes", [PUBLISHED, SMALL], ids=["as published", "small"])
def test_outputs(sizes, lengths):
    ours, reference = pair(sizes)
    s, z, mask = inputs(lengths, sizes)
    with torch.no_grad():
        expected_s, expected_z = reference(s, z, mask.float())
        assert error(s[mask], expected_s[mask]) > 0.3
        assert error(z[pairs(mask)], expected_z[pairs(mask)]) > 0.3
        for chunk in (None, 1, 7, max(lengths)):
            actual_s, actual_z = ours(s, z, mask, chunk=chunk)
            assert error(actual_s[mask], expected_s[mask]) < 1e-5
            assert error(actual_z[pairs(mask)], expected_z[pairs(mask)]) < 1e-5
    with_autograd = ours(s, z, mask)
    assert error(with_autograd[0][mask], expected_s[mask]) < 1e-5
    assert error(with_autograd[1][pairs(mask)], expected_z[pairs(mask)]) < 1e-5


def gradients(
    module: nn.Module, s: Tensor, z: Tensor, mask: Tensor, real: Tensor, **options: int | None
) -> dict[str, Tensor | None]:
    """Gradients of a randomly weighted sum over existing residues, by parameter and input."""
    module.zero_grad()
    s, z = s.clone().requires_grad_(), z.clone().requires_grad_()
    out_s, out_z = module(s, z, mask, **options)
    generator = torch.Generator().manual_seed(2)
    loss = sum(
        (x[kept] * torch.randn(x[kept].shape, generator=generator)).sum()
        for x, kept in ((out_s, real), (out_z, pairs(real)))
    )
    loss.backward()
    return {name: p.grad for name, p in module.named_parameters()} | {"s": s.grad, "z": z.grad}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("sizes", [PUBLISHED, SMALL], ids=["as published", "small"])
def test_gradients(sizes, lengths):
    ours, reference = pair(sizes)
    s, z, mask = inputs(lengths, sizes)
    expected = gradients(reference, s, z, mask.float(), mask)
    for chunk in (None, 1, 7, max(lengths)):
        actual = gradients(ours, s, z, mask, mask, chunk=chunk)
        assert actual.keys() == expected.keys()
        for name, target in expected.items():
            if name != UNSEEN:
                assert error(actual[name], target) < 1e-4, name
