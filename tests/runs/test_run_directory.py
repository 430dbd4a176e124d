"""A run's folder rebuilds its model, and refuses to rebuild another."""

import importlib.metadata
import json
import re
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from esmfold_peft import __version__
from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.cli import main
from esmfold_peft.commands.prepare import run as prepare
from esmfold_peft.commands.train import _describe
from esmfold_peft.config import AdapterConfig, PrepareConfig, TrainConfig
from esmfold_peft.config.parsing import config_parser, to_config
from esmfold_peft.datasets.batch import collate
from esmfold_peft.disk.locks import lock_folder
from esmfold_peft.errors import BusyError, UserError
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.inference import sequence_features
from esmfold_peft.model.language_model import LanguageModel
from esmfold_peft.model.output import FoldOutput
from esmfold_peft.runs.build import build_model
from esmfold_peft.runs.checkpoint import Best
from esmfold_peft.runs.ready import load_model
from esmfold_peft.runs.run_directory import (
    begin_session,
    create_run,
    export_model,
    kept_tensors,
    refuse_existing_run,
    restore_provenance,
    run_config,
)
from esmfold_peft.runs.status import Status, ended_status, read_status, whole_status, write_status
from esmfold_peft.runs.versions import installed_versions
from esmfold_peft.training.beginning import load_start, require_same_run
from esmfold_peft.weights.layouts import official_settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def chains(example: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the example's training chains."""
    folder = tmp_path_factory.mktemp("chains")
    prepare(PrepareConfig((example / "train",), folder, clusters="none", workers=1))
    return folder


@pytest.fixture
def config(chains: Path, tmp_path: Path) -> TrainConfig:
    """The shipped CPU configuration on the example chains."""
    parser = config_parser(TrainConfig)
    flags = ["--config", str(ROOT / "configs" / "tiny.yaml"), "--run", str(tmp_path / "run")]
    parsed = parser.parse_args([*flags, "--data.train", str(chains)])
    return to_config(parser, parsed, TrainConfig)


def trained(config: TrainConfig) -> tuple[FoldingModel, str]:
    """A model of which everything trainable has moved."""
    model, base = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape)
    return model.eval(), base


def folded(model: FoldingModel) -> FoldOutput:
    """What a model makes of a short sequence."""
    batch = collate([sequence_features("x", "MKTAYIAKQRQISFVK")], [False])
    with torch.no_grad():
        return model(batch.aatype, batch.residue_index, batch.mask, 1)


def test_how_a_run_was_made_fast_does_not_bind_who_loads_it(config: TrainConfig):
    fast = replace(
        config, model=replace(config.model, chunk=3), engine=replace(config.engine, compile=True)
    )
    model, base = build_model(fast)
    create_run(fast, model, base)
    loaded, settings = load_model(config.run)
    assert (settings.model.chunk, settings.engine.compile) == (None, False)
    assert folded(loaded).positions.isfinite().all()
    _, settings = load_model(config.run, chunk=5)
    assert settings.model.chunk == 5


@pytest.mark.parametrize("kernels", ["none", "deepspeed", "cuequivariance", "triton"])
def test_runs_with_the_settings_of_earlier_versions_are_read(kernels: str, config: TrainConfig):
    model, base = build_model(config)
    create_run(config, model, base)
    file = config.run / "config.yaml"
    text = file.read_text()
    assert "  kernels: fused\n" in text
    earlier = text.replace("  kernels: fused\n", f"  kernels: {kernels}\n")
    earlier = earlier.replace("  pair_track: bf16\n", "")
    file.write_text(earlier.replace("    recompute: ", "    checkpoint: "))
    model = run_config(config.run).model
    assert model.evoformer.recompute is config.model.evoformer.recompute
    assert (model.kernels, model.pair_track) == ("fused", "float32")
    require_same_run(config, None)  # in float32 both pair tracks are the same
    file.write_text(file.read_text().replace("  precision: float32\n", "  precision: bf16\n"))
    rounded = replace(config, engine=replace(config.engine, precision="bf16"))
    with pytest.raises(UserError, match=r"model\.pair_track is bf16, was float32"):
        require_same_run(rounded, None)


@pytest.mark.parametrize("kind", ["none", "full", "lora", "lorta"])
def test_the_folder_alone_rebuilds_the_model(kind: str, config: TrainConfig):
    config = replace(config, adapter=AdapterConfig(kind=kind, rank=2))
    model, base = trained(config)
    create_run(config, model, base)
    loaded, settings = load_model(config.run)
    plain = replace(config.engine, compile=False, cuda_graphs=False)
    assert settings == replace(config, engine=plain)
    assert torch.equal(folded(loaded).positions, folded(model).positions)
    assert not loaded.training
    assert (config.run / "adapter").is_dir() == (kind in ("lora", "lorta"))


