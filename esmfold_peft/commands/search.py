"""`esmfold-peft search`: the ladder of every adapter, rank and seed, until all have ended."""

from esmfold_peft.config import SearchConfig
from esmfold_peft.console import report
from esmfold_peft.disk.files import lock_folder, make_folder, write_atomically
from esmfold_peft.search.attempt import LOG
from esmfold_peft.search.beginning import absolute, begin_folder, check_search
from esmfold_peft.search.driver import Driver, Summary
from esmfold_peft.search.executors.choice import build_executor, gpus_of
from esmfold_peft.search.grid import arms_of
from esmfold_peft.search.inputs import inputs_of
from esmfold_peft.search.ledger import Ledger, read_ledger
from esmfold_peft.search.reading import read_search
from esmfold_peft.search.report import write_report
from esmfold_peft.training.leak_guard import LEAK_CHECK


def run(config: SearchConfig) -> int:
    """Searches, or goes on with a search, and writes its report.

    Returns:
        0, 1 if trials have failed, 3 if a ladder has no survivor: all its trials down to the floor
        have diverged or were below the frozen model.

    Raises:
        UserError: a setting or a store is wrong, the executor is missing, another process runs this
            search, or the folder is that of another one; no trial has begun then.
        KeyboardInterrupt: by Ctrl-C; trials on this machine are saved and stopped, others go on.
    """
    config = absolute(config)
    executor = build_executor(config)
    check = check_search(config)
    inputs = inputs_of(config)
    make_folder(config.output)
    with lock_folder(config.output):
        begin_folder(config, inputs)
        write_atomically(config.output / LEAK_CHECK, check.text())
        driver = Driver(
            config,
            executor,
            Ledger(config.output),
            read_ledger(config.output),
            devices=gpus_of(config),
            say=report,
        )
        try:
            summary = driver.run()
        except KeyboardInterrupt:
            report("stopping the trials of this machine, which save themselves")
            executor.stop()
            raise
        _conclude(config, summary)
    if summary.failed:
        return 1
    return 3 if summary.exhausted else 0


def _conclude(config: SearchConfig, summary: Summary) -> None:
    files = write_report(read_search(config.output))
    report(
        f"search {config.output}: {len(summary.winners)} of {len(arms_of(config))} ladders have a"
        " winner"
        + (f"; trials that have failed: {len(summary.failed)}" if summary.failed else "")
        + f"; report: {files[-1]}"
    )
    if summary.waiting:
        names = ", ".join(f"{arm.label} seed {arm.seed}" for arm in summary.waiting)
        report(
            f"these ladders wait for the frozen trial of their seed, which has failed: {names};"
            f" correct its cause ({LOG} in its folder) and give the same command again"
        )
