"""TT-LoRA: the order of its modes, its published starts, and cores of its authors' programs."""

import json
from pathlib import Path

import pytest
import torch

from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.adapters.insert import build_adapter, insert_adapter
from esmfold_peft.adapters.io import load_adapter, read_adapter, save_adapter
from esmfold_peft.adapters.tensor_train import tt_svd
from esmfold_peft.adapters.tt_lora import train_of
from esmfold_peft.adapters.tt_lora_files import read_cores
from esmfold_peft.commands.adapters import import_adapter
from esmfold_peft.config import AdapterConfig, ImportConfig, LanguageModelConfig
from esmfold_peft.errors import UserError
from esmfold_peft.model.language_model import LanguageModel
from esmfold_peft.weights.esm2_weights import weights_hash
from esmfold_peft.weights.tensor_files import read_pt

SHAPE = AttentionShape(layers=3, width=40, heads=4)
CUSTOM = LanguageModelConfig(name="custom", weights="random", layers=3, width=40, heads=4)
MODULES = {"query": "attention.self.query", "fc1": "intermediate.dense"}


def started(shape, init, rank, **settings):
    """An adapter at its start on a random language model."""
    lm = LanguageModel.random(shape, seed=3)
    torch.manual_seed(0)
    return insert_adapter(lm, AdapterConfig(kind="tt_lora", init=init, rank=rank, **settings))


