"""Evoformer blocks: openfold3's options against each other, its layers against transformers'."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.models.esm.configuration_esm import TrunkConfig
from transformers.models.esm.modeling_esmfold import (
    EsmFoldTriangleAttention,
    EsmFoldTriangleMultiplicativeUpdate,
)

from esmfold_peft.config import EvoformerConfig, ModelConfig
from esmfold_peft.model.kernels import check_kernels
from esmfold_peft.model.trunks.openfold import KERNEL_FLAGS, Evoformer

SIZES = EvoformerConfig(
    blocks=2,
    c_m=32,
    c_z=16,
    c_s=24,
    heads_msa=4,
    heads_pair=2,
    c_head_msa=8,
    c_head_pair=8,
    c_opm=4,
    c_mul=16,
    transition=2,
    dropout_msa=0.0,
    dropout_pair=0.0,
    checkpoint=False,
)
LENGTHS = (19, 26)


def shaken(module: nn.Module) -> nn.Module:
    """Layers that start at zero get weight, so that nothing is hidden behind them."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return module


def evoformer() -> Evoformer:
    torch.manual_seed(0)
    model = shaken(Evoformer(SIZES))
    assert isinstance(model, Evoformer)
    return model


def tracks() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    n = max(LENGTHS)
    mask = torch.arange(n) < torch.tensor(LENGTHS)[:, None]
    return torch.randn(2, n, SIZES.c_m), torch.randn(2, n, n, SIZES.c_z), mask


def real(m: Tensor, z: Tensor, mask: Tensor) -> list[Tensor]:
    """What belongs to residues, chain by chain."""
    parts = []
    for row, n in enumerate(mask.sum(1).tolist()):
        parts += [m[row, :n], z[row, :n, :n]]
    return parts


def run_block(model: Evoformer, **options: object) -> tuple[list[Tensor], list[Tensor]]:
    """Output of the first block, and the gradients of its inputs and weights."""
    m, z, mask = tracks()
    m, z = m.requires_grad_(), z.requires_grad_()
    pair_mask = (mask[:, :, None] & mask[:, None, :]).float()
    block = model.blocks[0]
    block.zero_grad()
    row, pair = block(m[:, None], z, msa_mask=mask[:, None].float(), pair_mask=pair_mask, **options)
    outputs = real(row[:, 0], pair, mask)
    sum((part**2).sum() for part in outputs).backward()
    return outputs, [m.grad, z.grad, *(p.grad for p in block.parameters())]


