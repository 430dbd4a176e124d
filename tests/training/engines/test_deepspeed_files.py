"""Which of DeepSpeed's settings a run takes."""

import json
from pathlib import Path

import pytest

from esmfold_peft.config import EngineConfig
from esmfold_peft.errors import UserError
from esmfold_peft.training.engines.trainer import _deepspeed, deepspeed_settings

SHIPPED = sorted((Path(__file__).parents[3] / "configs" / "deepspeed").glob("*.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_ask_for_the_stage_of_their_name(path: Path):
    strategy = _deepspeed(EngineConfig(accelerator="cpu", deepspeed=path), chains=2, clip_norm=0.1)
    zero = strategy.config["zero_optimization"]
    assert zero["stage"] == int(path.stem.removeprefix("zero")[0])
    assert strategy.config["gradient_clipping"] == 0.1
    assert ("offload_optimizer" in zero) == path.stem.endswith("_offload")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"round_robin_gradients": True}, "round_robin_gradients: no training can be saved"),
        ({"zero_hpz_partition_size": 2}, "zero_hpz_partition_size: no training can be saved"),
        ({"offload_optimizer": {"device": "nvme"}}, "offload_optimizer.device must be"),
        ({"offload_param": "cpu"}, "offload_param.device must be"),
    ],
)
def test_settings_under_which_a_training_could_not_be_saved_are_refused(
    setting: dict, said: str, tmp_path: Path
):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3} | setting}))
    with pytest.raises(UserError, match=said):
        _deepspeed(EngineConfig(accelerator="cpu", deepspeed=path), chains=2, clip_norm=0.1)


def test_a_deepspeed_file_may_not_contradict_the_config(tmp_path: Path):
    path = tmp_path / "ds.json"
    path.write_text('{"gradient_clipping": 1.0, "zero_optimization": {"stage": 1}}')
    engine = EngineConfig(accelerator="cpu", deepspeed=path)
    with pytest.raises(UserError, match="gradient_clipping"):
        deepspeed_settings(engine)
    for misspelt in ('{"zero_optimisation": {"stage": 1}}', "[]", '{"zero_optimization": 2}'):
        path.write_text(misspelt)
        with pytest.raises(UserError, match=r"zero_optimization\.stage"):
            deepspeed_settings(engine)
    path.write_text("{")
    with pytest.raises(UserError, match="not a JSON file"):
        deepspeed_settings(engine)
