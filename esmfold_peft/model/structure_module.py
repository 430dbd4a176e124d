"""From single and pair track to coordinates."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from esmfold_peft.config import StructureConfig
from esmfold_peft.geometry.frames import atom14_from_frames, frames_from_torsions
from esmfold_peft.geometry.rigid import Rigid, rotation_from_quaternion
from esmfold_peft.model.dropout import LayerDropout, Site, drop
from esmfold_peft.model.invariant_point_attention import InvariantPointAttention
from esmfold_peft.model.linear import linear

TORSIONS = 7


@dataclass(frozen=True, eq=False)
class Structure:
    """Predicted structures, float32, coordinates in Å.

    Attributes:
        frames: backbone frames after each layer, shape (k, b, n).
        torsions: normalised (sin, cos) of ω, φ, ψ, χ1 to χ4 after each layer.
        unnormalized_torsions: the same before normalisation, for the angle-norm loss.
        sidechain_frames: the eight rigid groups of each residue after the last layer, shape (b, n,
            8).
        positions: atom14 coordinates after the last layer; 0 where the residue has no such atom.
    """

    frames: Rigid
    torsions: Float[Tensor, "k b n 7 2"]
    unnormalized_torsions: Float[Tensor, "k b n 7 2"]
    sidechain_frames: Rigid
    positions: Float[Tensor, "b n 14 3"]


@dataclass(frozen=True, eq=False)
class StructureModuleOutput(Structure):
    """What the structure module returns.

    Attributes:
        s: single track after the last layer.
    """

    s: Float[Tensor, "b n c_s"]


class StructureModule(nn.Module):
    """Moves every residue from the origin to its place (AF2 Suppl. Alg. 20).

    It runs in float32, also under autocast: its matrices are small, and a rounding of bfloat16 in
    an early layer is 0.4 % of every coordinate. Parameter names are OpenFold's.

    Args:
        config: sizes and dropout.
        c_s: channels of the single track.
        c_z: channels of the pair track.
        transition_layers: residual blocks of the transition after attention.
        translation_scale: Å of one unit of length inside the module.
    """

    def __init__(
        self,
        config: StructureConfig,
        *,
        c_s: int,
        c_z: int,
        transition_layers: int = 1,
        translation_scale: float = 10.0,
    ) -> None:
        super().__init__()
        self.c_s = c_s
        self.layers = config.layers
        self.dropout = config.dropout
        self.translation_scale = translation_scale
        self.layer_norm_s = nn.LayerNorm(c_s)
        self.layer_norm_z = nn.LayerNorm(c_z)
        self.linear_in = linear(c_s, c_s)
        self.ipa = InvariantPointAttention(config, c_s=c_s, c_z=c_z)
        self.layer_norm_ipa = nn.LayerNorm(c_s)
        self.transition = _Transition(c_s, transition_layers)
        self.bb_update = _BackboneUpdate(c_s)
        self.angle_resnet = AngleResnet(c_s, config.c_angle, config.angle_blocks)

    def dropout_sites(self, residues: int) -> tuple[LayerDropout, ...]:
        """Where dropout acts in each layer, for chains padded to this many residues."""
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
            mask: which residues exist. Others do not change these; their own results mean nothing.
            dropout: factors for `dropout_sites`; None: there is none.
        """
        dropout = (LayerDropout(),) * self.layers if dropout is None else dropout
        with torch.autocast(s.device.type, enabled=False):
            s_initial, z = self.layer_norm_s(s.float()), self.layer_norm_z(z.float())
            s, bias = self.linear_in(s_initial), self.ipa.pair_bias(z)
            frames = Rigid.identity(*mask.shape, device=mask.device)
            all_frames, all_s = [], []
            for of_attention, of_transition in dropout:
                s = drop(s + self.ipa(s, z, bias, frames, mask), of_attention)
                s = self.transition(self.layer_norm_ipa(s), of_transition)
                frames = frames.compose(self.bb_update(s))
                in_angstrom = frames.translation * self.translation_scale
                all_frames.append(Rigid(frames.rotation, in_angstrom))
                all_s.append(s)
                # Gradients through chained rotations are unstable (Alg. 20 line 20); each layer's
                # own loss still reaches its rotation.
                frames = Rigid(frames.rotation.detach(), frames.translation)
            frames = Rigid.stack(all_frames)
            torsions, raw_torsions = self.angle_resnet(torch.stack(all_s), s_initial)
            sidechains = frames_from_torsions(frames[-1], torsions[-1], aatype)
            positions = atom14_from_frames(sidechains, aatype)
        return StructureModuleOutput(frames, torsions, raw_torsions, sidechains, positions, s)


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


class AngleResnet(nn.Module):
    """Torsion angles from the single track (AF2 Suppl. Alg. 20 lines 11 to 14)."""

    def __init__(self, c_s: int, width: int, blocks: int) -> None:
        super().__init__()
        self.linear_in = linear(c_s, width)
        self.linear_initial = linear(c_s, width)
        self.layers = nn.ModuleList(_AngleBlock(width) for _ in range(blocks))
        self.linear_out = linear(width, 2 * TORSIONS)

    def forward(
        self, s: Float[Tensor, "k b n c_s"], s_initial: Float[Tensor, "b n c_s"]
    ) -> tuple[Float[Tensor, "k b n 7 2"], Float[Tensor, "k b n 7 2"]]:
        """Torsions of unit length after each layer, and before normalisation."""
        # DISCREPANCY: the supplement has no ReLU on these inputs; AlphaFold 2's code does.
        a = self.linear_in(s.relu()) + self.linear_initial(s_initial.relu())
        for layer in self.layers:
            a = layer(a)
        raw = self.linear_out(a.relu()).unflatten(-1, (TORSIONS, 2))
        norm = torch.sqrt((raw * raw).sum(-1, keepdim=True).clamp(min=1e-8))
        return raw / norm, raw


class _AngleBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = linear(width, width, init="relu")
        self.linear_2 = linear(width, width, init="zero")

    def forward(self, a: Float[Tensor, "k b n width"]) -> Float[Tensor, "k b n width"]:
        return a + self.linear_2(self.linear_1(a.relu()).relu())
