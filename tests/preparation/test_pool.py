"""Work in several processes that nothing stops."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from esmfold_peft.preparation.pool import SECONDS_FOR_A_TASK, OrderedPool
from esmfold_peft.preparation.reading import failed as failed_file
from esmfold_peft.preparation.sources import Item


def work(task: int) -> int:
    if task == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    if task == 7:
        raise ValueError("seven")
    time.sleep(0.01 * (task % 3))
    return 10 * task


def failed(task: int, error: BaseException) -> str:
    return f"{task}: {type(error).__name__}"


def units(last: int, size: int = 3) -> list[list[int]]:
    return [list(range(k, min(k + size, last))) for k in range(0, last, size)]


def expected(last: int) -> list[int | str]:
    bad = {7: "7: ValueError", 13: "13: BrokenProcessPool"}
    return [bad.get(k, 10 * k) for k in range(last)]


@pytest.mark.parametrize(("workers", "last"), [(1, 14), (2, 40)])
def test_results_come_in_order_and_a_crash_costs_its_own_task_only(workers: int, last: int):
    found = list(OrderedPool(work, failed, workers).results(units(last)))
    assert [len(results) for results in found] == [len(unit) for unit in units(last)]
    assert [result for results in found for result in results] == expected(last)


def endless(task: int) -> int:
    if task == 2:
        time.sleep(60)
    if task == 4:
        re.match(r"(a+)+$", "a" * 99 + "b")  # in C, where no other thread gets to run
    return 10 * task


def late(task: int, error: BaseException) -> str:
    return f"{task}: {type(error).__name__}: {error}"


def test_a_task_that_never_ends_is_given_up_and_the_rest_goes_on():
    found = list(OrderedPool(endless, late, 2, seconds=0.3).results(units(9)))
    bad = {k: f"{k}: TimeoutError: it takes more than 0.3 s" for k in (2, 4)}
    assert [result for results in found for result in results] == [
        bad.get(k, 10 * k) for k in range(9)
    ]


def test_a_file_that_takes_for_ever_is_named_with_the_limit():
    item = Item("x.cif", Path("x.cif"))
    (rejected,) = failed_file((item, b""), TimeoutError("it takes more than 600 s")).rejected
    assert (rejected.kind, SECONDS_FOR_A_TASK) == ("crash", 600.0)
    assert rejected.reason == "reading it failed (TimeoutError: it takes more than 600 s)"


def test_no_work_is_no_results():
    assert list(OrderedPool(work, failed, 2).results([])) == []


def test_work_is_not_taken_far_ahead():
    taken = []

    def endless():
        for number in range(1000):
            taken.append(number)
            yield [0]

    stream = OrderedPool(work, failed, 1).results(endless())
    next(stream)
    assert len(taken) < 10
    stream.close()
