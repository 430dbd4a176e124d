"""The folding model: language model, trunk with recycling, structure module, heads."""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from esmfold_peft.adapters.bank import AdapterChoice
from esmfold_peft.config import ModelConfig
from esmfold_peft.geometry.atoms import virtual_cb
from esmfold_peft.geometry.tables import tables
from esmfold_peft.model.compiling import (
    compile_for_inference,
    compile_for_training,
    constant_sizes,
)
from esmfold_peft.model.dropout import PassDropout, draw_factors
from esmfold_peft.model.heads import HEADS, DistogramHead, Head, PAEHead, ResolvedHead
from esmfold_peft.model.language_model import LanguageModel
from esmfold_peft.model.output import FoldOutput
from esmfold_peft.model.structure_module import StructureModule
from esmfold_peft.model.trunk import Recycled, Trunk
from esmfold_peft.model.trunks.base import Tracks


class FoldingModel(nn.Module):
    """ESMFold's second stage: with a reduced Evoformer (LoRTA appendix E.4), or as released.

    The language model runs once, inside the autograd graph, so that its adapters learn; only the
    trunk and the structure module are recycled. `forward` folds a batch; `read`, `recycle` and
    `last_pass` are its parts, for batches whose passes are run on some chains at a time.

    Args:
        language_model: ESM-2, with or without an adapter.
        config: sizes of everything else.
        bf16: run language model and trunk under bfloat16 autocast. Frames and heads stay in
            float32.
        compile: compile blocks, structure module and language model for training.

    Attributes:
        published: trunk, structure module and heads started from a published file, which runs name
            by its hash instead of copying what they did not train.
        pairs_asked: pairs of residues that `inference.fold` was asked for, times their passes.
        fast_inference: whether it is compiled for inference.
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
        self.pairs_asked = 0
        self.fast_inference = False
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
        if compile:
            compile_for_training(language_model)
            compile_for_training(self.structure_module)

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
        weights: Any = None,
    ) -> FoldOutput:
        """Folds a batch; in training each pass draws its dropout from PyTorch's generator.

        Args:
            aatype: residues (`protein.residues`).
            residue_index: positions in the chain; gaps are seen by the relative positions.
            mask: which residues exist, a prefix of each row.
            recycles: passes after the first; only the last pass is differentiated.
            choice: an adapter of the language model for each chain, instead of its own for all.
            hidden: residues whose letter the language model does not see; None: it sees all.
            heads: heads to compute; the others' outputs are None.
            weights: from `pack`; None: they are packed here.
        """
        given = (self.read(aatype, mask, choice, hidden=hidden), aatype, residue_index, mask)
        weights = self.pack() if weights is None else weights
        chains, residues = aatype.shape
        previous: Recycled | None = None
        for _ in range(recycles):
            dropout = self.draw_dropout(chains, residues)
            previous = self.recycle(*given, previous, weights, dropout)
        dropout = self.draw_dropout(chains, residues)
        return self.last_pass(*given, previous, weights, dropout, heads=heads)

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.parameters()).device

    def read(
        self,
        aatype: Int[Tensor, "b n"],
        mask: Bool[Tensor, "b n"],
        choice: AdapterChoice | None = None,
        *,
        hidden: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n c_m"]:
        """The sequence track that all passes begin with, from the language model.

        For the arguments see `forward`.
        """
        with self._autocast(aatype.device):
            levels = self.language_model(aatype, mask, choice, hidden=hidden)
            return self.trunk.sequence_embedding(levels, aatype, mask)

    def pack(self) -> Any:
        """The blocks' weights for all passes of a step, in the type of their products."""
        with self._autocast(self.device):
            weights = self.trunk.stack.pack()
        return constant_sizes(weights) if self.fast_inference else weights

    def compile_for_inference(self) -> None:
        """Compiles blocks, structure module and language model for inference, if they are not.

        Weights that were packed before are to be packed again.
        """
        if not self.fast_inference:
            self.fast_inference = True
            constant_sizes(vars(tables(self.device)))
            self.trunk.stack.compile_for_inference()
            compile_for_inference(self.structure_module)
            compile_for_inference(self.language_model)

    def draw_dropout(
        self,
        chains: int,
        residues: int,
        generators: Sequence[torch.Generator] | None = None,
    ) -> PassDropout | None:
        """Draws the dropout of a pass; None outside training.

        openfold3's own blocks (`model.kernels: openfold`) draw theirs from PyTorch's generator.

        Args:
            chains: how many.
            residues: to which each is padded.
            generators: one for each chain, of the model's device; None: PyTorch's own for all.
        """
        if not self.training:
            return None
        blocks = self.trunk.stack.dropout_sites(residues)
        sites = PassDropout(blocks, self.structure_module.dropout_sites(residues))
        return draw_factors(sites, chains, self.device, generators)

    @torch.no_grad()
    def recycle(
        self,
        m: Float[Tensor, "b n c_m"],
        aatype: Int[Tensor, "b n"],
        residue_index: Int[Tensor, "b n"],
        mask: Bool[Tensor, "b n"],
        previous: Recycled | None,
        weights: Any,
        dropout: PassDropout | None,
    ) -> Recycled:
        """Runs a pass for what the next one reads of it.

        Args:
            m: from `read`.
            aatype: residues.
            residue_index: positions in the chain.
            mask: which residues exist.
            previous: from the pass before; None for the first.
            weights: from `pack`.
            dropout: from `draw_dropout`; None: there is none.
        """
        blocks, layers = dropout or PassDropout()
        tracks = self._trunk_pass(m, residue_index, mask, previous, weights, blocks)
        structure = self.structure_module(tracks.s, tracks.structure_z, aatype, mask, layers)
        return Recycled(tracks.m, tracks.z, virtual_cb(structure.positions))

    def last_pass(
        self,
        m: Float[Tensor, "b n c_m"],
        aatype: Int[Tensor, "b n"],
        residue_index: Int[Tensor, "b n"],
        mask: Bool[Tensor, "b n"],
        previous: Recycled | None,
        weights: Any,
        dropout: PassDropout | None,
        *,
        heads: Collection[Head] = HEADS,
    ) -> FoldOutput:
        """Runs a pass for its prediction; for the arguments see `recycle` and `forward`."""
        blocks, layers = dropout or PassDropout()
        tracks = self._trunk_pass(m, residue_index, mask, previous, weights, blocks).float()
        structure = self.structure_module(tracks.s, tracks.structure_z, aatype, mask, layers)
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
        residue_index: Int[Tensor, "b n"],
        mask: Bool[Tensor, "b n"],
        previous: Recycled | None,
        weights: Any,
        dropout: Any,
    ) -> Tracks:
        with self._autocast(m.device):
            return self.trunk(m, residue_index, mask, previous, weights, dropout)

    def _autocast(self, device: torch.device) -> AbstractContextManager:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16)


def parameter_groups(model: FoldingModel) -> dict[str, list[nn.Parameter]]:
    """The trainable parameters as adapter (the language model's), trunk and head."""
    groups: dict[str, list[nn.Parameter]] = {"adapter": [], "trunk": [], "head": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            top = name.split(".")[0]
            group = {"language_model": "adapter", "trunk": "trunk"}.get(top, "head")
            groups[group].append(parameter)
    return groups
