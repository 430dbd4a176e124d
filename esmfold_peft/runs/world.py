"""Which processes work together, and who started them.

torchrun, srun and the `deepspeed` launcher start all processes of all nodes and set variables of
their environment.
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

    There are `devices` processes on each of the `nodes`. They meet at `port` of the host of rank 0.
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
    """The processes that a launcher has started together with this one; None without a launcher.

    `environment` has the variables of this process. A launcher inside another one counts:
    `srun torchrun` is torchrun's.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        return _by_variables("torchrun", environment)
    if "LOCAL_SIZE" in environment and "CROSS_SIZE" in environment:
        return _by_variables("deepspeed", environment)
    return _srun(environment)


def is_first(environment: Mapping[str, str], *, of_node: bool = False) -> bool:
    """Whether a process is the first of those that train together, or of those on its node."""
    try:
        world = launched_world(environment)
    except UserError:  # which is about to be reported
        return True
    # LOCAL_RANK tells the processes apart that Lightning itself starts, on one node.
    local = int(environment.get("LOCAL_RANK", 0)) if world is None else world.local_rank
    return local == 0 and (of_node or world is None or world.rank == 0)


@contextmanager
def after_the_first(
    environment: Mapping[str, str], *, of_node: bool = False, kind: type[UserError] = UserError
) -> Iterator[None]:
    """Leaves it to the first process to report an error that all processes have.

    Args:
        environment: variables of this process.
        of_node: leave it to the first of each node, as each node has its own disks and GPUs.
        kind: of errors that all have; others are raised at once.
    """
    try:
        yield
    except kind:
        wait_for_the_first(environment, of_node=of_node)
        raise


def wait_for_the_first(environment: Mapping[str, str], *, of_node: bool = False) -> None:
    """Waits until the launcher stops this process, as it does when the first one has ended.

    Returns in the first process, and where nobody stops this one: then the error is this process's
    own, and it has to report it. See `after_the_first`.
    """
    if not is_first(environment, of_node=of_node):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(_PATIENCE)


_VARIABLES = {
    "torchrun": ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "GROUP_RANK"),
    "deepspeed": ("LOCAL_SIZE", "CROSS_SIZE", "CROSS_RANK"),
}
"""Variables for the number of processes on a node, of nodes, and for this node's own number."""


def _by_variables(launcher: Literal["torchrun", "deepspeed"], given: Mapping[str, str]) -> World:
    devices, nodes, node_rank = (int(given[name]) for name in _VARIABLES[launcher])
    total = int(given["WORLD_SIZE"])
    if devices * nodes != total:
        raise UserError(
            f"{launcher}: {counted(devices)} on this one of {nodes} nodes, {total} in all;"
            " start the same number on each"
        )
    return World(
        launcher=launcher,
        devices=devices,
        nodes=nodes,
        rank=int(given["RANK"]),
        local_rank=int(given["LOCAL_RANK"]),
        node_rank=node_rank,
        address=given["MASTER_ADDR"],
        port=int(given["MASTER_PORT"]),
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
        raise UserError(f"srun: the nodes have {layout} tasks; start the same number on each")
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


def _first_host(hosts: str) -> str:
    """The first of Slurm's list of hosts: gpu03 of `gpu[03-05,7],cpu1`."""
    first = re.split(r",(?![^\[]*\])", hosts)[0]
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def _port(job: str, step: str) -> int:
    """A port that all tasks of a step compute alike, and other jobs on the node do not."""
    return _FIRST_PORT + (int(job) * 101 + int(step)) % _PORTS


def counted(processes: int) -> str:
    """`1 process` or `4 processes`."""
    return "1 process" if processes == 1 else f"{processes} processes"
