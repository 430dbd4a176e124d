"""Where the numbers of a run are logged beside metrics.csv, if asked: TensorBoard and W&B."""

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

TENSORBOARD = "tensorboard"
WANDB_ID = "wandb_id"


def build_loggers(config: LogConfig, run: Path, start: int = 0) -> list[Logger]:
    """The loggers that are asked for; none writes before the training begins.

    TensorBoard hides what was logged after step `start`, from which a run resumes.

    Raises:
        UserError: a package is not installed.
    """
    loggers: list[Logger] = []
    if config.tensorboard:
        _require("tensorboard")
        purge = start + 1 if start else None
        options: dict[str, Any] = {"default_hp_metric": False, "purge_step": purge}
        loggers.append(TensorBoardLogger(run, TENSORBOARD, version="", **options))
    if config.wandb is not None:
        _require("wandb")
        loggers.append(WandbRun(config.wandb, run))
    return loggers


class WandbRun(Logger):
    """A run on Weights & Biases; the run's folder keeps its id, so that a resumed run has it too.

    Lightning's own logger wants the id when it is made, which is before the folder is.
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
        """Empty: the id is given when the run begins."""
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """W&B's own run; Lightning asks for it before the training begins, which starts it."""
        if self._run is None:
            self._run = _started(self._project, self._folder)
        return self._run

    def log_hyperparams(self, *arguments: object, **named: object) -> None:
        """Does nothing: settings are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | int], step: int | None = None) -> None:
        """Sends metrics; W&B draws them over `step`, which need not rise."""
        self.experiment.log({**metrics, "step": step})

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Ends the run on W&B; `status` is success, or how else the training ended."""
        if self._run is not None:
            self._run.finish(exit_code=0 if status == "success" else 1)
            self._run = None


def _started(project: str, folder: Path) -> Any:
    import wandb

    path = folder / WANDB_ID
    make_folder(folder)
    if not path.exists():
        write_atomically(path, uuid4().hex[:12] + "\n")
    try:
        run = wandb.init(
            project=project,
            dir=folder,
            id=path.read_text().strip(),
            name=folder.name,
            resume="allow",
            settings=wandb.Settings(console="off"),  # it would record every frame of the bar
        )
    except wandb.Error as error:
        reason = " ".join(str(error).split())
        raise UserError(f"log.wandb: {reason} (WANDB_MODE=offline needs no account)") from error
    # Its own count of steps refuses those that a resumed run logs again.
    run.define_metric("*", step_metric="step")
    return run


def _require(package: str) -> None:
    if find_spec(package) is None:
        raise UserError(
            f"log.{package}: needs the package {package} (pip install 'esmfold-peft[{package}]')"
        )
