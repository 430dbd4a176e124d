"""How many chains a device computes at a time: what is found with memories of any size."""

import json
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from esmfold_peft.config import TrainConfig
from esmfold_peft.errors import UserError
from esmfold_peft.training.plan import PLAN, Plan, find_plan, largest_plan, limited_memory
from tests.tiny import TINY

CPU = torch.device("cpu")
KEPT, AGAIN, PASS = 10.0, 2.0, 1.0
"""Memory of a chain: in the last pass, in one that is computed again, in a recycling pass."""


class Memory:
    """A device of some memory, which counts the attempts made on it."""

    def __init__(self, size: float) -> None:
        self.size = size
        self.attempts: list[Plan] = []

    def fits(self, plan: Plan) -> bool:
        self.attempts.append(plan)
        last = plan.micro_batch * (AGAIN if plan.recompute else KEPT)
        return max(last, plan.recycling * PASS) <= self.size

    def attempt(self, plan: Plan) -> None:
        if not self.fits(plan):
            raise torch.OutOfMemoryError("CUDA out of memory")


def settings(folder: Path, **engine: object) -> TrainConfig:
    """Of eight chains, auto but for what is given."""
    evoformer = replace(TINY.model.evoformer, recompute="auto")
    model = replace(TINY.model, evoformer=evoformer)
    engine = {"accelerator": "cpu", "batch_size": 8, **engine}
    return replace(TINY, run=folder, model=model, engine=replace(TINY.engine, **engine))  # pyright: ignore


def with_recompute(config: TrainConfig, value: bool) -> TrainConfig:
    evoformer = replace(config.model.evoformer, recompute=value)
    return replace(config, model=replace(config.model, evoformer=evoformer))


@pytest.mark.parametrize("chains", [1, 2, 5, 8, 12, 32])
def test_the_largest_fraction_that_fits_is_found_and_recomputes_only_if_it_must(chains: int):
    fractions = {-(-chains // 2**power) for power in range(6)}
    for size in (1.0, 1.9, 2.0, 5.0, 9.9, 10.0, 25.0, 40.0, 75.0, 150.0, 1000.0):
        memory = Memory(size)
        ways = {
            again: [f for f in fractions if f * cost <= size]
            for again, cost in ((False, KEPT), (True, AGAIN))
        }
        again = not ways[False]
        expected = None
        if ways[again]:
            most = max(ways[again])
            doubled = {min(most * 2**power, chains) for power in range(6)}
            expected = Plan(most, max(n for n in doubled if n * PASS <= size), again)
        assert largest_plan(chains, memory.fits) == expected
        assert len(memory.attempts) <= 9
        assert len(set(memory.attempts)) == len(memory.attempts)


def test_what_is_set_is_kept_to():
    memory = Memory(25.0)
    assert largest_plan(8, memory.fits, recompute=True) == Plan(8, 8, True)
    assert largest_plan(8, memory.fits, recompute=False) == Plan(2, 8, False)
    assert largest_plan(8, memory.fits, micro_batch=2) == Plan(2, 2, False)
    assert largest_plan(8, memory.fits, micro_batch=4) == Plan(4, 4, True)
    assert largest_plan(8, memory.fits, micro_batch=4, recompute=False) is None
    assert largest_plan(8, memory.fits, recycles=False) == Plan(2, 2, False)


def test_without_an_auto_nothing_is_tried(tmp_path: Path, capsys: pytest.CaptureFixture):
    memory = Memory(0.0)
    for micro_batch, size in ((3, 3), (8, 8), (100, 8)):  # no more than the share of the device
        for again in (False, True):
            config = with_recompute(settings(tmp_path, micro_batch=micro_batch), again)
            assert find_plan(config, CPU, memory.attempt) == Plan(size, size, again)
    assert memory.attempts == []
    assert not (tmp_path / PLAN).exists()
    assert capsys.readouterr().err == ""


def test_a_plan_is_kept_for_the_same_conditions_only(tmp_path: Path, capsys: pytest.CaptureFixture):
    config, memory, plan = settings(tmp_path), Memory(25.0), Plan(2, 8, False)
    assert find_plan(config, CPU, memory.attempt) == plan
    said = "engine.micro_batch: 2 of 8 chains at a time, 8 in recycling passes, activations kept"
    assert said in capsys.readouterr().err
    kept = json.loads((tmp_path / PLAN).read_text())
    assert {name: kept[name] for name in ("micro_batch", "recycling", "recompute")} == {
        "micro_batch": 2, "recycling": 8, "recompute": False,
    }  # fmt: skip
    assert [each["micro_batch"] for each in kept["tried"] if not each["fits"]] == [4]
    assert kept["for"]["device"] == "cpu"

    memory = Memory(1000.0)
    assert find_plan(config, CPU, memory.attempt) == plan
    assert memory.attempts == []
    assert "as before" in capsys.readouterr().err

    longer = replace(config, data=replace(config.data, crop=config.data.crop + 1))
    for other in (
        longer, settings(tmp_path, batch_size=16), settings(tmp_path, compile=True),
        with_recompute(config, True),
    ):  # fmt: skip
        (tmp_path / PLAN).write_text(json.dumps(kept))
        assert find_plan(other, CPU, memory.attempt).micro_batch == other.engine.batch_size
    for damaged in ("{", "{}", json.dumps(kept["for"])):
        (tmp_path / PLAN).write_text(damaged)
        assert find_plan(config, CPU, memory.attempt) == Plan(8, 8, False)


def test_where_nothing_fits_what_helps_is_named(tmp_path: Path):
    config, fixed = settings(tmp_path), settings(tmp_path, micro_batch=4)
    section, language_model = (
        r"model\.evoformer\.recompute true",
        r"model\.language_model\.recompute",
    )
    for asked, chains, first, second in (
        (config, 1, language_model, r"a smaller data\.crop"),
        (fixed, 4, r"a smaller engine\.micro_batch", language_model),
        (with_recompute(config, False), 1, section, language_model),
    ):
        start = rf"^not enough memory for data\.crop 256 and engine\.micro_batch {chains}: "
        with pytest.raises(UserError, match=rf"{start}{first}.* or {second}.* helps$"):
            find_plan(asked, CPU, Memory(1.0).attempt)
    assert not (tmp_path / PLAN).exists()


def test_other_errors_of_an_attempt_are_not_taken_for_too_little_memory(tmp_path: Path):
    def broken(plan: Plan) -> None:
        raise RuntimeError("a fault of the program")

    with pytest.raises(RuntimeError, match="a fault of the program"):
        find_plan(settings(tmp_path), CPU, broken)


def test_a_trial_leaves_a_tenth_of_the_free_memory_and_what_comes_later(
    monkeypatch: pytest.MonkeyPatch,
):
    limits = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 20)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: limits.append(share)
    )
    gpu = torch.device("cuda", 0)
    for later in (0, 12, 1000):
        with pytest.raises(torch.OutOfMemoryError), limited_memory(gpu, later):
            raise torch.OutOfMemoryError
    assert limits == pytest.approx([0.72, 1.0, 0.60, 1.0, 0.0, 1.0])


