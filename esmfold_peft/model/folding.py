"""The folding model: language model, trunk with recycling, structure module, heads."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from esmfold_peft.adapters.bank import AdapterChoice
from esmfold_peft.config import ModelConfig
from esmfold_peft.geometry.atoms import virtual_cb
from esmfold_peft.model.heads import DistogramHead, PLDDTHead
from esmfold_peft.model.language_model import LanguageModel
from esmfold_peft.model.output import FoldOutput
from esmfold_peft.model.structure_module import StructureModule
from esmfold_peft.model.trunk import Trunk, TrunkState


class FoldingModel(nn.Module):
    """ESMFold's second stage with a reduced Evoformer (LoRTA appendix E.4).

    The language model runs once, inside the autograd graph, so that its adapters learn; only the
    trunk and the structure module are recycled.

    Args:
        language_model: ESM-2, with or without an adapter.
        config: sizes of everything else.
        bf16: run language model and trunk under bfloat16 autocast. Frames and heads stay in
            float32.
    """

    def __init__(self, language_model: LanguageModel, config: ModelConfig, *, bf16: bool) -> None:
        super().__init__()
        self.language_model = language_model
        self.bf16 = bf16
        shape = language_model.shape
        self.trunk = Trunk(
            config.trunk,
            relative_positions=config.relative_positions,
            levels=shape.layers + 1,
            width=shape.width,
        )
        structure = config.structure
        self.structure_module = StructureModule(
            c_s=config.trunk.c_s,
            c_z=config.trunk.c_z,
            c_ipa=structure.c_ipa,
            heads=structure.heads,
            query_points=structure.query_points,
            value_points=structure.value_points,
            layers=structure.layers,
            c_angle=structure.c_angle,
            angle_blocks=structure.angle_blocks,
            dropout=structure.dropout,
        )
        self.distogram_head = DistogramHead(config.trunk.c_z, config.distogram_bins)
        self.plddt_head = PLDDTHead(config.trunk.c_s, config.c_plddt, config.plddt_bins)

    def forward(
        self,
        aatype: Int[Tensor, "b n"],
        residue_index: Int[Tensor, "b n"],
        mask: Bool[Tensor, "b n"],
        recycles: int,
        choice: AdapterChoice | None = None,
    ) -> FoldOutput:
        """Folds a batch.

        Args:
            aatype: residues (`protein.residues`).
            residue_index: positions in the chain; gaps are seen by the relative positions.
            mask: which residues exist, a prefix of each row.
            recycles: passes after the first; only the last pass is differentiated.
            choice: an adapter of the language model for each chain, instead of its own for all.
        """
        with self._autocast(aatype.device):
            hidden = self.language_model(aatype, mask, choice)
            m, z = self.trunk.embed(hidden, aatype, residue_index, mask)
        state: TrunkState | None = None
        cb = torch.zeros(*aatype.shape, 3, device=aatype.device)
        for _ in range(recycles):
            with torch.no_grad():
                state = self._trunk_pass(m, z, mask, state, cb)
                structure = self.structure_module(state.s, state.z, aatype, mask)
                cb = virtual_cb(structure.positions)
        state = self._trunk_pass(m, z, mask, state, cb)
        structure = self.structure_module(state.s, state.z, aatype, mask)
        return FoldOutput(
            frames=structure.frames,
            torsions=structure.torsions,
            unnormalized_torsions=structure.unnormalized_torsions,
            sidechain_frames=structure.sidechain_frames,
            positions=structure.positions,
            distogram_logits=self.distogram_head(state.z),
            plddt_logits=self.plddt_head(structure.s),
        )

    def _trunk_pass(
        self,
        m: Float[Tensor, "b n c_m"],
        z: Float[Tensor, "b n n c_z"],
        mask: Bool[Tensor, "b n"],
        state: TrunkState | None,
        cb: Float[Tensor, "b n 3"],
    ) -> TrunkState:
        with self._autocast(m.device):
            new = self.trunk(m, z, mask, state, cb)
        return TrunkState(new.m.float(), new.z.float(), new.s.float())

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16)
