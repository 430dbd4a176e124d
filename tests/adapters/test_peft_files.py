"""PEFT's files: the same adapter after a round trip, and nothing that would mean something else."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from esmfold_peft.adapters.base import SIZES, AttentionShape
from esmfold_peft.adapters.insert import attach_adapter, build_adapter
from esmfold_peft.adapters.io import load_adapter, read_adapter, save_adapter
from esmfold_peft.adapters.peft_files import read_peft, write_peft
from esmfold_peft.commands.adapters import export, import_adapter
from esmfold_peft.config import AdapterConfig, ExportConfig, ImportConfig, LanguageModelConfig
from esmfold_peft.errors import UserError
from esmfold_peft.model.language_model import LanguageModel
from esmfold_peft.weights.esm2_weights import weights_hash

SHAPE = AttentionShape(layers=3, width=40, heads=4)
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
LAYER = "base_model.model.encoder.layer"
QKVO = ("query", "key", "value", "output")
CUSTOM = LanguageModelConfig(name="custom", weights="random", layers=3, width=40, heads=4)


def edit_config(folder, **settings):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def edit_tensors(folder, change):
    tensors = load_file(folder / TENSORS)
    save_file(change(tensors), folder / TENSORS)


@pytest.fixture
def written(make_lm, tmp_path):
    """A folder with a LoRA of query, output and fc2, and the adapter in it."""
    adapter = make_lm("lora", rank=2, alpha=3.0, targets=("query", "output", "fc2")).adapter
    write_peft(adapter, tmp_path / "peft", "facebook/esm2_tiny")
    return tmp_path / "peft", adapter


@pytest.mark.parametrize(
    ("kind", "targets", "settings"),
    [
        ("lora", ("query", "output", "fc2"), {"alpha": 3.0}),
        ("lora", ("fc1",), {"alpha": 3.0, "scaling": "alpha/sqrt(r)"}),
        ("lora", ("key", "value"), {"alpha": 0.3, "scaling": "constant"}),
        ("lora_fa", QKVO, {"alpha": 3.0}),
        ("dora", ("output", "fc1", "fc2"), {"alpha": 3.0, "scaling": "alpha/sqrt(r)"}),
        ("vera", ("query", "fc1", "fc2"), {}),
        ("ia3", ("key", "value", "fc2"), {}),
    ],
)
def test_round_trip(make_lm, tmp_path, kind, targets, settings):
    adapter = make_lm(kind, rank=1 if kind == "ia3" else 3, targets=targets, **settings).adapter
    write_peft(adapter, tmp_path, None)
    again = read_peft(tmp_path, SHAPE, "lora_fa" if kind == "lora_fa" else "auto")
    assert (again.config.kind, again.targets, again.config.rank) == (
        kind,
        targets,
        adapter.config.rank,
    )
    assert again.scale == (
        None if adapter.scale is None else pytest.approx(adapter.scale, rel=1e-12)
    )
    state, expected = again.state_dict(), adapter.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    trainable = {name for name, p in adapter.named_parameters() if p.requires_grad}
    assert {name for name, p in again.named_parameters() if p.requires_grad} == trainable


def test_lora_fa_goes_out_as_lora_and_comes_back_as_either(make_lm, tmp_path):
    write_peft(make_lm("lora_fa", rank=2).adapter, tmp_path, None)
    assert read_peft(tmp_path, SHAPE, "auto").config.kind == "lora"
    assert read_peft(tmp_path, SHAPE, "lora_fa").config.kind == "lora_fa"


def test_reading_leaves_the_generator_alone(written):
    before = torch.get_rng_state()
    read_peft(written[0], SHAPE, "auto")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["lorta", "lotr", "nola", "bitfit"])
def test_what_peft_does_not_have_is_not_written(make_lm, tmp_path, kind):
    with pytest.raises(
        UserError, match=f"^adapter.kind: PEFT has no {kind}.*only lora, lora_fa, dora"
    ):
        write_peft(make_lm(kind).adapter, tmp_path / "peft", None)
    assert not (tmp_path / "peft").exists()


def test_names_of_a_model_around_esm_model(written):
    folder, adapter = written
    edit_tensors(folder, lambda t: {k.replace(".encoder", ".esm.encoder"): v for k, v in t.items()})
    again = read_peft(folder, SHAPE, "auto")
    assert torch.equal(again.state_dict()["a_fc2"], adapter.state_dict()["a_fc2"])


@pytest.mark.parametrize(
    "settings",
    [
        {"rank_pattern": {"query": 4}},
        {"alpha_pattern": {"query": 4}},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"modules_to_save": ["classifier"]},
        {"fan_in_fan_out": True},
        {"layers_to_transform": [0]},
        {"lora_bias": True},
        {"layer_replication": [[0, 2]]},
        {"use_qalora": True},
        {"setting_of_the_future": 3},
    ],
    ids=str,
)
def test_settings_without_a_counterpart_are_refused(written, settings):
    folder, _ = written
    edit_config(folder, **settings)
    (key,) = settings
    with pytest.raises(UserError, match=f"{CONFIG}: {key} is .* no counterpart"):
        read_peft(folder, SHAPE, "auto")


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga"])
def test_starts_that_change_the_base_weights_are_refused(written, start):
    edit_config(written[0], init_lora_weights=start)
    with pytest.raises(UserError, match=f"init_lora_weights is {start}, which changes the weights"):
        read_peft(written[0], SHAPE, "auto")


def test_settings_that_change_no_output_are_accepted(written):
    folder, adapter = written
    edit_config(
        folder,
        lora_dropout=0.1,
        init_lora_weights="gaussian",
        task_type="FEATURE_EXTRACTION",
        revision="main",
        peft_version="9.9",
        target_modules=["query"],
        megatron_core="megatron.core",
        qalora_group_size=16,
        rank_pattern={},
        bias="none",
        setting_of_the_future=None,
    )
    again = read_peft(folder, SHAPE, "auto")
    assert again.scale == adapter.scale


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "peft_type is PROMPT_TUNING; LORA, VERA, IA3 and LORTA"),
        ({"peft_type": None}, "peft_type is None"),
        ({"r": None}, "r is None, not a positive number"),
        ({"r": True}, "r is True, not a positive number"),
        ({"r": 1.5}, "r is 1.5, not a whole number"),
        ({"lora_alpha": "8"}, "lora_alpha is 8, not a positive number"),
        ({"lora_alpha": -1}, "lora_alpha is -1, not a positive number"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan, not a positive number"),
    ],
)
def test_settings_that_make_no_adapter_are_refused(written, settings, message):
    edit_config(written[0], **settings)
    with pytest.raises(UserError, match=f"{CONFIG}: {message}"):
        read_peft(written[0], SHAPE, "auto")


@pytest.mark.parametrize(
    "base",
    ["facebook/esm2_t12_35M_UR50D", "/models/esm2_t6_8M_UR50D/", "esm2_t33_650M_UR50D"],
)
def test_a_base_model_of_other_sizes_is_refused(written, base):
    edit_config(written[0], base_model_name_or_path=base)
    with pytest.raises(
        UserError, match=f"is {base}, but the language model has 3 layers of width 40"
    ):
        read_peft(written[0], SHAPE, "auto")


def without(key):
    return lambda tensors: {name: t for name, t in tensors.items() if name != key}


def with_extra(key):
    return lambda tensors: {**tensors, key: torch.zeros(2)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without(f"{LAYER}.1.output.dense.lora_A.weight"),
            "layer.1.output.dense.lora_A.weight.*missing",
        ),
        (
            with_extra(f"{LAYER}.3.output.dense.lora_A.weight"),
            "layer.3.output.dense.lora_A.*unexpected",
        ),
        (
            with_extra("base_model.model.pooler.dense.lora_A.weight"),
            "pooler.dense.lora_A.*unexpected",
        ),
        (
            with_extra(f"{LAYER}.0.output.dense.lora_magnitude_vector"),
            "lora_magnitude_vector.*unexpected",
        ),
        # A matrix that is adapted in one layer only.
        (with_extra(f"{LAYER}.0.attention.self.key.lora_A.weight"), "self.key.lora_B.*missing"),
        (
            with_extra("base_model.model.esm.encoder.layer.0.output.dense.lora_A.weight"),
            "unexpected",
        ),
        (lambda tensors: {"lm_head.weight": torch.zeros(2)}, 'no tensor adapts .*"lm_head.weight"'),
        (lambda tensors: {}, "no tensor adapts .*no tensor at all"),
        (
            lambda tensors: {k: v[:1] if "lora_A" in k else v for k, v in tensors.items()},
            r'lora_A.weight" has shape \(1, 40\), expected \(2, 40\)',
        ),
    ],
)
def test_tensors_that_are_not_exactly_right_are_refused(written, change, message):
    edit_tensors(written[0], change)
    with pytest.raises(UserError, match=f"{TENSORS}: .*{message}"):
        read_peft(written[0], SHAPE, "auto")


def test_an_adapter_of_a_wider_model_is_refused(written):
    with pytest.raises(
        UserError, match=r"has shape \(40, 2\), expected \(48, 2\)|\(2, 40\), expected"
    ):
        read_peft(written[0], AttentionShape(layers=3, width=48, heads=4), "auto")


def test_frozen_projections_must_be_in_the_file(make_lm, tmp_path):
    write_peft(make_lm("vera", rank=2).adapter, tmp_path, None)
    edit_config(tmp_path, save_projection=False)
    with pytest.raises(UserError, match="save_projection is off"):
        read_peft(tmp_path, SHAPE, "auto")
    edit_config(tmp_path, save_projection=True)
    edit_tensors(tmp_path, without("base_model.vera_A"))
    with pytest.raises(UserError, match=r'"base_model\.vera_A" is missing'):
        read_peft(tmp_path, SHAPE, "auto")


@pytest.mark.parametrize(("target", "shape"), [("key", (1, 40)), ("fc2", (40, 1))])
def test_ia3_that_scales_the_other_side_is_refused(make_lm, tmp_path, target, shape):
    write_peft(make_lm("ia3", targets=(target,)).adapter, tmp_path, None)
    edit_tensors(tmp_path, lambda tensors: {key: torch.ones(shape) for key in tensors})
    with pytest.raises(UserError, match=r"ia3_l\" has shape"):
        read_peft(tmp_path, SHAPE, "auto")


@pytest.mark.parametrize("kind", ["dora", "vera", "ia3"])
def test_only_a_lora_goes_on_as_lora_fa(make_lm, tmp_path, kind):
    write_peft(make_lm(kind).adapter, tmp_path, None)
    with pytest.raises(
        UserError, match=f"{CONFIG}: only a LoRA can become lora_fa, this is {kind}"
    ):
        read_peft(tmp_path, SHAPE, "lora_fa")


def fork_factors(rank):
    generator = torch.Generator().manual_seed(5)
    sizes = {"A": (40, rank), "B": (rank, 10), "C_l": (3, rank), "C_h": (4, rank), "C_m": (4, rank)}
    return {name: 0.5 * torch.randn(size, generator=generator) for name, size in sizes.items()}


def write_fork(folder, names, **settings):
    factors = fork_factors(3)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"base_model.model.lora_{name}": factor for name, factor in factors.items()}
    save_file(tensors, folder / TENSORS)
    header = {
        "peft_type": "LORTA",
        "r": 3,
        "lora_alpha": 6,
        "init_scale": 1.0,
        "init_lora_weights": True,
        "target_modules": names,
    }
    (folder / CONFIG).write_text(json.dumps(header | settings))


@pytest.mark.parametrize(
    ("names", "targets", "settings", "scale"),
    [
        (["query", "key", "value", "attention.output.dense"], QKVO, {}, 2.0),
        (["v_proj", "q_proj"], ("query", "value"), {}, 2.0),
        (["key", "dense"], ("key", "output"), {"use_rslora": True}, 6 / 3**0.5),
        (["o_proj"], ("output",), {}, 2.0),
    ],
)
@torch.no_grad()
def test_the_fork_does_what_its_formula_says(chains, tmp_path, names, targets, settings, scale):
    write_fork(tmp_path, names, **settings)
    adapter = read_peft(tmp_path, SHAPE, "auto")
    assert adapter.targets == targets
    adapted, dense = (LanguageModel.random(SHAPE, seed=3) for _ in range(2))
    untouched = dense(*chains)[chains[1]]
    attach_adapter(adapted, adapter, fresh=False)
    f = fork_factors(3)
    for layer in range(3):
        for target in targets:
            row = f["C_m"][QKVO.index(target)] * f["C_l"][layer]
            blocks = [f["A"] @ torch.diag(row * f["C_h"][head]) @ f["B"] for head in range(4)]
            # x @ dW.T, as nn.Linear applies its weight.
            dense.weight(layer, target).add_(scale * torch.cat(blocks, dim=1))
    ours, theirs = adapted(*chains)[chains[1]], dense(*chains)[chains[1]]
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
    assert (theirs - untouched).norm() > 0.01 * theirs.norm()


@torch.no_grad()
def test_on_output_alone_the_fork_is_the_paper(make_lm, chains, tmp_path):
    write_fork(tmp_path, ["out_proj"])
    forked = attach_adapter(lm := make_lm("none"), read_peft(tmp_path, SHAPE, "auto"), fresh=False)
    paper = make_lm("lorta", rank=3, alpha=6.0, targets=("output",), orientation="paper")
    paper.adapter.load_state_dict(forked.state_dict())
    torch.testing.assert_close(lm(*chains), paper(*chains))


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        (["query", "intermediate.dense"], {}, "target_modules: intermediate.dense is no matrix"),
        (["fc1"], {}, "target_modules: fc1 is no matrix"),
        (".*query", {}, "target_modules is .*, not a list of names"),
        ([], {}, "target_modules is .*, not a list of names"),
        (["query"], {"rank_pattern": {"query": 2}}, "rank_pattern is .* no counterpart"),
        (["query"], {"modules_to_save": ["classifier"]}, "modules_to_save is .* no counterpart"),
        (["query"], {"layers_to_transform": [1]}, "layers_to_transform is .* no counterpart"),
        (["query"], {"r": None}, "r is None"),
    ],
)
def test_settings_of_the_fork_that_are_refused(tmp_path, names, settings, message):
    write_fork(tmp_path, names, **settings)
    with pytest.raises(UserError, match=f"{CONFIG}: {message}"):
        read_peft(tmp_path, SHAPE, "auto")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("base_model.model.lora_C_h"), '"base_model.model.lora_C_h" is missing'),
        (with_extra("base_model.model.classifier.weight"), "classifier.weight.*unexpected"),
        (
            lambda t: t | {"base_model.model.lora_C_m": torch.zeros(2, 3)},
            r'lora_C_m" has shape \(2, 3\), expected \(4, 3\)',
        ),
    ],
)
def test_tensors_of_the_fork_that_are_refused(tmp_path, change, message):
    write_fork(tmp_path, ["query"])
    edit_tensors(tmp_path, change)
    with pytest.raises(UserError, match=f"{TENSORS}: .*{message}"):
        read_peft(tmp_path, SHAPE, "auto")


def test_the_fork_has_no_lora_fa(tmp_path):
    write_fork(tmp_path, ["query"])
    with pytest.raises(UserError, match="only a LoRA can become lora_fa, this is lorta"):
        read_peft(tmp_path, SHAPE, "lora_fa")


@pytest.fixture
def run_folder(make_lm, tmp_path):
    """What export needs of a training run: config.yaml, and a DoRA in adapter/."""
    lm = make_lm("dora", rank=2, alpha=3.0, targets=("value", "fc1"))
    save_adapter(lm.adapter, tmp_path / "run" / "adapter", weights_hash(lm))
    (tmp_path / "run" / "config.yaml").touch()
    return tmp_path / "run"


@pytest.mark.parametrize("inside", [".", "adapter"])
def test_out_of_a_run_and_back(run_folder, tmp_path, capsys, inside):
    out, back = tmp_path / "out", tmp_path / "back"
    assert export(ExportConfig(adapter=run_folder / inside, output=out, base_model="me/esm")) == 0
    assert json.loads((out / CONFIG).read_text())["base_model_name_or_path"] == "me/esm"
    assert import_adapter(ImportConfig(adapter=out, output=back, language_model=CUSTOM)) == 0
    lm = LanguageModel.random(SHAPE, seed=0)
    adapter = load_adapter(lm, back, weights_hash(lm))
    expected = read_adapter(run_folder / "adapter").adapter
    assert adapter.config == expected.config
    assert all(torch.equal(adapter.state_dict()[k], v) for k, v in expected.state_dict().items())
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    # Three layers of value (80 + 80 + 40) and fc1 (80 + 320 + 160).
    assert all("dora of 2,280 parameters" in line for line in lines)


def test_an_adapter_of_an_official_size_names_its_model(tmp_path):
    adapter = build_adapter(SIZES["esm2_t6_8M_UR50D"], AdapterConfig(kind="lora"))
    save_adapter(adapter, tmp_path / "adapter", "0" * 64)
    export(ExportConfig(adapter=tmp_path / "adapter", output=tmp_path / "peft"))
    header = json.loads((tmp_path / "peft" / CONFIG).read_text())
    assert header["base_model_name_or_path"] == "facebook/esm2_t6_8M_UR50D"


def test_the_fork_through_the_command(tmp_path):
    write_fork(tmp_path / "fork", ["query", "value"])
    config = ImportConfig(adapter=tmp_path / "fork", output=tmp_path / "out", language_model=CUSTOM)
    assert import_adapter(config) == 0
    assert read_adapter(tmp_path / "out").adapter.config.orientation == "peft"


def test_commands_write_over_nothing(run_folder, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "note").touch()
    commands = {
        export: ExportConfig(adapter=run_folder, output=taken),
        import_adapter: ImportConfig(adapter=run_folder, output=taken, language_model=CUSTOM),
    }
    for command, config in commands.items():
        with pytest.raises(UserError, match=f"^output: {taken} exists already"):
            command(config)
    assert [path.name for path in taken.iterdir()] == ["note"]