def test_every_attempt_is_made_in_less_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    memory = Memory(80.0)

    @contextmanager
    def lowered(device: torch.device, later: int) -> Iterator[None]:
        memory.size -= later
        yield
        memory.size += later

    monkeypatch.setattr("esmfold_peft.training.plan.limited_memory", lowered)
    config = settings(tmp_path)
    assert find_plan(config, CPU, memory.attempt, later=1) == Plan(4, 8, False)
    (tmp_path / PLAN).unlink()
    assert find_plan(config, CPU, memory.attempt) == Plan(8, 8, False)


def test_an_attempt_finds_no_tensors_of_the_one_before(tmp_path: Path):
    alive: list[weakref.ref] = []

    def attempt(plan: Plan) -> None:
        assert all(tensor() is None for tensor in alive)
        held = torch.ones(3, requires_grad=True) * plan.micro_batch
        alive.append(weakref.ref(held))
        if plan.micro_batch > 1:
            raise torch.OutOfMemoryError

    assert find_plan(settings(tmp_path), CPU, attempt).micro_batch == 1
    assert len(alive) > 3


def _process(rank: int, folder: Path, sizes: tuple[float, float], results) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    config, memory = settings(folder, devices=2, batch_size=16), Memory(sizes[rank])
    plans = [find_plan(config, CPU, memory.attempt)]
    count = len(memory.attempts)
    dist.barrier()  # until the first process has written
    plans.append(find_plan(config, CPU, memory.attempt))
    results.put((rank, plans, count, len(memory.attempts)))
    dist.destroy_process_group()


@pytest.mark.parametrize("sizes", [(25.0, 1000.0), (1000.0, 25.0)])
def test_processes_with_different_memories_make_one_plan(tmp_path: Path, sizes):
    context = get_context("fork")
    results = context.Queue()
    processes = [
        context.Process(target=_process, args=(rank, tmp_path, sizes, results)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    found = dict((rank, rest) for rank, *rest in (results.get(timeout=60) for _ in range(2)))
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    alone = Memory(25.0)
    expected = largest_plan(8, alone.fits)
    plans = [expected, expected]  # the second one is kept
    assert found == {rank: [plans, len(alone.attempts), len(alone.attempts)] for rank in range(2)}
    assert json.loads((tmp_path / PLAN).read_text())["for"]["processes"] == 2
