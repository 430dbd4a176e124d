"""RMSD, GDT and TM-score of real chains against the TMscore program and tmtools (TM-align)."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from esmfold_peft.metrics.superposition import Superposition, superposition_scores
from esmfold_peft.protein.read import read_structure
from esmfold_peft.protein.structure import ProteinStructure
from tests.metrics.oracles import ca_alone, tm_score, write_pair
from tests.perturbing import CA, KINDS, perturbed

Pair = tuple[ProteinStructure, ProteinStructure]

CHAINS = (
    *("7pl4_A", "7snc_A", "7t5w_B", "7y3k_A", "7rup_A", "8doa_A", "7n99_A", "7soo_A", "7vmf_A"),
    *("7roa_A", "7vil_A", "7uwg_C", "7rt7_D", "7sfn_B", "7pwe_A", "7ug9_A", "7sbd_H", "7oju_A"),
    *("7pkw_A", "7rpn_A", "7vpu_A", "7qys_L", "7pce_A", "7n3y_A"),
)


@pytest.fixture(scope="module")
def pairs(shared_structures: Path) -> list[Pair]:
    """A prediction of each chain."""
    made = []
    for number, name in enumerate(CHAINS):
        reference = read_structure(shared_structures / "cameo2022" / f"{name}.cif.gz")
        kind = list(KINDS)[number % len(KINDS)]
        made.append((perturbed(reference, kind, seed=number), reference))
    return made


def score(prediction: ProteinStructure, reference: ProteinStructure) -> Superposition:
    return superposition_scores(
        prediction.positions[:, CA],
        reference.positions[:, CA],
        reference.atom_mask[:, CA],
        prediction.atom_mask[:, CA],
    )


def test_scores_are_what_tmscore_prints(pairs: list[Pair], tmp_path: Path):
    if shutil.which("TMscore") is None:
        pytest.skip("needs the program TMscore (Debian package tm-align)")
    for prediction, reference in pairs:
        printed = tm_score(write_pair(tmp_path, ca_alone(prediction), ca_alone(reference)))
        ours = vars(score(prediction, reference))
        assert ours.keys() == printed.keys()
        for name, value in printed.items():
            # Half of the last digit that it prints.
            rounding = 5.5e-4 if name == "rmsd" else 5.5e-5
            assert ours[name] == pytest.approx(value, abs=rounding), (reference.id, name)


def test_tm_score_is_that_of_tmtools(pairs: list[Pair]):
    tmtools = pytest.importorskip("tmtools")
    for prediction, reference in pairs:
        resolved = reference.atom_mask[:, CA]
        common = resolved & prediction.atom_mask[:, CA]
        x, y = (
            s.positions[chosen, CA].astype(np.float64)
            for s, chosen in ((prediction, common), (reference, resolved))
        )
        # The correspondence is known: tmtools must not search for another.
        names = "A" * len(x), "A" * len(y)
        alignment = ["".join("A" if there else "-" for there in common[resolved]), names[1]]
        expected = tmtools.tm_align(x, y, *names, alignment=alignment).tm_norm_chain2
        assert score(prediction, reference).tm_score == pytest.approx(expected, abs=1e-9)
