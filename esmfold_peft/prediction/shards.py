"""Several processes that share out one list of sequences."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from esmfold_peft.training.world import launched_world


@dataclass(frozen=True)
class Shard:
    """One of several processes.

    Attributes:
        rank: of this process, from 0.
        world: processes in all.
        local_rank: of this process on its machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @classmethod
    def launched(cls) -> "Shard":
        """The place that torchrun, srun or the `deepspeed` launcher gives this process.

        Raises:
            UserError: the machines have different numbers of processes.
        """
        found = launched_world(os.environ)
        if found is None:
            return cls()
        return cls(found.rank, found.devices * found.nodes, found.local_rank)

    def share(self, lengths: Sequence[int]) -> list[int]:
        """The places of this process's sequences; every place is one process's.

        Neighbours in length go to different processes, so that all have equal work.

        Args:
            lengths: residues of each sequence, the same list in every process.
        """
        return sorted(np.argsort(lengths, kind="stable")[self.rank :: self.world].tolist())
