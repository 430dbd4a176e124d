import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from esmfold_peft.metrics.lddt_pairs import Atoms, tally, tally_in_rows, tally_near

CUTOFF = 15.0
SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "scoring_memory.py"


@pytest.fixture(params=[torch.float64, torch.float32])
def atoms(request: pytest.FixtureRequest) -> Atoms:
    """Two chains of thirty residues with three atoms each, on a grid: many pairs at the limits."""
    generator = torch.Generator().manual_seed(0)
    true = torch.randint(-12, 13, (2, 90, 3), generator=generator).to(request.param)
    predicted = true + torch.randint(-4, 5, true.shape, generator=generator) / 2
    known, found = torch.rand(2, 2, 90, generator=generator) > 0.15
    true[0, 5], predicted[1, 7] = torch.nan, torch.inf
    return Atoms(predicted, true, known, found, (torch.arange(90) // 3).expand(2, 90))


def assert_same(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]) -> None:
    for mine, other in zip(one, two, strict=True):
        assert torch.equal(mine, other)
        assert mine.dtype == other.dtype


@pytest.mark.parametrize("block", [1, 500, 10**6])
def test_all_ways_of_counting_agree_to_the_last_bit(atoms: Atoms, block: int):
    kept, pairs = tally(atoms, atoms, CUTOFF)
    assert pairs.sum() > 2000
    on_the_limit = torch.cdist(atoms.true[1:], atoms.true[1:]) == CUTOFF
    assert on_the_limit.sum() > 10
    assert_same(tally_in_rows(atoms, atoms.known, atoms.known, CUTOFF, block), (kept, pairs))
    assert_same(tally_near(atoms, atoms.known, None, CUTOFF, block), (kept, pairs))


@pytest.mark.parametrize("block", [1, 500, 10**6])
def test_rows_with_other_columns(atoms: Atoms, block: int):
    rows = atoms.known & (torch.arange(90) % 3 == 0)
    columns = atoms.known & ~rows
    chosen = tally_in_rows(atoms, rows, columns, CUTOFF, block)
    assert chosen[1].sum() > 500
    assert_same(tally_near(atoms, rows, columns, CUTOFF, block), chosen)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_short_numbers_are_counted_too(atoms: Atoms, kind: torch.dtype):
    # Halves up to 16 and their differences are exact in both.
    true, predicted = atoms.true.to(kind), atoms.predicted.to(kind)
    short = Atoms(predicted, true, atoms.known, atoms.found, atoms.residue)
    kept, pairs = tally_near(short, short.known, None, CUTOFF, 500)
    expected, counted = tally_near(atoms, atoms.known, None, CUTOFF, 500)
    assert kept.dtype == kind
    assert torch.equal(kept, expected.to(kind))
    assert torch.equal(pairs, counted)


def test_far_from_the_origin_nothing_is_missed(atoms: Atoms):
    far = Atoms(atoms.predicted, atoms.true + 2**19, atoms.known, atoms.found, atoms.residue)
    assert_same(tally_near(far, far.known, None, CUTOFF, 500), tally(far, far, CUTOFF))


def test_nothing_known(atoms: Atoms):
    nothing = torch.zeros_like(atoms.known)
    for kept, pairs in (
        tally_near(atoms, nothing, None, CUTOFF, 500),
        tally_near(atoms, atoms.known, nothing, CUTOFF, 500),
    ):
        assert kept.sum() == 0
        assert pairs.sum() == 0


@pytest.mark.slow
def test_a_long_chain_needs_no_memory_of_all_pairs():
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "3000"]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)
    # One matrix of all pairs would be 69 MiB for Cα, 4,600 for all atoms.
    assert found["lddt_ca_mib"] - found["before_mib"] < 60
    assert found["lddt_all_atom_mib"] - found["before_mib"] < 200
    assert found["superposition_mib"] - found["before_mib"] < 300
    assert found["superposition_mib"] < 1000  # 230 are the interpreter with torch
