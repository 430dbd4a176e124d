"""Which processes work together, and who started them.

torchrun, srun and the `deepspeed` launcher start all processes of all nodes and say so in their
environment.
"""

import re
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from esmfold_peft.errors import UserError

# Slurm numbers the steps that run a batch script or salloc's shell, not srun's tasks, from here.
_FIRST_SPECIAL_STEP = 0xFFFFFFF0
# Below the ports that Linux gives to outgoing connections (from 32768).
_FIRST_PORT, _PORTS = 15_000, 15_000
# The first process may still be importing, and launchers look several times a second.
_PATIENCE = 30.0  # s


@dataclass(frozen=True)
class World:
    """The processes that a launcher has started, and which of them this one is.

    Attributes:
        launcher: the program's name.
        devices: processes on each node.
        nodes: machines.
        rank: of this process, from 0 to devices x nodes - 1.
        local_rank: of this process on its node, from 0 to devices - 1.
        node_rank: of this process's node.
        address: host of rank 0, where the processes meet.
        port: of the meeting.
    """

    launcher: Literal["torchrun", "srun", "deepspeed"]
    devices: int
    nodes: int
    rank: int
    local_rank: int
    node_rank: int
    address: str
    port: int


def launched_world(environment: Mapping[str, str]) -> World | None:
    """The processes of which this one is part; None where no launcher started it.

    A launcher inside another one counts: `srun torchrun` is torchrun's.

    Args:
        environment: variables of this process.

    Raises:
        UserError: the nodes have different numbers of processes.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        return _torchrun(environment)
    if "LOCAL_SIZE" in environment and "CROSS_SIZE" in environment:
        return _deepspeed(environment)
    return _srun(environment)


def is_first(environment: Mapping[str, str], *, of_node: bool = False) -> bool:
    """Whether a process is the first of those that train together, or of those on its node.

    Args:
        environment: variables of this process.
        of_node: the first of its node.
    """
    try:
        world = launched_world(environment)
    except UserError:  # it is about to be said
        return True
    # Of those that Lightning starts itself, on one node, LOCAL_RANK tells.
    local = int(environment.get("LOCAL_RANK", 0)) if world is None else world.local_rank
    return local == 0 and (of_node or world is None or world.rank == 0)


@contextmanager
def after_the_first(
    environment: Mapping[str, str], *, of_node: bool = False, kind: type[UserError] = UserError
) -> Iterator[None]:
    """Leaves it to the first process to say what is wrong, where all would say the same.

    Args:
        environment: variables of this process.
        of_node: to the first of each node, as each node has its own disks and GPUs.
        kind: of errors that all have; others are each process's own.
    """
    try:
        yield
    except kind:
        wait_for_the_first(environment, of_node=of_node)
        raise


def wait_for_the_first(environment: Mapping[str, str], *, of_node: bool = False) -> None:
    """Waits until the launcher stops this process, as it does when the first one has ended.

    Returns for the first process, and where nobody stops this one: then it has to say what is
    wrong with it, since nobody else has. See `after_the_first`.
    """
    if not is_first(environment, of_node=of_node):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(_PATIENCE)


def _torchrun(environment: Mapping[str, str]) -> World:
    devices, total = int(environment["LOCAL_WORLD_SIZE"]), int(environment["WORLD_SIZE"])
    return World(
        launcher="torchrun",
        devices=devices,
        nodes=_nodes("torchrun", devices, total, int(environment["GROUP_WORLD_SIZE"])),
        rank=int(environment["RANK"]),
        local_rank=int(environment["LOCAL_RANK"]),
        node_rank=int(environment["GROUP_RANK"]),
        address=environment["MASTER_ADDR"],
        port=int(environment["MASTER_PORT"]),
    )


def _deepspeed(environment: Mapping[str, str]) -> World:
    devices, total = int(environment["LOCAL_SIZE"]), int(environment["WORLD_SIZE"])
    return World(
        launcher="deepspeed",
        devices=devices,
        nodes=_nodes("deepspeed", devices, total, int(environment["CROSS_SIZE"])),
        rank=int(environment["RANK"]),
        local_rank=int(environment["LOCAL_RANK"]),
        node_rank=int(environment["CROSS_RANK"]),
        address=environment["MASTER_ADDR"],
        port=int(environment["MASTER_PORT"]),
    )


def _srun(environment: Mapping[str, str]) -> World | None:
    """The tasks of a step.

    A batch script and a shell of salloc have SLURM_NTASKS too, but nobody started tasks there. A
    step of one task (`srun --pty bash`) is left to Lightning, which may start more on its node.
    """
    step = environment.get("SLURM_STEP_ID")
    if step is None or int(step) >= _FIRST_SPECIAL_STEP:
        return None
    total, nodes = (int(environment[f"SLURM_STEP_NUM_{what}"]) for what in ("TASKS", "NODES"))
    if total == 1:
        return None
    layout = environment["SLURM_STEP_TASKS_PER_NODE"]  # such as 4(x2),3
    if len(set(re.findall(r"\d+(?=\(x|,|$)", layout))) > 1:
        raise UserError(f"srun: {layout} tasks on the nodes; start as many on each")
    return World(
        launcher="srun",
        devices=total // nodes,
        nodes=nodes,
        rank=int(environment["SLURM_PROCID"]),
        local_rank=int(environment["SLURM_LOCALID"]),
        node_rank=int(environment["SLURM_NODEID"]),
        address=environment.get("MASTER_ADDR") or _first_host(environment["SLURM_STEP_NODELIST"]),
        port=int(environment.get("MASTER_PORT") or _port(environment["SLURM_JOB_ID"], step)),
    )


def _nodes(launcher: str, devices: int, total: int, nodes: int) -> int:
    if devices * nodes != total:
        raise UserError(
            f"{launcher}: {counted(devices)} on this one of {nodes} nodes, {total} in all;"
            " start as many on each"
        )
    return nodes


def _first_host(hosts: str) -> str:
    """The first of Slurm's list of hosts: gpu03 of `gpu[03-05,7],cpu1`."""
    first = re.split(r",(?![^\[]*\])", hosts)[0]
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def _port(job: str, step: str) -> int:
    """A port that every task of a step finds, and another one for what else may run on the node."""
    return _FIRST_PORT + (int(job) * 101 + int(step)) % _PORTS


def counted(processes: int) -> str:
    """A number of processes in words."""
    return "1 process" if processes == 1 else f"{processes} processes"
