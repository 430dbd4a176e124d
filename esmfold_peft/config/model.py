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
        name: official name, such as esm2_t12_35M_UR50D, or "custom" for the three sizes below.
        weights: "pretrained" (the official file, downloaded when it is not in torch.hub's folder),
            "random" (from the run's seed, for tests), or a path: an official .pt file or a Hugging
            Face folder of facebook/esm2_* or facebook/esmfold_v1.
        layers: number of layers, for "custom" only.
        width: hidden width, for "custom" only.
        heads: attention heads, for "custom" only.
        checkpoint: recompute each layer's activations in the backward pass to save memory.
    """

    name: str = "esm2_t12_35M_UR50D"
    weights: str = "pretrained"
    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    checkpoint: bool = False


@dataclass(frozen=True)
class TrunkConfig:
    """Settings of one trunk. Its class attributes tell the other settings what the trunk can do.

    Attributes:
        trunk: the value of model.trunk that takes the section.
        name: of the section.
        published: whether there are weights to start from, which a run can keep; the section then
            has the setting `weights`.
        missing_heads: heads that the published weights lack.
        kernels: the values of model.kernels that it knows.
        checkpoint: recompute each block's activations in the backward pass.
        weights: of trunk, structure module and heads.
    """

    trunk: ClassVar[str]
    name: ClassVar[str]
    published: ClassVar[bool] = False
    missing_heads: ClassVar[tuple[str, ...]] = ()
    kernels: ClassVar[tuple[Kernels, ...]] = ("fused",)
    checkpoint = False
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
        blocks: Evoformer blocks (LoRTA: 12 instead of ESMFold's 48).
        c_m: channels of the one-row MSA track.
        c_z: channels of the pair track.
        c_s: channels of the single track handed to the structure module.
        heads_msa: attention heads of the MSA track.
        heads_pair: attention heads of the pair track.
        c_head_msa: channels of each MSA head.
        c_head_pair: channels of each pair head.
        c_opm: hidden channels of the outer product mean.
        c_mul: hidden channels of the triangle multiplications.
        transition: width factor of the transitions.
        dropout_msa: dropout of the MSA track, shared along rows.
        dropout_pair: dropout of the pair track, shared along rows or columns.
        checkpoint: recompute each block's activations in the backward pass to save memory. auto: on
            a GPU only if not even one chain fits otherwise, on a CPU always.
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
    checkpoint: bool | Auto = "auto"

    @property
    def widths(self) -> tuple[int, int, int]:  # noqa: D102
        return self.c_m, self.c_z, self.c_s

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares(self, "model.evoformer.", "dropout_msa", "dropout_pair")


@dataclass(frozen=True)
class EsmfoldConfig(TrunkConfig):
    """The trunk of the released ESMFold (Lin et al. 2023), and where its weights are.

    The sizes are those of the release; a file of other sizes is refused by the name of the size.

    Attributes:
        weights: "pretrained" (the official esmfold_3B_v1.pt, downloaded when it is not in
            torch.hub's folder), "random" (from the run's seed, for tests), or a path: an official
            .pt file or a Hugging Face folder of facebook/esmfold_v1. They fill the trunk, the
            structure module and the heads; the language model's weights are named apart, and may be
            the same Hugging Face folder.
        blocks: blocks of self-attention, sequence-to-pair and triangle updates.
        c_s: channels of the sequence track.
        c_z: channels of the pair track.
        c_structure: channels of the single track in the structure module.
        heads: attention heads of the sequence track.
        heads_pair: attention heads of the pair track.
        dropout: dropout of the sequence track; the pair track has twice as much, shared along rows
            or columns.
        checkpoint: recompute each block's activations in the backward pass to save memory. auto: on
            a GPU only if not even one chain fits otherwise, on a CPU always.
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
    checkpoint: bool | Auto = "auto"

    @property
    def widths(self) -> tuple[int, int, int]:  # noqa: D102
        return self.c_s, self.c_z, self.c_structure

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares(self, "model.esmfold.", "dropout")
        if self.dropout >= 0.5:
            raise UserError(f"model.esmfold.dropout: {self.dropout} would drop all pairs")
        for width, heads in (("c_s", "heads"), ("c_z", "heads_pair")):
            if getattr(self, width) % getattr(self, heads):
                raise UserError(
                    f"model.esmfold.{heads}: {getattr(self, heads)} does not divide {width}"
                    f" {getattr(self, width)}"
                )
        if self.c_z % 2:
            raise UserError(f"model.esmfold.c_z: {self.c_z} is odd")


@dataclass(frozen=True)
class StructureConfig:
    """The structure module (AF2 Suppl. 1.8).

    Attributes:
        layers: layers, sharing their weights.
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
        language_model: ESM-2.
        trunk: evoformer (LoRTA's reduced Evoformer, trained from a random start) or esmfold_v1 (the
            released ESMFold; its language model is esm2_t36_3B_UR50D).
        evoformer: sizes of the Evoformer; unused with esmfold_v1.
        esmfold: sizes and weights of ESMFold's trunk; unused with evoformer.
        structure: the structure module.
        freeze: parts of the released ESMFold that keep their weights: trunk, and head (structure
            module and heads). With both, the adapter alone is trained.
        max_recycles: passes through the trunk after the first: drawn from 0 to this in training,
            this many in evaluation and prediction (AF2: 3).
        relative_positions: sequence distances beyond this share one embedding (AF2: 32).
        distogram_bins: distance bins of virtual Cβ (AF2: 64).
        plddt_bins: bins of predicted lDDT (AF2: 50).
        pae_bins: bins of the predicted aligned error, the last from 31 Å on (AF2: 64).
        c_plddt: width of the pLDDT head's hidden layers (AF2: 128).
        chunk: rows of the pair track that its attention and transitions handle at a time: less
            memory for long chains, in more steps. null takes as many as keep what grows with them
            under 2^28 numbers.
        kernels: how the trunk evoformer computes a block: fused (few large operations), or openfold
            (openfold3's own forward pass: slower, with a float32 pair track, never compiled).
        pair_track: type in which the pair track is kept between updates if engine.precision is
            bf16 and model.kernels is fused: bf16 (less memory and traffic), or float32 (less
            rounding).
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
                f" {self.trunk}; only published weights ({published}) can be kept"
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
