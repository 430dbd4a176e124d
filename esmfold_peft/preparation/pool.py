"""Runs tasks in several processes. Results keep the order; a task that fails stops no other."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

SECONDS_FOR_A_TASK = 600.0
"""The largest files of the PDB take less than a minute."""

_AHEAD = 3  # waiting lists, with or without results, for each process: bounds the memory


@dataclass(frozen=True)
class OrderedPool(Generic[Task, Result]):
    """Runs lists of tasks in other processes.

    A task that fails, whose process dies (a crash of a parser, no memory left), or that does not
    end, gives `failed(task, error)`; the other tasks of its list are done again.

    Attributes:
        work: a function that a new process can import, or a partial of one; each process receives
            it once, however large its arguments are.
        failed: gives the result of a task that `work` cannot do; `BrokenProcessPool` if the task
            ended its process, `TimeoutError` if it did not end.
        workers: processes.
        seconds: time limit of a task.
    """

    work: Callable[[Task], Result]
    failed: Callable[[Task, BaseException], Result]
    workers: int
    seconds: float = SECONDS_FOR_A_TASK

    def results(self, units: Iterable[list[Task]]) -> Generator[list[Result], None, None]:
        """The results of each list, in the order of the lists; closing it ends the processes."""
        processes = self._processes(self.workers)
        rest, waiting = iter(units), deque()
        try:
            while True:
                for unit in islice(rest, _AHEAD * self.workers - len(waiting)):
                    waiting.append((unit, processes.submit(unit)))
                if not waiting:
                    return
                unit, future = waiting.popleft()
                error = future.exception()
                if error is None:
                    yield future.result()
                    continue
                # Any list may have ended the process: the first is done task by task, the others
                # once more as they are, so that the faulty one becomes the first.
                ended = isinstance(error, BrokenProcessPool)
                if ended:
                    processes.close()  # which leaves all memory to the list that is done again
                found = self._one_by_one(unit)
                if ended:
                    processes = self._processes(self.workers)
                    waiting = deque((u, _done(f) or processes.submit(u)) for u, f in waiting)
                yield found
        finally:
            processes.close()

    def _one_by_one(self, unit: list[Task]) -> list[Result]:
        """Does a list again; tasks that fail again are those that spoilt it."""
        found = []
        processes = self._processes(1)
        try:
            for task in unit:
                began = time.monotonic()
                future = processes.submit([task])
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    processes.close()
                    processes = self._processes(1)
                    if time.monotonic() - began >= self.seconds:
                        error = TimeoutError(f"it takes more than {self.seconds:g} s")
                found += future.result() if error is None else [self.failed(task, error)]
        finally:
            processes.close()
        return found

    def _processes(self, workers: int) -> "_Processes":
        return _Processes(self.work, workers, self.seconds)


class _Processes:
    """Processes that end when they are closed, after the task at hand, or when this one ends."""

    def __init__(self, work: Callable[[Any], Any], workers: int, seconds: float) -> None:
        # New processes, not copies: of a process with threads a copy may hang.
        context = multiprocessing.get_context("spawn")
        stopped, self._running = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(
            workers, mp_context=context, initializer=_begin, initargs=(work, seconds, stopped)
        )

    def submit(self, unit: list[Any]) -> Future[list[Any]]:
        """Begins with a list; a process is started if all are at work."""
        # Processes inherit this: Ctrl-C, which a terminal sends to all, is for the parent.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            return self._pool.submit(_do, unit)
        except BrokenProcessPool as error:
            future: Future[list[Any]] = Future()
            future.set_exception(error)
            return future
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def close(self) -> None:
        self._running.close()
        self._pool.shutdown(cancel_futures=True)


def _done(future: Future[list[Result]]) -> Future[list[Result]] | None:
    return future if future.done() and future.exception() is None else None


class _Worker:
    """The arguments of a worker process."""

    work: Callable[[Any], Any]
    seconds: float
    stopped: Connection


def _begin(work: Callable[[Any], Any], seconds: float, stopped: Connection) -> None:
    """Keeps the arguments of a worker, and lets it end with its parent, however that ends."""
    _Worker.work, _Worker.seconds, _Worker.stopped = work, seconds, stopped
    # The kernel ends this process at a time limit, also in C++ code that never comes back.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(parent: int) -> None:
    wait([parent])
    os._exit(1)


def _do(unit: list[Any]) -> list[Any]:
    """The results of a list, or of a part of it if the parent has stopped."""
    found = []
    for task in unit:
        if _Worker.stopped.poll():
            break
        signal.setitimer(signal.ITIMER_REAL, _Worker.seconds)
        try:
            found.append(_Worker.work(task))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    return found
