"""Gated attention along the rows of the pair track, with one bias for all rows of a chain.

The operator and its gradients each stay one node under `torch.compile`. On CPUs they are PyTorch's
attention and its recomputation in pieces of rows, on GPUs the kernels of `triton_attention` where
these run and agree with it.
"""

import functools
import logging
from types import ModuleType

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor

from esmfold_peft.errors import UserError
from esmfold_peft.model.trunks.tiling import LONGEST_WHOLE

MASKED_LOGIT = -1e9
"""Finite, so that keys which are all padding have a softmax; in bfloat16 too."""

NUMBERS_AT_ONCE = 2**28
"""Largest intermediate that inference makes without being asked for chunks: 1 GiB in float32, and
far from the 2^31 at which indices of 32 bits overflow."""

CACHED_ELEMENTS = 2**20
"""Numbers at once on a CPU: 4 MB stay in the cache and need no new pages."""

KERNEL_WIDTHS = (16, 32)
"""Channels of a head that kernels are written for."""

KERNEL_PRECISIONS = (torch.float32, torch.bfloat16)

LARGEST_ERROR = 0.02
"""Largest relative error. Rounding is far below it, a wrong kernel's error is about 1."""

_LOG = logging.getLogger(__name__)


def gated_attention(
    qkvg: Float[Tensor, "b r n four_hd"], bias: Float[Tensor, "b h n n"]
) -> Float[Tensor, "b r n hd"]:
    """Attention within each row of a chain: softmax(q k / √d + bias) v, times sigmoid(gate).

    Args:
        qkvg: channels of query, key, value and gate, each ordered by head.
        bias: logits from pairs of query and key, the same in each row of a chain, in the precision
            of `qkvg`. Those of a masked key are `MASKED_LOGIT`.
    """
    return _attention(qkvg, bias)[0]


