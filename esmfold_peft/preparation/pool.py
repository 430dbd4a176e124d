"""Work in several processes, whose results come in order, and of which none can stop the others."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

_AHEAD = 3  # tasks for each process that wait or whose results do: bounds what is in memory


class OrderedPool(Generic[Task, Result]):
    """Runs lists of tasks in other processes.

    A task that fails, or whose process dies (a crash of a parser, no memory left), gives
    `failed(task, error)`; the other tasks of its list are done again, and the rest goes on.

    Args:
        work: what is done with a list of tasks: a result for each. A function that a new process
            can import.
        failed: the result of a task that `work` cannot do; `BrokenProcessPool` if it ended its
            process.
        workers: processes.
    """

    def __init__(
        self,
        work: Callable[[list[Task]], list[Result]],
        failed: Callable[[Task, BaseException], Result],
        workers: int,
    ) -> None:
        self.work = work
        self.failed = failed
        self.workers = workers

    def results(self, units: Iterable[list[Task]]) -> Iterator[list[Result]]:
        """The results of each list, in the order of the lists."""
        pool = _new_pool(self.workers)
        waiting: deque[tuple[list[Task], Future[list[Result]]]] = deque()
        try:
            for unit in units:
                waiting.append((unit, self._submit(pool, unit)))
                if len(waiting) < _AHEAD * self.workers:
                    continue
                if isinstance(waiting[0][1].exception(), BrokenProcessPool):
                    pool.shutdown()
                    yield from self._finished(waiting)
                    pool = _new_pool(self.workers)
                else:
                    yield self._finish(*waiting.popleft())
            yield from self._finished(waiting)
        finally:
            pool.shutdown(cancel_futures=True)

    def _submit(self, pool: ProcessPoolExecutor, unit: list[Task]) -> Future[list[Result]]:
        try:
            return pool.submit(self.work, unit)
        except BrokenProcessPool as error:
            future: Future[list[Result]] = Future()
            future.set_exception(error)
            return future

    def _finished(
        self, waiting: deque[tuple[list[Task], Future[list[Result]]]]
    ) -> Iterator[list[Result]]:
        while waiting:
            yield self._finish(*waiting.popleft())

    def _finish(self, unit: list[Task], future: Future[list[Result]]) -> list[Result]:
        """The results of a list; where one task spoilt them, each is done by itself."""
        if future.exception() is None:
            return future.result()
        return [self._alone(task) for task in unit]

    def _alone(self, task: Task) -> Result:
        with _new_pool(1) as pool:
            future = pool.submit(self.work, [task])
            error = future.exception()
            return future.result()[0] if error is None else self.failed(task, error)


def _new_pool(workers: int) -> ProcessPoolExecutor:
    # New processes, not copies: of a process with threads a copy may hang.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_begin)


def _begin() -> None:
    """Lets a worker end with its parent, however that ends, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
