"""When a training run is given up, and when it is said to have stopped learning."""

from dataclasses import dataclass

from esmfold_peft.config.checks import check_lowest, check_shares


@dataclass(frozen=True)
class GuardConfig:
    """What counts as divergence, and what as a plateau; LoRTA gives no rule, these are ours.

    A run that diverges is stopped. A plateau is reported only: some seeds of OpenFold learn late.

    Attributes:
        nonfinite_steps: steps in a row whose loss or gradient is not finite; 0 switches this off.
        loss_factor: the loss has risen if it is above this many times its best, both smoothed.
        loss_steps: steps in a row with a risen loss, after the warm-up; 0 switches this off.
        smoothing: steps over which loss and training lDDT-Cα are averaged, exponentially.
        update_limit: the language model counts as destroyed if the adapter's update of one of its
            matrices is more than this many times the matrix, ‖ΔW‖ / ‖W‖, at a logged step
            (log.every); 0 switches this off. Layer norms keep the loss finite even then. At 10 an
            ESM-2 35M of random weights has lost its last hidden states. It is not known for full,
            bitfit and loretta_adp.
        score_floor: lowest validation lDDT-Cα that a run may have at `score_step`.
        score_step: the first validation at this step or later is judged; null judges none.
        plateau_steps: steps without a gain that make a plateau; 0 switches this off.
        plateau_gain: a rise of the smoothed training lDDT-Cα that is a gain.
        plateau_score: a run whose smoothed training lDDT-Cα is this or more has learnt, and is on
            no plateau.
    """

    nonfinite_steps: int = 10
    loss_factor: float = 2.0
    loss_steps: int = 2000
    smoothing: int = 100
    update_limit: float = 10.0
    score_floor: float = 0.25
    score_step: int | None = 20_000
    plateau_steps: int = 20_000
    plateau_gain: float = 0.01
    plateau_score: float = 0.4

    def __post_init__(self) -> None:
        check_lowest(
            self, "guard.", 0, "nonfinite_steps", "loss_steps", "plateau_steps", "update_limit"
        )
        check_lowest(self, "guard.", 1, "loss_factor", "smoothing", "score_step")
        check_shares(self, "guard.", "score_floor", "plateau_gain", "plateau_score")
