"""Several processes that share one list of sequences."""

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
"""How long a process that is done waits for the others."""


@dataclass(frozen=True)
class Worker:
    """One of several processes.

    Attributes:
        rank: of this process, from 0.
        world: number of processes.
        local_rank: of this process on its machine.
        together: the processes run at the same time and can wait for each other.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    together: bool = False

    @classmethod
    def launched(cls) -> "Worker":
        """The worker that torchrun, srun or the `deepspeed` launcher makes of this process.

        Raises:
            UserError: the machines have different numbers of processes.
        """
        found = launched_world(os.environ)
        if found is None:
            return cls()
        os.environ |= {"MASTER_ADDR": found.address, "MASTER_PORT": str(found.port)}
        world = found.devices * found.nodes
        return cls(found.rank, world, found.local_rank, together=world > 1)

    @property
    def finishes(self) -> bool:
        """Whether this process writes the table: the first one, or each that runs by itself."""
        return self.rank == 0 or not self.together

    def share(self, lengths: Sequence[int]) -> list[int]:
        """The places of this worker's sequences in the list; all workers give the same `lengths`.

        Neighbours in length go to different workers, so that all have equal work.
        """
        return sorted(np.argsort(lengths, kind="stable")[self.rank :: self.world].tolist())

    def meet(self) -> None:
        """Waits until all processes have started; UserError if they do not find each other."""
        if not self.together:
            return
        try:
            dist.init_process_group(
                "gloo", rank=self.rank, world_size=self.world, timeout=_LONGEST_WAIT
            )
        except (RuntimeError, ValueError) as error:
            raise UserError(f"the processes do not find each other ({error})") from error

    def wait(self) -> None:
        """Waits until all processes are here; UserError if one was lost.

        A launcher kills the others when a process ends with an exit code other than 0: none may end
        before all are done.
        """
        if self.together:
            with _noticing_losses():
                dist.barrier()

    def agreed(self, code: int) -> int:
        """The first process's code, with which all end; UserError if one was lost."""
        codes = [code]
        if self.together:
            with _noticing_losses():
                dist.broadcast_object_list(codes, src=0)
                dist.destroy_process_group()
        return codes[0]


@contextmanager
def _noticing_losses() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"another process was lost; resume with the same command and --resume ({reason})"
        ) from error
