"""From single and pair track to coordinates."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from esmfold_peft.geometry.frames import atom14_from_frames, frames_from_torsions
from esmfold_peft.geometry.rigid import Rigid, rotation_from_quaternion
from esmfold_peft.model.angle_resnet import AngleResnet
from esmfold_peft.model.attention import InvariantPointAttention
from esmfold_peft.model.dropout import LayerDropout, Site, drop
from esmfold_peft.model.linear import linear


@dataclass(frozen=True, eq=False)
class StructureModuleOutput:
    """Predicted structures, float32, coordinates in Å.

    Attributes:
        frames: backbone frames after each layer, shape (k, b, n).
        torsions: normalised (sin, cos) of ω, φ, ψ, χ1 to χ4 after each layer.
        unnormalized_torsions: the same before normalisation.
        sidechain_frames: the eight rigid groups of each residue after the last layer, shape (b, n,
            8).
        positions: atom14 coordinates after the last layer; 0 where the residue has no such atom.
        s: single track after the last layer.
    """

    frames: Rigid
    torsions: Float[Tensor, "k b n 7 2"]
    unnormalized_torsions: Float[Tensor, "k b n 7 2"]
    sidechain_frames: Rigid
    positions: Float[Tensor, "b n 14 3"]
    s: Float[Tensor, "b n c_s"]


class StructureModule(nn.Module):
    """Moves every residue from the origin to its place (AF2 Suppl. Alg. 20).

    It runs in float32, also under autocast: its matrices are small, and a rounding of bfloat16 in
    an early layer is 0.4 % of every coordinate. Parameter names are OpenFold's.

    Args:
        c_s: channels of the single track.
        c_z: channels of the pair track.
        c_ipa: channels of a head of the invariant point attention.
        heads: heads of the invariant point attention.
        query_points: query and key points of a head.
        value_points: value points of a head.
        layers: layers, sharing their weights.
        c_angle: width of the torsion network.
        angle_blocks: residual blocks of the torsion network.
        transition_layers: residual blocks of the transition after attention.
        dropout: dropout after attention and transition.
        translation_scale: Å of one unit of length inside the module.
    """

    def __init__(
        self,
        *,
        c_s: int,
        c_z: int,
        c_ipa: int = 16,
        heads: int = 12,
        query_points: int = 4,
        value_points: int = 8,
        layers: int = 8,
        c_angle: int = 128,
        angle_blocks: int = 2,
        transition_layers: int = 1,
        dropout: float = 0.1,
        translation_scale: float = 10.0,
    ) -> None:
        super().__init__()
        self.c_s = c_s
        self.layers = layers
        self.dropout = dropout
        self.translation_scale = translation_scale
        self.layer_norm_s = nn.LayerNorm(c_s)
        self.layer_norm_z = nn.LayerNorm(c_z)
        self.linear_in = linear(c_s, c_s)
        self.ipa = InvariantPointAttention(
            c_s=c_s,
            c_z=c_z,
            c_hidden=c_ipa,
            heads=heads,
            query_points=query_points,
            value_points=value_points,
        )
        self.layer_norm_ipa = nn.LayerNorm(c_s)
        self.transition = _Transition(c_s, transition_layers)
        self.bb_update = _BackboneUpdate(c_s)
        self.angle_resnet = AngleResnet(c_s, c_angle, angle_blocks)

    def dropout_sites(self, residues: int) -> tuple[LayerDropout, ...]:
        """Where dropout acts in each layer, of chains padded to so many residues."""
        site: Any = Site((residues, self.c_s), self.dropout)
        return (LayerDropout(site, site),) * self.layers

    def forward(
        self,
        s: Float[Tensor, "b n c_s"],
        z: Float[Tensor, "b n n c_z"],
        aatype: Int[Tensor, "b n"],
        mask: Bool[Tensor, "b n"],
        dropout: tuple[LayerDropout, ...] | None = None,
    ) -> StructureModuleOutput:
        """Predicts frames, torsions and atoms.

        Args:
            s: single track.
            z: pair track.
            aatype: 0 to 20.
            mask: which residues exist. Others do not change them and are themselves meaningless.
            dropout: factors for `dropout_sites`; None: there is none.
        """
        dropout = (LayerDropout(),) * self.layers if dropout is None else dropout
        with torch.autocast(s.device.type, enabled=False):
            s, frames, torsions, raw_torsions = self._layers(s.float(), z.float(), mask, dropout)
            sidechains = frames_from_torsions(frames[-1], torsions[-1], aatype)
            return StructureModuleOutput(
                frames=frames,
                torsions=torsions,
                unnormalized_torsions=raw_torsions,
                sidechain_frames=sidechains,
                positions=atom14_from_frames(sidechains, aatype),
                s=s,
            )

    def _layers(
        self,
        s: Float[Tensor, "b n c_s"],
        z: Float[Tensor, "b n n c_z"],
        mask: Bool[Tensor, "b n"],
        dropout: tuple[LayerDropout, ...],
    ) -> tuple[
        Float[Tensor, "b n c_s"],
        Rigid,
        Float[Tensor, "k b n 7 2"],
        Float[Tensor, "k b n 7 2"],
    ]:
        """The last single track, and frames (in Å), torsions and raw torsions of every layer."""
        s_initial, z = self.layer_norm_s(s), self.layer_norm_z(z)
        s, bias = self.linear_in(s_initial), self.ipa.pair_bias(z)
        frames = Rigid.identity(*mask.shape, device=mask.device)
        all_frames, all_s = [], []
        for of_attention, of_transition in dropout:
            s = drop(s + self.ipa(s, z, bias, frames, mask), of_attention)
            s = self.transition(self.layer_norm_ipa(s), of_transition)
            frames = frames.compose(self.bb_update(s))
            all_frames.append(frames.scale(self.translation_scale))
            all_s.append(s)
            # Gradients through chained rotations are unstable; each layer's own loss still reaches
            # its rotation.
            frames = frames.detach_rotation()
        return s, Rigid.stack(all_frames), *self.angle_resnet(torch.stack(all_s), s_initial)


class _Transition(nn.Module):
    """AF2 Suppl. Alg. 20 lines 8 and 9."""

    def __init__(self, c_s: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_TransitionLayer(c_s) for _ in range(layers))
        self.layer_norm = nn.LayerNorm(c_s)

    def forward(
        self, s: Float[Tensor, "b n c_s"], factors: Float[Tensor, "b n c_s"] | None
    ) -> Float[Tensor, "b n c_s"]:
        for layer in self.layers:
            s = layer(s)
        return self.layer_norm(drop(s, factors))


class _TransitionLayer(nn.Module):
    def __init__(self, c_s: int) -> None:
        super().__init__()
        self.linear_1 = linear(c_s, c_s, init="relu")
        self.linear_2 = linear(c_s, c_s, init="relu")
        self.linear_3 = linear(c_s, c_s, init="zero")

    def forward(self, s: Float[Tensor, "b n c_s"]) -> Float[Tensor, "b n c_s"]:
        return s + self.linear_3(self.linear_2(self.linear_1(s).relu()).relu())


class _BackboneUpdate(nn.Module):
    """AF2 Suppl. Alg. 23: a rotation by the quaternion (1, b, c, d), and a translation."""

    def __init__(self, c_s: int) -> None:
        super().__init__()
        self.linear = linear(c_s, 6, init="zero")

    def forward(self, s: Float[Tensor, "b n c_s"]) -> Rigid:
        imaginary, translation = self.linear(s).split(3, dim=-1)
        quaternion = torch.cat((torch.ones_like(imaginary[..., :1]), imaginary), dim=-1)
        return Rigid(rotation_from_quaternion(quaternion), translation)
