"""`esmfold-peft search`: runs a search, shows how it stands, writes its report."""

import json
import os
from pathlib import Path

from esmfold_peft.config import SearchConfig, SearchReportConfig, SearchStatusConfig
from esmfold_peft.console import report as tell
from esmfold_peft.disk.files import make_folder, write_atomically
from esmfold_peft.disk.locks import LOCK, is_held, lock_folder
from esmfold_peft.errors import UserError
from esmfold_peft.search.attempt import LOG
from esmfold_peft.search.driver import Driver, Summary
from esmfold_peft.search.executors import Executor
from esmfold_peft.search.executors.local import LocalExecutor
from esmfold_peft.search.grid import arms_of
from esmfold_peft.search.preflight import absolute, begin_folder, check_search, inputs_of
from esmfold_peft.search.report import write_report
from esmfold_peft.search.search_record import read_search
from esmfold_peft.search.status_view import print_status, status_json
from esmfold_peft.training.leak_guard import LEAK_CHECK


def run(config: SearchConfig) -> int:
    """Starts or resumes a search, and writes its report.

    Returns:
        0, 1 if trials have failed, 3 if a ladder has no survivor: all its trials down to the floor
        have diverged or were below the frozen model.

    Raises:
        UserError: a setting or a store is wrong, the executor is missing, another process runs this
            search, or the folder is that of another one; no trial has started then.
        KeyboardInterrupt: by Ctrl-C; trials on this machine are saved and stopped, others go on.
    """
    given, config = config.output, absolute(config)
    executor = build_executor(config)
    check = check_search(config)
    inputs = inputs_of(config)
    make_folder(config.output)
    with lock_folder(config.output):
        begin_folder(config, inputs)
        write_atomically(config.output / LEAK_CHECK, check.text())
        driver = Driver(config, executor, tell)
        try:
            summary = driver.run()
        except KeyboardInterrupt:
            tell("stopping the trials of this machine, which save themselves")
            executor.stop()
            raise
        _conclude(given, len(arms_of(config)), summary)
    if summary.failed:
        return 1
    return 3 if summary.exhausted else 0


def status(config: SearchStatusConfig) -> int:
    """Prints the tree of a search, or its facts as JSON.

    Raises:
        UserError: the folder is no search.
    """
    record = read_search(config.output)
    try:
        driven = is_held(config.output / LOCK)
    except UserError:  # its disk has no locks
        driven = None
    if config.json:
        print(json.dumps(status_json(record, driven), indent=2))
    else:
        print_status(record, driven)
    return 0


def report(config: SearchReportConfig) -> int:
    """Writes the report of a search, finished or not, and prints its files.

    Raises:
        UserError: the folder is no search, or the report cannot be written.
    """
    for path in write_report(read_search(config.output)):
        print(path)
    return 0


def build_executor(config: SearchConfig) -> Executor:
    """The executor that the settings name.

    Raises:
        UserError: its package or program is missing, its cluster cannot be reached, or this machine
            has too few GPUs.
    """
    own, devices = config.executor, gpus_of(config)
    if own.kind == "ray":
        from esmfold_peft.search.executors.ray import RayExecutor

        return RayExecutor(own, config.output, devices)
    if own.kind == "slurm":
        from esmfold_peft.search.executors.slurm import SlurmExecutor

        return SlurmExecutor(own, config.output, devices)
    gpus = _gpus()
    if (needed := own.concurrent * devices) > len(gpus):
        raise UserError(
            f"executor.concurrent: {own.concurrent} trials of {devices} GPUs need {needed}, this"
            f" machine has {len(gpus)}; run fewer at a time"
        )
    return LocalExecutor(gpus, devices)


def gpus_of(config: SearchConfig) -> int:
    """GPUs that a trial takes; 0 on a CPU.

    Raises:
        UserError: a trial must run on several machines, which one job cannot.
    """
    engine = config.engine
    if engine.nodes not in (None, 1):
        raise UserError(f"engine.nodes: {engine.nodes}: a trial runs on one machine; give 1")
    on_cpu = engine.accelerator == "auto" and config.executor.kind == "local" and not _gpus()
    return 0 if on_cpu or engine.accelerator == "cpu" else config.devices


def _gpus() -> list[str]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(k) for k in range(count)]


def _conclude(output: Path, ladders: int, summary: Summary) -> None:
    """Writes the report and tells how the search has ended."""
    files = write_report(read_search(output))
    failed = f"; trials that have failed: {len(summary.failed)}" if summary.failed else ""
    tell(
        f"search {output}: {len(summary.winners)} of {ladders} ladders have a winner{failed};"
        f" report: {files[-1]}"
    )
    if summary.waiting:
        names = ", ".join(f"{arm.label} seed {arm.seed}" for arm in summary.waiting)
        tell(
            f"these ladders wait for the frozen trial of their seed, which has failed: {names};"
            f" correct its cause ({LOG} in its folder) and give the same command again"
        )