def test_a_relative_path_of_weights_begins_at_the_runs_folder(config: TrainConfig, tmp_path: Path):
    file, shape = tmp_path / "esm2.pt", AttentionShape(layers=3, width=64, heads=4)
    tensors = dict(LanguageModel.random(shape, seed=3).official_tensors())
    torch.save({"cfg": {"model": Namespace(**official_settings(shape))}, "model": tensors}, file)
    language_model = replace(config.model.language_model, weights=str(file))
    config = replace(config, model=replace(config.model, language_model=language_model))
    model, base = trained(config)
    create_run(config, model, base)
    text = (config.run / "config.yaml").read_text()
    assert f"weights: {file}\n" in text
    (config.run / "config.yaml").write_text(text.replace(str(file), "../esm2.pt"))
    (moved := tmp_path / "moved").mkdir()
    for path in (file, config.run):
        path.rename(moved / path.name)
    loaded, settings = load_model(moved / config.run.name)
    assert settings.model.language_model.weights == str(moved / "esm2.pt")
    torch.testing.assert_close(folded(loaded).positions, folded(model).positions)


def test_only_what_trains_is_saved_and_shared_factors_once(config: TrainConfig):
    model, base = trained(replace(config, adapter=AdapterConfig(kind="lorta", rank=2)))
    create_run(config, model, base)
    names = load_file(config.run / "model.safetensors").keys()
    language_model = sorted(n for n in names if n.startswith("language_model."))
    assert language_model == [
        f"language_model.adapter.{factor}" for factor in ("a", "b", "c_h", "c_l", "c_m")
    ]


def test_the_provenance_names_what_made_the_run(config: TrainConfig):
    model, base = trained(config)
    create_run(config, model, base)
    found = json.loads((config.run / "provenance.json").read_text())
    assert found["language_model_sha256"] == base
    assert len(found["manifest_sha256"]["train"]) == 64
    # LoRTA r=1 on Q, K, V: 64 + 16 + 4 heads + 3 layers + 3 matrices.
    assert found["parameters"]["adapter"] == 64 + 16 + 4 + 3 + 3
    begin_session(config, 0, 1)
    begin_session(replace(config, engine=replace(config.engine, steps=7)), 5, 2)
    again = json.loads((config.run / "provenance.json").read_text())
    assert {key: again[key] for key in found} == found
    sessions = [(s["step"], s["processes"], s["packages"]["torch"]) for s in again["sessions"]]
    assert sessions == [(0, 1, torch.__version__), (5, 2, torch.__version__)]
    assert "steps: 7" in (config.run / "config.yaml").read_text()


def test_an_adapter_of_539_numbers_is_small(config: TrainConfig):
    # LoRTA r=1 on query, key and value of ESM-2 35M (LoRTA, section 4.4).
    shape = replace(config.model.language_model, layers=12, width=480, heads=20)
    config = replace(
        config,
        model=replace(config.model, language_model=shape),
        adapter=AdapterConfig(kind="lorta", rank=1),
    )
    model, base = build_model(config)
    create_run(config, model, base)
    assert sum(path.stat().st_size for path in (config.run / "adapter").iterdir()) <= 8 * 1024


def test_another_language_model_is_refused(config: TrainConfig):
    model, base = trained(config)
    create_run(config, model, base)
    text = (config.run / "config.yaml").read_text()
    (config.run / "config.yaml").write_text(text.replace("\nseed: 0", "\nseed: 1"))
    with pytest.raises(UserError, match="language model's weights are not those"):
        load_model(config.run)


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_a_checkpoint_that_does_not_fit_is_refused(change: str, config: TrainConfig):
    model, base = trained(config)
    create_run(config, model, base)
    path = config.run / "model.safetensors"
    tensors = load_file(path)
    name = "plddt_head.layers.1.weight"
    if change == "missing":
        del tensors[name]
    elif change == "unexpected":
        name = "plddt_head.extra"
        tensors[name] = torch.zeros(2)
    else:
        tensors[name] = tensors[name][:3].clone()
    save_file(tensors, path)
    with pytest.raises(UserError, match=name):
        load_model(config.run)


