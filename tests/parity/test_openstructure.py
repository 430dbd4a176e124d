"""lDDT of real chains against Debian's OpenStructure, and biotite where it applies.

OpenStructure runs through its Python interface, in one process for all pairs: what its `lddt`
program prints is the same (tests/metrics/oracles.json has that program's scores), but the program
needs a library of compounds that Debian does not ship.
"""

import json
import math
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import biotite.structure as struc
import numpy as np
import pytest
import torch

from esmfold_peft.config import EsmfoldConfig, LanguageModelConfig, ModelConfig, StructureConfig
from esmfold_peft.datasets.features import features
from esmfold_peft.geometry.atoms import atom14_to_atom37
from esmfold_peft.metrics.lddt import lddt_all_atom, lddt_ca
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.protein.read import read_structure
from esmfold_peft.protein.structure import ProteinStructure
from esmfold_peft.protein.write import to_pdb
from esmfold_peft.runs.build import build_language_model
from tests.perturbing import CA, KINDS, perturbed, placed

Pair = tuple[ProteinStructure, ProteinStructure]

CHAINS = (
    *("7pl4_A", "7v5f_A", "7snc_A", "7t5w_B", "7mj3_A", "7wj0_A", "7y3k_A", "7y0i_A", "7wjt_B"),
    *("7rup_A", "7ruq_A", "7vp3_C", "7yvz_A", "8doa_A", "8d03_A", "7x8c_B", "7n99_A", "7ywq_A"),
    *("7soo_A", "7vmf_A", "7s03_A", "7roa_A", "7vil_A", "7uwg_C", "7rt7_D", "7sfn_B", "7zw9_A"),
    *("7pwe_A", "7ug9_A", "7sbd_H", "7oju_A", "7pkw_A", "7rpn_A", "7upm_A", "7vpu_A", "7qys_L"),
    *("7vt5_A", "7pce_A", "7vr2_A", "7oj2_A", "8d7f_A", "7n3y_A"),
)
"""Of 31 to 378 resolved residues; shortest first."""

FOLDED = 4
"""How many of the first are also folded by a tiny model."""

LONGEST = 56
"""Residues up to which all atoms are scored: OpenStructure takes 12 µs for each pair of atoms."""

