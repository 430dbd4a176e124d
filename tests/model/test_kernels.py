"""The check of fused kernels, on a CPU: with openfold3's other plain path in a kernel's place."""

from dataclasses import replace
from importlib import import_module

import pytest
import torch

from esmfold_peft.config import EvoformerConfig, ModelConfig
from esmfold_peft.errors import UserError
from esmfold_peft.model.kernels import check_kernels
from esmfold_peft.model.trunks.openfold import KERNEL_FLAGS

CPU = torch.device("cpu")
SIZES = EvoformerConfig(
    c_m=32,
    c_z=16,
    c_s=24,
    heads_msa=4,
    heads_pair=2,
    c_head_msa=8,
    c_head_pair=8,
    c_opm=4,
    c_mul=16,
)
CONFIG = ModelConfig(evoformer=SIZES, kernels="triton")


def test_without_kernels_nothing_is_checked():
    # A block of these sizes could not even be built.
    check_kernels(ModelConfig(), CPU, length=10**6, bf16=False)


@pytest.mark.parametrize("kernels", ["deepspeed", "cuequivariance", "triton"])
def test_a_kernel_that_is_absent_is_named(kernels: str):
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    config = replace(CONFIG, kernels=kernels)
    with pytest.raises(UserError, match=rf"model.kernels: {kernels} cannot run on cpu \(.+\)"):
        check_kernels(config, CPU, length=20, bf16=False)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_kernel_that_agrees_passes(bf16: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(KERNEL_FLAGS, "triton", {"use_lma": True})
    check_kernels(CONFIG, CPU, length=20, bf16=bf16)


def test_a_kernel_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch):
    from openfold3.core.model.primitives import attention

    exact = attention._lma
    monkeypatch.setattr(attention, "_lma", lambda *a, **k: 1.3 * exact(*a, **k))
    monkeypatch.setitem(KERNEL_FLAGS, "triton", {"use_lma": True})
    with pytest.raises(UserError, match=r"triton disagrees with the plain path on cpu: .+ off"):
        check_kernels(CONFIG, CPU, length=20, bf16=False)


def test_a_kernel_with_a_wrong_gradient_is_found(monkeypatch: pytest.MonkeyPatch):
    from openfold3.core.model.primitives import attention

    exact = attention._lma
    monkeypatch.setattr(attention, "_lma", lambda *a, **k: exact(*a, **k).detach())
    monkeypatch.setitem(KERNEL_FLAGS, "triton", {"use_lma": True})
    with pytest.raises(UserError, match="the gradient of"):
        check_kernels(CONFIG, CPU, length=20, bf16=False)


def test_a_kernel_that_gives_no_gradient_at_all_is_found(monkeypatch: pytest.MonkeyPatch):
    from openfold3.core.model.layers import triangular_multiplicative_update as triangles

    multiply = triangles.TriangleMultiplicativeUpdate.forward

    def without_gradient(self, *arguments, use_triton_triangle_kernels=False, **others):
        result = multiply(self, *arguments, **others)
        return result.detach() if use_triton_triangle_kernels else result

    monkeypatch.setattr(triangles.TriangleMultiplicativeUpdate, "forward", without_gradient)
    attention = "openfold3.core.model.primitives.attention.Attention.forward"
    attend = _resolved(attention)

    def plain(self, *arguments, use_triton_triangle_kernels=False, **others):
        return attend(self, *arguments, **others)

    monkeypatch.setattr(attention, plain)
    with pytest.raises(UserError, match=r"triton does not give the gradient of .*tri_mul"):
        check_kernels(CONFIG, CPU, length=20, bf16=False)


def _resolved(path: str):
    module, owner, name = path.rsplit(".", 2)
    return getattr(getattr(import_module(module), owner), name)


def test_the_check_leaves_the_generator_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(KERNEL_FLAGS, "triton", {"use_lma": True})
    state = torch.get_rng_state()
    check_kernels(CONFIG, CPU, length=20, bf16=False)
    assert torch.equal(torch.get_rng_state(), state)
