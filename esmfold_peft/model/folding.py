"""The folding model: language model, trunk with recycling, structure module, heads."""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from typing import Any, NamedTuple

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
from esmfold_peft.model.heads import HEADS, DistogramHead, Head, LinearHead
from esmfold_peft.model.language_model import LanguageModel
from esmfold_peft.model.output import FoldOutput
from esmfold_peft.model.structure_module import Structure, StructureModule, StructureModuleOutput
from esmfold_peft.model.trunk import Recycled, Trunk
from esmfold_peft.model.trunks.base import Tracks
from esmfold_peft.protein.residues import ATOM37


class PassInputs(NamedTuple):
    """What a pass reads.

    Attributes:
        m: sequence track, from `FoldingModel.read`.
        aatype: residues (`protein.residues`).
        residue_index: positions in the chain.
        mask: which residues exist.
        previous: from the pass before; None for the first.
        packed: weights, from `FoldingModel.pack`.
        dropout: from `FoldingModel.draw_dropout`; None: there is none.
    """

    m: Float[Tensor, "b n c_m"]
    aatype: Int[Tensor, "b n"]
    residue_index: Int[Tensor, "b n"]
    mask: Bool[Tensor, "b n"]
    previous: Recycled | None
    packed: Any
    dropout: PassDropout | None


class FoldingModel(nn.Module):
    """ESMFold's second stage: with a reduced Evoformer (LoRTA appendix E.4), or as released.

    The language model runs once, inside the autograd graph, so that its adapters learn; only the
    trunk and the structure module are recycled. `forward` folds a batch; `read`, `recycle` and
    `last_pass` are its parts, for passes on some of its chains at a time.

    Args:
        language_model: ESM-2, with or without an adapter.
        config: sizes of everything else.
        bf16: run language model and trunk under bfloat16 autocast. Frames and heads stay in
            float32.
        compile: compile blocks, structure module and language model for training.

    Attributes:
        published: trunk, structure module and heads started from a published file. Runs name it by
            its hash instead of copying weights that they did not train.
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
        stack = self.trunk.stack
        self.structure_module = StructureModule(config.structure, c_s=c_s, c_z=c_z)
        self.distogram_head = DistogramHead(c_z, config.distogram_bins, mean=stack.mean_distogram)
        self.plddt_head = stack.plddt_head(c_s, config.c_plddt, config.plddt_bins)
        self.resolved_head = LinearHead(c_s, len(ATOM37))
        self.pae_head = LinearHead(c_z, config.pae_bins)
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
        masked: Bool[Tensor, "b n"] | None = None,
        heads: Collection[Head] = HEADS,
        packed: Any = None,
    ) -> FoldOutput:
        """Folds a batch; in training each pass draws its dropout from PyTorch's generator.

        Args:
            aatype: residues (`protein.residues`).
            residue_index: positions in the chain; the relative positions see gaps.
            mask: which residues exist, a prefix of each row.
            recycles: passes after the first; only the last pass is differentiated.
            choice: an adapter of the language model for each chain, instead of its own for all.
            masked: residues that the language model reads as <mask>; None: it reads all.
            heads: heads to compute; the others' outputs are None.
            packed: from `pack`; None: weights are packed here.
        """
        m = self.read(aatype, mask, choice, masked=masked)
        packed = self.pack() if packed is None else packed
        chains, residues = aatype.shape

        def inputs(previous: Recycled | None) -> PassInputs:
            dropout = self.draw_dropout(chains, residues)
            return PassInputs(m, aatype, residue_index, mask, previous, packed, dropout)

        previous = None
        for _ in range(recycles):
            previous = self.recycle(inputs(previous))
        return self.last_pass(inputs(previous), heads=heads)

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
        masked: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n c_m"]:
        """The sequence track that all passes begin with; for the arguments see `forward`."""
        with self._autocast(aatype.device):
            levels = self.language_model(aatype, mask, choice, masked=masked)
            return self.trunk.sequence_embedding(levels, aatype, mask)

    def pack(self) -> Any:
        """The blocks' weights for all passes of a step, in the type of their products."""
        with self._autocast(self.device):
            packed = self.trunk.stack.pack()
        return constant_sizes(packed) if self.fast_inference else packed

    def compile_for_inference(self) -> None:
        """Compiles blocks, structure module and language model for inference, if they are not yet.

        Weights that were packed before must be packed again.
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
            residues: length to which each is padded.
            generators: one for each chain, of the model's device; None: PyTorch's own for all.
        """
        if not self.training:
            return None
        blocks = self.trunk.stack.dropout_sites(residues)
        sites = PassDropout(blocks, self.structure_module.dropout_sites(residues))
        return draw_factors(sites, chains, self.device, generators)

    @torch.no_grad()
    def recycle(self, inputs: PassInputs) -> Recycled:
        """Runs a pass for the next one."""
        tracks, structure = self._pass(inputs, exact=False)
        return Recycled(tracks.m, tracks.z, virtual_cb(structure.positions))

    def last_pass(self, inputs: PassInputs, *, heads: Collection[Head] = HEADS) -> FoldOutput:
        """Runs a pass for its prediction, with some heads; the others' outputs are None."""
        tracks, structure = self._pass(inputs, exact=True)
        return FoldOutput(
            **{f.name: getattr(structure, f.name) for f in fields(Structure)},
            distogram_logits=self.distogram_head(tracks.z) if "distogram" in heads else None,
            plddt_logits=self.plddt_head(structure.s) if "plddt" in heads else None,
            resolved_logits=self.resolved_head(tracks.s) if "resolved" in heads else None,
            pae_logits=self.pae_head(tracks.z) if "pae" in heads else None,
        )

    def _pass(self, inputs: PassInputs, *, exact: bool) -> tuple[Tracks, StructureModuleOutput]:
        """Tracks, in float32 if `exact`, and structures."""
        m, aatype, residue_index, mask, previous, packed, dropout = inputs
        blocks, layers = dropout or PassDropout()
        with self._autocast(m.device):
            tracks = self.trunk(m, residue_index, mask, previous, packed, blocks)
        tracks = tracks.float() if exact else tracks
        return tracks, self.structure_module(tracks.s, tracks.structure_z, aatype, mask, layers)

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
