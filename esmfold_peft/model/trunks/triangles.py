"""What both trunks do to the pair track: triangle updates and a transition, in pieces of rows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from esmfold_peft.model.dropout import Factors
from esmfold_peft.model.trunks.attention import (
    CACHED_ELEMENTS,
    MASKED_LOGIT,
    NUMBERS_AT_ONCE,
    gated_attention,
)
from esmfold_peft.model.trunks.packing import (
    Affine,
    Attention,
    Multiplication,
    Norm,
    PairUpdates,
    Transition,
)

_OF_TRACKS, _OF_WEIGHTS = torch.ops.aten.bmm, torch.ops.aten.addmm
"""Matrix products of two halves of the pair track, and with weights and a bias."""

RowFunction = Callable[[slice], Tensor]
"""Computes something for some rows; rows are the second dimension of the pair track."""


def update_pairs(
    weights: PairUpdates,
    z: Float[Tensor, "b n n c_z"],
    mask: Bool[Tensor, "b n"],
    factors: Factors,
    chunk: int | None,
    *,
    selective: bool,
) -> Float[Tensor, "b n n c_z"]:
    """Triangle multiplications, triangle attentions and the transition (AF2 Suppl. Alg. 6).

    Args:
        weights: packed.
        z: pair track; where `changes_in_place`, it is overwritten.
        mask: which residues exist; pairs with others do not change the rest.
        factors: dropout of the five updates; that of the ending node's attention is for the
            transposed track.
        chunk: rows at a time at most; None chooses.
        selective: for the backward pass keep only z before each update, the sums over triangles,
            and what attention reads and gives; compute the rest again.
    """
    out, into, start, end, last = factors
    selective = selective and torch.is_grad_enabled()
    update: Callable[..., Any] = _again if selective else lambda function, *given: function(*given)
    z = update(multiply_triangles, weights.mul_out, z, mask, out, chunk, True)
    z = update(multiply_triangles, weights.mul_in, z, mask, into, chunk, False)
    z = attend_triangles(weights.att_start, z, mask, start, chunk, selective)
    z = attend_triangles(weights.att_end, z, mask, end, chunk, selective, ending=True)
    return update(_add_transition, weights.transition, z, last, chunk)


def changes_in_place() -> bool:
    """Whether the pair track is changed in place, in pieces of rows.

    Autograd needs the old values. A compiler finds by itself what may be overwritten; it would copy
    for changes in place, and make other kernels for each piece. Without gradients two chains of 256
    are 50 kernels and 4.1 GB a block, by counts; in place they would be 110 and 10.5.
    """
    return not (_functional or torch.is_grad_enabled() or torch.compiler.is_compiling())


_functional = False


@contextmanager
def nothing_in_place() -> Iterator[None]:
    """Changes nothing in place inside, so that eager code needs at least compiled code's memory."""
    global _functional
    _functional = True
    try:
        yield
    finally:
        _functional = False


def _again(function: Callable[..., Any], *arguments: object, keep: Any = _OF_TRACKS) -> Any:
    """Computes a function again in the backward pass, but for the results of some operators."""
    contexts = partial(create_selective_checkpoint_contexts, [keep.default])
    options = {"use_reentrant": False, "preserve_rng_state": False, "context_fn": contexts}
    return checkpoint(function, *arguments, **options)


def _add_transition(
    weights: Transition, z: Float[Tensor, "b n n c_z"], factor: Tensor | None, chunk: int | None
) -> Float[Tensor, "b n n c_z"]:
    pieces = row_slices(z, len(weights.up.weight), chunk)
    return add_rows(z, lambda rows: transition(weights, z[:, rows]), pieces, factor)


def multiply_triangles(
    weights: Multiplication,
    z: Float[Tensor, "b n n c_z"],
    mask: Bool[Tensor, "b n"],
    factor: Float[Tensor, "b _ _ c_z"] | None,
    chunk: int | None,
    outgoing: bool,
) -> Float[Tensor, "b n n c_z"]:
    """Adds to each pair the sum, over all triangles, of the product of the two other sides.

    The arguments are those of `update_pairs`. The sides leave the pair's residues (`outgoing`,
    AF2 Suppl. Alg. 11) or enter them (Alg. 12).
    """
    pieces = row_slices(z, len(weights.sides.weight), chunk)
    normed = normalized_rows(z, weights.sides.weight.dtype)
    triangles = _triangles(weights.sides, normed, mask, pieces, outgoing=outgoing)

    def update(rows: slice) -> Float[Tensor, "b r n c_z"]:
        x = normed(rows)
        # Copied, then transposed by layer norm: twice as fast as a transposition of the slice.
        columns = triangles[:, :, rows].flatten(1).contiguous()
        y = F.linear(normalize(columns.t(), x.dtype), *weights.out)
        return y.view(*x.shape[:3], -1) * F.linear(x, *weights.gate).sigmoid()

    return add_rows(z, update, pieces, factor)