@torch.no_grad()
def test_an_entry_is_the_product_of_its_digits_slices():
    shape = AttentionShape(layers=1, width=480, heads=20)
    adapter = build_adapter(shape, AdapterConfig(kind="tt_lora", rank=3, init="direct")).double()
    delta = adapter.delta_weight(0, "query")
    digits = torch.randint(0, 6, (20, 6), generator=torch.Generator().manual_seed(1)).tolist()
    for i1, i2, i3, o1, o2, o3 in digits:
        value = torch.ones(1, 1, dtype=torch.float64)
        for n, digit in enumerate((i1, i2, i3, o1, o2, o3), start=1):
            value = value @ adapter.get_parameter(f"g{n}_query")[0, :, digit]
        entry = delta[(o1 * 8 + o2) * 10 + o3, (i3 * 8 + i2) * 10 + i1]
        torch.testing.assert_close(entry, adapter.scale * value.squeeze(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("init", "rank", "norm"),
    [("paper", 8, 1.07), ("paper", 64, 6.0), ("direct", 8, 0.0055), ("direct", 64, 0.0002)],
)
@torch.no_grad()
def test_published_starts_have_their_size(init, rank, norm):
    # Of an audit with the authors' own layers.
    shape = AttentionShape(layers=2, width=480, heads=20)
    adapter = started(shape, init, rank, scaling="constant")
    for layer, target in adapter.matrices():
        found = adapter.delta_weight(layer, target).norm().item()
        assert found == pytest.approx(norm, rel=0.1)


@pytest.mark.parametrize(("init", "low", "high"), [("paper", 1e-4, 1e-2), ("direct", 0, 2e-6)])
def test_the_first_step_is_as_large_as_the_start(init, low, high):
    # Adam moves every number by lr: what that does to ΔW depends on where the cores start.
    shape = AttentionShape(layers=1, width=480, heads=20)
    adapter = started(shape, init, 64, scaling="constant", targets=("query",))
    before = adapter.delta_weight(0, "query").detach()
    optimizer = torch.optim.Adam(adapter.parameters(), lr=1e-3)
    direction = torch.randn(480, 480, generator=torch.Generator().manual_seed(1))
    (adapter.delta_weight(0, "query") * direction).sum().backward()
    optimizer.step()
    change = (adapter.delta_weight(0, "query") - before).square().mean().sqrt().item()
    assert low < change < high


@torch.no_grad()
def test_the_papers_start_is_the_tt_svd_of_a_random_matrix_of_each_layers_own():
    # Bonds of 40 cut nothing: what is left is the matrix that was drawn.
    adapter = started(SHAPE, "paper", 40, scaling="constant", targets=("query", "fc1", "fc2"))
    for target in adapter.targets:
        deltas = torch.stack([adapter.delta_weight(layer, target) for layer in range(3)])
        bound = (2 / (3 * SHAPE.fan_in(target))) ** 0.5
        assert deltas.abs().max().item() == pytest.approx(bound, rel=1e-2)
        assert deltas.std().item() == pytest.approx(bound / 3**0.5, rel=3e-2)
        assert torch.corrcoef(deltas.flatten(1)).fill_diagonal_(0).abs().max() < 0.1
    query, fc1 = adapter.delta_weight(0, "query"), adapter.delta_weight(0, "fc1")[:40]
    assert torch.corrcoef(torch.stack([query.flatten(), fc1.flatten()]))[0, 1].abs() < 0.1
    for n in range(2, 7):
        rows = adapter.get_parameter(f"g{n}_query")[0].flatten(1).double()
        eye = torch.eye(len(rows), dtype=torch.float64)
        torch.testing.assert_close(rows @ rows.T, eye, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_a_tt_svd_is_a_projection_and_for_two_modes_the_best_one(rank):
    generator = torch.Generator().manual_seed(1)
    tensor = torch.randn(12 * 30, generator=generator, dtype=torch.float64)

    def cut(modes):
        whole, *others = tt_svd(tensor, modes, rank)
        for core in others:
            whole = torch.tensordot(whole, core, dims=1)
        return whole.flatten()

    left, sizes, right = torch.linalg.svd(tensor.view(12, 30), full_matrices=False)
    best = left[:, :rank] * sizes[:rank] @ right[:rank]
    torch.testing.assert_close(cut((12, 30)).view(12, 30), best, rtol=0, atol=1e-10)
    kept = cut((4, 3, 5, 6))
    torch.testing.assert_close(tensor @ kept, kept @ kept, rtol=1e-10, atol=0)
    assert kept.norm() <= tensor.norm()


@torch.no_grad()
def test_the_papers_start_is_not_drawn_again_when_an_adapter_is_read(tmp_path):
    lm = LanguageModel.random(SHAPE, seed=3)
    adapter = insert_adapter(lm, AdapterConfig(kind="tt_lora", init="paper", rank=2))
    save_adapter(adapter, tmp_path / "a", weights_hash(lm))
    other = LanguageModel.random(SHAPE, seed=3)
    again = load_adapter(other, tmp_path / "a", weights_hash(other))
    assert all(torch.allclose(p, adapter.get_parameter(n)) for n, p in again.named_parameters())


@torch.no_grad()
def test_a_random_matrix_needs_the_widest_useful_bond():
    adapter = build_adapter(SHAPE, AdapterConfig(kind="tt_lora", targets=("query", "fc2")))
    for fan_in, fan_out in ((40, 40), (160, 40)):
        cores = train_of(torch.randn(fan_out, fan_in, dtype=torch.float64), None)
        assert max(core.shape[2] for core in cores) == adapter.useful_ranks()["rank"] == 40


def published_cores(modes, rank, seed, *, prefix="", name="tt_cores", targets=("query", "fc1")):
    """Random cores as the authors' programs save them, bonds of `rank` throughout."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(3):
        for target in targets:
            sizes = modes[target]
            for n, size in enumerate(sizes):
                left, right = (1 if n == 0 else rank), (1 if n == len(sizes) - 1 else rank)
                key = f"{prefix}encoder.layer.{layer}.{MODULES[target]}.{name}.{n}"
                tensors[key] = torch.randn(left, size, right, generator=generator)
    return tensors


def cores_of(tensors, layer, target):
    wanted = f"encoder.layer.{layer}.{MODULES[target]}."
    found = {int(k.rpartition(".")[2]): t for k, t in tensors.items() if wanted in k}
    return [found[n].double() for n in range(len(found))]


def contraction(cores, fan_in, fan_out):
    """ΔW by what the library does to inputs: it takes their digits from the last one on."""
    sizes, state = [core.shape[1] for core in cores], torch.eye(fan_in, dtype=torch.float64)
    count = next(n for n in range(len(sizes)) if torch.tensor(sizes[:n]).prod() == fan_in)
    state = state.view(fan_in, 1, *sizes[:count][::-1])
    for core in cores[:count]:
        state = torch.tensordot(state, core, dims=([1, state.ndim - 1], [0, 1])).movedim(-1, 1)
    for core in cores[count:]:
        state = torch.tensordot(state, core, dims=([1], [0])).movedim(-1, 1)
    return state.reshape(fan_in, fan_out).T


def reconstruction(cores, fan_in, fan_out):
    """ΔW by what the first paper's program does: the entries of the train, row by row."""
    whole = cores[0]
    for core in cores[1:]:
        whole = torch.tensordot(whole, core, dims=1)
    return whole.reshape(fan_out, fan_in)


FORMULAS = {"contraction": contraction, "reconstruction": reconstruction}
OWN = {"query": (5, 4, 2, 2, 4, 5), "fc1": (5, 4, 2, 4, 5, 8)}
OTHERS = {"query": (10, 4, 4, 10), "fc1": (8, 5, 2, 2, 2, 20)}


PATTERNS = (r"\.self\.query$", r"layer\.\d+\.intermediate\.dense$")


def write_library(folder, tensors, alphas=(3.0, 3.0), patterns=PATTERNS):
    """A folder as the authors' library writes it, every pattern with an alpha of its own."""
    folder.mkdir()
    targets = [
        {
            "module_name_pattern": pattern,
            "weight_shape": [40, 40],
            "input_factors": [40],
            "output_factors": [40],
            "rank": 2,
            "alpha": alpha,
            "variant": "contraction",
        }
        for pattern, alpha in zip(patterns, alphas, strict=True)
    ]
    header = {"freeze_base_model": True, "init_seed": None, "strict": True, "targets": targets}
    (folder / "adapter_config.json").write_text(json.dumps(header))
    torch.save(tensors, folder / "adapter_model.bin")


def imported(tmp_path, adapter, **settings):
    out = tmp_path / "out"
    config = ImportConfig(adapter=adapter, output=out, language_model=CUSTOM, **settings)
    assert import_adapter(config) == 0
    return read_adapter(out).adapter


def assert_published(adapter, tensors, alpha, order):
    formula = FORMULAS[order]
    adapter = adapter.double()
    assert set(adapter.targets) == {"query", "fc1"}
    for layer, target in adapter.matrices():
        fans = SHAPE.fan_in(target), SHAPE.fan_out(target)
        expected = alpha * formula(cores_of(tensors, layer, target), *fans)
        assert expected.norm() > 1
        error = (adapter.delta_weight(layer, target) - expected).norm() / expected.norm()
        assert error < 1e-6


@pytest.mark.parametrize("prefix", ["", "esm."])
@torch.no_grad()
def test_cores_of_the_library_with_modes_of_ours_are_taken_as_they_are(tmp_path, capsys, prefix):
    tensors = published_cores(OWN, 2, seed=1, prefix=prefix)
    write_library(tmp_path / "tt", tensors)
    adapter = imported(tmp_path, tmp_path / "tt")
    assert (adapter.config.rank, adapter.scale) == (2, 3.0)
    for n in range(6):
        core = tensors[f"{prefix}encoder.layer.1.attention.self.query.tt_cores.{n}"]
        assert torch.equal(adapter.get_parameter(f"g{n + 1}_query")[1], core)
    assert "became" not in capsys.readouterr().err
    assert_published(adapter, tensors, 3.0, "contraction")


@pytest.mark.parametrize(("modes", "rank", "needed"), [(OWN, 8, 8), (OTHERS, 2, 8), (OTHERS, 3, 8)])
@torch.no_grad()
def test_other_cores_of_the_library_are_converted_exactly(tmp_path, capsys, modes, rank, needed):
    tensors = published_cores(modes, rank, seed=2)
    write_library(tmp_path / "tt", tensors)
    adapter = imported(tmp_path, tmp_path / "tt")
    assert_published(adapter, tensors, 3.0, "contraction")
    assert adapter.config.rank == needed
    said = " ".join(capsys.readouterr().err.split())
    assert (f"bonds of {rank} became {needed}" in said) == (needed > rank)


@pytest.mark.parametrize("order", FORMULAS)
@pytest.mark.parametrize("modes", [OWN, OTHERS], ids=["own", "others"])
@torch.no_grad()
def test_cores_of_earlier_programs_need_their_alpha_and_order(tmp_path, order, modes):
    shaped = modes
    if order == "reconstruction":  # the outputs' modes are first
        shaped = {target: sizes[::-1] for target, sizes in modes.items()}
    tensors = published_cores(shaped, 2, seed=3, prefix="roberta.", name="ttlora_cores")
    torch.save({k: torch.nn.Parameter(t) for k, t in tensors.items()}, tmp_path / "task.pth")
    with pytest.raises(UserError, match=r"task\.pth: a file is read as cores of TT-LoRA: give"):
        imported(tmp_path, tmp_path / "task.pth", order=order)
    adapter = imported(tmp_path, tmp_path / "task.pth", alpha=8.0, order=order)
    assert_published(adapter, tensors, 8.0, order)


def without(name):
    return lambda tensors: {k: t for k, t in tensors.items() if name not in k}


def with_core(name, *shape):
    return lambda tensors: tensors | {name: torch.zeros(*shape)}


def changed(function):
    """One core of query in layer 1, put through a function."""
    return lambda tensors: tensors | {f"{QUERY}.2": function(tensors[f"{QUERY}.2"])}


QUERY = "encoder.layer.1.attention.self.query.tt_cores"
TTLORA = "encoder.layer.1.attention.self.query.ttlora_cores"
SECOND = r'tensor ".+\.2": a second core 2 of query in layer 1'


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: {}, "there are no tensors in it"),
        (lambda tensors: {0: torch.zeros(1, 5, 2)}, '"0" is no tensor'),
        (lambda tensors: tensors | {f"{QUERY}.2": [1.0]}, r'2" is no tensor \(list\)'),
        (lambda tensors: {"weight": torch.zeros(4)}, "targets: no pattern matches a core of adapt"),
        (lambda tensors: tensors | {f"model.{QUERY}.2": tensors[f"{QUERY}.2"]}, SECOND),
        (lambda tensors: tensors | {f"{TTLORA}.2": tensors[f"{QUERY}.2"]}, SECOND),
        (changed(lambda core: core.to(torch.complex64)), r"2\" is of type torch.complex64"),
        (changed(lambda core: core > 0), r"2\" is of type torch.bool"),
        (changed(lambda core: core.long()), r"2\" is of type torch.int64"),
        (changed(torch.Tensor.to_sparse), r"2\" is of type .*sparse"),
        (changed(lambda core: core.to("meta")), r"2\" is of type .*meta"),
        (changed(lambda core: core.double() * 1e39), r"2\" has a number that is not finite"),
        (changed(lambda core: core * torch.nan), r"2\" has a number that is not finite"),
        (changed(lambda core: core / 0), r"2\" has a number that is not finite"),
        (without(f"{QUERY}.2"), "a core of query in layer 1 is missing"),
        (without("layer.2.attention"), "a core of query in layer 2 is missing"),
        (with_core(f"{QUERY}.6", 1, 1, 1, 1), "cores of query in layer 1 do not fit"),
        (with_core(f"{QUERY}.6", 1, 2, 1), "cores of query in layer 1 do not fit"),
        (with_core(f"{QUERY}.2", 2, 2, 3), "cores of query in layer 1 do not fit"),
        (with_core("encoder.layer.3.attention.self.query.tt_cores.0", 1, 5, 2), "is no core"),
        (with_core("encoder.layer.0.attention.self.query.bias", 40), "is no core"),
    ],
)
def test_cores_that_make_no_adapter_are_refused(tmp_path, change, message):
    write_library(tmp_path / "tt", change(published_cores(OWN, 2, seed=1)))
    with pytest.raises(UserError, match=message):
        imported(tmp_path, tmp_path / "tt")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("modes", [OWN, OTHERS], ids=["own", "others"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_damaged_files_are_refused_by_their_name(tmp_path, modes, value):
    tensors = published_cores(modes, 2, seed=1)
    tensors[f"{QUERY}.2"][0, 0, 0] = value
    damages = [({0: torch.zeros(1, 5, 2)}, '"0" is no tensor'), (tensors, '2" has a number')]
    for content, message in damages:
        torch.save(content, tmp_path / "task.pth")
        with pytest.raises(UserError, match=rf"task\.pth: .*{message}"):
            imported(tmp_path, tmp_path / "task.pth", alpha=8.0, order="contraction")


def test_unequal_bonds_keep_the_updates_and_every_number_learns():
    # Layers and matrices with bonds of their own, where an adapter has one rank.
    tensors = {
        key: published_cores(OWN, rank, seed=rank)[key]
        for rank, part in ((1, "0.attention"), (4, "1.attention"), (3, "2.attention"), (2, "inter"))
        for key in published_cores(OWN, rank, seed=rank)
        if part in key
    }
    before = torch.random.get_rng_state()
    adapter = read_cores(tensors, SHAPE, 8.0, "contraction", Path("task.pth"))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(5)
    again = read_cores(tensors, SHAPE, 8.0, "contraction", Path("task.pth")).state_dict()
    assert all(torch.allclose(again[n], tensor) for n, tensor in adapter.state_dict().items())
    assert adapter.config.rank == 4
    adapter = adapter.double()
    for layer, target in adapter.matrices():
        fans = SHAPE.fan_in(target), SHAPE.fan_out(target)
        expected = 8.0 * contraction(cores_of(tensors, layer, target), *fans)
        found = adapter.delta_weight(layer, target)
        assert (found - expected).norm() < 1e-12 * expected.norm()
    optimizer = torch.optim.Adam(adapter.parameters(), lr=1e-3)
    for _ in range(4):
        optimizer.zero_grad()
        loss = sum(adapter.delta_weight(*place).cos().sum() for place in adapter.matrices())
        loss.backward()
        assert all(not (p.grad == 0).all() for p in adapter.parameters())
        optimizer.step()
    start = read_cores(tensors, SHAPE, 8.0, "contraction", Path("task.pth")).double()
    for name, parameter in adapter.named_parameters():
        assert (parameter != start.get_parameter(name)).all()


ALPHAS = [
    ((r"\.self\.query$", r"dense$"), r"alpha is \[3.0, 4.0\]"),
    ((r"\.self\.query$", r"\.key$"), "pattern matches encoder.layer.0.intermediate.dense of"),
    (
        (r"\.self\.query$", r"layer\.[02]\.inter"),
        "pattern matches encoder.layer.1.intermediate.dense of",
    ),
    ((r"lin$", r"\.key$"), "no pattern matches a core of adapter_model.bin"),
]


@pytest.mark.parametrize(("patterns", "message"), ALPHAS)
def test_every_matrix_needs_a_pattern_and_the_same_alpha(tmp_path, patterns, message):
    write_library(tmp_path / "tt", published_cores(OWN, 2, seed=1), (3.0, 4.0), patterns)
    with pytest.raises(UserError, match=rf"adapter_config\.json: targets: .*{message}"):
        imported(tmp_path, tmp_path / "tt")


def test_settings_that_make_no_adapter_are_refused(tmp_path):
    tensors = published_cores(OWN, 2, seed=1)
    write_library(tmp_path / "tt", tensors, alphas=(3.0, 4.0))
    with pytest.raises(UserError, match=r"targets: alpha is \[3.0, 4.0\]"):
        imported(tmp_path, tmp_path / "tt")
    with pytest.raises(UserError, match=r"alpha and order: for a \.pth file"):
        imported(tmp_path, tmp_path / "tt", alpha=2.0)
    with pytest.raises(UserError, match="only a LoRA can become lora_fa, this is tt_lora"):
        imported(tmp_path, tmp_path / "tt", kind="lora_fa")
    (tmp_path / "tt" / "adapter_config.json").write_text('{"targets": [{"alpha": 2.0}]}')
    with pytest.raises(UserError, match="targets: no settings of TT-LoRA"):
        imported(tmp_path, tmp_path / "tt")


def test_a_file_that_is_none_of_torchs_is_refused_in_words(tmp_path: Path):
    path = tmp_path / "task.pth"
    path.write_text("junk\n")
    with pytest.raises(UserError, match=r"task\.pth: cannot be read \(no file of torch\.save"):
        read_pt(path)
