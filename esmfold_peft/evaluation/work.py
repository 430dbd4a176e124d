"""Work on many tasks, here or in other processes, with the same results."""

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
    """Does `work` with every task and gives the results in the order of the tasks.

    Args:
        work: a function that a new process can import, or a partial of one.
        failed: the result of a task whose work raised, or ended its process.
        tasks: an iterator may make them while processes work on the first ones.
        count: number of tasks.
        workers: processes; 0 is this one, None chooses.
        worthwhile: tasks for each process that is chosen; starting one takes seconds.
    """
    if workers is None:
        workers = min(len(os.sched_getaffinity(0)), count // worthwhile)
        workers = workers if workers > 1 else 0
    if not workers:
        for task in tasks:
            try:
                result = work(task)
            except Exception as error:  # as in another process: one task must not cost the others
                result = failed(task, error)
            yield result
        return
    pool = OrderedPool(work, failed, max(1, min(workers, -(-count // _UNIT))))
    rest = iter(tasks)
    with closing(pool.results(iter(lambda: list(islice(rest, _UNIT)), []))) as results:
        for unit in results:
            yield from unit
