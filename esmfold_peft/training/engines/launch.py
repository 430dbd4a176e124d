"""The processes that train together, as Lightning is told of them.

Those that a launcher has started (`world`), or those of one node that Lightning starts itself.
"""

from dataclasses import replace

from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment

from esmfold_peft.config import EngineConfig
from esmfold_peft.errors import UserError
from esmfold_peft.runs.world import World, counted


def resolved_engine(engine: EngineConfig, world: World | None) -> EngineConfig:
    """The engine's settings with the numbers of devices and nodes filled in.

    Args:
        engine: settings; null takes what there is.
        world: what a launcher has started; None for Lightning, which starts processes on one node.

    Raises:
        UserError: a number is not the launcher's.
    """
    if world is None:
        if engine.nodes not in (None, 1):
            raise UserError(
                f"engine.nodes: {engine.nodes}, but no launcher started processes on other nodes"
                " (torchrun, srun and deepspeed do)"
            )
        return replace(engine, devices=engine.devices or 1, nodes=1)
    if engine.devices not in (None, world.devices):
        raise UserError(
            f"engine.devices: {engine.devices}, but {world.launcher} started"
            f" {counted(world.devices)} on each node"
        )
    if engine.nodes not in (None, world.nodes):
        nodes = "1 node" if world.nodes == 1 else f"{world.nodes} nodes"
        raise UserError(
            f"engine.nodes: {engine.nodes}, but {world.launcher} started processes on {nodes}"
        )
    return replace(engine, devices=world.devices, nodes=world.nodes)


def require_gpus(devices: int, visible: int, world: World | None) -> None:
    """Checks that this process sees a GPU for each process on its node.

    Process n takes the n-th GPU that it sees, so that hiding the others' (srun's `--gpus-per-task`)
    would leave it without one.

    Args:
        devices: processes on each node.
        visible: GPUs that this process sees.
        world: what a launcher has started.

    Raises:
        UserError: there are fewer GPUs than processes.
    """
    if devices <= visible:
        return
    gpus = "1 GPU" if visible == 1 else f"{visible} GPUs"
    if world is None:
        raise UserError(f"engine.devices: {devices}, but there are {gpus} here")
    hint = " (--gpus-per-node shows all to each, --gpus-per-task does not)"
    raise UserError(
        f"engine.devices: {world.launcher} started {counted(devices)} on each node, but this one"
        f" sees {gpus}; each must see one for every process"
        + (hint if world.launcher == "srun" else "")
    )


def cluster_environment(world: World | None) -> ClusterEnvironment:
    """What tells Lightning who it trains with, in place of its own guesses.

    Those take a batch script without srun for a task of srun, need `--ntasks-per-node`, requeue the
    job themselves, and know the deepspeed launcher's first node only.
    """
    return LightningEnvironment() if world is None else _Launched(world)


class _Launched(ClusterEnvironment):
    """Processes that a launcher has started."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self._world.address

    @property
    def main_port(self) -> int:
        return self._world.port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self._world.devices * self._world.nodes

    def set_world_size(self, size: int) -> None:
        assert size == self.world_size()

    def global_rank(self) -> int:
        return self._world.rank

    def set_global_rank(self, rank: int) -> None:
        pass  # Lightning numbers node by node, srun as its --distribution says

    def local_rank(self) -> int:
        return self._world.local_rank

    def node_rank(self) -> int:
        return self._world.node_rank
