"""Sizes of the folding model."""

from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal

from esmfold_peft.config.checks import check_lowest, check_shares
from esmfold_peft.errors import UserError

Auto = Literal["auto"]
Kernels = Literal["fused", "openfold"]


@dataclass(frozen=True)
class LanguageModelConfig:
    """The ESM-2 protein language model.

    Attributes:
        name: official name, such as esm2_t12_35M_UR50D, or custom for the three sizes below.
        weights: pretrained (the official file, downloaded if torch.hub's folder lacks it), random
            (from the run's seed, for tests), or a path: an official .pt file or a Hugging Face
            folder of facebook/esm2_* or facebook/esmfold_v1.
        layers: number of layers (custom only).
        width: hidden width (custom only).
        heads: attention heads (custom only).
        recompute: save memory: keep only what enters each layer and compute the rest again in the
            backward pass.
    """

    name: str = "esm2_t12_35M_UR50D"
    weights: str = "pretrained"
    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    recompute: bool = False


@dataclass(frozen=True)
class TrunkConfig:
    """Settings of one trunk. Its class attributes tell the other settings what the trunk can do.

    Attributes:
        trunk: value of model.trunk that selects this section.
        name: name of the section.
        published: published weights exist, so the section has the setting `weights` and
            model.freeze may keep them.
        missing_heads: heads that the published weights lack.
        kernels: values of model.kernels that this trunk knows.
        recompute: keep only what enters each block and compute the rest again in the backward pass.
        weights: weights of the trunk, the structure module and the heads.
    """

    trunk: ClassVar[str]
    name: ClassVar[str]
    published: ClassVar[bool] = False
    missing_heads: ClassVar[tuple[str, ...]] = ()
    kernels: ClassVar[tuple[Kernels, ...]] = ("fused",)
    recompute = False
    weights = "random"

    @property
    def widths(self) -> tuple[int, int, int]:
        """Channels of the sequence and pair tracks, and of the structure module's single track."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        sizes = (f.name for f in fields(self) if f.type is int)
        check_lowest(self, f"model.{self.name}.", 1, *sizes)


@dataclass(frozen=True)
class EvoformerConfig(TrunkConfig):
    """The reduced Evoformer between the language model and the structure module.

    Attributes:
        blocks: Evoformer blocks (LoRTA: 12; ESMFold has 48).
        c_m: channels of the one-row MSA track.
        c_z: channels of the pair track.
        c_s: channels of the single track for the structure module.
        heads_msa: attention heads of the MSA track.
        heads_pair: attention heads of the pair track.
        c_head_msa: channels of each MSA head.
        c_head_pair: channels of each pair head.
        c_opm: hidden channels of the outer product mean.
        c_mul: hidden channels of the triangle multiplications.
        transition: width factor of the transitions.
        dropout_msa: dropout of the MSA track, shared along rows.
        dropout_pair: dropout of the pair track, shared along rows or columns.
        recompute: save memory: keep only what enters each block and compute the rest again in the
            backward pass. auto: always on a CPU, on a GPU if not even one chain fits otherwise.
    """

    trunk = "evoformer"
    name = "evoformer"
    kernels = ("fused", "openfold")

    blocks: int = 12
    c_m: int = 256
    c_z: int = 128
    c_s: int = 384
    heads_msa: int = 8
    heads_pair: int = 4
    c_head_msa: int = 32
    c_head_pair: int = 32
    c_opm: int = 32
    c_mul: int = 128
    transition: int = 4
    dropout_msa: float = 0.15
    dropout_pair: float = 0.25
    recompute: bool | Auto = "auto"

    @property
    def widths(self) -> tuple[int, int, int]:  # noqa: D102
        return self.c_m, self.c_z, self.c_s

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares(self, "model.evoformer.", "dropout_msa", "dropout_pair")


@dataclass(frozen=True)
class EsmfoldConfig(TrunkConfig):
    """The trunk of the released ESMFold (Lin et al. 2023) and its weights.

    The sizes are those of the release. A file of other sizes is refused; the message names the
    size.

    Attributes:
        weights: weights of the trunk, the structure module and the heads: pretrained (the official
            esmfold_3B_v1.pt, downloaded if torch.hub's folder lacks it), random (from the run's
            seed, for tests), or a path: an official .pt file or a Hugging Face folder of
            facebook/esmfold_v1. model.language_model.weights names the language model's and may be
            the same Hugging Face folder.
        blocks: blocks of self-attention, sequence-to-pair and triangle updates.
        c_s: channels of the sequence track.
        c_z: channels of the pair track.
        c_structure: channels of the single track in the structure module.
        heads: attention heads of the sequence track.
        heads_pair: attention heads of the pair track.
        dropout: dropout of the sequence track. The pair track has twice as much, shared along rows
            or columns.
        recompute: save memory: keep only what enters each block and compute the rest again in the
            backward pass. auto: always on a CPU, on a GPU if not even one chain fits otherwise.
    """

    trunk = "esmfold_v1"
    name = "esmfold"
    published = True
    missing_heads = ("resolved",)

    weights: str = "pretrained"
    blocks: int = 48
    c_s: int = 1024
    c_z: int = 128
    c_structure: int = 384
    heads: int = 32
    heads_pair: int = 4
    dropout: float = 0.0
    recompute: bool | Auto = "auto"

    @property
    def widths(self) -> tuple[int, int, int]:  # noqa: D102
        return self.c_s, self.c_z, self.c_structure

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares(self, "model.esmfold.", "dropout")
        if self.dropout >= 0.5:
            raise UserError(
                f"model.esmfold.dropout: {self.dropout} would drop all pairs; it must be below 0.5"
            )
        for width, heads in (("c_s", "heads"), ("c_z", "heads_pair")):
            if getattr(self, width) % getattr(self, heads):
                raise UserError(
                    f"model.esmfold.{heads}: {getattr(self, heads)} does not divide {width}"
                    f" {getattr(self, width)}"
                )
        if self.c_z % 2:
            raise UserError(f"model.esmfold.c_z: {self.c_z} is odd; it must be even")


@dataclass(frozen=True)
class StructureConfig:
    """The structure module (AF2 Suppl. 1.8).

    Attributes:
        layers: layers; they share their weights.
        c_ipa: channels of each head of the invariant point attention.
        heads: heads of the invariant point attention.
        query_points: query and key points of each head.
        value_points: value points of each head.
        c_angle: width of the torsion network.
        angle_blocks: residual blocks of the torsion network.
        dropout: dropout after attention and transition.
    """

    layers: int = 8
    c_ipa: int = 16
    heads: int = 12
    query_points: int = 4
    value_points: int = 8
    c_angle: int = 128
    angle_blocks: int = 2
    dropout: float = 0.1

    def __post_init__(self) -> None:
        sizes = (f.name for f in fields(self) if f.type is int)
        check_lowest(self, "model.structure.", 1, *sizes)
        check_shares(self, "model.structure.", "dropout")


@dataclass(frozen=True)
class ModelConfig:
    """The folding model.

    Attributes:
        language_model: ESM-2
        trunk: evoformer (LoRTA's reduced Evoformer, trained from a random start) or esmfold_v1 (the
            released ESMFold; its language model is esm2_t36_3B_UR50D).
        evoformer: the Evoformer; for the trunk evoformer only
        esmfold: ESMFold's trunk; for the trunk esmfold_v1 only
        structure: the structure module
        freeze: parts of the released ESMFold that keep their weights: trunk, and head (structure
            module and heads). With both, only the adapter is trained.
        max_recycles: recycling passes after the first pass: a random number from 0 to this in
            training, exactly this many in evaluation and prediction (AF2: 3).
        relative_positions: sequence distances beyond this share one embedding (AF2: 32).
        distogram_bins: distance bins of Cβ (AF2: 64).
        plddt_bins: bins of predicted lDDT (AF2: 50).
        pae_bins: bins of the predicted aligned error; the last begins at 31 Å (AF2: 64).
        c_plddt: width of the pLDDT head's hidden layers (AF2: 128).
        chunk: rows of the pair track that attention and transitions compute at a time: less memory
            for long chains, but slower. null chooses (at most 2^28 numbers at a time).
        kernels: how the trunk evoformer computes a block: fused (few large operations) or openfold
            (openfold3's own forward pass: slower, float32 pair track, never compiled).
        pair_track: type of the pair track between updates: bf16 (less memory and traffic) or
            float32 (less rounding). Needs engine.precision bf16 and model.kernels fused.
    """

    language_model: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    trunk: Literal["evoformer", "esmfold_v1"] = "evoformer"
    evoformer: EvoformerConfig = field(default_factory=EvoformerConfig)
    esmfold: EsmfoldConfig = field(default_factory=EsmfoldConfig)
    structure: StructureConfig = field(default_factory=StructureConfig)
    freeze: tuple[Literal["trunk", "head"], ...] = ()
    max_recycles: int = 3
    relative_positions: int = 32
    distogram_bins: int = 64
    plddt_bins: int = 50
    pae_bins: int = 64
    c_plddt: int = 128
    chunk: int | None = None
    kernels: Kernels = "fused"
    pair_track: Literal["float32", "bf16"] = "bf16"

    def __post_init__(self) -> None:
        check_lowest(self, "model.", 0, "max_recycles")
        check_lowest(self, "model.", 1, "relative_positions", "c_plddt", "chunk")
        check_lowest(self, "model.", 2, "distogram_bins", "plddt_bins")
        check_lowest(self, "model.", 3, "pae_bins")
        if self.freeze and not self.section.published:
            published = ", ".join(section.trunk for section in self.sections if section.published)
            raise UserError(
                f"model.freeze: {' and '.join(self.freeze)} would stay random with the trunk"
                f" {self.trunk}; only published weights ({published}) can be frozen"
            )
        if self.kernels not in self.section.kernels:
            own = (s.trunk for s in self.sections if self.kernels in s.kernels)
            raise UserError(f"model.kernels: {self.kernels} is for the trunk {', '.join(own)} only")

    @property
    def sections(self) -> tuple[TrunkConfig, ...]:
        """The sections of all trunks."""
        values = (getattr(self, f.name) for f in fields(self))
        return tuple(value for value in values if isinstance(value, TrunkConfig))

    @property
    def section(self) -> TrunkConfig:
        """The section of the trunk in use."""
        return next(section for section in self.sections if section.trunk == self.trunk)
