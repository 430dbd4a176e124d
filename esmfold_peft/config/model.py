"""Sizes of the folding model."""

from dataclasses import dataclass, field, fields

from esmfold_peft.config.checks import check_lowest, check_shares


@dataclass(frozen=True)
class LanguageModelConfig:
    """The ESM-2 protein language model.

    Attributes:
        name: official name, such as esm2_t12_35M_UR50D, or "custom" for the three sizes below.
        weights: "pretrained" (the official file, downloaded when it is not in torch.hub's folder),
            "random" (from the run's seed, for tests), or a path: an official .pt file or a Hugging
            Face folder of facebook/esm2_*.
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
        checkpoint: recompute each block's activations in the backward pass to save memory.
    """

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
    checkpoint: bool = True

    def __post_init__(self) -> None:
        sizes = (f.name for f in fields(self) if f.type is int)
        check_lowest(self, "model.trunk.", 1, *sizes)
        check_shares(self, "model.trunk.", "dropout_msa", "dropout_pair")


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
        trunk: the Evoformer.
        structure: the structure module.
        max_recycles: passes through the trunk after the first: drawn from 0 to this in training,
            this many in evaluation and prediction (AF2: 3).
        relative_positions: sequence distances beyond this share one embedding (AF2: 32).
        distogram_bins: distance bins of virtual Cβ (AF2: 64).
        plddt_bins: bins of predicted lDDT-Cα (AF2: 50).
        c_plddt: width of the pLDDT head's hidden layers (AF2: 128).
    """

    language_model: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    structure: StructureConfig = field(default_factory=StructureConfig)
    max_recycles: int = 3
    relative_positions: int = 32
    distogram_bins: int = 64
    plddt_bins: int = 50
    c_plddt: int = 128

    def __post_init__(self) -> None:
        check_lowest(self, "model.", 0, "max_recycles")
        check_lowest(self, "model.", 1, "relative_positions", "c_plddt")
        check_lowest(self, "model.", 2, "distogram_bins", "plddt_bins")
