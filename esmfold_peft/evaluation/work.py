"""Work on many items, here or in other processes; the results are the same."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import TypeVar

from esmfold_peft.preparation.pool import OrderedPool

Task = TypeVar("Task")
Result = TypeVar("Result")

_UNIT = 4
"""Tasks that a process is given at a time."""


def pooled(
    work: Callable[[Task], Result],
    failed: Callable[[Task, BaseException], Result],
    tasks: Iterable[Task],
    *,
    count: int,
    workers: int | None,
    worthwhile: int = 100,
) -> Iterator[Result]:
    """Does `work` with every task, and gives the results in the order of the tasks.

    Args:
        work: a function that a new process can import, or a partial of one.
        failed: the result of a task whose work raised, or ended its process.
        tasks: may be made on the way; processes work on the first ones meanwhile.
        count: how many tasks there are.
        workers: processes; 0 is this one, None chooses.
        worthwhile: tasks for which another process pays, which takes seconds to begin.
    """
    processes = _processes(count, worthwhile) if workers is None else workers
    if not processes:
        yield from (_here(work, failed, task) for task in tasks)
        return
    pool = OrderedPool(work, failed, max(1, min(processes, -(-count // _UNIT))))
    with closing(pool.results(_units(iter(tasks)))) as results:
        for unit in results:
            yield from unit


def _processes(count: int, worthwhile: int) -> int:
    processes = min(len(os.sched_getaffinity(0)), count // worthwhile)
    return processes if processes > 1 else 0


def _here(
    work: Callable[[Task], Result], failed: Callable[[Task, BaseException], Result], task: Task
) -> Result:
    try:
        return work(task)
    except Exception as error:  # as in another process: one task must not cost the others
        return failed(task, error)


def _units(tasks: Iterator[Task]) -> Iterator[list[Task]]:
    while unit := list(islice(tasks, _UNIT)):
        yield unit
