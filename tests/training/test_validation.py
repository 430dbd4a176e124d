"""The scores of a validation: each chain once, whatever the number of processes."""

import csv
import math
from pathlib import Path

import pytest
import torch

from esmfold_peft.training.validation import Row, Validated, _gathered


def row(score: float, raw: float, loss: float) -> Row:
    return {
        "length": 9, "resolved": 8, "pairs": 7,
        "lddt_ca": score, "loss": loss, "lddt_ca_raw": raw,
    }  # fmt: skip


def test_means_are_over_chains_that_have_a_score_and_a_broken_loss_is_seen():
    found = Validated({"a": row(0.2, 0.1, 1.0), "b": row(math.nan, math.nan, math.nan)})
    metrics = found.metrics()
    assert found.score == metrics["validation/lddt_ca"] == 0.2
    assert metrics["validation/lddt_ca_raw"] == 0.1
    assert math.isnan(metrics["validation/loss"])
    assert metrics.keys() == {f"validation/{n}" for n in ("lddt_ca", "lddt_ca_raw", "loss")}
    assert math.isnan(Validated({"b": row(math.nan, 0.0, 1.0)}).score)


def test_a_chain_that_two_processes_scored_counts_once(monkeypatch: pytest.MonkeyPatch):
    def gather(shares: list, own: dict) -> None:
        shares[:] = [own, {"b": row(0.5, 0.5, 1.0), "c": row(0.6, 0.5, 1.0)}]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    chains = _gathered({"a": row(0.1, 0.1, 1.0), "b": row(0.5, 0.5, 1.0)})
    assert Validated(chains).score == pytest.approx(0.4)


def test_the_table_has_a_line_for_each_chain(tmp_path: Path):
    Validated({"b": row(0.2, 0.1, 1.0), "a": row(0.3, 0.1, 1.0)}).write(tmp_path, 12)
    with (tmp_path / "validation" / "step_00000012.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["id"], r["lddt_ca"], r["length"]) for r in rows] == [
        ("a", "0.3", "9"),
        ("b", "0.2", "9"),
    ]
