"""Our forward pass of the Evoformer against openfold3's, its layers against transformers' too."""

from collections.abc import Callable
from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers.models.esm.configuration_esm import TrunkConfig
from transformers.models.esm.modeling_esmfold import (
    EsmFoldTriangleAttention,
    EsmFoldTriangleMultiplicativeUpdate,
)

from esmfold_peft.config import EvoformerConfig, Kernels, ModelConfig
from esmfold_peft.model.dropout import draw_factors
from esmfold_peft.model.trunks import packing
from esmfold_peft.model.trunks.openfold import Evoformer
from esmfold_peft.model.trunks.triangles import attend_triangles, multiply_triangles

SIZES = EvoformerConfig(
    blocks=2,
    c_m=32,
    c_z=16,
    c_s=24,
    heads_msa=4,
    heads_pair=2,
    c_head_msa=8,
    c_head_pair=16,
    c_opm=4,
    c_mul=12,
    transition=2,
    dropout_msa=0.15,
    dropout_pair=0.25,
    recompute=False,
)
LENGTHS = (19, 26)
UNSEEN = "msa_att_row.layer_norm_z.bias"
"""Adds the same to all logits of a head, which softmax ignores: its gradient is rounding errors."""


def evoformer(kernels: Kernels = "fused", sizes: EvoformerConfig = SIZES) -> Evoformer:
    """With weights everywhere: layers that start at zero would hide what is before them."""
    torch.manual_seed(0)
    model = Evoformer(ModelConfig(evoformer=sizes, kernels=kernels))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def tracks(sizes: EvoformerConfig = SIZES) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    n = max(LENGTHS)
    mask = torch.arange(n) < torch.tensor(LENGTHS)[:, None]
    return torch.randn(2, n, sizes.c_m), torch.randn(2, n, n, sizes.c_z), mask


