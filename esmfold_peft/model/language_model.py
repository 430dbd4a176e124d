"""ESM-2 (Lin et al. 2023), which gives every residue its hidden states of all layers.

fair-esm's modules hold the weights under their official names; the forward pass is this project's
own. It has fused attention, and rotary positions computed in float32 in each pass: fair-esm caches
them, which breaks training after `inference_mode`, and rounds them under bfloat16.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from esm.data import Alphabet
from esm.model.esm2 import ESM2
from esm.modules import TransformerLayer
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from esmfold_peft.adapters.base import INPUTS, OUTPUT, Adapter, AttentionShape, Deltas, Group
from esmfold_peft.config import Target
from esmfold_peft.errors import UserError
from esmfold_peft.protein.residues import RESIDUES_X

SIZES = {
    "esm2_t6_8M_UR50D": AttentionShape(layers=6, width=320, heads=20),
    "esm2_t12_35M_UR50D": AttentionShape(layers=12, width=480, heads=20),
    "esm2_t30_150M_UR50D": AttentionShape(layers=30, width=640, heads=20),
    "esm2_t33_650M_UR50D": AttentionShape(layers=33, width=1280, heads=20),
    "esm2_t36_3B_UR50D": AttentionShape(layers=36, width=2560, heads=40),
    "esm2_t48_15B_UR50D": AttentionShape(layers=48, width=5120, heads=40),
}
"""Sizes of the published models."""

PROJECTIONS: dict[Target, str] = {
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "output": "out_proj",
}
"""fair-esm's names of the adaptable matrices."""

ALPHABET = Alphabet.from_architecture("ESM-1b")
"""The tokens of ESM-2: twenty-five residues, two gaps, six special ones."""

ROTARY_BASE = 10_000.0

EMBEDDING_SCALE = 1 - 0.15 * 0.8
"""ESM-2 was trained with 12 % of the embeddings zeroed (masked tokens): a complete sequence has its
embeddings scaled to match."""


@dataclass(frozen=True, eq=False)
class _Pass:
    """What all layers of one forward pass share.

    Attributes:
        cos: of the rotary angles.
        sin: of the rotary angles.
        attended: tokens that are not padding.
        deltas: the folded adapter.
    """

    cos: Float[Tensor, "t d_rot"]
    sin: Float[Tensor, "t d_rot"]
    attended: Bool[Tensor, "b 1 1 t"]
    deltas: Deltas | None


