"""A ladder whose first rung destroys a language model that the trunk has learnt to read."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import esmfold_peft
from esmfold_peft.commands.prepare import run as prepare
from esmfold_peft.config import PrepareConfig
from esmfold_peft.search.search_record import LadderRecord, read_search
from tests.nursery import Nursery

ROOT = Path(__file__).parents[2]
CHAINS = ("1hf9_A", "2pw8_C", "3k2t_A")

SETTINGS = {
    "model": {
        "language_model": {
            "name": "custom", "weights": "random", "layers": 3, "width": 32, "heads": 4,
        },
        "evoformer": {
            "blocks": 1, "c_m": 32, "c_z": 16, "c_s": 32, "heads_msa": 2, "heads_pair": 2,
            "c_head_msa": 8, "c_head_pair": 8, "c_opm": 4, "c_mul": 16, "transition": 2,
            "dropout_msa": 0.0, "dropout_pair": 0.0, "recompute": False,
        },
        "structure": {"layers": 2, "c_ipa": 8, "heads": 4, "c_angle": 16, "dropout": 0.0},
        "max_recycles": 0,
        "c_plddt": 16,
    },
    "loss": {"clamp_probability": 1.0, "resolution": None},
    "data": {"crop": 64, "workers": 0},
    "optimizer": {
        "lr": 5e-3, "warmup_steps": 5, "clip_norm": 0.5, "schedule": "constant", "ema": 0.5,
    },
    "engine": {
        "accelerator": "cpu", "precision": "float32", "batch_size": 3, "micro_batch": 3,
        "validate_raw": False,
    },
    "log": {"every": 1},
    "guard": {"nonfinite_steps": 0, "loss_steps": 0, "plateau_steps": 0, "score_step": None},
}  # fmt: skip
"""A model that learns three chains by heart in 80 steps, and a guard that sees nothing but the
update, which the frozen model has none of."""

LADDER = (
    *("--grid", "{lorta: [1], none: []}", "--init", "{lorta: paper}"),
    *("--ladder.multiples", "[1.0e+4]", "--ladder.factor", "1.0e+8", "--ladder.floor", "1.0e-5"),
    *("--engine.steps", "4", "--engine.validate_every", "4", "--executor.poll_seconds", "0.2"),
    *("--guard.update_limit", "0"),
)

BLIND = """
from esmfold_peft.model.trunk import SequenceEmbedding
whole = SequenceEmbedding.forward
def blind(self, hidden, aatype, mask):
    return whole(self, hidden, aatype, mask) - self.amino_acid((aatype + self.shift) * mask)
SequenceEmbedding.forward = blind
"""
"""Amino acids reach the trunk through the language model alone."""


def lorta_of(output: Path) -> LadderRecord:
    return next(ladder for ladder in read_search(output).ladders if ladder.arm.kind == "lorta")


@torch.no_grad()
def relative_update(run: Path) -> float:
    """Largest ‖ΔW‖/‖W‖ over the adapted matrices."""
    lm = esmfold_peft.load(run).model.language_model
    return max(
        float(lm.adapter.delta_weight(layer, target).norm() / lm.weight(layer, target).norm())
        for layer, target in lm.adapter.matrices()
    )


@pytest.mark.proof
def test_a_rung_that_destroys_the_language_model_is_left(tmp_path: Path, nursery: Nursery):
    files = [ROOT / "data" / "example" / "train" / f"{name}.cif.gz" for name in CHAINS]
    prepare(PrepareConfig(tuple(files), tmp_path / "store", clusters="none", workers=1))
    (tmp_path / "common.yaml").write_text(yaml.safe_dump(SETTINGS))
    data = ("--data.train", tmp_path / "store", "--data.validation", tmp_path / "store")
    common = ("--config", tmp_path / "common.yaml", "--allow-leaks", *data)
    frozen = ("--adapter.kind", "none", "--run", tmp_path / "frozen", "--engine.steps", 80)
    nursery.run("train", *common, *frozen, before=BLIND)
    model = load_file(tmp_path / "frozen" / "model.safetensors")
    model["trunk.sequence_embedding.amino_acid.weight"].zero_()
    save_file(model, tmp_path / "frozen" / "model.safetensors")
    output = tmp_path / "search"
    search = ("--output", output, "--start_from", tmp_path / "frozen")
    # Both may end alike at an α of next to nothing: then none survives, which is exit code 3.
    begun = nursery.start("search", *common, *search, *LADDER)
    assert begun.wait(400) in (0, 3), begun.printed()

    ladder = lorta_of(output)
    first, second = ladder.trials
    assert (first.alpha, first.state) == (1e4, "below frozen")
    assert (second.alpha, second.step) == (1e-4, 4)
    assert second.state != "diverged"
    assert first.score is not None
    assert second.score is not None
    assert first.score < second.score - 0.1  # about 0.07 and 0.37
    assert relative_update(first.folder / "run") > 100
    assert relative_update(second.folder / "run") < 0.1

    # The paper's text on the same trials: nothing has diverged, and the first rung wins.
    paper = tmp_path / "paper"
    shutil.copytree(output, paper)
    settings = yaml.safe_load((paper / "search.yaml").read_text())
    settings["ladder"]["beat_frozen"] = False
    (paper / "search.yaml").write_text(yaml.safe_dump(settings))
    winner = lorta_of(paper).winner
    assert winner is not None
    assert (winner.alpha, winner.state) == (1e4, "converged")
