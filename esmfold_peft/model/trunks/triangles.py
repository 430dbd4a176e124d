"""Triangle multiplication and triangle attention, computed in pieces of rows of the pair track."""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float
from torch import Tensor, nn

from esmfold_peft.model.linear import linear
from esmfold_peft.model.trunks.blocks import NUMBERS_AT_ONCE

RowFunction = Callable[[slice], Tensor]
"""Computes something for some rows; rows are the second dimension of the pair track."""

MASKED_LOGIT = -1e9
"""Finite, so that keys which are all padding have a softmax."""

CACHED_ELEMENTS = 2**20
"""Largest intermediate of inference on a CPU, elsewhere it is `NUMBERS_AT_ONCE`: 4 MB stay in the
cache and need no new pages."""


def row_slices(z: Float[Tensor, "b n n c_z"], width: int, chunk: int | None) -> list[slice]:
    """Cuts the rows into pieces of at most `chunk`, their `width` channels within the limits."""
    b, n = z.shape[:2]
    in_cache = z.device.type == "cpu" and not torch.is_grad_enabled()
    limit = (CACHED_ELEMENTS if in_cache else NUMBERS_AT_ONCE) // (b * n * width)
    rows = max(1, min(limit, n if chunk is None else chunk))
    return [slice(start, start + rows) for start in range(0, n, rows)]


def gather_rows(function: RowFunction, pieces: list[slice], rows: int, *, dim: int) -> Tensor:
    """A function's values for all rows, which are dimension `dim` of them, from their pieces."""
    first = function(pieces[0])
    if len(pieces) == 1:
        return first
    if torch.is_grad_enabled():
        return torch.cat([first, *map(function, pieces[1:])], dim)
    # cat would need all pieces and their union at once.
    whole = first.new_empty(*first.shape[:dim], rows, *first.shape[dim + 1 :])
    for piece in pieces:
        part = function(piece) if piece.start else first
        whole.narrow(dim, piece.start, part.shape[dim]).copy_(part)
    return whole


def add_rows(
    z: Float[Tensor, "b n n c_z"],
    update: RowFunction,
    pieces: list[slice],
    scale: Float[Tensor, "b _ _ c_z"] | None = None,
) -> Float[Tensor, "b n n c_z"]:
    """Adds an update, times a factor, to the pair track; without autograd in place.

    The update of a piece may read no other rows of z, which are old or new.
    """
    if torch.is_grad_enabled():
        change = gather_rows(update, pieces, z.shape[1], dim=1)
        return z + change if scale is None else torch.addcmul(z, change, scale)
    for piece in pieces:
        change = update(piece)
        z[:, piece].add_(change if scale is None else change * scale.expand_as(z)[:, piece])
    return z


def normalized_rows(layer_norm: nn.LayerNorm, z: Float[Tensor, "b n n c_z"]) -> RowFunction:
    """Layer norm of the asked rows: once if backward keeps the result, else anew each time."""
    if torch.is_grad_enabled():
        whole = layer_norm(z)
        return lambda rows: whole[:, rows]
    return lambda rows: layer_norm(z[:, rows])


def channels_first(
    x: Float[Tensor, "b r n c_in"],
    weight: Float[Tensor, "c_out c_in"],
    bias: Float[Tensor, "c_out"] | None = None,
) -> Float[Tensor, "c_out b r n"]:
    """A linear layer whose product is laid out as one matrix per channel."""
    columns = x.flatten(0, 2).t()
    product = weight @ columns if bias is None else torch.addmm(bias[:, None], weight, columns)
    return product.unflatten(1, x.shape[:3])


def attention_bias(
    normed: RowFunction,
    weight: Float[Tensor, "h c_z"],
    mask: Bool[Tensor, "b n"],
    pieces: list[slice],
) -> Float[Tensor, "b h n n"]:
    """Logits from pairs of query (a row) and key; padding is no key."""

    def logits(rows: slice) -> Float[Tensor, "h b r n"]:
        return channels_first(normed(rows), weight)

    bias = gather_rows(logits, pieces, mask.shape[1], dim=2).transpose(0, 1)
    return bias.masked_fill(~mask[:, None, None, :], MASKED_LOGIT)


