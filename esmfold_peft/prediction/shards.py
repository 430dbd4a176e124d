"""Several processes that share out one list of sequences."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch.distributed as dist

from esmfold_peft.errors import UserError
from esmfold_peft.runs.world import launched_world

_LONGEST_WAIT = timedelta(days=30)
"""Of a process that is done, for the others."""


@dataclass(frozen=True)
class Shard:
    """One of several processes.

    Attributes:
        rank: of this process, from 0.
        world: processes in all.
        local_rank: of this process on its machine.
        together: they run at the same time and can wait for each other.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    together: bool = False

    @classmethod
    def launched(cls) -> "Shard":
        """The place that torchrun, srun or the `deepspeed` launcher gives this process.

        Raises:
            UserError: the machines have different numbers of processes.
        """
        found = launched_world(os.environ)
        if found is None:
            return cls()
        os.environ |= {"MASTER_ADDR": found.address, "MASTER_PORT": str(found.port)}
        world = found.devices * found.nodes
        return cls(found.rank, world, found.local_rank, together=world > 1)

    def meet(self) -> None:
        """Waits until all processes have started.

        Raises:
            UserError: they do not find each other.
        """
        if not self.together:
            return
        try:
            dist.init_process_group(
                "gloo", rank=self.rank, world_size=self.world, timeout=_LONGEST_WAIT
            )
        except (RuntimeError, ValueError) as error:
            raise UserError(f"the processes do not find each other ({error})") from error

    def ends(self) -> bool:
        """Whether this process ends the work of all: the first one, where they run together."""
        return self.rank == 0 or not self.together

    def wait(self) -> None:
        """Waits until all processes are here.

        A launcher ends the others when a process ends with a code other than 0: none may end before
        all are done.

        Raises:
            UserError: one was lost.
        """
        if self.together:
            with _noticing_losses():
                dist.barrier()

    def agreed(self, code: int) -> int:
        """The number that the first process gives; with it they part.

        Raises:
            UserError: a process was lost.
        """
        codes = [code]
        if self.together:
            with _noticing_losses():
                dist.broadcast_object_list(codes, src=0)
                dist.destroy_process_group()
        return codes[0]

    def share(self, lengths: Sequence[int]) -> list[int]:
        """The places of this process's sequences; every place is one process's.

        Neighbours in length go to different processes, so that all have equal work.

        Args:
            lengths: residues of each sequence, the same list in every process.
        """
        return sorted(np.argsort(lengths, kind="stable")[self.rank :: self.world].tolist())


@contextmanager
def _noticing_losses() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"another process was lost; the same command with --resume goes on ({reason})"
        ) from error
