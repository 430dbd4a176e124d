"""What a pass through the trunk gives."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


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