@pytest.mark.parametrize(
    "options",
    [
        {"use_lma": True},
        {"chunk_size": 1},
        {"chunk_size": 7},
        {"chunk_size": 4, "use_lma": True},
        {"transition_ckpt_chunk_size": 8},
    ],
    ids=str,
)
def test_each_reference_option_of_a_block_gives_the_plain_outputs_and_gradients(options: dict):
    model = evoformer()
    plain, plain_gradients = run_block(model)
    found, gradients = run_block(model, **options)
    for a, b in zip(found, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    # Some gradients are zero in theory (of a bias that softmax ignores) and noise in practice.
    noise = 1e-6 * max(float(gradient.abs().max()) for gradient in plain_gradients)
    for a, b in zip(gradients, plain_gradients, strict=True):
        torch.testing.assert_close(a, b, atol=noise, rtol=1e-3)


@pytest.mark.parametrize("kernels", [name for name in KERNEL_FLAGS if name != "none"])
def test_each_kernel_gives_the_plain_outputs_and_gradients(kernels: str):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU: the fused kernels run on no CPU")
    # The check is the comparison, of outputs and gradients; up to 100 residues cuEquivariance takes
    # the plain path.
    config = ModelConfig(evoformer=SIZES, kernels=kernels)
    check_kernels(config, torch.device("cuda"), length=144, bf16=True)


def test_cuequivariance_does_attention_but_no_triangle_multiplication(
    monkeypatch: pytest.MonkeyPatch,
):
    # openfold3 gives its triangle multiplication no biases, which AlphaFold 2 has.
    asked: dict[str, set[bool]] = {}

    def spied(module: nn.Module, name: str) -> None:
        forward = module.forward

        def spy(*arguments, use_cueq_triangle_kernels: bool = False, **others):
            asked.setdefault(name, set()).add(use_cueq_triangle_kernels)
            return forward(*arguments, **others)

        monkeypatch.setattr(module, "forward", spy)

    model = evoformer()
    plain = run(model)
    for block in model.blocks:
        spied(block.msa_att_row, "msa_att_row")
        for name in ("tri_mul_out", "tri_mul_in", "tri_att_start", "tri_att_end"):
            spied(getattr(block.pair_stack, name), name)
    model.flags = KERNEL_FLAGS["cuequivariance"]
    for found in (run(model), run(model, training=False)):
        for a, b in zip(found, plain, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    multiplications, attentions = {False}, {True}
    assert asked == {
        "msa_att_row": attentions,
        "tri_mul_out": multiplications,
        "tri_mul_in": multiplications,
        "tri_att_start": attentions,
        "tri_att_end": attentions,
    }


def run(model: Evoformer, *, training: bool = True) -> list[Tensor]:
    """All blocks, with gradients or without."""
    m, z, mask = tracks()
    with torch.set_grad_enabled(training):
        found = model(m, z, mask)
    return real(found.m, found.z, mask)


def test_our_loop_over_blocks_is_openfold3s_own():
    from openfold3.core.model.latent.evoformer import EvoformerStack

    model = evoformer()
    stack = EvoformerStack.__new__(EvoformerStack)
    nn.Module.__init__(stack)
    stack.blocks, stack.linear = model.blocks, model.linear
    stack.blocks_per_ckpt, stack.use_reentrant = None, False
    stack.clear_cache_between_blocks, stack.chunk_size_tuner = False, None
    m, z, mask = tracks()
    pair_mask = (mask[:, :, None] & mask[:, None, :]).float()
    ours = model(m, z, mask)
    rows, pairs, single = stack(m[:, None], z, msa_mask=mask[:, None].float(), pair_mask=pair_mask)
    for mine, other in ((ours.m, rows[:, 0]), (ours.z, pairs), (ours.s, single)):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)


def test_without_gradients_the_result_is_the_same():
    model = evoformer()
    m, z, mask = tracks()
    plain = model(m, z, mask)
    with torch.no_grad():
        lean = model(m.clone(), z.clone(), mask)
    for a, b in zip(real(lean.m, lean.z, mask), real(plain.m, plain.z, mask), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def copied(reference: nn.Module, ours: nn.Module, rename: Callable[[str], str]) -> None:
    state = {rename(name): tensor for name, tensor in ours.state_dict().items()}
    reference.load_state_dict(state)


def test_the_outer_product_of_one_row_is_openfold3s():
    from openfold3.core.model.layers.outer_product_mean import OuterProductMean

    ours = evoformer().blocks[0].outer_product_mean
    reference = OuterProductMean(SIZES.c_m, SIZES.c_z, SIZES.c_opm, eps=1e-3)
    reference.linear_1, reference.linear_2 = ours.linear_1, ours.linear_2
    reference.layer_norm, reference.linear_out = ours.layer_norm, ours.linear_out
    assert type(ours) is not OuterProductMean
    m, _, mask = tracks()
    found = []
    for module in (ours, reference):
        rows = m.clone().requires_grad_()
        pairs = module(rows[:, None], mask=mask[:, None].float())
        parts = [pairs[row, :n, :n] for row, n in enumerate(LENGTHS)]
        sum((part**2).sum() for part in parts).backward()
        weights = [parameter.grad.clone() for parameter in ours.parameters()]
        found.append([*parts, rows.grad, *weights])
        ours.zero_grad()
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * float(b.detach().abs().max()), rtol=1e-5)


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
    if starting:
        found = ours(z, mask=pair_mask)
    else:  # as openfold3's pair block calls it
        swapped = z.transpose(1, 2)
        found = ours(swapped, mask=pair_mask.mT, transpose_bias=True).transpose(1, 2)
    for row, n in enumerate(LENGTHS):
        torch.testing.assert_close(found[row, :n, :n], expected[row, :n, :n], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("outgoing", [True, False])
def test_triangle_multiplication_is_that_of_transformers(outgoing: bool):
    pair_stack = evoformer().blocks[0].pair_stack
    ours = pair_stack.tri_mul_out if outgoing else pair_stack.tri_mul_in
    config = TrunkConfig(pairwise_state_dim=SIZES.c_z, pairwise_head_width=SIZES.c_head_pair)
    reference = EsmFoldTriangleMultiplicativeUpdate(config, _outgoing=outgoing)
    copied(reference, ours, lambda name: name)
    _, z, mask = tracks()
    pair_mask = (mask[:, :, None] & mask[:, None, :]).float()
    torch.testing.assert_close(
        ours(z, mask=pair_mask), reference(z, pair_mask), atol=1e-5, rtol=1e-5
    )
