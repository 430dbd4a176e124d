"""The interface between the folding model and its trunks."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Bool, Float
from torch import Tensor, nn

from esmfold_peft.config import ModelConfig
from esmfold_peft.model.compiling import compiled_for_inference
from esmfold_peft.model.heads import AtomPLDDTHead, PLDDTHead
from esmfold_peft.model.trunks.blocks import NUMBERS_AT_ONCE, Step


@dataclass(frozen=True, eq=False)
class Tracks:
    """What the trunk hands to the structure module and the heads and, detached, to its next pass.

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

    Attributes:
        chunk: rows of the pair track at a time; None chooses. Prediction lowers it for a chain that
            does not fit into memory.
        recompute: keep only the blocks' inputs for the backward pass; may be changed at any time.
        compiled: whether the blocks are compiled for training.
        step: a block in training.
        inference_step: a block otherwise.
    """

    first_amino_acid: ClassVar[int] = 1
    """Entry of alanine in the embedding of amino acids; 1 leaves entry 0 to padding."""

    mean_distogram: ClassVar[bool] = False
    """Whether the distogram's logits are the mean of both directions, and not their sum."""

    plddt_head: ClassVar[type[PLDDTHead] | type[AtomPLDDTHead]] = PLDDTHead
    """The head of pLDDT: of residues, or of their atoms."""

    chunk: int | None
    recompute: bool
    compiled: bool
    step: Step
    inference_step: Step

    @classmethod
    @abstractmethod
    def of(cls, config: ModelConfig, *, compile: bool) -> "Stack":
        """Makes the blocks with random weights from PyTorch's generator.

        Args:
            config: the model's settings; those of the trunk are `config.section`.
            compile: compile the blocks for training.
        """

    def pack(self) -> Any:
        """Prepares the weights once for all passes of a step. The default prepares nothing."""
        return None

    @property
    def lean(self) -> bool:
        """Whether blocks keep less than autograd would: a compiler computes the rest again."""
        return self.compiled and not self.recompute

    def compile_for_inference(self) -> None:
        """Compiles the blocks for chains of all lengths of which a block needs no pieces."""
        plain = self.inference_step
        compiled = compiled_for_inference(plain)

        def step(*given: Any) -> tuple[Tensor, Tensor]:
            _, _, z, _, _, chunk, _ = given
            whole = chunk is None and z.numel() <= NUMBERS_AT_ONCE
            return (compiled if whole else plain)(*given)

        self.inference_step = step

    def dropout_sites(self, residues: int) -> Any:
        """Where dropout acts in a pass: any nesting of `Site`; the default has none.

        Args:
            residues: to which chains are padded.
        """
        return None

    @abstractmethod
    def forward(
        self,
        m: Float[Tensor, "b n c_m"],
        z: Float[Tensor, "b n n c_z"],
        mask: Bool[Tensor, "b n"],
        weights: Any,
        dropout: Any,
        /,
    ) -> Tracks:
        """Runs all blocks.

        Args:
            m: sequence track.
            z: pair track; without gradients it may be overwritten.
            mask: which residues exist; padding must not reach them.
            weights: from `pack`.
            dropout: factors for `dropout_sites`.
        """
