"""The processes that train together, as Lightning is told of them.

A launcher has started them (`runs.world`), or Lightning starts them on one node.
"""

import os

from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment

from esmfold_peft.config import EngineConfig
from esmfold_peft.errors import UserError
from esmfold_peft.runs.world import World, counted, launched_world


def devices_and_nodes(engine: EngineConfig, world: World | None) -> tuple[int, int]:
    """Processes on each node, and nodes: the launcher's, which settings must not contradict.

    Without a launcher (`world` is None) Lightning starts processes on one node.
    """
    if world is None:
        if engine.nodes not in (None, 1):
            raise UserError(
                f"engine.nodes: {engine.nodes}, but no launcher started processes on other nodes;"
                " use torchrun, srun or deepspeed"
            )
        return engine.devices or 1, 1
    for name, started in (("devices", world.devices), ("nodes", world.nodes)):
        if getattr(engine, name) not in (None, started):
            nodes = "1 node" if world.nodes == 1 else f"each of {world.nodes} nodes"
            raise UserError(
                f"engine.{name}: {getattr(engine, name)}, but {world.launcher} started"
                f" {counted(world.devices)} on {nodes}; leave it null"
            )
    return world.devices, world.nodes


def chains_of_device(engine: EngineConfig) -> int:
    """Each device's share of the chains of an optimizer step, which must be a whole number."""
    devices, nodes = devices_and_nodes(engine, launched_world(os.environ))
    batch, total = engine.batch_size, devices * nodes
    chains, rest = divmod(batch, total)
    if rest:
        below = f"{batch - rest} and {batch - rest + total} do"
        raise UserError(
            f"engine.batch_size: {batch} does not divide by devices x nodes = {devices} x {nodes}"
            f" = {total}; {below if chains else f'{total} does'}"
        )
    return chains


def require_gpus(devices: int, visible: int, world: World | None) -> None:
    """Refuses fewer `visible` GPUs than processes (`devices`) on this process's node.

    Process n takes the n-th GPU that it sees; if the others' were hidden (srun's
    `--gpus-per-task`), it would have none.
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
    """Tells Lightning which processes train, in place of its own guesses.

    Its guesses take a batch script without srun for a task of srun, need `--ntasks-per-node`,
    requeue the job themselves, and know only the first node of the deepspeed launcher.
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
