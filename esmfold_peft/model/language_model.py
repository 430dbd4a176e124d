"""ESM-2 (Lin et al. 2023): the hidden states of every residue at all layers.

fair-esm's modules hold the weights; query, key and value are one matrix here, so that one product
computes them. The forward pass is our own. It has fused attention, and computes rotary positions
in float32 in each pass: fair-esm caches them, which breaks training after `inference_mode`, and
rounds them under bfloat16.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F  # noqa: N812
from esm.data import Alphabet
from esm.model.esm2 import ESM2
from esm.modules import TransformerLayer
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from esmfold_peft.adapters.bank import AdapterChoice
from esmfold_peft.adapters.base import (
    FC1,
    FC2,
    INPUTS,
    OUTPUT,
    Adaptation,
    Adapter,
    AttentionShape,
    Group,
    size_of,
)
from esmfold_peft.config import Target
from esmfold_peft.model.linear import product_type
from esmfold_peft.protein.residues import RESIDUES_X

PROJECTIONS: dict[Target, str] = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.out_proj",
    "fc1": "fc1",
    "fc2": "fc2",
}
"""fair-esm's names of the adaptable matrices in a layer."""

FUSED = "self_attn.in_proj"
"""Name of the matrix that holds query, key and value, one below the other."""

ALPHABET = Alphabet.from_architecture("ESM-1b")
"""The tokens of ESM-2: twenty-five residues, two gaps, six special ones."""

ROTARY_BASE = 10_000.0

EMBEDDING_SCALE = 1 - 0.15 * 0.8
"""ESM-2 was trained with 12 % of the embeddings zeroed (masked tokens), so the embeddings of a
complete sequence are scaled to match."""


@dataclass(frozen=True, eq=False)
class _Pass:
    """What all layers of one forward pass share.

    `cos` and `sin` are of the rotary angles of both halves of the channels, sin negative for the
    first half. `bias` is added to the logits of attention: 0 for tokens, -inf for padding. `dtype`
    is that of the matrix products.
    """

    cos: Float[Tensor, "t 1 1 d_h"]
    sin: Float[Tensor, "t 1 1 d_h"]
    bias: Float[Tensor, "b 1 1 t"]
    dtype: torch.dtype
    adaptation: Adaptation | None


