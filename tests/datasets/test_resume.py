"""A resumed run sees exactly the chains and crops that it would have seen."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from esmfold_peft.config import DataConfig, EngineConfig, TrainConfig
from esmfold_peft.config.parsing import config_parser, config_text, read_config, to_config
from esmfold_peft.datasets.datamodule import ChainDataModule
from esmfold_peft.datasets.order import order_of, require_order
from esmfold_peft.datasets.streams import (
    CROPS,
    DROPOUT,
    RECYCLES,
    STORES,
    random_seed,
    random_stream,
)
from esmfold_peft.errors import UserError


@pytest.fixture
def config(tmp_path: Path, write_store: Callable, make_chain: Callable) -> TrainConfig:
    """Steps of 4 chains from two stores."""
    chains = [make_chain(f"t{n}", n) for n in range(50, 57)]
    write_store(tmp_path / "train", chains, ["a", "a", "a", "b", "b", "c", "d"])
    write_store(tmp_path / "distilled", [make_chain(f"d{n}", n) for n in (40, 70)])
    return TrainConfig(
        run=tmp_path / "run",
        data=DataConfig(
            train=tmp_path / "train",
            mix={str(tmp_path / "distilled"): 0.4},
            crop=20,
            workers=0,
        ),
        engine=EngineConfig(accelerator="cpu", batch_size=4, steps=12),
    )


def crops(config: TrainConfig, start: int, workers: int = 0) -> list[tuple]:
    """What a process sees from step `start` to step 12."""
    config = replace(config, data=replace(config.data, workers=workers))
    batches = iter(ChainDataModule(config, start).train_dataloader())
    seen = []
    for batch, _ in islice(batches, 12 - start):
        first = batch.residue_index[:, 0].tolist()
        seen += zip(batch.ids, first, batch.clamped.tolist(), strict=True)
    return seen


@pytest.mark.parametrize("start", [0, 5, 11])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_sees_what_it_would_have_seen(start: int, workers: int, config: TrainConfig):
    whole = crops(config, 0)
    assert len(whole) == 48
    assert {name[0] for name, _, _ in whole} == {"t", "d"}
    assert crops(config, start, workers) == whole[4 * start :]


def test_a_checkpoint_of_other_data_is_refused(
    config: TrainConfig, tmp_path: Path, write_store: Callable, make_chain: Callable
):
    state = order_of(config.data, config.seed)
    other = write_store(tmp_path / "other", [make_chain("x", 30)])

    def refused(**changes: object) -> str:
        data = {k: v for k, v in changes.items() if k != "seed"}
        run = replace(config.data, **data)
        with pytest.raises(UserError) as raised:
            require_order(state, order_of(run, int(changes.get("seed", config.seed))))
        return str(raised.value)

    assert "samples: seed: 1 instead of 0" in refused(seed=1)
    assert "data.cluster_weight: none instead of inverse" in refused(cluster_weight="none")
    assert "data.length_weight: False instead of True" in refused(length_weight=False)
    assert "samples: data.train: manifest " in refused(train=other)
    assert "samples: data.mix: none instead of 0.4 of " in refused(mix={})
    require_order(state, order_of(replace(config.data, crop=10, workers=1), config.seed))


def test_crops_and_the_choice_of_stores_have_streams_of_their_own():
    keys = [(STORES, 3), (CROPS, 3), (RECYCLES, 3), (DROPOUT, 3), (0, 3), (CROPS, 3, 0), (CROPS,)]
    drawn = [random_stream(0, *key).random(4).tolist() for key in keys]
    assert len({tuple(numbers) for numbers in drawn}) == len(keys)
    seeds = {random_seed(0, DROPOUT, chain, turn) for chain in range(27) for turn in range(27)}
    assert len(seeds) == 729
    assert all(0 <= seed < 2**63 for seed in seeds)


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
