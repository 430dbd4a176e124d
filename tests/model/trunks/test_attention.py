"""Gated attention with a shared bias against its definition."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from esmfold_peft.model.trunks import attention
from esmfold_peft.model.trunks.attention import gated_attention

HEADS, WIDTH = 2, 4


def definition(qkvg: Tensor, bias: Tensor) -> Tensor:
    q, k, v, gate = (x.unflatten(-1, (bias.shape[1], -1)) for x in qkvg.chunk(4, -1))
    logits = torch.einsum("brihd,brjhd->brhij", q, k) * q.shape[-1] ** -0.5 + bias[:, None]
    mixed = torch.einsum("brhij,brjhd->brihd", logits.softmax(-1), v)
    return (mixed * gate.sigmoid()).flatten(-2)


def inputs(b: int = 2, r: int = 5, n: int = 7, dtype: torch.dtype = torch.float64):
    """The last two keys of the first chain are masked."""
    generator = torch.Generator().manual_seed(0)
    qkvg = torch.randn(b, r, n, 4 * HEADS * WIDTH, generator=generator, dtype=torch.float64)
    bias = torch.randn(b, HEADS, n, n, generator=generator, dtype=torch.float64)
    bias[0, :, :, -2:] = -1e9
    grad = torch.randn(b, r, n, HEADS * WIDTH, generator=generator, dtype=torch.float64)
    return qkvg.to(dtype).requires_grad_(), bias.to(dtype).requires_grad_(), grad.to(dtype)


def results(function, qkvg: Tensor, bias: Tensor, grad: Tensor) -> list[Tensor]:
    out = function(qkvg, bias)
    return [out.detach(), *torch.autograd.grad(out, (qkvg, bias), grad)]


@pytest.mark.parametrize(("r", "n"), [(5, 7), (1, 7), (7, 7), (9, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_its_definition(dtype: torch.dtype, r: int, n: int) -> None:
    found = results(gated_attention, *inputs(r=r, n=n, dtype=dtype))
    expected = results(definition, *inputs(r=r, n=n))
    for a, b, tolerance in zip(found, expected, (1e-6, 1e-5, 1e-5), strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)


def test_gradients_do_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = results(gated_attention, *inputs())
    monkeypatch.setattr(attention, "CACHED_ELEMENTS", 4 * HEADS * 7 * 7 * 2)  # two rows of five
    for a, b in zip(results(gated_attention, *inputs()), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_bfloat16_lies_within_its_rounding() -> None:
    found = results(gated_attention, *inputs(dtype=torch.bfloat16))
    rounded = [x.double() for x in inputs(dtype=torch.bfloat16)]
    expected = results(definition, *(x.detach().requires_grad_() for x in rounded))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.double() - b).norm() <= 0.015 * b.norm()


def test_autocast_changes_nothing() -> None:
    expected = results(gated_attention, *inputs(dtype=torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = results(gated_attention, *inputs(dtype=torch.float32))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_masked_keys_do_not_matter() -> None:
    qkvg, bias, grad = inputs()
    out, grad_qkvg, grad_bias = results(gated_attention, qkvg, bias, grad)
    other = qkvg.detach().clone()
    other[0, :, -2:, HEADS * WIDTH : 3 * HEADS * WIDTH] = 100.0  # keys and values
    torch.testing.assert_close(gated_attention(other, bias.detach()), out)
    assert (grad_bias[0, :, :, -2:] == 0).all()
    assert (grad_qkvg[0, :, -2:, HEADS * WIDTH : 3 * HEADS * WIDTH] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_chain_of_padding_is_finite(dtype: torch.dtype) -> None:
    qkvg, bias, grad = inputs(dtype=dtype)
    padding = torch.full_like(bias, -1e9).requires_grad_()
    assert all(x.isfinite().all() for x in results(gated_attention, qkvg, padding, grad))


def test_takes_views_and_gradients_of_any_layout() -> None:
    qkvg, bias, grad = inputs()
    expected = results(gated_attention, qkvg, bias, grad)
    wide = torch.cat((torch.zeros_like(qkvg), qkvg), -1).detach()
    ended = qkvg.detach().transpose(1, 2).contiguous().transpose(1, 2)
    for view in (wide[..., qkvg.shape[-1] :], ended):
        other = grad.transpose(1, 3).contiguous().transpose(1, 3)
        assert not view.is_contiguous()
        assert not other.is_contiguous()
        found = results(gated_attention, view.requires_grad_(), bias, other)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_keeps_no_weights_for_the_backward_pass() -> None:
    qkvg, bias, _ = inputs(r=64, n=64, dtype=torch.float32)
    kept: dict[int, int] = {}

    def count(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        out = gated_attention(qkvg, bias)
        inputs_and_outputs = 4 * (qkvg.numel() + bias.numel() + out.numel() + 2 * 64 * 64 * HEADS)
        assert 0 < sum(kept.values()) <= inputs_and_outputs
        kept.clear()
        with torch.no_grad():
            gated_attention(qkvg, bias)
        assert not kept


def test_obeys_the_rules_for_operators() -> None:
    qkvg, bias, grad = inputs(dtype=torch.float32)
    permuted = [x.detach().transpose(0, 1).contiguous().transpose(0, 1) for x in (qkvg, bias)]
    for arguments in ((qkvg, bias), permuted):
        checks = torch.library.opcheck(attention._attention, arguments)
        assert set(checks.values()) == {"SUCCESS"}
    out, lse = attention._attention(*permuted)
    checks = torch.library.opcheck(attention._attention_backward, (grad, *permuted, out, lse))
    assert set(checks.values()) == {"SUCCESS"}


def test_stays_one_node_each_way_when_compiled() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable:
        graphs.append(graph)
        return make_boxed_func(graph)

    backend = aot_autograd(fw_compiler=keep)

    @torch.compile(fullgraph=True, backend=backend)
    def compiled(qkvg: Tensor, bias: Tensor) -> Tensor:  # the test's shape checks do not compile
        return attention._attention(qkvg, bias)[0]

    found, expected = results(compiled, *inputs()), results(gated_attention, *inputs())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    calls = [[str(n.target) for n in g.graph.nodes if n.op == "call_function"] for g in graphs]
    free = ("getitem", "detach")  # they compute nothing
    assert [[c for c in names if not any(f in c for f in free)] for names in calls] == [
        ["esmfold_peft.gated_attention.default"],
        ["esmfold_peft.gated_attention_backward.default"],
    ]


def pretended(monkeypatch: pytest.MonkeyPatch, forward: Callable, backward: Callable) -> ModuleType:
    kernels = ModuleType("kernels")
    vars(kernels).update(forward=forward, backward=backward)
    monkeypatch.setattr(attention, "_load_kernels", lambda: kernels)
    attention.checked_kernels.cache_clear()
    return kernels


def right_backward(grad: Tensor, qkvg: Tensor, bias: Tensor, out: Tensor, _: Tensor):
    return attention.plain_backward(grad, qkvg, bias, out)


KIND = (torch.device("cpu"), 16, torch.float32)


@pytest.mark.parametrize("block", [16, 256, None])
def test_kernels_that_agree_are_used(
    block: int | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernels = pretended(monkeypatch, attention.plain_attention, right_backward)
    for dtype in attention.KERNEL_PRECISIONS:
        assert attention.checked_kernels(KIND[0], 16, dtype, block) is kernels
    assert not caplog.records


def test_wrong_kernels_are_refused_with_a_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsummed(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        grad_qkvg, grad_bias = right_backward(*arguments)
        return grad_qkvg, grad_bias / 3

    pretended(monkeypatch, attention.plain_attention, unsummed)
    assert attention.checked_kernels(*KIND, 64) is None
    assert attention.checked_kernels(*KIND, 64) is None
    (line,) = caplog.messages  # once
    assert "the gradient of the bias is off by 66.7%" in line
    assert "plain path" in line


@pytest.mark.parametrize("part", ["output", "queries", "keys", "values", "gates"])
def test_the_check_sees_each_result(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(qkvg: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = attention.plain_attention(qkvg, bias)
        return (out * 1.03 if part == "output" else out), lse

    def backward(grad: Tensor, qkvg: Tensor, bias: Tensor, out: Tensor, lse: Tensor):
        out = out / 1.03 if part == "output" else out
        grad_qkvg, grad_bias = right_backward(grad, qkvg, bias, out, lse)
        parts = dict(
            zip(("queries", "keys", "values", "gates"), grad_qkvg.chunk(4, -1), strict=True)
        )
        if part in parts:
            parts[part] *= 1.03
        return grad_qkvg, grad_bias

    pretended(monkeypatch, forward, backward)
    assert attention.checked_kernels(*KIND, 64) is None


def test_kernels_that_fail_are_refused_with_a_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Tensor) -> tuple[Tensor, Tensor]:
        raise RuntimeError("out of resources: shared memory\nhint")

    pretended(monkeypatch, fail, right_backward)
    assert attention.checked_kernels(*KIND, None) is None
    assert "out of resources: shared memory." in caplog.text
    assert "hint" not in caplog.text


def test_heads_without_kernels_are_named(caplog: pytest.LogCaptureFixture) -> None:
    attention.checked_kernels.cache_clear()
    assert attention.checked_kernels(KIND[0], 8, torch.float32, 64) is None
    (line,) = caplog.messages
    assert "heads of 8 channels" in line
    assert "there are none for this width" in line
