"""Where the numbers of a run are logged: metrics.csv always, TensorBoard and W&B if asked."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from esmfold_peft.config import LogConfig
from esmfold_peft.disk.files import make_folder, write_atomically
from esmfold_peft.errors import UserError
from esmfold_peft.training.metrics_file import METRICS, MetricsFile

TENSORBOARD = "tensorboard"
WANDB_ID = "wandb_id"


def build_loggers(config: LogConfig, run: Path, start: int = 0) -> list[Logger]:
    """The loggers of a run, MetricsFile first; none writes before the training begins.

    Args:
        config: what is asked for.
        run: folder of the run, which need not exist yet.
        start: optimizer steps that a resumed run has done. TensorBoard hides what it was told
            after them; `MetricsFile.rewind` drops it from the file.

    Raises:
        UserError: a package is not installed.
    """
    if config.tensorboard:
        _require("log.tensorboard", "tensorboard")
    if config.wandb is not None:
        _require("log.wandb", "wandb")
    loggers: list[Logger] = [MetricsFile(run / METRICS)]
    if config.tensorboard:
        loggers.append(
            TensorBoardLogger(
                run,
                name=TENSORBOARD,
                version="",
                default_hp_metric=False,
                purge_step=start + 1 if start else None,
            )
        )
    if config.wandb is not None:
        loggers.append(WandbRun(config.wandb, run))
    return loggers


class WandbRun(Logger):
    """A run on Weights & Biases with an id that its folder keeps, so that a resumed run goes on.

    Lightning's own logger wants the id when it is made, which is before the folder is.

    Args:
        project: where the run is listed.
        run: folder of the run.
    """

    def __init__(self, project: str, run: Path) -> None:
        super().__init__()
        self._project = project
        self._folder = run
        self._run: Any = None

    @property
    def name(self) -> str:
        """The project."""
        return self._project

    @property
    def version(self) -> str:
        """None: the id is given when the run begins."""
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """W&B's own run; Lightning asks for it before the training begins, which starts it."""
        if self._run is None:
            self._run = self._begun()
        return self._run

    def log_hyperparams(self, *arguments: object, **named: object) -> None:
        """Does nothing: settings are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | int], step: int | None = None) -> None:
        """Sends metrics; W&B draws them over `step`, which need not rise."""
        self.experiment.log({**metrics, "step": step})

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Ends the run on W&B.

        Args:
            status: success, or how else the training ended.
        """
        if self._run is not None:
            self._run.finish(exit_code=0 if status == "success" else 1)
            self._run = None

    def _begun(self) -> Any:
        import wandb

        try:
            begun = wandb.init(
                project=self._project,
                dir=self._folder,
                id=_kept_id(self._folder),
                name=self._folder.name,
                resume="allow",
                settings=wandb.Settings(console="off"),  # it would record every frame of the bar
            )
        except wandb.Error as error:
            reason = " ".join(str(error).split())
            raise UserError(f"log.wandb: {reason} (WANDB_MODE=offline needs no account)") from error
        # Its own count of steps refuses those that a resumed run logs again.
        begun.define_metric("*", step_metric="step")
        return begun


def _kept_id(run: Path) -> str:
    """The id that a run's folder keeps, made when it is first asked for."""
    path = run / WANDB_ID
    make_folder(run)
    if not path.exists():
        write_atomically(path, uuid4().hex[:12] + "\n")
    return path.read_text().strip()


def _require(setting: str, package: str) -> None:
    if find_spec(package) is None:
        raise UserError(
            f"{setting}: needs the package {package} (pip install 'esmfold-peft[{package}]')"
        )
