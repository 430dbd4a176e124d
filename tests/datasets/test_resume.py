"""A resumed run sees exactly the chains and crops that it would have seen."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from esmfold_peft.config import DataConfig, EngineConfig, TrainConfig
from esmfold_peft.config_io import config_parser, config_text, read_config, to_config
from esmfold_peft.datasets.batch import Batch
from esmfold_peft.datasets.datamodule import ChainDataModule
from esmfold_peft.errors import UserError
from esmfold_peft.training.trainer import build_trainer


class Recorder(pl.LightningModule):
    """Keeps what each optimizer step sees, and at which steps it is validated."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: dict[int, list[tuple]] = {}
        self.validated: list[int] = []
        self.whole: list[str] = []

    def training_step(self, batch: Batch, batch_index: int) -> torch.Tensor:
        crops = zip(
            batch.ids, batch.residue_index[:, 0].tolist(), batch.clamped.tolist(), strict=True
        )
        self.seen.setdefault(self.global_step, []).extend(crops)
        return self.weight.sum()

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        self.whole.extend(batch.ids)

    def on_validation_epoch_end(self) -> None:
        self.validated.append(self.global_step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAt(pl.Callback):
    """Writes a checkpoint after some micro-batch, between two optimizer steps perhaps."""

    def __init__(self, micro_batches: int, path: Path) -> None:
        self.left = micro_batches
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.left -= 1
        if not self.left:
            trainer.save_checkpoint(self.path)


@pytest.fixture
def config(tmp_path: Path, write_store: Callable, make_chain: Callable) -> TrainConfig:
    """12 steps of 4 chains, in micro-batches of 2, from two stores."""
    chains = [make_chain(f"t{n}", n) for n in range(50, 57)]
    write_store(tmp_path / "train", chains, ["a", "a", "a", "b", "b", "c", "d"])
    write_store(tmp_path / "distilled", [make_chain(f"d{n}", n) for n in (40, 70)])
    write_store(tmp_path / "validation", [make_chain(f"v{n}", n) for n in (30, 60, 35)])
    return TrainConfig(
        run=tmp_path / "run",
        data=DataConfig(
            train=tmp_path / "train",
            validation=tmp_path / "validation",
            mix={str(tmp_path / "distilled"): 0.4},
            crop=20,
            workers=0,
        ),
        engine=EngineConfig(
            accelerator="cpu", batch_size=4, micro_batch=2, steps=12, validate_every=3
        ),
    )


def fit(config: TrainConfig, *callbacks: pl.Callback, resume: Path | None = None) -> Recorder:
    """Trains a recorder with the Trainer and data of a run."""
    recorder = Recorder()
    trainer = build_trainer(config, list(callbacks))
    trainer.fit(recorder, datamodule=ChainDataModule(config), ckpt_path=resume)
    assert trainer.global_step == config.engine.steps
    return recorder


def changed(config: TrainConfig, **engine: int) -> TrainConfig:
    return replace(config, engine=replace(config.engine, **engine))


def with_workers(config: TrainConfig, workers: int) -> TrainConfig:
    return replace(config, data=replace(config.data, workers=workers))


def after(recorder: Recorder, step: int) -> dict[int, list[tuple]]:
    return {k: seen for k, seen in recorder.seen.items() if k >= step}


# Ten micro-batches are five steps; after eleven the sixth step is half done.
@pytest.mark.parametrize("micro_batches", [10, 11])
@pytest.mark.parametrize(("workers", "micro"), [(0, 2), (2, 2), (0, 1), (0, 4)])
def test_a_resumed_run_sees_what_it_would_have_seen(
    micro_batches: int, workers: int, micro: int, config: TrainConfig, tmp_path: Path
):
    path = tmp_path / "saved.ckpt"
    whole = fit(config, SaveAt(micro_batches, path))
    assert [len(seen) for seen in whole.seen.values()] == [4] * 12
    assert {name[0] for seen in whole.seen.values() for name, _, _ in seen} == {"t", "d"}
    resumed = fit(changed(with_workers(config, workers), micro_batch=micro), resume=path)
    assert resumed.seen == after(whole, 5)
    assert (whole.validated, resumed.validated) == ([3, 6, 9, 12], [6, 9, 12])
    assert whole.whole == ["v30", "v35", "v60"] * 4


def test_a_finished_run_is_extended(config: TrainConfig, tmp_path: Path):
    whole = fit(config)
    path = tmp_path / "saved.ckpt"
    recorder, short = Recorder(), with_workers(changed(config, steps=5), 2)
    trainer = build_trainer(short, [])
    trainer.fit(recorder, datamodule=ChainDataModule(short))
    trainer.save_checkpoint(path)
    # Workers had read ahead of the fifth step.
    resumed = fit(with_workers(config, 2), resume=path)
    assert recorder.seen | resumed.seen == whole.seen
    # Once more, with batches of another size: the position counts samples.
    larger = fit(changed(config, batch_size=8, steps=8), resume=path)
    flat = [crop for seen in after(whole, 5).values() for crop in seen]
    assert [crop for seen in larger.seen.values() for crop in seen][: len(flat)] == flat[:24]


def test_a_checkpoint_of_other_data_is_refused(
    config: TrainConfig, tmp_path: Path, write_store: Callable, make_chain: Callable
):
    state = ChainDataModule(config).state_dict()
    other = write_store(tmp_path / "other", [make_chain("x", 30)])

    def refused(**changes: object) -> str:
        data = {k: v for k, v in changes.items() if k != "seed"}
        seed = changes.get("seed", config.seed)
        run = replace(config, data=replace(config.data, **data), seed=seed)
        with pytest.raises(UserError) as raised:
            ChainDataModule(run).load_state_dict(state)
        return str(raised.value)

    assert "samples: seed: 1 instead of 0" in refused(seed=1)
    assert "data.cluster_weight: none instead of inverse" in refused(cluster_weight="none")
    assert "data.length_weight: False instead of True" in refused(length_weight=False)
    assert "samples: data.train: manifest " in refused(train=other)
    assert "samples: data.mix: none instead of 0.4 of " in refused(mix={})
    ChainDataModule(replace(config, data=replace(config.data, crop=10, workers=1))).load_state_dict(
        state
    )


@pytest.mark.parametrize(
    "mix", [{"a": 0.0}, {"a": -0.5}, {"a": 0.5, "b": 0.5}, {"a": float("nan")}]
)
def test_a_mix_without_meaning_is_refused(mix: dict[str, float]):
    with pytest.raises(UserError, match=r"data\.mix: "):
        DataConfig(train=Path("t"), mix=mix)


def test_a_mix_comes_from_flags_and_files(tmp_path: Path):
    parser = config_parser(TrainConfig)
    flags = ["--run", "r", "--data.train", "t"]
    config = to_config(
        parser, parser.parse_args([*flags, "--data.mix", "{chains/distilled: 0.75}"]), TrainConfig
    )
    assert config.data.mix == {"chains/distilled": 0.75}
    assert config.data.shares == [(Path("t"), 0.25), (Path("chains/distilled"), 0.75)]
    path = tmp_path / "config.yaml"
    path.write_text(config_text(config))
    assert read_config(path, TrainConfig) == config
    from_file = to_config(parser, parser.parse_args(["--config", str(path)]), TrainConfig)
    assert from_file == config
