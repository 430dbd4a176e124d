"""Where the numbers of a training run go."""

from dataclasses import dataclass

from esmfold_peft.config.checks import check_lowest
from esmfold_peft.errors import UserError


@dataclass(frozen=True)
class LogConfig:
    """Loggers beside metrics.csv, which every run has.

    Attributes:
        every: optimizer steps between lines.
        tensorboard: write for TensorBoard too, into the run's folder tensorboard/ (needs the
            package: pip install 'esmfold-peft[tensorboard]').
        wandb: project of Weights & Biases that gets them too, and a resumed run goes on there
            (needs the package: pip install 'esmfold-peft[wandb]'); null sends nothing. WANDB_MODE
            and its other variables are obeyed.
    """

    every: int = 10
    tensorboard: bool = False
    wandb: str | None = None

    def __post_init__(self) -> None:
        check_lowest(self, "log.", 1, "every")
        if self.wandb is not None and not self.wandb.strip():
            raise UserError(f"log.wandb: {self.wandb!r} is no name of a project")