@torch.library.custom_op("esmfold_peft::gated_attention", mutates_args=())
def _attention(qkvg: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Also returns the logarithm of each query's sum of weights, which only kernels fill."""
    qkvg, bias = qkvg.detach(), bias.detach()
    with torch.autocast(qkvg.device.type, enabled=False):
        kernels = _kernels(qkvg, bias)
        if kernels is None:
            return plain_attention(qkvg, bias)
        return kernels.forward(_addressable(qkvg), bias.contiguous())


@torch.library.custom_op("esmfold_peft::gated_attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor, qkvg: Tensor, bias: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor]:
    grad, qkvg, bias, out = (x.detach() for x in (grad, qkvg, bias, out))
    with torch.autocast(qkvg.device.type, enabled=False):
        kernels = _kernels(qkvg, bias)
        if kernels is None:
            return plain_backward(grad, qkvg, bias, out)
        qkvg, bias = _addressable(qkvg), bias.contiguous()
        return kernels.backward(grad.contiguous(), qkvg, bias, out, lse)


@_attention_backward.register_fake
def _(grad: Tensor, qkvg: Tensor, bias: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    return qkvg.new_empty(qkvg.shape), bias.new_empty(bias.shape)


def _save_for_backward(ctx, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.set_materialize_grads(False)


def _gradients(ctx, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    if grad is None:
        return None, None
    return _attention_backward(grad, *ctx.saved_tensors)


_attention.register_autograd(_gradients, setup_context=_save_for_backward)


@_attention.register_fake
def _empty_results(qkvg: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    b, r, n, channels = qkvg.shape
    lse = qkvg.new_empty(b, r, bias.shape[1], n, dtype=torch.float32)
    return qkvg.new_empty(b, r, n, channels // 4), lse


def plain_attention(
    qkvg: Float[Tensor, "b r n four_hd"], bias: Float[Tensor, "b h n n"]
) -> tuple[Float[Tensor, "b r n hd"], Float[Tensor, "b r h n"]]:
    """`gated_attention` by PyTorch's attention, and zeros for what only kernels need."""
    out, lse = _empty_results(qkvg, bias)
    # One chain after the other, because only a chain's rows share their bias.
    for gated, chain, logits in zip(out, qkvg, bias, strict=True):
        q, k, v, _ = _by_head(chain, len(logits))
        # The kernel broadcasts the bias and never expands it.
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=logits[None])
        # Copied first: a sigmoid of channels that lie apart is several times slower.
        gated.copy_(chain[..., 3 * out.shape[-1] :]).sigmoid_()
        gated *= mixed.transpose(1, 2).flatten(2)
    return out, lse.zero_()


def plain_backward(
    grad: Float[Tensor, "b r n hd"],
    qkvg: Float[Tensor, "b r n four_hd"],
    bias: Float[Tensor, "b h n n"],
    out: Float[Tensor, "b r n hd"],
) -> tuple[Float[Tensor, "b r n four_hd"], Float[Tensor, "b h n n"]]:
    """Gradients of `qkvg` and of the bias.

    PyTorch's attention has no gradient of the bias on CPUs, and elsewhere one for every row. Its
    plain attention would keep weights of (b, r, h, n, n).
    """
    # Summed over rows in at least float32: in bfloat16 the late rows would vanish.
    exact = torch.promote_types(bias.dtype, torch.float32)
    grad_qkvg = qkvg.new_empty(qkvg.shape)
    grad_bias = bias.new_zeros(bias.shape, dtype=exact)
    limit = CACHED_ELEMENTS if qkvg.device.type == "cpu" else NUMBERS_AT_ONCE
    rows = max(1, limit // (4 * bias[0].numel()))  # four such tensors at a time
    for chain in range(len(qkvg)):
        for start in range(0, qkvg.shape[1], rows):
            piece = (x[chain, start : start + rows] for x in (grad_qkvg, grad, qkvg, out))
            grad_bias[chain] += _rows_backward(bias[chain], *piece)
    return grad_qkvg, grad_bias.to(bias.dtype)


def _rows_backward(
    bias: Float[Tensor, "h n n"],
    grad_qkvg: Float[Tensor, "r n four_hd"],
    grad: Float[Tensor, "r n hd"],
    qkvg: Float[Tensor, "r n four_hd"],
    out: Float[Tensor, "r n hd"],
) -> Float[Tensor, "h n n"]:
    """Writes the gradient of some rows of a chain; returns that of the bias."""
    heads, gates = len(bias), grad.shape[-1]
    opening, change = qkvg[..., -gates:].contiguous().sigmoid_(), grad * out
    sums = change.unflatten(-1, (heads, -1)).sum(-1).transpose(1, 2)
    grad_qkvg[..., -gates:] = change.addcmul_(change, opening, value=-1)
    # Copied once, because each product would copy a tensor whose heads lie apart.
    q, k, v = _by_head(qkvg, heads)[:3].contiguous()
    grad = (grad * opening).unflatten(-1, (heads, -1)).transpose(1, 2).contiguous()
    q *= q.shape[-1] ** -0.5
    weights = (q @ k.mT).add_(bias).softmax(-1)
    logits = (grad @ v.mT).sub_(sums[..., None]).mul_(weights)
    grad_q, grad_k, grad_v, _ = _by_head(grad_qkvg, heads)
    torch.mul(logits @ k, q.shape[-1] ** -0.5, out=grad_q)
    grad_k.copy_(logits.mT @ q)
    grad_v.copy_(weights.mT @ grad)
    return logits.sum(0, dtype=torch.promote_types(logits.dtype, torch.float32))


def _by_head(qkvg: Float[Tensor, "r n four_hd"], heads: int) -> Float[Tensor, "4 r h n d"]:
    return qkvg.unflatten(-1, (4, heads, -1)).permute(2, 0, 3, 1, 4)


def _addressable(qkvg: Tensor) -> Tensor:
    """Kernels read channels side by side, and find a row's residues by indices of 32 bits."""
    fits = qkvg.stride(-1) == 1 and qkvg.shape[2] * qkvg.stride(2) < 2**31
    return qkvg if fits else qkvg.contiguous()


def _kernels(qkvg: Tensor, bias: Tensor) -> ModuleType | None:
    if qkvg.device.type != "cuda":
        return None
    n, width = qkvg.shape[2], qkvg.shape[-1] // 4 // bias.shape[1]
    block = max(16, 1 << (n - 1).bit_length()) if n <= LONGEST_WHOLE else None
    return checked_kernels(qkvg.device, width, qkvg.dtype, block)


@functools.cache
def checked_kernels(
    device: torch.device, width: int, dtype: torch.dtype, block: int | None
) -> ModuleType | None:
    """The kernels, if they run on a device and are right there; else a warning says what is wrong.

    Args:
        device: where they run.
        width: channels of a head.
        dtype: precision of the arguments.
        block: size of the one block that holds a row, a power of 2; None for rows of several.

    Raises:
        torch.OutOfMemoryError: there is no memory to check them.
        UserError: the file of the card's tiles is not valid.
    """
    kernels, fault = None, "there are none for this width and precision"
    try:
        if width in KERNEL_WIDTHS and dtype in KERNEL_PRECISIONS:
            kernels = _load_kernels()
            fault = _disagreement(kernels, device, width, dtype, block)
    except (torch.OutOfMemoryError, UserError):
        raise
    # Compilers and drivers raise errors of many kinds, and the plain path works without them.
    except Exception as error:
        kernels, fault = None, str(error).strip().partition("\n")[0] or type(error).__name__
    if fault is None:
        return kernels
    _LOG.warning(
        f"attention of the trunk: the Triton kernels are not used on {device} for heads of {width}"
        f" channels in {str(dtype).removeprefix('torch.')} and"
        f" {f'up to {block}' if block else f'more than {LONGEST_WHOLE}'} residues: {fault}."
        " The slower plain path is used instead."
    )
    return None


def _load_kernels() -> ModuleType:
    from esmfold_peft.model.trunks import triton_attention

    return triton_attention


def _disagreement(
    kernels: ModuleType, device: torch.device, width: int, dtype: torch.dtype, block: int | None
) -> str | None:
    """Names the first wrong result of the kernels, if any.

    Each must lie within 2 % of the plain path's in float32, or within twice the error that the
    plain path has in the same precision.
    """
    n = block - 3 if block else LONGEST_WHOLE + 44  # no multiple of a tile
    arguments = [x.to(device, dtype) for x in _probe(width, n)]
    found, usual = _results(kernels, *arguments), _results(None, *arguments)
    expected = _results(None, *(x.float() for x in arguments))
    for what, exact in expected.items():
        size = exact.norm()
        error, usual_error = (
            float((x[what].float() - exact).norm() / size) for x in (found, usual)
        )
        limit = max(LARGEST_ERROR, 2 * usual_error)
        if not error <= limit:
            return f"{what} is off by {error:.1%}, at most {limit:.1%} is allowed"
    return None


def _probe(width: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Some rows of two chains, the second padded, a bias, and a gradient of the output."""
    b, heads = 2, 2
    r = 1 + 256 // (b * heads * max(1, n // 32))  # more than one for each program
    generator = torch.Generator().manual_seed(0)
    qkvg = torch.randn(b, r, n, 4 * heads * width, generator=generator)
    bias = torch.randn(b, heads, n, n, generator=generator)
    bias[1, :, :, -3:] = MASKED_LOGIT
    return qkvg, bias, torch.randn(b, r, n, heads * width, generator=generator)


def _results(
    kernels: ModuleType | None, qkvg: Tensor, bias: Tensor, grad: Tensor
) -> dict[str, Tensor]:
    if kernels is None:
        out, _ = plain_attention(qkvg, bias)
        grad_qkvg, grad_bias = plain_backward(grad, qkvg, bias, out)
    else:
        out, lse = kernels.forward(qkvg, bias)
        grad_qkvg, grad_bias = kernels.backward(grad, qkvg, bias, out, lse)
    parts = zip(("queries", "keys", "values", "gates"), grad_qkvg.chunk(4, -1), strict=True)
    gradients = {f"the gradient of {name}": x for name, x in parts}
    return {"the output": out, **gradients, "the gradient of the bias": grad_bias}
