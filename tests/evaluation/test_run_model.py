"""Chains that a model folds: their rows, those that fail, and which stores are taken."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from esmfold_peft.commands import evaluate as command
from esmfold_peft.commands.prepare import run as prepare
from esmfold_peft.config import DataConfig, EvaluateConfig, PrepareConfig, TrainConfig
from esmfold_peft.config.parsing import config_text
from esmfold_peft.errors import UserError
from esmfold_peft.evaluation import run_model
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.inference import Failed, Folded, Query
from esmfold_peft.runs import ready
from esmfold_peft.runs.ready import ReadyModel
from tests.evaluation.predictions import reference, rows, summary


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The settings of a run that has stores of its own."""
    for name, chains in {"train": ["1oai_A"], "validation": ["1ubq_A", "3u8v_A"]}.items():
        sources = tuple(reference(chain) for chain in chains)
        assert prepare(PrepareConfig(sources, tmp_path / name, clusters="none", workers=1)) == 0
    folder = tmp_path / "run"
    folder.mkdir()
    data = DataConfig(train=tmp_path / "train", validation=tmp_path / "validation")
    (folder / "config.yaml").write_text(config_text(TrainConfig(run=folder, data=data)))
    return folder


def fake_fold(_: object, queries: list[Query], **settings: object) -> Iterator[Folded | Failed]:
    """Folds every chain into its own truth, last first, and fails with 1ubq."""
    assert settings == {"recycles": 2, "max_tokens": 1024, "choice": None, "pae": False}
    for index, query in reversed(list(enumerate(queries))):
        assert query.kept is None
        chain = query.features
        if chain.id == "1ubq_A":
            yield Failed(index=index, reason="out of memory")
            continue
        positions = torch.from_numpy(chain.positions)
        positions[chain.atom_mask == 0] = torch.nan
        yield Folded(index, positions, torch.full((len(chain), 37), 0.75))


def test_a_chain_that_is_not_folded_is_a_row_with_its_reason(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ready, "fold", fake_fold)
    opened = ReadyModel(FoldingModel.__new__(FoldingModel), 2, predicts_pae=True, decisive=list)
    monkeypatch.setattr(command, "open_model", lambda config: opened)
    config = EvaluateConfig(
        output=tmp_path / "out", run=run, splits=("train", "validation"), workers=0
    )
    assert command.run(config) == 1
    found = rows(tmp_path / "out")
    assert [(r["id"], r["split"]) for r in found.values()] == [
        ("1oai_A", "train"), ("1ubq_A", "validation"), ("3u8v_A", "validation"),
    ]  # fmt: skip
    assert found["1ubq_A"]["status"] == "not folded: out of memory"
    true = found["3u8v_A"]
    assert (true["lddt_ca"], true["lddt_all_atom"], true["plddt"]) == ("1.0", "1.0", "75.0")
    assert (int(true["length"]), int(true["resolved"])) == (93, 83)
    said = summary(tmp_path / "out")
    assert said["skipped_chains"][0]["reason"] == "not folded: out of memory"
    assert said["splits"]["train"]["calibration"]["mean_absolute_error"] == pytest.approx(0.25)


def test_the_stores_are_those_of_the_run_or_those_that_are_named(run: Path, tmp_path: Path):
    def opened(**settings: object) -> dict[str, int]:
        config = EvaluateConfig(output=tmp_path, run=run, **settings)  # pyright: ignore
        return {name: len(store) for name, store in run_model.open_stores(config).items()}

    assert opened() == {"validation": 2}
    assert opened(splits=("validation", "train")) == {"validation": 2, "train": 1}
    assert opened(store=(tmp_path / "train",)) == {str(tmp_path / "train"): 1}
    lacking = TrainConfig(run=run, data=DataConfig(train=tmp_path / "train"))
    (run / "config.yaml").write_text(config_text(lacking))
    with pytest.raises(UserError, match="no validation chains; name a store by --store"):
        opened()
