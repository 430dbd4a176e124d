# pyright: reportPossiblyUnboundVariable=false, reportMissingImports=false
# ruff: noqa: N803, N806 (Triton writes what is fixed at compile time in capitals)
"""Gated attention with a shared bias on GPUs, written in Triton.

A program holds a tile of queries (or keys) of one chain and head, and goes through a group of rows.
Where one block holds all keys, the tile of the bias, or the sum of its gradient over these rows,
stays in registers. Longer rows are read in blocks, and the gradient of the bias has a kernel of its
own. Logits are in units of log 2, because GPUs compute powers of 2.

If one product depends on another, Triton gives both a layout of 16 rows a warp. That overflows the
registers where one block holds all keys. The branch `if rows > first` is always taken; it gives the
second product a layout of its own.

Chains (b), rows (r), heads (h), residues (n), and channels of a head (d) are as in `attention`.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from esmfold_peft.model.trunks.tiling import LONGEST_WHOLE, Tiles, tiles_on

LOG2E = tl.constexpr(1.4426950408889634)

MASKED = tl.constexpr(-16384.0)
"""Smallest logit. Beside one of -1e9 the sum of weights would be lost to rounding, so that a chain
of padding would have wrong gradients."""

PROGRAMS = 256
"""Fewest programs to launch: a GPU of 132 multiprocessors runs about 256 at once."""


def _kernel(function: Callable) -> triton.JITFunction:
    """Compiled from its source as written, without the shape checks that tests wrap it in."""
    # Other numbers of rows, or of groups, need no other code.
    return triton.jit(inspect.unwrap(function), do_not_specialize=["rows", "group"])


@_kernel
def _logits(bias, query, key, n):
    """Logits of the bias; keys past the end have none."""
    there = (query < n) & (key < n)
    logits = tl.load(bias + query * n + key, mask=there, other=0.0).to(tl.float32) * LOG2E
    return tl.where(key < n, tl.maximum(logits, MASKED), float("-inf"))


@_kernel
def _load(x, residue, stride, n, WIDTH: tl.constexpr):
    """The channels of a head of some residues, and zeros past the end."""
    channel = tl.arange(0, WIDTH)
    place = residue[:, None] * stride + channel[None, :]
    return tl.load(x + place, mask=residue[:, None] < n, other=0.0)


@_kernel
def _store(x, value, residue, stride, n, WIDTH: tl.constexpr):
    channel = tl.arange(0, WIDTH)
    place = residue[:, None] * stride + channel[None, :]
    tl.store(x + place, value.to(x.dtype.element_ty), mask=residue[:, None] < n)


@_kernel
def _store_bias(grad_bias, change, query, key, n):
    """Stores the gradient of the bias from one group of rows."""
    part = tl.program_id(1).to(tl.int64) * tl.num_programs(2) + tl.program_id(2)
    place = part * n * n + query * n + key
    there = (query < n) & (key < n)
    tl.store(grad_bias + place, change.to(grad_bias.dtype.element_ty), mask=there)


@_kernel
def _product(a, b, DOT: tl.constexpr):
    return tl.dot(a.to(DOT), b.to(DOT), input_precision="ieee")


@_kernel
def _sigmoid(x):
    return 1 / (1 + tl.exp2(x.to(tl.float32) * -LOG2E))


@_kernel
def forward_kernel(
    qkvg, bias, out, lse, scale, rows, n, group, stride_b, stride_r, stride_n,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    WHOLE: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Output, and the logarithm (of base 2) of each query's sum of weights."""
    chain, head = (tl.program_id(2) // HEADS).to(tl.int64), tl.program_id(2) % HEADS
    query = tl.program_id(0) * TILE + tl.arange(0, TILE)
    bias += tl.program_id(2).to(tl.int64) * n * n
    CHANNELS: tl.constexpr = HEADS * WIDTH
    if WHOLE:
        key = tl.arange(0, BLOCK)
        shared = _logits(bias, query[:, None], key[None, :], n)
    first = tl.program_id(1) * group
    for row in range(first, tl.minimum(first + group, rows)):
        x = qkvg + chain * stride_b + row * tl.cast(stride_r, tl.int64) + head * WIDTH
        q = _load(x, query, stride_n, n, WIDTH)
        if WHOLE:
            k = _load(x + CHANNELS, key, stride_n, n, WIDTH)
            v = _load(x + 2 * CHANNELS, key, stride_n, n, WIDTH)
            logits = _product(q, tl.trans(k), DOT) * scale + shared
            top = tl.max(logits, 1)
            weights = tl.exp2(logits - top[:, None])
            total = tl.sum(weights, 1)
            mixed = tl.zeros((TILE, WIDTH), tl.float32)
            if rows > first:
                mixed = _product(weights, v, DOT)
        else:
            top = tl.full((TILE,), float("-inf"), tl.float32)
            total = tl.zeros((TILE,), tl.float32)
            mixed = tl.zeros((TILE, WIDTH), tl.float32)
            for start in range(0, n, BLOCK):
                key = start + tl.arange(0, BLOCK)
                k = _load(x + CHANNELS, key, stride_n, n, WIDTH)
                v = _load(x + 2 * CHANNELS, key, stride_n, n, WIDTH)
                logits = _product(q, tl.trans(k), DOT) * scale
                logits += _logits(bias, query[:, None], key[None, :], n)
                higher = tl.maximum(top, tl.max(logits, 1))
                weights = tl.exp2(logits - higher[:, None])
                kept = tl.exp2(top - higher)
                total = total * kept + tl.sum(weights, 1)
                mixed = mixed * kept[:, None] + _product(weights, v, DOT)
                top = higher
        gate = _sigmoid(_load(x + 3 * CHANNELS, query, stride_n, n, WIDTH))
        place = chain * rows + row
        y = out + place * n * CHANNELS + head * WIDTH
        _store(y, mixed / total[:, None] * gate, query, CHANNELS, n, WIDTH)
        sums = lse + (place * HEADS + head) * n + query
        tl.store(sums, top + tl.log2(total), mask=query < n)


@_kernel
def query_kernel(
    qkvg, bias, out, lse, grad, grad_mixed, delta, grad_qkvg, grad_bias, scale, rows, n, group,
    stride_b, stride_r, stride_n,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    WHOLE: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Gradients of queries and gates, of the bias if whole, and what the other kernels need."""
    chain, head = (tl.program_id(2) // HEADS).to(tl.int64), tl.program_id(2) % HEADS
    query = tl.program_id(0) * TILE + tl.arange(0, TILE)
    bias += tl.program_id(2).to(tl.int64) * n * n
    CHANNELS: tl.constexpr = HEADS * WIDTH
    if WHOLE:
        key = tl.arange(0, BLOCK)
        shared = _logits(bias, query[:, None], key[None, :], n)
        change = tl.zeros((TILE, BLOCK), tl.float32)
    first = tl.program_id(1) * group
    for row in range(first, tl.minimum(first + group, rows)):
        x = qkvg + chain * stride_b + row * tl.cast(stride_r, tl.int64) + head * WIDTH
        place = chain * rows + row
        y = place * n * CHANNELS + head * WIDTH
        scalars = (place * HEADS + head) * n + query
        to = grad_qkvg + place * n * 4 * CHANNELS + head * WIDTH

        above = _load(grad + y, query, CHANNELS, n, WIDTH).to(tl.float32)
        gate = _sigmoid(_load(x + 3 * CHANNELS, query, stride_n, n, WIDTH))
        product = above * _load(out + y, query, CHANNELS, n, WIDTH).to(tl.float32)
        _store(to + 3 * CHANNELS, product * (1 - gate), query, 4 * CHANNELS, n, WIDTH)
        above = (above * gate).to(grad_mixed.dtype.element_ty)
        _store(grad_mixed + y, above, query, CHANNELS, n, WIDTH)
        sums = tl.sum(product, 1)
        tl.store(delta + scalars, sums, mask=query < n)

        # Past the end the weights are zero.
        logarithm = tl.load(lse + scalars, mask=query < n, other=float("inf"))
        q = _load(x, query, stride_n, n, WIDTH)
        if WHOLE:
            k = _load(x + CHANNELS, key, stride_n, n, WIDTH)
            v = _load(x + 2 * CHANNELS, key, stride_n, n, WIDTH)
            logits = _product(q, tl.trans(k), DOT) * scale + shared
            weights = tl.exp2(logits - logarithm[:, None])
            grad_logits = weights * (_product(above, tl.trans(v), DOT) - sums[:, None])
            grad_q = tl.zeros((TILE, WIDTH), tl.float32)
            if rows > first:
                grad_q = _product(grad_logits, k, DOT)
            change += grad_logits
        else:
            grad_q = tl.zeros((TILE, WIDTH), tl.float32)
            for start in range(0, n, BLOCK):
                key = start + tl.arange(0, BLOCK)
                k = _load(x + CHANNELS, key, stride_n, n, WIDTH)
                v = _load(x + 2 * CHANNELS, key, stride_n, n, WIDTH)
                logits = _product(q, tl.trans(k), DOT) * scale
                logits += _logits(bias, query[:, None], key[None, :], n)
                weights = tl.exp2(logits - logarithm[:, None])
                grad_logits = weights * (_product(above, tl.trans(v), DOT) - sums[:, None])
                grad_q += _product(grad_logits, k, DOT)
        _store(to, grad_q * (scale / LOG2E), query, 4 * CHANNELS, n, WIDTH)
    if WHOLE:
        _store_bias(grad_bias, change, query[:, None], key[None, :], n)


@_kernel
def key_kernel(
    qkvg, bias, lse, grad_mixed, delta, grad_qkvg, scale, rows, n, group, stride_b, stride_r,
    stride_n,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    WHOLE: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values. Tiles are of keys by queries, which saves transpositions."""
    chain, head = (tl.program_id(2) // HEADS).to(tl.int64), tl.program_id(2) % HEADS
    key = tl.program_id(0) * TILE + tl.arange(0, TILE)
    bias += tl.program_id(2).to(tl.int64) * n * n
    CHANNELS: tl.constexpr = HEADS * WIDTH
    if WHOLE:
        shared = _logits(bias, tl.arange(0, BLOCK)[None, :], key[:, None], n)
    first = tl.program_id(1) * group
    for row in range(first, tl.minimum(first + group, rows)):
        x = qkvg + chain * stride_b + row * tl.cast(stride_r, tl.int64) + head * WIDTH
        place = chain * rows + row
        above = grad_mixed + place * n * CHANNELS + head * WIDTH
        scalars = (place * HEADS + head) * n
        k = _load(x + CHANNELS, key, stride_n, n, WIDTH)
        v = _load(x + 2 * CHANNELS, key, stride_n, n, WIDTH)
        grad_k = tl.zeros((TILE, WIDTH), tl.float32)
        grad_v = tl.zeros((TILE, WIDTH), tl.float32)
        if WHOLE:
            query = tl.arange(0, BLOCK)
            q = _load(x, query, stride_n, n, WIDTH)
            g = _load(above, query, CHANNELS, n, WIDTH)
            logarithm = tl.load(lse + scalars + query, mask=query < n, other=float("inf"))
            sums = tl.load(delta + scalars + query, mask=query < n, other=0.0)
            logits = _product(k, tl.trans(q), DOT) * scale + shared
            weights = tl.exp2(logits - logarithm[None, :])
            if rows > first:
                grad_v = _product(weights, g, DOT)
            grad_logits = weights * (_product(v, tl.trans(g), DOT) - sums[None, :])
            if rows > first:
                grad_k = _product(grad_logits, q, DOT)
        else:
            for start in range(0, n, BLOCK):
                query = start + tl.arange(0, BLOCK)
                q = _load(x, query, stride_n, n, WIDTH)
                g = _load(above, query, CHANNELS, n, WIDTH)
                logarithm = tl.load(lse + scalars + query, mask=query < n, other=float("inf"))
                sums = tl.load(delta + scalars + query, mask=query < n, other=0.0)
                logits = _product(k, tl.trans(q), DOT) * scale
                logits += _logits(bias, query[None, :], key[:, None], n)
                weights = tl.exp2(logits - logarithm[None, :])
                grad_v += _product(weights, g, DOT)
                grad_logits = weights * (_product(v, tl.trans(g), DOT) - sums[None, :])
                grad_k += _product(grad_logits, q, DOT)
        to = grad_qkvg + place * n * 4 * CHANNELS + head * WIDTH
        _store(to + CHANNELS, grad_k * (scale / LOG2E), key, 4 * CHANNELS, n, WIDTH)
        _store(to + 2 * CHANNELS, grad_v, key, 4 * CHANNELS, n, WIDTH)


@_kernel
def bias_kernel(
    qkvg, bias, lse, grad_mixed, delta, grad_bias, scale, rows, n, group, stride_b, stride_r,
    stride_n,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """Gradient of the bias for a tile of queries and a block of keys, summed over a group."""
    chain, head = (tl.program_id(2) // HEADS).to(tl.int64), tl.program_id(2) % HEADS
    blocks = tl.cdiv(n, BLOCK)
    query = tl.program_id(0) // blocks * TILE + tl.arange(0, TILE)
    key = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    bias += tl.program_id(2).to(tl.int64) * n * n
    CHANNELS: tl.constexpr = HEADS * WIDTH
    shared = _logits(bias, query[:, None], key[None, :], n)
    change = tl.zeros((TILE, BLOCK), tl.float32)
    first = tl.program_id(1) * group
    for row in range(first, tl.minimum(first + group, rows)):
        x = qkvg + chain * stride_b + row * tl.cast(stride_r, tl.int64) + head * WIDTH
        place = chain * rows + row
        scalars = (place * HEADS + head) * n + query
        q = _load(x, query, stride_n, n, WIDTH)
        k = _load(x + CHANNELS, key, stride_n, n, WIDTH)
        v = _load(x + 2 * CHANNELS, key, stride_n, n, WIDTH)
        g = _load(grad_mixed + place * n * CHANNELS + head * WIDTH, query, CHANNELS, n, WIDTH)
        logarithm = tl.load(lse + scalars, mask=query < n, other=float("inf"))
        sums = tl.load(delta + scalars, mask=query < n, other=0.0)
        weights = tl.exp2(_product(q, tl.trans(k), DOT) * scale + shared - logarithm[:, None])
        change += weights * (_product(g, tl.trans(v), DOT) - sums[:, None])
    _store_bias(grad_bias, change, query[:, None], key[None, :], n)


KERNELS = {"forward": forward_kernel, "query": query_kernel, "key": key_kernel, "bias": bias_kernel}


def forward(
    qkvg: Float[Tensor, "b r n four_hd"], bias: Float[Tensor, "b h n n"]
) -> tuple[Float[Tensor, "b r n hd"], Float[Tensor, "b r h n"]]:
    """`attention.gated_attention`, and the logarithm of each query's sum of weights (of base 2)."""
    b, r, n, channels = qkvg.shape
    out = qkvg.new_empty(b, r, n, channels // 4)
    lse = qkvg.new_empty(b, r, bias.shape[1], n, dtype=torch.float32)
    _launch("forward", qkvg, bias, (out, lse))
    return out, lse


def backward(
    grad: Float[Tensor, "b r n hd"],
    qkvg: Float[Tensor, "b r n four_hd"],
    bias: Float[Tensor, "b h n n"],
    out: Float[Tensor, "b r n hd"],
    lse: Float[Tensor, "b r h n"],
) -> tuple[Float[Tensor, "b r n four_hd"], Float[Tensor, "b h n n"]]:
    """Gradients of `qkvg` and of the bias, from what `forward` returned."""
    grad_qkvg = qkvg.new_empty(qkvg.shape)
    grad_mixed, delta = torch.empty_like(out), torch.empty_like(lse)
    summing = "query" if qkvg.shape[2] <= LONGEST_WHOLE else "bias"
    groups = _grid(summing, qkvg, bias)[1]
    exact = bias.dtype if groups == 1 else torch.float32
    parts = bias.new_empty(groups, *bias.shape, dtype=exact)
    _launch("query", qkvg, bias, (out, lse, grad, grad_mixed, delta, grad_qkvg, parts))
    _launch("key", qkvg, bias, (lse, grad_mixed, delta, grad_qkvg))
    if summing == "bias":
        _launch("bias", qkvg, bias, (lse, grad_mixed, delta, parts))
    # Sums in this order are the same each time.
    return grad_qkvg, parts[0] if groups == 1 else parts.sum(0).to(bias.dtype)


def _launch(name: str, qkvg: Tensor, bias: Tensor, others: tuple[Tensor, ...]) -> None:
    _, r, n, channels = qkvg.shape
    heads, width = bias.shape[1], channels // 4 // bias.shape[1]
    tiles = _tiles(name, qkvg)
    grid = _grid(name, qkvg, bias)
    constants = {} if name == "bias" else {"WHOLE": n <= LONGEST_WHOLE}
    with torch.cuda.device_of(qkvg):
        KERNELS[name][grid](
            qkvg,
            bias,
            *others,
            width**-0.5 * LOG2E.value,
            r,
            n,
            triton.cdiv(r, grid[1]),
            *qkvg.stride()[:3],
            HEADS=heads,
            WIDTH=width,
            TILE=tiles.tile,
            BLOCK=tiles.block,
            DOT=dot_type(qkvg.dtype),
            num_warps=tiles.warps,
            num_stages=tiles.stages,
            **constants,
        )


def dot_type(dtype: torch.dtype) -> tl.dtype:
    """The precision of factors in products; sums are in float32."""
    return tl.bfloat16 if dtype == torch.bfloat16 else tl.float32


def _tiles(name: str, qkvg: Tensor) -> Tiles:
    n = qkvg.shape[2]
    tiles = tiles_on(qkvg.device)[name, qkvg.dtype, n <= LONGEST_WHOLE]
    longest = max(16, triton.next_power_of_2(n))
    return replace(tiles, tile=min(tiles.tile, longest), block=tiles.block or longest)


def _grid(name: str, qkvg: Tensor, bias: Tensor) -> tuple[int, int, int]:
    """Tiles of a row, groups of rows (as few as fill a GPU), and chains times heads."""
    b, r, n, _ = qkvg.shape
    tiles = _tiles(name, qkvg)
    pieces = triton.cdiv(n, tiles.tile) * (triton.cdiv(n, tiles.block) if name == "bias" else 1)
    chains = b * bias.shape[1]
    group = triton.cdiv(r, triton.cdiv(PROGRAMS, pieces * chains))
    return pieces, triton.cdiv(r, group), chains
