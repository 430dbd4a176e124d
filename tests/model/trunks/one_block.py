"""One block of ESMFold's trunk as a module that can be called."""

from torch import Tensor, nn

from esmfold_peft.config import EsmfoldConfig, ModelConfig
from esmfold_peft.model.dropout import draw_factors
from esmfold_peft.model.trunks.esmfold_v1 import EsmfoldStack


class OneBlock(nn.Module):
    """A block; its parameters' names are the block's own.

    Args:
        c_s: channels of the single track.
        c_z: channels of the pair track.
        heads: heads of the attention over the sequence.
        heads_pair: heads of the triangle attention.
        dropout: of the single track and the transitions.
    """

    def __init__(self, c_s: int, c_z: int, heads: int, heads_pair: int, dropout: float) -> None:
        super().__init__()
        sizes = {"c_s": c_s, "c_z": c_z, "heads": heads, "heads_pair": heads_pair}
        config = EsmfoldConfig(blocks=1, c_structure=4, dropout=dropout, recompute=False, **sizes)
        model = ModelConfig(trunk="esmfold_v1", esmfold=config)
        self.__dict__["stack"] = EsmfoldStack(model)  # not a module of this one
        for name, module in self.stack.blocks[0].named_children():
            self.add_module(name, module)

    def forward(
        self, s: Tensor, z: Tensor, mask: Tensor, *, chunk: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Updates both tracks."""
        self.stack.train(self.training)
        self.stack.chunk = chunk
        chains, residues = mask.shape
        sites = self.stack.dropout_sites(residues) if self.training else None
        tracks = self.stack(s, z, mask, None, draw_factors(sites, chains, mask.device))
        return tracks.m, tracks.z
