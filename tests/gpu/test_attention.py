"""Gated attention on the device is what its formula says, where a block of the kernel holds all
keys and where it does not. Without Triton the plain path, which takes its place, is checked."""

from itertools import product

import pytest
import torch
from gpu_checks import kernels
from gpu_checks.card import has_modules
from gpu_checks.kernels import LIMITS, PARTS, formula, inputs, output_and_gradients
from gpu_checks.models import TINY

from esmfold_peft.model.trunks.attention import (
    KERNEL_PRECISIONS,
    KERNEL_WIDTHS,
    checked_kernels,
    gated_attention,
)
from tests.gpu.test_parity import matmul_precision

CPU = torch.device("cpu")


def distances(attention, rows, length, dtype, sizes, device) -> dict[str, float]:
    """How far output and gradients are off the formula's in float32."""
    given = inputs(rows, length, dtype, sizes, device, padding=length // 5)
    found = output_and_gradients(attention, *given)
    with matmul_precision("highest"):
        expected = output_and_gradients(formula, *(x.float() for x in given))
    return {part: kernels.distance(found[part], expected[part]) for part in PARTS}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("longer", [False, True])
@pytest.mark.parametrize("square", [True, False])
def test_the_operator_is_the_formula(scale, device, at_most, dtype, longer, square):
    length = scale.measured.attention[longer]
    rows = length if square else 1
    off = distances(gated_attention, rows, length, dtype, scale.measured, device)
    for part in PARTS:
        at_most(part, off[part], LIMITS[dtype])


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("width", "dtype", "block"), product(KERNEL_WIDTHS, KERNEL_PRECISIONS, (64, 256, None))
)
def test_the_kernels_are_used(gpu, width, dtype, block):
    """The operator leaves a kernel that is wrong or cannot run, with a warning."""
    if not has_modules("triton"):
        pytest.skip("absent: Triton")
    assert checked_kernels(gpu, width, dtype, block) is not None


@pytest.mark.parametrize("wrong", ["gate", "scale", "mask", "bias", "nothing"])
@pytest.mark.parametrize("dtype", LIMITS)
def test_a_wrong_attention_exceeds_the_limit(wrong, dtype):
    def broken(qkvg, bias):
        q, k, v, gate = qkvg.chunk(4, -1)
        gate = gate * (wrong != "gate")
        q = q * (2 if wrong == "scale" else 1)
        bias = bias.clamp(min=-2) if wrong == "mask" else bias
        bias = bias.detach() + 0 * bias if wrong == "bias" else bias
        return formula(torch.cat([q, k, v, gate], -1), bias)

    off = distances(broken, 16, 16, dtype, TINY, CPU)
    assert (max(off.values()) > LIMITS[dtype]) == (wrong != "nothing")


def test_all_attentions_are_the_same():
    given = inputs(5, 16, torch.float32, TINY, CPU, padding=3)
    expected = output_and_gradients(formula, *given)
    for name, other in kernels.contenders().items():
        if other is None or name == "cuEquivariance":  # which needs a GPU
            continue
        found = output_and_gradients(other, *given)
        for part, value in expected.items():
            assert kernels.distance(found[part], value) < 1e-5, (name, part)
