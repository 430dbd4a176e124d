import math

import numpy as np
import pytest

from esmfold_peft.metrics.superposition import (
    Superposition,
    superposition_scores,
    tm_scale,
)


def coil(length: int, seed: int = 0) -> np.ndarray:
    """A compact random walk in steps of 3.8 Å."""
    step = np.random.default_rng(seed).normal(size=(length, 3))
    return 0.7 * np.cumsum(3.8 * step / np.linalg.norm(step, axis=-1, keepdims=True), axis=0)


def noisy(points: np.ndarray, sigma: float, seed: int = 1) -> np.ndarray:
    return points + np.random.default_rng(seed).normal(scale=sigma, size=points.shape)


def rotation(seed: int) -> np.ndarray:
    matrix, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    matrix[:, 0] *= np.sign(np.linalg.det(matrix))
    return matrix


def score(
    predicted: np.ndarray,
    true: np.ndarray,
    mask: np.ndarray | None = None,
    found: np.ndarray | None = None,
) -> Superposition:
    everything = np.ones(len(true), dtype=bool)
    return superposition_scores(
        predicted,
        true,
        everything if mask is None else mask,
        everything if found is None else found,
    )


def values(scores: Superposition) -> list[float]:
    return [scores.rmsd, scores.gdt_ts, scores.gdt_ha, scores.tm_score]


@pytest.mark.parametrize("length", [3, 4, 5, 30])
def test_a_rigid_motion_costs_nothing(length):
    true = coil(length)
    moved = true @ rotation(2) + [100.0, -20.0, 7.0]
    assert values(score(moved, true)) == pytest.approx([0, 1, 1, 1], abs=1e-9)


def test_a_mirror_image_is_not_the_structure():
    scores = score(coil(60) * [1.0, 1.0, -1.0], coil(60))
    assert scores.rmsd > 3
    assert scores.tm_score < 0.7


def test_two_rigid_halves_are_each_superposed():
    # Half of the residues fit exactly, the others are far away whichever half is superposed.
    true = coil(40, seed=3)
    predicted = true.copy()
    predicted[20:] = predicted[20:] @ rotation(4) + [300.0, 0.0, 0.0]
    scores = score(predicted, true)
    assert scores.gdt_ts == 0.5
    assert scores.gdt_ha == 0.5
    assert scores.tm_score == pytest.approx(0.5, abs=1e-3)
    assert scores.rmsd > 100


def test_each_distance_counts_by_itself():
    # Of twenty residues that fit, one is moved by 0.7 Å, one by 3 and one by 6.
    true = 10 * coil(20, seed=5)
    predicted = true.copy()
    predicted[[4, 9, 15], 0] += [0.7, 3.0, 6.0]
    scores = score(predicted, true)
    assert scores.gdt_ts == pytest.approx((18 + 18 + 19 + 20) / 80)
    assert scores.gdt_ha == pytest.approx((17 + 18 + 18 + 19) / 80)


def test_scale_of_the_tm_score():
    # Zhang and Skolnick 2004: 1.24 (L - 15)^(1/3) - 1.8.
    assert tm_scale(142) == pytest.approx(1.24 * 127 ** (1 / 3) - 1.8)
    assert [tm_scale(length) for length in (3, 15, 16, 21)] == [0.5] * 4
    assert tm_scale(22) > 0.5


def test_what_the_prediction_lacks_is_lost():
    true, found = coil(50), np.arange(50) < 40
    lacking = np.where(found[:, None], true, np.nan)
    for predicted, there in ((true, found), (lacking, None)):
        scores = score(predicted, true, found=there)
        assert scores.rmsd == pytest.approx(0, abs=1e-9)
        assert [scores.gdt_ts, scores.gdt_ha, scores.tm_score] == pytest.approx([0.8] * 3)


def test_what_the_reference_lacks_does_not_count():
    true, mask = coil(50), np.arange(50) % 5 > 0
    predicted = noisy(true, 1.0)
    alone = score(predicted[mask], true[mask])
    predicted[~mask] += 100
    assert values(score(predicted, true, mask=mask)) == values(alone)
    unknown = np.where(mask[:, None], true, np.nan)
    assert values(score(predicted, unknown, mask=mask)) == values(alone)
    assert values(score(predicted, unknown)) == values(alone)


@pytest.mark.parametrize("common", [0, 1, 2])
def test_too_few_residues_in_common(common):
    scores = score(coil(30), coil(30), found=np.arange(30) < common)
    assert math.isnan(scores.rmsd)
    assert [scores.gdt_ts, scores.gdt_ha, scores.tm_score] == [0, 0, 0]


@pytest.mark.parametrize("resolved", [0, 1, 2])
def test_too_few_residues_in_the_reference(resolved):
    scores = score(coil(30), coil(30), mask=np.arange(30) < resolved)
    assert all(math.isnan(value) for value in values(scores))
    assert all(math.isnan(value) for value in values(score(coil(resolved), coil(resolved))))


@pytest.mark.parametrize("broken", [np.nan, np.inf, 1e30])
def test_broken_coordinates(broken):
    true = coil(20)
    predicted = true.copy()
    predicted[3] = broken
    scores = score(predicted, true)
    assert scores.gdt_ts == pytest.approx(0.95)
    assert scores.tm_score == pytest.approx(0.95, abs=1e-6)
    assert all(math.isnan(v) for v in values(score(predicted, np.full_like(true, broken))))


def test_points_on_a_line_and_points_in_one_place():
    line = np.arange(20.0)[:, None] * [3.8, 0.0, 0.0]
    assert values(score(line @ rotation(6), line)) == pytest.approx([0, 1, 1, 1], abs=1e-6)
    scores = score(np.zeros((20, 3)), line)
    assert scores.rmsd == pytest.approx(line[:, 0].std())
    # 4 Å hold two of the places 3.8 Å apart, 8 Å three.
    assert scores.gdt_ha == pytest.approx((1 + 1 + 2 + 3) / 80)
    assert 0 < scores.tm_score < 0.1


def test_the_batches_of_the_search_change_nothing(monkeypatch):
    true = coil(40)
    predicted = noisy(true, 3.0)
    whole = values(score(predicted, true))
    monkeypatch.setattr("esmfold_peft.metrics.superposition._BATCH", 200)
    assert values(score(predicted, true)) == pytest.approx(whole, abs=1e-12)
