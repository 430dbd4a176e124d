"""A block's weights as its products read them: joined, with the layer norm before them, cast once.

The scale γ and offset β of a layer norm go into the linear layers that read it: with the normalised
x, W (γ x + β) + b is (W γ) x + (W β + b). Their gradients then are sums over weights, not over all
pairs of residues. Queries, keys and values keep their layer norm: they have no b, and the gradient
of one would be a sum over pairs. So does the sequence track, with its large weights and few rows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten


class Packing(nn.Module):
    """Packs weights of other modules inside a call of its own.

    ZeRO stage 3 gathers parameters for the calls of modules that read them, and for the backward
    pass of a call's results if these are a tuple of tensors. It empties the parameters in between,
    so that under it all results are copies.

    Args:
        pack: makes any nesting of tensors.
    """

    def __init__(self, pack: Callable[[], Any]) -> None:
        super().__init__()
        self.pack = pack

    def forward(self) -> tuple[Tensor | None, ...]:
        """The tensors in order."""
        leaves, self.structure = tree_flatten(self.pack())
        return tuple(leaves)

    def nested(self) -> Any:
        """The tensors in the nesting that `pack` gives."""
        leaves = self()
        return tree_unflatten(leaves, self.structure)


class Norm(NamedTuple):
    """A layer norm's scale and offset, in the parameters' precision."""

    weight: Tensor
    bias: Tensor


class Affine(NamedTuple):
    """Linear layers of the same input, their rows one below the other, in the products' type."""

    weight: Tensor
    bias: Tensor | None


class Multiplication(NamedTuple):
    """A triangle multiplication (AF2 Alg. 11 and 12); `sides`: values of both sides, then gates."""

    sides: Affine
    gate: Affine
    out: Affine


class Attention(NamedTuple):
    """A gated attention: `norm` of the attending track, `bias` from the pair track to logits."""

    norm: Norm
    bias: Affine
    qkvg: Affine
    out: Affine


class Transition(NamedTuple):
    """Two linear layers (AF2 Alg. 9 and 15) after a layer norm: None if `up` contains it."""

    norm: Norm | None
    up: Affine
    down: Affine


class PairUpdates(NamedTuple):
    """All that both trunks' blocks do to the pair track."""

    mul_out: Multiplication
    mul_in: Multiplication
    att_start: Attention
    att_end: Attention
    transition: Transition


def affine(*layers: Any, dtype: torch.dtype, norm: Any = None) -> Affine:
    """Linear layers of one input, and the layer norm before them, as one; a missing bias is 0."""
    weight = _joined([layer.weight for layer in layers])
    bias = None
    if any(layer.bias is not None for layer in layers):
        bias = _joined([_bias(layer) for layer in layers])
    if norm is not None:
        scale, offset = norm_of(norm)
        bias = weight @ offset if bias is None else bias + weight @ offset
        weight = weight * scale
    return Affine(weight.to(dtype), None if bias is None else bias.to(dtype))


def transition(norm: Any, up: Any, down: Any, dtype: torch.dtype, *, folded: bool) -> Transition:
    """From its layers; `folded`: `up` contains the norm."""
    first = affine(up, dtype=dtype, norm=norm if folded else None)
    return Transition(None if folded else norm_of(norm), first, affine(down, dtype=dtype))


def norm_of(layer: Any) -> Norm:
    """A layer norm's parameters."""
    return Norm(layer.weight.clone(), layer.bias.clone())


def multiplication(layer: Any, dtype: torch.dtype) -> Multiplication:
    """From a layer with OpenFold's names."""
    sides = (layer.linear_a_p, layer.linear_b_p, layer.linear_a_g, layer.linear_b_g)
    return Multiplication(
        affine(*sides, dtype=dtype, norm=layer.layer_norm_in),
        affine(layer.linear_g, dtype=dtype, norm=layer.layer_norm_in),
        affine(layer.linear_z, dtype=dtype, norm=layer.layer_norm_out),
    )


def attention(
    norm: Any, to_bias: Any, mha: Any, dtype: torch.dtype, norm_z: Any = None
) -> Attention:
    """From layers with OpenFold's names; `norm_z` is of the pair track if another track attends."""
    qkvg = (mha.linear_q, mha.linear_k, mha.linear_v, mha.linear_g)
    return Attention(
        norm_of(norm),
        affine(to_bias, dtype=dtype, norm=norm_z),
        affine(*qkvg, dtype=dtype),
        affine(mha.linear_o, dtype=dtype),
    )


def _joined(tensors: list[Tensor]) -> Tensor:
    """Concatenates; copies also a single parameter of ZeRO stage 3, which has a `ds_id`."""
    alone = len(tensors) == 1 and not hasattr(tensors[0], "ds_id")
    return tensors[0] if alone else torch.cat(tensors)


def _bias(layer: Any) -> Tensor:
    return layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias
