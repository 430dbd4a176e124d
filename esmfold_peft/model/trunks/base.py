"""The interface between the folding model and its trunks."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Bool, Float
from torch import Tensor, nn

from esmfold_peft.config import ModelConfig
from esmfold_peft.model.heads import AtomPLDDTHead, PLDDTHead


@dataclass(frozen=True, eq=False)
class Tracks:
    """What the trunk gives to the structure module and the heads and, detached, to its next pass.

    Attributes:
        m: sequence track: the MSA track's row, or ESMFold's sequence state.
        z: pair track; the heads read it.
        s: single track for the structure module.
        structure_z: pair track for the structure module; the Evoformer's is `z` itself.
    """

    m: Float[Tensor, "b n c_m"]
    z: Float[Tensor, "b n n c_z"]
    s: Float[Tensor, "b n c_s"]
    structure_z: Float[Tensor, "b n n c_z"]

    def float(self) -> "Tracks":
        """The tracks in float32."""
        z = self.z.float()
        same = self.structure_z is self.z
        return Tracks(self.m.float(), z, self.s.float(), z if same else self.structure_z.float())


class Stack(nn.Module, ABC):
    """The blocks of a trunk, and the choices that the rest of the folding model takes from it.

    The widths of the tracks are `config.section.widths`: the parts around the blocks are made, and
    draw their weights, before the blocks.

    Args:
        config: the model's settings; those of the trunk are `config.section`.
        compile: compile the blocks for training.

    Attributes:
        chunk: rows of the pair track at a time; None chooses. Prediction lowers it for a chain that
            does not fit into memory.
        recompute: keep only the blocks' inputs for the backward pass; may be changed at any time.
    """

    first_amino_acid: ClassVar[int] = 1
    """Entry of alanine in the embedding of amino acids; 1 leaves entry 0 to padding."""

    mean_distogram: ClassVar[bool] = False
    """Whether the distogram's logits are the mean of both directions, and not their sum."""

    plddt_head: ClassVar[type[PLDDTHead] | type[AtomPLDDTHead]] = PLDDTHead
    """The head of pLDDT: of residues, or of their atoms."""

    def __init__(self, config: ModelConfig, *, compile: bool = False) -> None:
        super().__init__()
        self.chunk = config.chunk
        self.recompute = config.section.recompute is not False
        self.compiled = compile

    def pack(self) -> Any:
        """Prepares the weights once for all passes of a step. The default prepares nothing."""
        return None

    def compile_for_inference(self) -> None:
        """Compiles the blocks for inference. The default compiles nothing."""

    def dropout_sites(self, residues: int) -> Any:
        """Where dropout acts in a pass: any nesting of `Site`; the default has none.

        Args:
            residues: length to which chains are padded.
        """
        return None

    @abstractmethod
    def forward(
        self,
        m: Float[Tensor, "b n c_m"],
        z: Float[Tensor, "b n n c_z"],
        mask: Bool[Tensor, "b n"],
        packed: Any,
        dropout: Any,
        /,
    ) -> Tracks:
        """Runs all blocks.

        Args:
            m: sequence track.
            z: pair track; without gradients it may be overwritten.
            mask: which residues exist; padding must not reach them.
            packed: from `pack`.
            dropout: factors for `dropout_sites`.
        """