def trained(
    model: Evoformer, sizes: EvoformerConfig = SIZES
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The output of all blocks for the residues of two chains, and all gradients."""
    m, z, mask = tracks(sizes)
    m, z = m.requires_grad_(), z.requires_grad_()
    model.zero_grad()
    fused = Evoformer(ModelConfig(evoformer=sizes))
    sites = fused.dropout_sites(mask.shape[1]) if model.training else None
    torch.manual_seed(7)
    drawn = draw_factors(sites, len(mask), mask.device)
    given = iter(tree_leaves(drawn))
    # openfold3 applies dropout to ones: it takes the factors that ours are given.
    with mock.patch("torch.nn.functional.dropout", lambda x, p, *_: next(given).view(x.shape)):
        found = model(m, z, mask, None, None if model.kernels == "openfold" else drawn)
    outputs = []
    for row, n in enumerate(LENGTHS):
        outputs += [found.m[row, :n], found.z[row, :n, :n], found.s[row, :n]]
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(part.shape, generator=generator) for part in outputs]
    sum((a * b).sum() for a, b in zip(outputs, weights, strict=True)).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if not name.endswith(UNSEEN)}
    return [part.detach() for part in outputs], {"m": m.grad, "z": z.grad, **gradients}


def error(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).norm() / expected.norm()).detach())


def assert_same(
    found: tuple[list[Tensor], dict[str, Tensor]],
    expected: tuple[list[Tensor], dict[str, Tensor]],
    outputs: float = 1e-5,
    gradients: float = 1e-4,
) -> None:
    for a, b in zip(found[0], expected[0], strict=True):
        assert error(a, b) < outputs
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert error(found[1][name], gradient) < gradients, name


@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("training", [False, True], ids=["no dropout", "dropout"])
def test_the_fused_blocks_are_openfold3s(training: bool, chunk: int | None, recompute: bool):
    # With dropout too: both have the same factors, in the same order.
    expected = trained(evoformer("openfold").train(training))
    model = evoformer(sizes=replace(SIZES, recompute=recompute)).train(training)
    model.chunk = chunk
    assert_same(trained(model), expected)


def test_what_a_compiled_block_computes_again_is_the_same():
    model = evoformer()
    model.compiled, model.recompute = True, False
    assert model.selective
    assert_same(trained(model), trained(evoformer("openfold")))


@pytest.mark.slow
def test_a_fused_block_of_the_papers_size_is_openfold3s():
    sizes = EvoformerConfig(blocks=1, recompute=False)
    expected = trained(evoformer("openfold", sizes), sizes)
    assert_same(trained(evoformer("fused", sizes), sizes), expected)


@pytest.mark.parametrize("chunk", [None, 1, 7])
def test_without_gradients_the_result_is_the_same(chunk: int | None):
    expected, _ = trained(evoformer("openfold").eval())
    model = evoformer().eval()
    model.chunk = chunk
    with torch.no_grad():
        found = model(*tracks())
    for row, n in enumerate(LENGTHS):
        m, z, s = expected[3 * row : 3 * row + 3]
        assert error(found.m[row, :n], m) < 1e-5
        assert error(found.z[row, :n, :n], z) < 1e-5
        assert error(found.s[row, :n], s) < 1e-5


def test_in_bfloat16_the_error_is_openfold3s_and_little_more_with_such_a_pair_track():
    exact, _ = trained(evoformer("openfold").eval())
    n, errors = LENGTHS[0], {}
    for kernels, track in (
        ("openfold", torch.float32),
        ("fused", torch.float32),
        ("fused", torch.bfloat16),
    ):
        m, z, mask = tracks()
        with torch.autocast("cpu", torch.bfloat16):
            found = evoformer(kernels).eval()(m, z.to(track), mask)
        assert found.z.dtype == track
        of_m, of_z = error(found.m[0, :n], exact[0]), error(found.z[0, :n, :n], exact[1])
        errors[kernels, track] = max(of_m, of_z)
    usual = errors["openfold", torch.float32]
    assert usual < 0.05
    assert errors["fused", torch.float32] < 1.5 * usual
    assert errors["fused", torch.bfloat16] < 2 * usual


def test_padding_reaches_no_residue():
    m, z, mask = tracks()
    pairs = (mask[:, :, None] & mask[:, None])[..., None]
    found = []
    for padding in (-5.0, 7.0):
        given = torch.where(mask[..., None], m, padding), torch.where(pairs, z, padding)
        result = evoformer().eval()(*given, mask)
        assert result.z.isfinite().all()
        found.append((result.m[mask], result.z[pairs[..., 0]]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_our_loop_over_blocks_is_openfold3s_own():
    from openfold3.core.model.latent.evoformer import EvoformerStack

    model = evoformer("openfold").eval()
    stack = EvoformerStack.__new__(EvoformerStack)
    nn.Module.__init__(stack)
    stack.blocks, stack.linear = model.blocks, model.linear
    stack.blocks_per_ckpt, stack.use_reentrant = None, False
    stack.clear_cache_between_blocks, stack.chunk_size_tuner = False, None
    stack.eval()
    m, z, mask = tracks()
    pair_mask = (mask[:, :, None] & mask[:, None, :]).float()
    ours = model(m, z, mask)
    rows, pairs, single = stack(m[:, None], z, msa_mask=mask[:, None].float(), pair_mask=pair_mask)
    for row, n in enumerate(LENGTHS):
        assert error(ours.m[row, :n], rows[row, 0, :n]) < 1e-5
        assert error(ours.z[row, :n, :n], pairs[row, :n, :n]) < 1e-5
        assert error(ours.s[row, :n], single[row, :n]) < 1e-5


def copied(reference: nn.Module, ours: nn.Module, rename: Callable[[str], str]) -> None:
    state = {rename(name): tensor for name, tensor in ours.state_dict().items()}
    reference.load_state_dict(state)


@pytest.mark.parametrize("starting", [True, False])
def test_triangle_attention_is_that_of_transformers(starting: bool):
    pair_stack = evoformer().blocks[0].pair_stack
    ours = pair_stack.tri_att_start if starting else pair_stack.tri_att_end
    reference = EsmFoldTriangleAttention(
        SIZES.c_z, SIZES.c_head_pair, SIZES.heads_pair, starting=starting
    )
    copied(reference, ours, lambda name: name.replace("linear_z", "linear"))
    _, z, mask = tracks()
    pair_mask = (mask[:, :, None] & mask[:, None, :]).float()
    expected = reference(z, pair_mask)
    weights = packing.attention(ours.layer_norm, ours.linear_z, ours.mha, torch.float32)
    found = attend_triangles(weights, z, mask, None, None, ending=not starting) - z
    swap = (lambda x: x) if starting else (lambda x: x.transpose(1, 2))
    theirs = ours(swap(z), mask=swap(pair_mask), transpose_bias=not starting)
    for row, n in enumerate(LENGTHS):
        for result in (found, swap(theirs)):
            torch.testing.assert_close(
                result[row, :n, :n], expected[row, :n, :n], atol=1e-5, rtol=1e-5
            )


@pytest.mark.parametrize("outgoing", [True, False])
def test_triangle_multiplication_is_that_of_transformers(outgoing: bool):
    sizes = replace(SIZES, c_mul=SIZES.c_z)
    pair_stack = evoformer(sizes=sizes).blocks[0].pair_stack
    ours = pair_stack.tri_mul_out if outgoing else pair_stack.tri_mul_in
    config = TrunkConfig(pairwise_state_dim=SIZES.c_z, pairwise_head_width=SIZES.c_head_pair)
    reference = EsmFoldTriangleMultiplicativeUpdate(config, _outgoing=outgoing)
    copied(reference, ours, lambda name: name)
    _, z, mask = tracks()
    expected = reference(z, (mask[:, :, None] & mask[:, None, :]).float())
    weights = packing.multiplication(ours, torch.float32)
    found = multiply_triangles(weights, z, mask, None, None, outgoing) - z
    for row, n in enumerate(LENGTHS):
        torch.testing.assert_close(found[row, :n, :n], expected[row, :n, :n], atol=1e-5, rtol=1e-5)
