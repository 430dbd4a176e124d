"""The device against the CPU in float32 and bfloat16: outputs, losses and gradients of one model.

Where the device is the CPU itself, the pair track in chunks and recomputed activations stand in.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch
from gpu_checks.models import FINETUNING, real_batch, settings, shaken_model
from torch import Tensor

from esmfold_peft.config import ModelConfig
from esmfold_peft.datasets.batch import Batch
from esmfold_peft.datasets.truth import ground_truth
from esmfold_peft.losses.total import fold_loss
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.heads import HEADS

CLAMP = 10.0  # Å

BINNED = {"plddt", "pae"}
"""Losses whose target is a bin of the prediction's own error: rounding can move one residue or pair
of residues into the next bin."""

SMALLEST = 1e-3
"""Gradients smaller than this share of the largest are compared with that share: some are zero in
theory and noise in practice."""

FLOAT32 = {
    "positions": 1e-3,  # Å, of an atom
    "logits": 1e-3,
    "losses": 1e-4,  # relative
    "losses by bins": 1e-3,
    "gradients": 1e-3,  # relative, of a parameter
    "gradients of bins": 2e-2,
}
"""A change of every weight by 2^-24 of itself moves atoms by up to 1e-4 Å, losses by 6e-7,
gradients by 2e-5, and by 3e-3 those of a head where a pair fell into the next bin (two blocks, 48
residues)."""

RECYCLED = 0.05
"""Å after a second pass, which reads distances in bins: rounding may move one to the next bin."""

BF16_FACTOR = 3.0
"""How much further than bfloat16 on the CPU the device's may be off. Both round alike, in another
order."""


@dataclass(frozen=True, eq=False)
class Results:
    """What a model gives for a batch, on the CPU, 0 in the padding.

    Attributes:
        positions: atom14 coordinates (b, n, 14, 3) in Å.
        logits: of each head.
        terms: of the loss, by chain.
        gradients: of the mean loss by trained parameter.
    """

    positions: Tensor
    logits: dict[str, Tensor]
    terms: dict[str, Tensor]
    gradients: dict[str, Tensor]


def results(model: FoldingModel, batch: Batch, *, bf16: bool = False) -> Results:
    """One pass forward and backward, with all heads and losses; the model has no dropout."""
    model.bf16 = bf16
    output = model(batch.aatype, batch.residue_index, batch.mask, 0, heads=HEADS)
    clamp = torch.full(batch.resolution.shape, CLAMP, device=batch.mask.device)
    truth = ground_truth(batch)
    terms = fold_loss(output, truth, FINETUNING, clamp=clamp, resolution_range=None)
    model.zero_grad()
    terms.total.mean().backward()
    rows, pairs = batch.mask, batch.mask[:, :, None] & batch.mask[:, None]
    masks = {"distogram": pairs, "pae": pairs, "plddt": rows, "resolved": rows}
    logits = {head: getattr(output, f"{head}_logits") for head in HEADS}
    return Results(
        positions=plain(output.positions * rows[..., None, None]),
        logits={head: plain(value * masks[head][..., None]) for head, value in logits.items()},
        terms={name: plain(value) for name, value in terms.terms.items()},
        gradients={
            name: torch.zeros(p.shape) if p.grad is None else plain(p.grad)
            for name, p in model.named_parameters()
            if p.requires_grad
        },
    )


@torch.no_grad()
def recycled(model: FoldingModel, batch: Batch) -> Tensor:
    """Coordinates in float32 after a second pass."""
    model.bf16 = False
    output = model(batch.aatype, batch.residue_index, batch.mask, 1, heads=())
    return plain(output.positions * batch.mask[..., None, None])


def plain(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu()


def other_path(model: FoldingModel, config: ModelConfig) -> FoldingModel:
    """A model with the same weights that computes in chunks and recomputes."""
    changed = replace(
        config,
        chunk=5,
        evoformer=replace(config.evoformer, recompute=True),
        language_model=replace(config.language_model, recompute=True),
    )
    other = shaken_model(settings(changed))
    other.load_state_dict(model.state_dict())
    return other


def errors(found: Results, expected: Results) -> dict[str, float]:
    """The largest error of each kind in `FLOAT32`."""
    logits = {k: largest(found.logits[k] - value) for k, value in expected.logits.items()}
    terms = {
        k: largest(found.terms[k] - value) / max(largest(value), 1e-6)
        for k, value in expected.terms.items()
    }
    norms = {name: float(value.norm()) for name, value in expected.gradients.items()}
    floor = SMALLEST * max(norms.values())
    gradients = {
        name: float((found.gradients[name] - value).norm()) / max(norms[name], floor)
        for name, value in expected.gradients.items()
    }
    heads = {k for k in gradients if k.split(".")[0].removesuffix("_head") in BINNED}
    return {
        "positions": farthest(found.positions, expected.positions),
        "logits": worst(logits),
        "losses": worst({k: v for k, v in terms.items() if k not in BINNED}),
        "losses by bins": worst({k: v for k, v in terms.items() if k in BINNED}),
        "gradients": worst({k: v for k, v in gradients.items() if k not in heads}),
        "gradients of bins": worst({k: v for k, v in gradients.items() if k in heads}),
    }


def largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def farthest(found: Tensor, expected: Tensor) -> float:
    """Largest distance of an atom from where it should be, in Å; NaN counts as such."""
    return float((found - expected).norm(dim=-1).max())


def worst(found: dict[str, float]) -> float:
    """The largest error; NaN counts as the largest, because max() would ignore it."""
    return max(found.values(), key=lambda value: value if value == value else torch.inf)


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Float32's matrix products for a while: highest without TF32, high with it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass(frozen=True, eq=False)
class Both:
    """A model on both devices: what each gives in float32 and bfloat16, and after recycling."""

    expected: Results
    rounded: Results
    expected_recycled: Tensor
    found: Results
    found_bf16: Results
    found_recycled: Tensor


@pytest.fixture(scope="module", params=["small", "wide"])
def both(request: pytest.FixtureRequest, scale, device) -> Both:
    config = scale.models[request.param]
    batch = real_batch(scale.length, 2, padding=scale.length // 8)
    model = shaken_model(settings(config))
    cpu = (results(model, batch), results(model, batch, bf16=True), recycled(model, batch))
    there = other_path(model, config) if device.type == "cpu" else model.to(device)
    batch = batch.to(device)
    with matmul_precision("highest"):
        found = results(there, batch), results(there, batch, bf16=True), recycled(there, batch)
    return Both(*cpu, *found)


@pytest.mark.gpu
def test_most_parameters_have_a_gradient(both: Both):
    """Or comparing gradients would tell nothing."""
    without = [name for name, value in both.expected.gradients.items() if not value.any()]
    assert len(without) <= 0.05 * len(both.expected.gradients), without


@pytest.mark.gpu
@pytest.mark.parametrize("kind", FLOAT32)
def test_float32_is_the_cpus(both: Both, kind: str, at_most):
    at_most(kind, errors(both.found, both.expected)[kind], FLOAT32[kind])


@pytest.mark.gpu
def test_recycling_is_the_cpus(both: Both, at_most):
    at_most("Å", farthest(both.found_recycled, both.expected_recycled), RECYCLED)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", FLOAT32)
def test_bfloat16_is_as_far_off_as_the_cpus(both: Both, kind: str, at_most):
    limit = BF16_FACTOR * errors(both.rounded, both.expected)[kind]
    at_most(kind, errors(both.found_bf16, both.expected)[kind], limit)


@pytest.fixture
def made_up() -> Results:
    generator = torch.Generator().manual_seed(0)
    logits = {"distogram": torch.randn(1, 3, 3, 4, generator=generator)}
    return Results(
        positions=10 * torch.randn(1, 3, 14, 3, generator=generator),
        logits=logits,
        terms={"chi": torch.tensor([1.5]), "plddt": torch.tensor([4.0])},
        gradients={"trunk.w": torch.ones(4), "plddt_head.w": torch.full((2,), 0.1)},
    )


@pytest.mark.parametrize(
    ("part", "key", "error", "kind"),
    [
        ("positions", None, 0.002, "positions"),
        ("logits", "distogram", 0.002, "logits"),
        ("terms", "chi", 3e-4, "losses"),
        ("terms", "plddt", 8e-3, "losses by bins"),
        ("gradients", "trunk.w", 2e-3, "gradients"),
        ("gradients", "plddt_head.w", 4e-3, "gradients of bins"),
        ("gradients", "trunk.w", float("nan"), "gradients"),
        ("positions", None, float("nan"), "positions"),
    ],
)
def test_one_wrong_number_exceeds_its_limit_alone(made_up, part, key, error, kind):
    assert set(errors(made_up, made_up).values()) == {0.0}
    value = getattr(made_up, part)
    wrong = (value if key is None else value[key]).clone()
    wrong.view(-1)[0] += error * (2 if part == "gradients" else 1)
    found = replace(made_up, **{part: wrong if key is None else value | {key: wrong}})
    off = errors(found, made_up)
    assert {kind for kind, limit in FLOAT32.items() if not off[kind] <= limit} == {kind}