class TriangleMultiplication(nn.Module):
    """Updates each pair from the two other sides of all triangles (AF2 Suppl. Alg. 11 and 12).

    Args:
        c_z: channels of the pair track.
        outgoing: whether the sides leave the pair's residues (Alg. 11) or enter them (Alg. 12).
    """

    def __init__(self, c_z: int, *, outgoing: bool) -> None:
        super().__init__()
        self.outgoing = outgoing
        self.layer_norm_in = nn.LayerNorm(c_z)
        self.layer_norm_out = nn.LayerNorm(c_z)
        self.linear_a_p = linear(c_z, c_z)
        self.linear_a_g = linear(c_z, c_z, init="gate")
        self.linear_b_p = linear(c_z, c_z)
        self.linear_b_g = linear(c_z, c_z, init="gate")
        self.linear_g = linear(c_z, c_z, init="gate")
        self.linear_z = linear(c_z, c_z, init="zero")

    def forward(
        self,
        z: Float[Tensor, "b n n c_z"],
        mask: Bool[Tensor, "b n"],
        chunk: int | None = None,
        scale: Float[Tensor, "b _ _ c_z"] | None = None,
    ) -> Float[Tensor, "b n n c_z"]:
        """Adds the update to the pair track; without autograd in place.

        Args:
            z: pair track.
            mask: which residues exist; no triangle has another corner.
            chunk: rows at a time at most.
            scale: factor of the update (dropout).
        """
        pieces = row_slices(z, 4 * z.shape[-1], chunk)
        normed = normalized_rows(self.layer_norm_in, z)
        triangles = self._triangles(normed, mask, pieces)

        def update(rows: slice) -> Float[Tensor, "b r n c_z"]:
            x = normed(rows)
            # Copied, then transposed by layer norm: twice as fast as a transposition of the slice.
            columns = triangles[:, :, rows].flatten(1).contiguous()
            y = self.linear_z(self.layer_norm_out(columns.t()))
            return y.view(x.shape) * self.linear_g(x).sigmoid()

        return add_rows(z, update, pieces, scale)

    def _triangles(
        self, normed: RowFunction, mask: Bool[Tensor, "b n"], pieces: list[slice]
    ) -> Float[Tensor, "c_z b n n"]:
        """Sums over the third corner of the triangles."""
        parts = (self.linear_a_p, self.linear_b_p, self.linear_a_g, self.linear_b_g)
        weight = torch.cat([part.weight for part in parts])
        bias = torch.cat([part.bias for part in parts])
        # Only the third corner matters: where another is missing the sum is of no pair.
        corner = mask[:, None, :] if self.outgoing else mask[:, :, None]
        present = corner.expand(-1, mask.shape[1], mask.shape[1])

        def sides(rows: slice) -> Float[Tensor, "two_c_z b r n"]:
            return F.glu(channels_first(normed(rows), weight, bias), 0) * present[:, rows]

        a, b = gather_rows(sides, pieces, mask.shape[1], dim=2).chunk(2)
        left, right = (a, b.mT) if self.outgoing else (a.mT, b)
        if torch.is_grad_enabled():
            return left @ right
        # The products replace their first factors, a few channels at a time.
        for out, x, y in zip(a.split(8), left.split(8), right.split(8), strict=True):
            out.copy_(x @ y)
        return a


class TriangleAttention(nn.Module):
    """Attention along each row of pairs, biased by the third side (AF2 Suppl. Alg. 13).

    Of a transposed pair track it is the attention around the ending node (Alg. 14).

    Args:
        c_z: channels of the pair track.
        heads: number of heads.
    """

    def __init__(self, c_z: int, heads: int) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(c_z)
        self.linear = linear(c_z, heads, bias=False)
        self.mha = _Projections(c_z)

    def forward(
        self,
        z: Float[Tensor, "b n n c_z"],
        mask: Bool[Tensor, "b n"],
        chunk: int | None = None,
        scale: Float[Tensor, "b _ _ c_z"] | None = None,
    ) -> Float[Tensor, "b n n c_z"]:
        """Adds the update to the pair track; without autograd in place.

        Its arguments are those of `TriangleMultiplication.forward`.
        """
        # Outside CPUs the gradient of the bias, at least, exists for every row.
        logits = 0 if z.device.type == "cpu" else self.linear.out_features * z.shape[1]
        pieces = row_slices(z, max(4 * z.shape[-1], logits), chunk)
        normed = normalized_rows(self.layer_norm, z)
        bias = attention_bias(normed, self.linear.weight, mask, pieces)
        attend, mha = _fused_attention, self.mha
        if z.device.type == "cpu" and torch.is_grad_enabled():
            attend = _RecomputedAttention.apply
        weight = torch.cat((mha.linear_q.weight, mha.linear_k.weight, mha.linear_v.weight))

        def update(rows: slice) -> Float[Tensor, "b r n c_z"]:
            x = normed(rows)
            # One chain after the other, because only a chain's rows share their bias.
            chains = [attend(*chain) for chain in zip(F.linear(x, weight), bias, strict=True)]
            mixed = chains[0][None] if len(chains) == 1 else torch.stack(chains)
            return mha.linear_o(mixed * mha.linear_g(x).sigmoid())

        return add_rows(z, update, pieces, scale)