class LanguageModel(nn.Module):
    """ESM-2 with a place for one adapter.

    The heads for contacts and masked residues are absent: no parameter is without gradient. Weights
    start at random (fair-esm's initialisation) until `esm2_weights.load_esm2` fills them.

    Attributes:
        shape: sizes.
        adapter: changes the attention matrices (`adapters.insert`), or None.
        checkpoint: recompute each layer's activations in the backward pass.
    """

    adapter: Adapter | None

    def __init__(self, shape: AttentionShape, *, checkpoint: bool = False) -> None:
        super().__init__()
        self.shape = shape
        self.checkpoint = checkpoint
        self.adapter = None
        esm2 = ESM2(shape.layers, shape.width, shape.heads, ALPHABET)
        self.embed_tokens = esm2.embed_tokens
        self.layers = esm2.layers
        for layer in self._layers():
            layer.self_attn.rot_emb = None
            # Where apex is installed fair-esm takes its norm, which rounds under autocast.
            for norm in ("self_attn_layer_norm", "final_layer_norm"):
                setattr(layer, norm, nn.LayerNorm(shape.width))
        self.emb_layer_norm_after = nn.LayerNorm(shape.width)
        letters = [ALPHABET.get_idx(letter) for letter in RESIDUES_X]
        table = torch.tensor(letters, device="cpu")
        self.register_buffer("token_of_aatype", table, persistent=False)

    @classmethod
    def random(
        cls, size: str | AttentionShape, *, seed: int = 0, checkpoint: bool = False
    ) -> "LanguageModel":
        """A model whose weights depend on the seed alone; the global generator is left as it was.

        Args:
            size: official name or explicit sizes.
            seed: of the weights.
            checkpoint: see the class.
        """
        shape = size_of(size) if isinstance(size, str) else size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(shape, checkpoint=checkpoint)

    def forward(
        self, aatype: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]
    ) -> Float[Tensor, "b n l d"]:
        """Hidden states of the residues at every level.

        Args:
            aatype: residues (`protein.residues`).
            mask: which residues exist, a prefix of each row.

        Returns:
            Level 0 is the embedding, level i the output of layer i, the last one after the final
            layer norm, as ESMFold reads them. Values in the padding are finite and mean nothing.
        """
        tokens = self.tokenize(aatype, mask)
        attended = tokens != ALPHABET.padding_idx
        x = self.embed_tokens(tokens) * EMBEDDING_SCALE * attended[..., None]
        cos, sin = _rotary_tables(tokens.shape[1], self.shape.head_width, x.device)
        deltas = None if self.adapter is None else self.adapter.fold(_product_dtype(x))
        shared = _Pass(cos, sin, attended[:, None, None], deltas)
        levels = [x]
        for index, layer in enumerate(self._layers()):
            levels.append(self._run(layer, index, levels[-1], shared))
        levels[-1] = self.emb_layer_norm_after(levels[-1])
        return torch.stack([level[:, 1 : aatype.shape[1] + 1] for level in levels], dim=2)

    def tokenize(self, aatype: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> Int[Tensor, "b t"]:
        """Tokens <cls>, residues, <eos> right after each chain's last residue, <pad>; t = n + 2."""
        position = torch.arange(aatype.shape[1] + 2, device=aatype.device)
        length = mask.sum(1, keepdim=True)
        table = cast(Tensor, self.token_of_aatype)
        tokens = F.pad(torch.where(mask, table[aatype], ALPHABET.padding_idx), (1, 1))
        tokens = tokens.masked_fill(position == 0, ALPHABET.cls_idx)
        tokens = tokens.masked_fill(position == length + 1, ALPHABET.eos_idx)
        return tokens.masked_fill(position > length + 1, ALPHABET.padding_idx)

    def projection(self, layer: int, target: Target) -> nn.Linear:
        """The attention matrix of a layer that an adapter changes."""
        name = f"layers.{layer}.self_attn.{PROJECTIONS[target]}"
        return cast(nn.Linear, self.get_submodule(name))

    def base_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Official names and values of ESM-2's weights, without the adapter's."""
        for name, parameter in self.named_parameters():
            if not name.startswith("adapter."):
                yield name, parameter

    def _layers(self) -> Iterator[TransformerLayer]:
        return (cast(TransformerLayer, layer) for layer in self.layers)

    def _run(
        self, layer: TransformerLayer, index: int, x: Float[Tensor, "b t d"], shared: _Pass
    ) -> Float[Tensor, "b t d"]:
        if self.checkpoint and torch.is_grad_enabled():
            # Re-entrant checkpointing would lose the gradient of an adapter when x needs none.
            result = checkpoint(_layer, layer, index, x, shared, use_reentrant=False)
            return cast(Tensor, result)
        return _layer(layer, index, x, shared)


def size_of(name: str) -> AttentionShape:
    """Sizes of a published model.

    Raises:
        UserError: no such name.
    """
    if name not in SIZES:
        raise UserError(f'language model "{name}" is unknown; there are {", ".join(SIZES)}')
    return SIZES[name]


def _layer(
    layer: TransformerLayer, index: int, x: Float[Tensor, "b t d"], shared: _Pass
) -> Float[Tensor, "b t d"]:
    """One pre-norm transformer layer."""
    x = x + _attention(layer.self_attn, index, layer.self_attn_layer_norm(x), shared)
    return x + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(x))))


def _attention(
    attention: nn.Module, index: int, x: Float[Tensor, "b t d"], shared: _Pass
) -> Float[Tensor, "b t d"]:
    """Self-attention with rotary positions (Su et al. 2021) and adapted projections."""
    q, k, v = (_split(y, shared) for y in _project(attention, index, INPUTS, x, shared.deltas))
    q, k = _rotate(q, shared), _rotate(k, shared)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=shared.attended)
    mixed = mixed.transpose(1, 2).flatten(2)
    (out,) = _project(attention, index, OUTPUT, mixed, shared.deltas)
    return out


def _project(
    attention: nn.Module, index: int, group: Group, x: Float[Tensor, "b t d"], deltas: Deltas | None
) -> list[Float[Tensor, "b t d"]]:
    """Applies the matrices that read x, each with what the adapter adds to it."""
    outputs = [getattr(attention, PROJECTIONS[target])(x) for target in group]
    if deltas is None:
        return outputs
    added = deltas(index, group, x)
    return [y if dy is None else y + dy for y, dy in zip(outputs, added, strict=True)]


def _split(x: Float[Tensor, "b t d"], shared: _Pass) -> Float[Tensor, "b h t d_h"]:
    head_width = 2 * shared.cos.shape[1]
    return x.unflatten(2, (-1, head_width)).transpose(1, 2)


def _rotary_tables(
    tokens: int, head_width: int, device: torch.device
) -> tuple[Float[Tensor, "t d_rot"], Float[Tensor, "t d_rot"]]:
    """Cosine and sine of position times frequency, in float32 whatever the model's precision."""
    channel = torch.arange(0, head_width, 2, dtype=torch.float32, device=device)
    frequency = 1.0 / ROTARY_BASE ** (channel / head_width)
    position = torch.arange(tokens, dtype=torch.float32, device=device)
    angle = position[:, None] * frequency
    return angle.cos(), angle.sin()


def _rotate(x: Float[Tensor, "b h t d_h"], shared: _Pass) -> Float[Tensor, "b h t d_h"]:
    """Turns channels (i, i + d_h/2) by the angle of their position, in float32."""
    first, second = x.float().chunk(2, dim=-1)
    turned = (
        first * shared.cos - second * shared.sin,
        second * shared.cos + first * shared.sin,
    )
    return torch.cat(turned, dim=-1).to(x.dtype)


def _product_dtype(x: Tensor) -> torch.dtype:
    """The type in which matrix products are computed here."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