SCORER = """
import json, sys
import ost
from ost import io
from ost.mol import alg

ost.PushVerbosityLevel(0)
found = []
for number, all_atoms in json.loads(sys.argv[2]):
    model, reference = (io.LoadPDB(f"{sys.argv[1]}/{number}_{x}.pdb") for x in ("model", "true"))
    row = []
    for chosen in ("aname=CA", "")[: 1 + all_atoms]:
        settings = alg.lDDTSettings(15.0, 0, ost.FloatList([0.5, 1, 2, 4]), "lddt")
        view = reference.Select(chosen)
        distances = alg.CreateDistanceList(view, 15.0)
        row.append(alg.LocalDistDiffTest(model.Select(chosen), [view], distances, settings))
    found.append(row)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def pairs(shared_structures: Path) -> list[Pair]:
    """Predictions and references: one of every chain, and folded ones."""
    folder = shared_structures / "cameo2022"
    references = [read_structure(folder / f"{name}.cif.gz") for name in CHAINS]
    kinds = list(KINDS)
    made = [
        (perturbed(reference, kinds[k % len(kinds)], seed=100 + k), reference)
        for k, reference in enumerate(references)
    ]
    return made + [(folded(reference), reference) for reference in references[:FOLDED]]


def folded(reference: ProteinStructure) -> ProteinStructure:
    """The prediction of a tiny model with random weights, without OXT."""
    sizes = LanguageModelConfig(name="custom", weights="random", layers=1, width=16, heads=2)
    config = ModelConfig(
        language_model=sizes,
        trunk="esmfold_v1",
        esmfold=EsmfoldConfig(blocks=1, c_s=16, c_z=8, c_structure=16, heads=2, heads_pair=1),
        structure=StructureConfig(layers=2, c_ipa=4, heads=2),
    )
    torch.manual_seed(3)
    model = FoldingModel(build_language_model(sizes, 3), config, bf16=False).eval()
    chain = features(reference)
    aatype, index = (torch.from_numpy(x)[None] for x in (chain.aatype, chain.residue_index))
    with torch.no_grad():
        output = model(aatype, index, torch.ones_like(aatype, dtype=torch.bool), 0, heads=())
    positions = atom14_to_atom37(aatype, output.positions)[0].double().numpy()
    mask = reference.atom_mask.copy()
    mask[:, 36] = False
    return placed(replace(reference, atom_mask=mask), positions)


@pytest.fixture(scope="module")
def ours(pairs: list[Pair]) -> list[tuple[float, float]]:
    """Our lDDT-Cα of every pair, and the all-atom one; NaN where it is not compared."""
    return [score(*pair) for pair in pairs]


def score(prediction: ProteinStructure, reference: ProteinStructure) -> tuple[float, float]:
    model, truth = features(prediction), features(reference)
    predicted, true = (torch.from_numpy(c.positions)[None].double() for c in (model, truth))
    mask, found = (torch.from_numpy(c.atom_mask)[None] for c in (truth, model))
    ca = lddt_ca(predicted, true, mask, predicted_atom_mask=found).per_chain.item()
    if not scored_fully(reference):
        return ca, math.nan
    aatype = torch.from_numpy(truth.aatype)[None]
    every = {"aatype": aatype, "predicted_atom_mask": found, "naming": "openstructure"}
    return ca, lddt_all_atom(predicted, true, mask, **every).per_chain.item()


@pytest.fixture(scope="module")
def openstructure(pairs: list[Pair], tmp_path_factory: pytest.TempPathFactory) -> list[list[float]]:
    """Its lDDT-Cα of every pair, and the all-atom one of short chains."""
    python = shutil.which("python3", path="/usr/bin")
    probe = [python or "", "-c", "import ost"]
    if python is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("needs the Debian packages openstructure and python3-ost")
    folder = tmp_path_factory.mktemp("pairs")
    for number, pair in enumerate(pairs):
        for name, structure in zip(("model", "true"), pair, strict=True):
            (folder / f"{number}_{name}.pdb").write_text(to_pdb(structure))
    asked = [(k, int(scored_fully(true))) for k, (_, true) in enumerate(pairs)]
    command = [python, "-c", SCORER, folder, json.dumps(asked)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def scored_fully(reference: ProteinStructure) -> bool:
    return int(reference.atom_mask[:, CA].sum()) <= LONGEST


def test_ca_scores_are_openstructure_s(ours, openstructure):
    scores = [ca for ca, _ in ours]
    assert len(scores) >= 40
    assert np.ptp(scores) > 0.8
    np.testing.assert_allclose(scores, [row[0] for row in openstructure], rtol=0, atol=5e-4)


def test_all_atom_scores_are_openstructure_s(ours, openstructure):
    # They differ by OXT, which is not among our 14 atoms of a residue.
    both = [
        (all_atom, row[1])
        for (_, all_atom), row in zip(ours, openstructure, strict=True)
        if row[1:]
    ]
    assert len(both) >= 12
    for all_atom, expected in both:
        assert all_atom == pytest.approx(expected, abs=5e-3)


def test_ca_scores_are_biotite_s(pairs, ours):
    for (prediction, reference), (ca, _) in zip(pairs, ours, strict=True):
        resolved = reference.atom_mask[:, CA]
        atoms = struc.AtomArray(int(resolved.sum()))
        atoms.coord = reference.positions[resolved, CA]
        atoms.res_id[:] = np.flatnonzero(resolved)
        atoms.chain_id[:], atoms.atom_name[:] = "A", "CA"
        there = prediction.atom_mask[resolved, CA, None]
        subject = np.where(there, prediction.positions[resolved, CA], np.nan).astype(np.float32)
        assert ca == pytest.approx(struc.lddt(atoms, subject), abs=1e-6)