def test_a_truncated_checkpoint_is_refused(config: TrainConfig):
    model, base = trained(config)
    create_run(config, model, base)
    path = config.run / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="not a checkpoint"):
        load_model(config.run)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"{}", b"[]", b'{"language_model_sha256": null}', b'{"\xff": 1}']
)
def test_a_damaged_provenance_is_refused_and_a_resume_writes_it_anew(
    content: bytes, config: TrainConfig, capsys: pytest.CaptureFixture[str]
):
    model, base = trained(config)
    create_run(config, model, base)
    path = config.run / "provenance.json"
    whole = path.read_bytes()
    restore_provenance(config, model, base)
    assert path.read_bytes() == whole
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"provenance\.json"):
        load_model(config.run)
    capsys.readouterr()
    restore_provenance(config, model, base)
    assert path.read_bytes() == whole
    assert "provenance.json: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"{}", b'{"\xff": 1}', b'{"status": "running"}'),
        b'{"status": "running", "step": "x", "steps": 5}',
        b'{"status": "stopped", "step": 1, "steps": 5}',
        b'{"status": "running", "step": 1, "steps": 5, "best": [1]}',
        b'{"status": "running", "step": 1, "steps": 5, "colour": "red"}',
    ],
)
def test_a_damaged_status_does_not_stop_a_resume(
    content: bytes, config: TrainConfig, capsys: pytest.CaptureFixture[str]
):
    config.run.mkdir()
    (config.run / "status.json").write_bytes(content)
    with pytest.raises(UserError, match=r"status\.json: "):
        read_status(config.run)
    assert whole_status(config.run) is None
    assert ended_status(config) is None
    assert "status.json: " in capsys.readouterr().err


def test_a_status_is_read_as_it_was_written(config: TrainConfig):
    config.run.mkdir()
    status = Status("diverged", 3, 5, "loss", 2, "rose", 1, 0.25, Best(2, 0.5))
    for each in (status, Status("running", 0, 5)):
        write_status(config.run, each)
        assert read_status(config.run) == each


def test_saving_again_leaves_no_other_file(config: TrainConfig):
    model, base = trained(config)
    create_run(config, model, base)
    before = sorted(p.name for p in config.run.rglob("*"))
    export_model(config.run, model, kept_tensors(model), base)
    assert sorted(p.name for p in config.run.rglob("*")) == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"adapter": AdapterConfig(kind="lora", rank=2)}, "(adapter.kind is lora, was lorta)"),
        (
            {"adapter": AdapterConfig(rank=3, alpha=9.0, targets=("key",))},
            "(adapter.rank is 3, was 2; adapter.targets is ('key',), was ('query', ",
        ),
        ({"adapter": AdapterConfig(kind="none")}, "adapter.kind is none, was lorta"),
    ],
)
def test_a_start_from_another_model_names_the_settings(
    changes: dict, named: str, config: TrainConfig
):
    config = replace(config, adapter=AdapterConfig(rank=2))
    create_run(config, *build_model(config))
    other = replace(config, start_from=config.run, **changes)
    with pytest.raises(UserError, match=rf"^start_from: .*{re.escape(named)}"):
        load_start(other, *build_model(other))
    again = replace(config, start_from=config.run, adapter=AdapterConfig(rank=2, alpha=9.0))
    load_start(again, *build_model(again))  # what changes no tensor may be another


def test_a_run_is_never_written_over(config: TrainConfig):
    refuse_existing_run(config)
    config.run.mkdir()
    refuse_existing_run(config)
    (config.run / "config.yaml").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        refuse_existing_run(config)


def test_a_run_that_another_process_has_or_has_just_begun_ends_with_a_code_of_its_own(
    config: TrainConfig, capsys: pytest.CaptureFixture[str]
):
    """By this code, and not by words, a search waits for what it lost sight of."""
    config.run.mkdir()
    (config.run / "config.yaml").write_text("begun")
    with pytest.raises(BusyError, match="another process has just started"):
        refuse_existing_run(replace(config, resume="auto"))
    words = ["train", "--run", str(config.run), "--data.train", str(config.data.train)]
    with lock_folder(config.run):
        assert main([*words, "--resume", "auto"]) == BusyError.exit_code == 69
    assert capsys.readouterr().err.endswith("another process writes to this folder\n")


def test_the_start_of_a_run_warns_of_a_rank_that_the_adapter_cannot_use(
    config: TrainConfig, capsys: pytest.CaptureFixture
):
    width = config.model.language_model.width
    for rank in (width, width + 1):
        adapted = replace(config, adapter=AdapterConfig(kind="lora", rank=rank))
        _describe(build_model(adapted)[0], adapted, 0)
        said = " ".join(capsys.readouterr().err.split())
        warning = f"adapter.rank: {rank} is more than lora can use here; above {width} no further"
        assert (warning in said) == (rank > width)


def test_a_checkout_that_is_not_installed_has_its_own_version(monkeypatch: pytest.MonkeyPatch):
    def nothing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("esmfold_peft.runs.versions.version", nothing)
    found = installed_versions(("esmfold-peft", "torch"))
    assert found == {"esmfold-peft": __version__, "torch": None}


def test_versions_are_those_of_the_metadata():
    assert installed_versions(["torch"])["torch"] == importlib.metadata.version("torch")
    assert torch.__version__.startswith(importlib.metadata.version("torch").partition("+")[0])