class _Projections(nn.Module):
    def __init__(self, c_z: int) -> None:
        super().__init__()
        self.linear_q = linear(c_z, c_z, bias=False)
        self.linear_k = linear(c_z, c_z, bias=False)
        self.linear_v = linear(c_z, c_z, bias=False)
        self.linear_g = linear(c_z, c_z, init="gate")
        self.linear_o = linear(c_z, c_z, init="zero")


def _fused_attention(
    qkv: Float[Tensor, "r n three_c_z"], bias: Float[Tensor, "h n n"]
) -> Float[Tensor, "r n c_z"]:
    """Attention within the rows of a chain; the kernel broadcasts the bias, never expanding it."""
    q, k, v = _by_head(qkv, len(bias))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
    return mixed.transpose(1, 2).flatten(2)


def _by_head(qkv: Float[Tensor, "r n three_c_z"], heads: int) -> Float[Tensor, "3 r h n d_h"]:
    return qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)


class _RecomputedAttention(torch.autograd.Function):
    """`_fused_attention` for training on CPUs, where PyTorch's kernel has no gradient of the bias.

    Its plain attention would keep weights of (r, h, n, n) for the backward pass.
    """

    @staticmethod
    def forward(ctx, qkv: Tensor, bias: Tensor) -> Tensor:
        # A bias that requires a gradient would choose the plain attention even here.
        mixed = _fused_attention(qkv.detach(), bias.detach())
        ctx.save_for_backward(qkv, bias, mixed)
        return mixed

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        (grad,), (qkv, bias, mixed) = grad_outputs, ctx.saved_tensors
        # Summed over rows in at least float32: in bfloat16 the late rows would vanish.
        exact = torch.promote_types(bias.dtype, torch.float32)
        grad_qkv, grad_bias = torch.empty_like(qkv), torch.zeros_like(bias, dtype=exact)
        rows = max(1, CACHED_ELEMENTS // (4 * bias.numel()))  # four such tensors at a time
        for start in range(0, len(qkv), rows):
            piece = (x[start : start + rows] for x in (grad_qkv, qkv, mixed, grad))
            grad_bias += _attention_backward(bias, *piece)
        return grad_qkv, grad_bias.to(bias.dtype)


def _attention_backward(
    bias: Float[Tensor, "h n n"],
    grad_qkv: Float[Tensor, "r n three_c_z"],
    qkv: Float[Tensor, "r n three_c_z"],
    mixed: Float[Tensor, "r n c_z"],
    grad: Float[Tensor, "r n c_z"],
) -> Float[Tensor, "h n n"]:
    """Writes the gradient of queries, keys and values; returns that of the bias."""
    q, k, v = _by_head(qkv, len(bias))
    scale = q.shape[-1] ** -0.5
    weights = (q @ (k * scale).mT).add_(bias).softmax(-1)
    out, grad_out = (x.unflatten(-1, (len(bias), -1)).transpose(1, 2) for x in (mixed, grad))
    logits = (grad_out @ v.mT).sub_((out * grad_out).sum(-1, keepdim=True)).mul_(weights)
    grad_q, grad_k, grad_v = _by_head(grad_qkv, len(bias))
    grad_q.copy_(logits @ (k * scale))
    grad_k.copy_(logits.mT @ (q * scale))
    grad_v.copy_(weights.mT @ grad_out)
    return logits.sum(0, dtype=torch.promote_types(logits.dtype, torch.float32))