class LanguageModel(nn.Module):
    """ESM-2 with a place for one adapter.

    The heads for contacts and masked residues are absent: no parameter is without gradient. Weights
    start at random (fair-esm's initialisation) until `weights.esm2_weights.load_esm2` fills them.

    Attributes:
        shape: sizes.
        adapter: changes matrices of the layers (`adapters.insert`), or None.
        recompute: recompute each layer's activations in the backward pass.
    """

    def __init__(self, shape: AttentionShape, *, recompute: bool = False) -> None:
        super().__init__()
        self.shape = shape
        self.recompute = recompute
        self.adapter: Adapter | None = None
        esm2 = ESM2(shape.layers, shape.width, shape.heads, ALPHABET)
        self.embed_tokens = esm2.embed_tokens
        self.layers = esm2.layers
        for layer in self._layers():
            attention = layer.self_attn
            attention.rot_emb = None
            attention.in_proj = _side_by_side(attention.q_proj, attention.k_proj, attention.v_proj)
            del attention.q_proj, attention.k_proj, attention.v_proj
            # Where apex is installed fair-esm takes its norm, which rounds under autocast.
            for norm in ("self_attn_layer_norm", "final_layer_norm"):
                setattr(layer, norm, nn.LayerNorm(shape.width))
        self.emb_layer_norm_after = nn.LayerNorm(shape.width)
        tokens = [ALPHABET.get_idx(letter) for letter in RESIDUES_X]
        table = torch.tensor(tokens, device="cpu")
        self.register_buffer("token_of_aatype", table, persistent=False)
        # Held as bits: casting the model to bfloat16 would turn position 500 by up to 0.6 radians.
        bits = exact_frequencies(shape.head_width).view(torch.int32)
        self.register_buffer("frequency_bits", bits, persistent=False)

    @classmethod
    def random(
        cls, size: str | AttentionShape, *, seed: int = 0, recompute: bool = False
    ) -> "LanguageModel":
        """A model, by its official name or sizes, whose weights depend on the seed alone.

        The global generator is left as it was.
        """
        shape = size_of(size) if isinstance(size, str) else size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(shape, recompute=recompute)

    def forward(
        self,
        aatype: Int[Tensor, "b n"],
        mask: Bool[Tensor, "b n"],
        choice: AdapterChoice | None = None,
        *,
        masked: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n l d"]:
        """Hidden states of the residues at every level.

        Level 0 is the embedding, level i the output of layer i, the last one after the final layer
        norm, as ESMFold reads them. Values in the padding are finite and mean nothing.

        Args:
            aatype: residues (`protein.residues`).
            mask: which residues exist, a prefix of each row.
            choice: an adapter for each sequence, instead of the model's own for all of them.
            masked: residues that are read as <mask>; None: all are read.
        """
        tokens = self.tokenize(aatype, mask)
        attended = tokens != ALPHABET.padding_idx
        x = self.embed_tokens(tokens)
        x = x * _embedding_scale(attended, masked).to(x.dtype)[..., None]
        dtype = product_type(x)
        cos, sin = _rotary_tables(tokens.shape[1], self.rotary_frequencies)
        bias = x.new_zeros(attended.shape, dtype=dtype).masked_fill(~attended, -torch.inf)
        adapter = self.adapter if choice is None else choice
        adaptation = None if adapter is None else adapter.fold(dtype)
        shared = _Pass(cos, sin, bias[:, None, None], dtype, adaptation)
        levels = [x]
        again = self.recompute and torch.is_grad_enabled()
        for index, layer in enumerate(self._layers()):
            given = layer, index, levels[-1], shared
            # Re-entrant checkpointing would lose the gradient of an adapter when x needs none.
            made = checkpoint(_layer, *given, use_reentrant=False) if again else _layer(*given)
            levels.append(cast(Tensor, made))
        levels[-1] = self.emb_layer_norm_after(levels[-1])
        return torch.stack([level[:, 1 : aatype.shape[1] + 1] for level in levels], dim=2)

    @property
    def rotary_frequencies(self) -> Float[Tensor, "half"]:
        """Angles a position of each pair of channels in a head, in float32; writes through."""
        return cast(Tensor, self.frequency_bits).view(torch.float32)

    def tokenize(self, aatype: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> Int[Tensor, "b t"]:
        """Tokens <cls>, residues, <eos> right after each chain's last residue, <pad>; t = n + 2."""
        position = torch.arange(aatype.shape[1] + 2, device=aatype.device)
        length = mask.sum(1, keepdim=True)
        table = cast(Tensor, self.token_of_aatype)
        tokens = F.pad(torch.where(mask, table[aatype], ALPHABET.padding_idx), (1, 1))
        tokens = tokens.masked_fill(position == 0, ALPHABET.cls_idx)
        tokens = tokens.masked_fill(position == length + 1, ALPHABET.eos_idx)
        return tokens.masked_fill(position > length + 1, ALPHABET.padding_idx)

    def weight(self, layer: int, target: Target) -> Float[Tensor, "o i"]:
        """The matrix of a layer that an adapter changes; a view that writes through."""
        return self._part(layer, target, "weight")

    def bias(self, layer: int, target: Target) -> Float[Tensor, "o"]:
        """Its bias; a view that writes through."""
        return self._part(layer, target, "bias")

    def parameter_of(
        self, layer: int, target: Target, kind: Literal["weight", "bias"]
    ) -> nn.Parameter:
        """The parameter in which a matrix or bias lies; query, key and value share theirs."""
        name = FUSED if target in INPUTS else PROJECTIONS[target]
        return self.get_parameter(f"layers.{layer}.{name}.{kind}")

    def base_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and values of ESM-2's weights, without the adapter's."""
        for name, parameter in self.named_parameters():
            if not name.startswith("adapter."):
                yield name, parameter

    def official_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """ESM-2's weights under fair-esm's names; views that write through."""
        for name, parameter in self.base_parameters():
            if FUSED in name:
                for target, part in zip(INPUTS, parameter.detach().chunk(3), strict=True):
                    yield name.replace(FUSED, PROJECTIONS[target]), part
            else:
                yield name, parameter.detach()

    def _part(self, layer: int, target: Target, kind: Literal["weight", "bias"]) -> Tensor:
        whole = self.parameter_of(layer, target, kind).detach()
        return whole.chunk(3)[INPUTS.index(target)] if target in INPUTS else whole

    def _layers(self) -> Iterator[TransformerLayer]:
        return (cast(TransformerLayer, layer) for layer in self.layers)


def _layer(
    layer: TransformerLayer, index: int, x: Float[Tensor, "b t d"], shared: _Pass
) -> Float[Tensor, "b t d"]:
    """One pre-norm transformer layer."""
    x = x + _attention(layer.self_attn, index, layer.self_attn_layer_norm(x), shared)
    inner = _project(layer.fc1, index, FC1, layer.final_layer_norm(x).flatten(0, 1), shared)
    outer = _project(layer.fc2, index, FC2, F.gelu(inner.squeeze(1)), shared)
    return x + outer.view_as(x)


def _attention(
    attention: nn.Module, index: int, x: Float[Tensor, "b t d"], shared: _Pass
) -> Float[Tensor, "b t d"]:
    """Self-attention with rotary positions (Su et al. 2021) and adapted projections."""
    in_proj, out_proj = cast(nn.Module, attention.in_proj), cast(nn.Module, attention.out_proj)
    projected = _project(in_proj, index, INPUTS, x.flatten(0, 1), shared)
    projected = projected.unflatten(0, x.shape[:2]).unflatten(3, (-1, shared.cos.shape[-1]))
    qk, v = projected.split((2, 1), dim=2)
    q, k = _rotate(qk, shared).unbind(2)
    q, k, v = (y.transpose(1, 2) for y in (q, k, v.squeeze(2)))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=shared.bias)
    return _project(
        out_proj, index, OUTPUT, mixed.transpose(1, 2).flatten(2).flatten(0, 1), shared
    ).view_as(x)


def _project(
    matrices: nn.Module, index: int, group: Group, x: Float[Tensor, "t i"], shared: _Pass
) -> Float[Tensor, "t n o"]:
    """Applies the n matrices that read x, and the adapter.

    Tokens are one dimension, so that the product is no view and an adapter may add to it in place.
    """
    # Cast here, not by autocast in every product that reads x.
    x = x.to(shared.dtype)
    if shared.adaptation is None:
        return matrices(x).unflatten(-1, (len(group), -1))
    x = shared.adaptation.input(index, group, x)
    return shared.adaptation.output(index, group, x, matrices(x), matrices)


def _side_by_side(*linears: nn.Module) -> nn.Linear:
    """One linear layer that computes several, their outputs side by side."""
    weights = [cast(Tensor, linear.weight) for linear in linears]
    biases = [cast(Tensor, linear.bias) for linear in linears]
    fused = nn.Linear(weights[0].shape[1], sum(map(len, weights)), device="meta")
    fused.weight = nn.Parameter(torch.cat(weights).detach())
    fused.bias = nn.Parameter(torch.cat(biases).detach())
    return fused


def exact_frequencies(head_width: int) -> Float[Tensor, "half"]:
    """The rotary frequencies by their formula (Su et al. 2021), on the CPU.

    DISCREPANCY: the published ESM-2 was trained with these rounded to float16, and its files hold
    the rounded ones; `weights.esm2_weights.load_esm2` takes those.
    """
    channel = torch.arange(0, head_width, 2, dtype=torch.float32, device="cpu")
    return 1.0 / ROTARY_BASE ** (channel / head_width)


def _rotary_tables(
    tokens: int, frequencies: Float[Tensor, "half"]
) -> tuple[Float[Tensor, "t 1 1 d_h"], Float[Tensor, "t 1 1 d_h"]]:
    """Cosine and signed sine of position times frequency, in float32 at any precision."""
    position = torch.arange(tokens, dtype=torch.float32, device=frequencies.device)
    angle = position[:, None] * frequencies
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((cos, cos), 1)[:, None, None], torch.cat((-sin, sin), 1)[:, None, None]


def _rotate(x: Float[Tensor, "b t 2 h d_h"], shared: _Pass) -> Float[Tensor, "b t 2 h d_h"]:
    """Turns channels (i, i + d_h/2) by the angle of their position, in float32."""
    halves_swapped = x.roll(x.shape[-1] // 2, -1)
    return torch.addcmul(x * shared.cos, halves_swapped, shared.sin).to(x.dtype)


def _embedding_scale(
    attended: Bool[Tensor, "b t"], masked: Bool[Tensor, "b n"] | None
) -> Float[Tensor, "b t"]:
    """Factors of embeddings: 0 for padding and <mask>, larger if more tokens are masked.

    <cls> and <eos> count as tokens (fair-esm's `token_dropout`).
    """
    scale = EMBEDDING_SCALE * attended.float()
    if masked is None:
        return scale
    masked = F.pad(masked, (1, 1)) & attended
    share = masked.sum(1, keepdim=True) / attended.sum(1, keepdim=True)
    return scale.masked_fill(masked, 0.0) / (1 - share)
