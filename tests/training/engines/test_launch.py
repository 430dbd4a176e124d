"""Which processes a launcher has started, as the launchers say it in their environments."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning_fabric.utilities.rank_zero import rank_zero_only
from lightning_utilities.core.rank_zero import rank_zero_only as utilities_rank_zero_only

from esmfold_peft.cli import main
from esmfold_peft.config import DataConfig, EngineConfig, TrainConfig
from esmfold_peft.errors import LostProcessError, UserError
from esmfold_peft.runs import world
from esmfold_peft.runs.world import World, after_the_first, is_first, launched_world
from esmfold_peft.training.engines.launch import (
    chains_of_device,
    cluster_environment,
    devices_and_nodes,
    require_gpus,
)
from esmfold_peft.training.engines.trainer import build_trainer
from esmfold_peft.training.failures import explained

RANKED = {
    "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "MASTER_ADDR": "gpu1",
    "MASTER_PORT": "29500",
}  # fmt: skip
TORCHRUN = RANKED | {
    "TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
}  # fmt: skip
DEEPSPEED = RANKED | {"LOCAL_SIZE": "4", "CROSS_RANK": "1", "CROSS_SIZE": "2"}
# Of a batch script with --nodes=2 --ntasks-per-node=4, before srun (Slurm 22.05).
BATCH = {
    "SLURM_JOB_ID": "123456", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "8", "SLURM_NPROCS": "8",
    "SLURM_NTASKS_PER_NODE": "4", "SLURM_TASKS_PER_NODE": "4(x2)", "SLURM_NNODES": "2",
    "SLURM_JOB_NUM_NODES": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
    "SLURM_NODELIST": "gpu[1-2]",
}  # fmt: skip
SRUN = BATCH | {
    "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_STEP_NODELIST": "gpu[1-2]", "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
}  # fmt: skip
ONE_TASK = SRUN | {
    "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_TASKS_PER_NODE": "1",
}  # fmt: skip


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch):
    """Makes this process look launched, and forgets the rank that Lightning then keeps."""
    for name in (rank_zero_only, utilities_rank_zero_only):
        monkeypatch.setattr(name, "rank", 0)

    def launch(environment: dict[str, str]) -> None:
        for name in {**TORCHRUN, **DEEPSPEED, **SRUN}:
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return launch


@pytest.mark.parametrize(
    ("launcher", "environment"),
    [
        ("torchrun", TORCHRUN),
        ("torchrun", ONE_TASK | TORCHRUN),
        ("deepspeed", DEEPSPEED),
        ("deepspeed", ONE_TASK | DEEPSPEED),
        ("srun", SRUN | {"MASTER_ADDR": "gpu1", "MASTER_PORT": "29500"}),
    ],
)
def test_each_launcher_is_recognised(launcher: str, environment: dict[str, str]):
    world = launched_world(environment)
    assert world == World(launcher, 4, 2, 5, 1, 1, "gpu1", 29500)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        BATCH,  # `python` in a batch script
        BATCH | {"SLURM_STEP_ID": "4294967290"},  # salloc with use_interactive_step
        BATCH | {"SLURM_STEP_ID": "4294967291"},
        ONE_TASK,  # `srun --pty bash`
        # A process that Lightning has started.
        {"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"},
        ONE_TASK | RANKED,
    ],
)
def test_nobody_launched_these(environment: dict[str, str]):
    assert launched_world(environment) is None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (TORCHRUN | {"WORLD_SIZE": "7"}, "torchrun: 4 processes on this one of 2 nodes, 7 in all"),
        (DEEPSPEED | {"LOCAL_SIZE": "1"}, "deepspeed: 1 process on this one of 2 nodes, 8 in all"),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "3,1"}, "srun: the nodes have 3,1 tasks"),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "3(x2),2"}, r"srun: the nodes have 3\(x2\),2 tasks"),
    ],
)
def test_nodes_with_different_numbers_of_processes_are_refused(environment: dict, message: str):
    with pytest.raises(UserError, match=message):
        launched_world(environment)


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("vm", "vm"),
        ("gpu[03-05,7],cpu1", "gpu03"),
        ("a,b", "a"),
        ("rack[1-2]node[08,10]", "rack1node08"),
        ("gpu[2],gpu[4-5]", "gpu2"),
    ],
)
def test_tasks_of_srun_meet_at_the_first_host(hosts: str, first: str):
    world = launched_world(SRUN | {"SLURM_STEP_NODELIST": hosts, "SLURM_STEP_TASKS_PER_NODE": "4"})
    assert world is not None
    assert world.address == first


def test_jobs_and_steps_on_one_node_meet_at_ports_of_their_own():
    ports = set()
    for job in range(99_950, 100_050):
        for step in range(20):
            ids = {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}
            world = launched_world(SRUN | ids)
            assert world is not None
            ports.add(world.port)
    assert len(ports) == 100 * 20
    assert min(ports) >= 15_000
    assert max(ports) < 30_000


def test_settings_of_the_engine_are_the_launchers():
    world = launched_world(TORCHRUN)
    for engine in (EngineConfig(), EngineConfig(devices=4), EngineConfig(nodes=2)):
        assert devices_and_nodes(engine, world) == (4, 2)
    for wrong, setting in (
        (EngineConfig(devices=2), "devices: 2"),
        (EngineConfig(nodes=1), "nodes: 1"),
    ):
        started = "torchrun started 4 processes on each of 2 nodes; leave it null"
        with pytest.raises(UserError, match=f"engine.{setting}, but {started}"):
            devices_and_nodes(wrong, world)


def test_without_a_launcher_there_is_one_node():
    assert devices_and_nodes(EngineConfig(), None) == (1, 1)
    assert devices_and_nodes(EngineConfig(devices=3), None) == (3, 1)
    with pytest.raises(UserError, match=r"engine.nodes: 2, but no launcher"):
        devices_and_nodes(EngineConfig(nodes=2), None)


def test_each_process_must_see_all_gpus_of_its_node():
    require_gpus(4, 4, launched_world(SRUN))
    require_gpus(1, 8, None)
    with pytest.raises(UserError, match=r"engine.devices: 4, but there are 2 GPUs here"):
        require_gpus(4, 2, None)
    with pytest.raises(UserError, match=r"srun started 4 processes .* sees 1 GPU;.*--gpus-per-nod"):
        require_gpus(4, 1, launched_world(SRUN))
    with pytest.raises(UserError, match=r"torchrun started 4 processes .* one for every process$"):
        require_gpus(4, 3, launched_world(TORCHRUN))


def test_devices_share_the_batch(launched):
    launched(SRUN)  # 2 nodes of 4
    engine = EngineConfig(batch_size=32)
    assert chains_of_device(engine) == 4
    with pytest.raises(UserError, match=r"36 does not .* = 4 x 2 = 8; 32 and 40 do$"):
        chains_of_device(replace(engine, batch_size=36))
    with pytest.raises(UserError, match=r"4 does not .* = 4 x 2 = 8; 8 does$"):
        chains_of_device(replace(engine, batch_size=4))
    launched({})
    assert chains_of_device(engine) == 32
    assert chains_of_device(replace(engine, devices=4)) == 8


@pytest.mark.parametrize("environment", [TORCHRUN, DEEPSPEED, SRUN])
def test_lightning_has_the_launchers_processes(environment: dict, launched, tmp_path: Path):
    launched(environment)
    trainer = build_trainer(_config(tmp_path))
    assert (trainer.world_size, trainer.num_nodes, trainer.num_devices) == (8, 2, 4)
    assert (trainer.global_rank, trainer.local_rank, trainer.node_rank) == (5, 1, 1)
    assert trainer.strategy.root_device == torch.device("cpu")
    assert trainer.accumulate_grad_batches == 1  # a batch is all of a step
    environment = cluster_environment(launched_world(os.environ))
    assert environment.creates_processes_externally


@pytest.mark.parametrize("environment", [{}, BATCH, ONE_TASK])
def test_lightning_is_alone_in_a_batch_script(environment: dict, launched, tmp_path: Path):
    launched(environment)
    trainer = build_trainer(_config(tmp_path))
    assert (trainer.world_size, trainer.global_rank) == (1, 0)
    # It may start more processes on its own node.
    more = build_trainer(_config(tmp_path, devices=2))
    assert (more.world_size, more.global_rank) == (2, 0)
    assert not cluster_environment(launched_world(os.environ)).creates_processes_externally


def _config(folder: Path, devices: int | None = None) -> TrainConfig:
    engine = EngineConfig(accelerator="cpu", devices=devices)
    return TrainConfig(run=folder, data=DataConfig(train=folder), engine=engine)


@pytest.mark.parametrize(
    ("environment", "of_all", "of_node"),
    [
        ({}, True, True),
        ({"LOCAL_RANK": "1"}, False, False),  # Lightning's own second process
        (TORCHRUN, False, False),
        (TORCHRUN | {"RANK": "4", "LOCAL_RANK": "0"}, False, True),
        (TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, True, True),
        (SRUN, False, False),
        (SRUN | {"SLURM_PROCID": "4", "SLURM_LOCALID": "0"}, False, True),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "4,3"}, True, True),  # an error of its own
    ],
)
def test_which_process_is_the_first(environment: dict[str, str], of_all: bool, of_node: bool):
    assert is_first(environment) is of_all
    assert is_first(environment, of_node=True) is of_node


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.cop", "0"], "data.cop"),
        (["--data.crop", "0"], "data.crop: 0 is less than 1"),
        (["--engine.batch_size", "3"], "engine.batch_size: 3"),
        (["--model.trunk", "esmfold_v1", "--model.evoformer.blocks", "3"], "blocks: has no effect"),
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_process_says_what_is_wrong_and_the_others_wait_to_be_stopped(
    rank: int, flags: list[str], message: str, launched, tmp_path: Path, monkeypatch, capsys
):
    """A process that nobody stops says it after all: something is wrong with it alone."""
    launched(TORCHRUN | {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"})
    before: list[str] = []
    monkeypatch.setattr(world.time, "sleep", lambda _: before.append(capsys.readouterr().err))
    words = ["train", "--run", str(tmp_path / "run"), "--data.train", "x", *flags]
    try:
        code = main(words)
    except SystemExit as leaving:
        code = leaving.code
    assert code == 2
    assert before == [""] * rank
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_a_process_that_lost_another_waits_and_one_with_an_error_of_its_own_does_not(monkeypatch):
    config = TrainConfig(Path("run"), DataConfig(Path("train")))
    waited: list[float] = []
    monkeypatch.setattr(world.time, "sleep", waited.append)
    for message, count in (("Connection closed by peer [::1]:5", 1), ("CUDA out of memory", 0)):
        error = explained(RuntimeError(message), config)
        assert error is not None
        waited.clear()
        with pytest.raises(type(error)), after_the_first(TORCHRUN, kind=LostProcessError):
            raise error
        assert len(waited) == count