def _triangles(
    sides: Affine,
    normed: RowFunction,
    mask: Bool[Tensor, "b n"],
    pieces: list[slice],
    *,
    outgoing: bool,
) -> Float[Tensor, "c b n n"]:
    """Sums over the third corner of the triangles."""
    # Only the third corner is masked: if another one is missing, the sum belongs to no pair.
    corner = mask[:, None, :] if outgoing else mask[:, :, None]
    present = corner.expand(-1, mask.shape[1], mask.shape[1])

    def both(rows: slice) -> Float[Tensor, "two_c b r n"]:
        return F.glu(channels_first(normed(rows), sides), 0)

    if not changes_in_place():
        a, b = gather_rows(both, pieces, mask.shape[1], dim=2).chunk(2)
        # One masked side is enough; in compiled code, to mask both where they are made is cheaper.
        a, b = a * present, b * present if torch.compiler.is_compiling() else b
        triangles = a @ b.mT if outgoing else a.mT @ b
        if triangles.requires_grad and not torch.compiler.is_compiling():
            # The gradient has its channels last; each product would copy its matrices one by one.
            triangles.register_hook(Tensor.contiguous)
        return triangles
    whole = sides.weight.new_empty(len(sides.weight) // 2, *present.shape)
    for rows in pieces:
        torch.mul(both(rows), present[:, rows], out=whole[:, :, rows])
    a, b = whole.chunk(2)
    left, right = (a, b.mT) if outgoing else (a.mT, b)
    # The products replace their first factors, a few channels at a time.
    for some, x, y in zip(a.split(8), left.split(8), right.split(8), strict=True):
        some.copy_(x @ y)
    return a


def attend_triangles(
    weights: Attention,
    z: Float[Tensor, "b n n c_z"],
    mask: Bool[Tensor, "b n"],
    factor: Float[Tensor, "b _ _ c_z"] | None,
    chunk: int | None,
    selective: bool = False,
    *,
    ending: bool = False,
) -> Float[Tensor, "b n n c_z"]:
    """Adds attention along rows or columns of pairs, biased by the third side.

    The arguments are those of `update_pairs`. Attention around the ending node (AF2 Suppl. Alg. 14)
    is that around the starting node (Alg. 13) of the transposed track, and so is its dropout.
    """
    rows_of = z.transpose(1, 2) if ending else z
    if changes_in_place():
        pieces = row_slices(z, len(weights.qkvg.weight), chunk)
        normed = normalized_rows(rows_of, weights.qkvg.weight.dtype, weights.norm)
        bias = attention_bias(normed, weights.bias, mask, pieces)

        def update(rows: slice) -> Float[Tensor, "b r n c_z"]:
            mixed = gated_attention(F.linear(normed(rows), *weights.qkvg), bias)
            return F.linear(mixed, *weights.out)

        add_rows(rows_of, update, pieces, factor)
        return z
    again = _normalize_again(selective, z, weights.qkvg)
    project = partial(_again, _project, keep=_OF_WEIGHTS) if again else _project
    qkvg, bias = project(weights, rows_of, mask)
    change = F.linear(gated_attention(qkvg, bias), *weights.out)
    if ending:
        change = change.transpose(1, 2)
        factor = None if factor is None else factor.transpose(1, 2)
    return add(z, change, factor)


def _normalize_again(selective: bool, z: Tensor, weights: Affine) -> bool:
    """Whether backward normalises z again. If z is float32, its norm in bf16 is cheaper to keep."""
    return selective and z.dtype == weights.weight.dtype


def _project(
    weights: Attention, z: Float[Tensor, "b n n c_z"], mask: Bool[Tensor, "b n"]
) -> tuple[Float[Tensor, "b n n four_hd"], Float[Tensor, "b h n n"]]:
    """All that attention reads."""
    normed = normalize(z, weights.qkvg.weight.dtype, weights.norm)
    bias = attention_bias(lambda rows: normed[:, rows], weights.bias, mask, [slice(None)])
    return _Projection.apply(normed, *weights.qkvg), bias


class _Projection(torch.autograd.Function):
    """Query, key, value and gate. Only the gate has a bias, and only its gradient is summed."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, weight) = grad_outputs, ctx.saved_tensors
        grad, others = grad.flatten(0, -2), 3 * len(weight) // 4
        of_x = (grad @ weight).view(x.shape) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:  # a frozen trunk
            return of_x, None, None
        of_bias = torch.cat((grad.new_zeros(others), grad[:, others:].sum(0)))
        return of_x, grad.t() @ x.flatten(0, -2), of_bias


def pair_bias(
    weights: Affine,
    z: Float[Tensor, "b n n c_z"],
    mask: Bool[Tensor, "b n"],
    chunk: int | None,
    selective: bool,
) -> Float[Tensor, "b h n n"]:
    """Logits of the attention over the sequence, from the normalised pairs."""
    if torch.is_grad_enabled() and _normalize_again(selective, z, weights):
        return _again(pair_bias, weights, z, mask, chunk, False, keep=_OF_WEIGHTS)
    pieces = row_slices(z, z.shape[-1], chunk)
    return attention_bias(normalized_rows(z, weights.weight.dtype), weights, mask, pieces)


def attention_bias(
    normed: RowFunction, weights: Affine, mask: Bool[Tensor, "b n"], pieces: list[slice]
) -> Float[Tensor, "b h n n"]:
    """Logits from pairs of query (a row) and key; padding is no key."""

    def logits(rows: slice) -> Float[Tensor, "h b r n"]:
        return channels_first(normed(rows), weights)

    bias = gather_rows(logits, pieces, mask.shape[1], dim=2).transpose(0, 1)
    return bias.masked_fill(~mask[:, None, None, :], MASKED_LOGIT)


def transition(weights: Transition, x: Float[Tensor, "*batch c"]) -> Float[Tensor, "*batch c"]:
    """The update of a transition."""
    # The product of a flattened track is no view: autograd lets ReLU change it in place.
    normed = normalize(x, weights.up.weight.dtype, weights.norm)
    hidden = F.linear(normed.flatten(0, -2), *weights.up)
    inplace = not torch.compiler.is_compiling()
    return F.linear(F.relu(hidden, inplace), *weights.down).view(x.shape)


def normalize(
    x: Float[Tensor, "*batch c"], dtype: torch.dtype, norm: Norm | None = None
) -> Float[Tensor, "*batch c"]:
    """Layer norm in at least float32, cast to a type; without `norm` the products contain it."""
    exact = torch.promote_types(x.dtype, torch.float32)
    weight, bias = norm or (None, None)
    return F.layer_norm(x.to(exact), x.shape[-1:], weight, bias).to(dtype)


def normalized_rows(
    z: Float[Tensor, "b n n c_z"], dtype: torch.dtype, norm: Norm | None = None
) -> RowFunction:
    """Layer norm of some rows: computed once if it is kept or small, else each time."""
    if not changes_in_place() or z.numel() <= 2 * CACHED_ELEMENTS:
        whole = normalize(z, dtype, norm)
        return lambda rows: whole[:, rows]
    return lambda rows: normalize(z[:, rows], dtype, norm)


def channels_first(x: Float[Tensor, "b r n c_in"], weights: Affine) -> Float[Tensor, "c_out b r n"]:
    """A linear layer whose product is laid out as one matrix per channel."""
    columns = x.flatten(0, 2).t()
    weight, bias = weights
    product = weight @ columns if bias is None else torch.addmm(bias[:, None], weight, columns)
    return product.unflatten(1, x.shape[:3])


def row_slices(z: Float[Tensor, "b n n c_z"], width: int, chunk: int | None) -> list[slice]:
    """Cuts the rows into pieces of at most `chunk`, their `width` channels within the limits.

    Where backward keeps all pieces anyway, and in compiled code, only `chunk` cuts.
    """
    if chunk is None and not changes_in_place():
        return [slice(None)]
    b, n = z.shape[:2]
    rows = n if chunk is None else min(chunk, n)
    if changes_in_place():
        # On a CPU an intermediate that stays in the cache needs no new pages.
        limit = CACHED_ELEMENTS if z.device.type == "cpu" else NUMBERS_AT_ONCE
        rows = max(1, min(rows, limit // (b * n * width)))
    return [slice(start, start + rows) for start in range(0, n, rows)]


def gather_rows(function: RowFunction, pieces: list[slice], rows: int, *, dim: int) -> Tensor:
    """A function's values for all rows, which are dimension `dim` of them, from their pieces."""
    first = function(pieces[0])
    if len(pieces) == 1:
        return first
    if not changes_in_place():
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
    factor: Float[Tensor, "b _ _ c_z"] | None = None,
) -> Float[Tensor, "b n n c_z"]:
    """Adds an update, times a factor, to the pair track; in place where `changes_in_place`.

    The update of a piece must read no other rows of z: some of them are already updated.
    """
    if not changes_in_place():
        return add(z, gather_rows(update, pieces, z.shape[1], dim=1), factor)
    for piece in pieces:
        change = update(piece)
        z[:, piece].add_(change if factor is None else change * factor.expand_as(z)[:, piece])
    return z


def add(
    track: Float[Tensor, "*batch c"],
    change: Float[Tensor, "*batch c"],
    factor: Float[Tensor, "... c"] | None = None,
) -> Float[Tensor, "*batch c"]:
    """A track with an update, times a factor, in the type of the track."""
    new = track + change if factor is None else torch.addcmul(track, change, factor)
    return new.to(track.dtype)
