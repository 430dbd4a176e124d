"""The folding model: language model, trunk with recycling, structure module, heads."""

from collections.abc import Collection
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from esmfold_peft.adapters.bank import AdapterChoice
from esmfold_peft.config import ModelConfig
from esmfold_peft.geometry.atoms import virtual_cb
from esmfold_peft.model.heads import HEADS, DistogramHead, Head, PAEHead, ResolvedHead
from esmfold_peft.model.language_model import LanguageModel
from esmfold_peft.model.output import FoldOutput
from esmfold_peft.model.structure_module import StructureModule
from esmfold_peft.model.trunk import Trunk
from esmfold_peft.model.trunks.base import Tracks


class FoldingModel(nn.Module):
    """ESMFold's second stage: with a reduced Evoformer (LoRTA appendix E.4), or as released.

    The language model runs once, inside the autograd graph, so that its adapters learn; only the
    trunk and the structure module are recycled.

    Args:
        language_model: ESM-2, with or without an adapter.
        config: sizes of everything else.
        bf16: run language model and trunk under bfloat16 autocast. Frames and heads stay in
            float32.
        compile: compile the trunk's blocks for training.

    Attributes:
        published: trunk, structure module and heads started from a published file, which runs name
            by its hash instead of copying what they did not train.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        config: ModelConfig,
        *,
        bf16: bool,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.language_model = language_model
        self.bf16 = bf16
        self.published = False
        shape = language_model.shape
        self.trunk = Trunk(config, levels=shape.layers + 1, width=shape.width, compile=compile)
        _, c_z, c_s = config.section.widths
        structure, stack = config.structure, self.trunk.stack
        self.structure_module = StructureModule(
            c_s=c_s,
            c_z=c_z,
            c_ipa=structure.c_ipa,
            heads=structure.heads,
            query_points=structure.query_points,
            value_points=structure.value_points,
            layers=structure.layers,
            c_angle=structure.c_angle,
            angle_blocks=structure.angle_blocks,
            dropout=structure.dropout,
        )
        self.distogram_head = DistogramHead(c_z, config.distogram_bins, mean=stack.mean_distogram)
        self.plddt_head = stack.plddt_head(c_s, config.c_plddt, config.plddt_bins)
        self.resolved_head = ResolvedHead(c_s)
        self.pae_head = PAEHead(c_z, config.pae_bins)

    def forward(
        self,
        aatype: Int[Tensor, "b n"],
        residue_index: Int[Tensor, "b n"],
        mask: Bool[Tensor, "b n"],
        recycles: int,
        choice: AdapterChoice | None = None,
        *,
        hidden: Bool[Tensor, "b n"] | None = None,
        heads: Collection[Head] = HEADS,
    ) -> FoldOutput:
        """Folds a batch.

        Args:
            aatype: residues (`protein.residues`).
            residue_index: positions in the chain; gaps are seen by the relative positions.
            mask: which residues exist, a prefix of each row.
            recycles: passes after the first; only the last pass is differentiated.
            choice: an adapter of the language model for each chain, instead of its own for all.
            hidden: residues whose letter the language model does not see; None: it sees all.
            heads: heads to compute; the others' outputs are None.
        """
        with self._autocast(aatype.device):
            levels = self.language_model(aatype, mask, choice, hidden=hidden)
            m, z = self.trunk.embed(levels, aatype, residue_index, mask)
            weights = self.trunk.stack.pack()
        del levels
        tracks: Tracks | None = None
        cb = torch.zeros(*aatype.shape, 3, device=aatype.device)
        for _ in range(recycles):
            with torch.no_grad():
                tracks = self._trunk_pass(m, z, mask, tracks, cb, weights)
                structure = self.structure_module(tracks.s, tracks.structure_z, aatype, mask)
                cb = virtual_cb(structure.positions)
        tracks = self._trunk_pass(m, z, mask, tracks, cb, weights)
        structure = self.structure_module(tracks.s, tracks.structure_z, aatype, mask)
        return FoldOutput(
            frames=structure.frames,
            torsions=structure.torsions,
            unnormalized_torsions=structure.unnormalized_torsions,
            sidechain_frames=structure.sidechain_frames,
            positions=structure.positions,
            distogram_logits=self.distogram_head(tracks.z) if "distogram" in heads else None,
            plddt_logits=self.plddt_head(structure.s) if "plddt" in heads else None,
            resolved_logits=self.resolved_head(tracks.s) if "resolved" in heads else None,
            pae_logits=self.pae_head(tracks.z) if "pae" in heads else None,
        )

    def _trunk_pass(
        self,
        m: Float[Tensor, "b n c_m"],
        z: Float[Tensor, "b n n c_z"],
        mask: Bool[Tensor, "b n"],
        tracks: Tracks | None,
        cb: Float[Tensor, "b n 3"],
        weights: Any,
    ) -> Tracks:
        with self._autocast(m.device):
            return self.trunk(m, z, mask, tracks, cb, weights).float()

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16)
