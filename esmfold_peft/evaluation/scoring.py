"""The scores of one prediction."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import parent_process

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64

from esmfold_peft.config import MatchMethod
from esmfold_peft.datasets.features import Features
from esmfold_peft.errors import UserError
from esmfold_peft.evaluation.calibration import Calibration, calibration
from esmfold_peft.evaluation.chain import Chain, from_features, from_structure
from esmfold_peft.evaluation.matching import Residues, SequenceMismatchError, match_residues
from esmfold_peft.evaluation.pairs import FoldedChain, Pair, Source
from esmfold_peft.evaluation.sources import InFile, without_place
from esmfold_peft.metrics.lddt import LDDT, AllAtomLDDT, lddt_all_atom, lddt_ca
from esmfold_peft.metrics.superposition import superposition_scores
from esmfold_peft.preparation.sources import shown
from esmfold_peft.protein.residues import ATOM14_MASK, ATOM14_TO_ATOM37, RESIDUES_X, encode

SCORED = "ok"
"""The status of a chain with scores; that of another is the reason why it has none."""

WITHOUT_PLACE = "residues of the prediction without a place in the reference"
"""The note that ends with a number."""

_CA = 1


@dataclass(frozen=True)
class Score:
    """One line of scores.csv. NaN is an empty cell, None too.

    Attributes:
        id: name of the chain.
        split: of a run, or the path of a store; "" for files.
        status: "ok", or why there are no scores.
        length: residues of the reference, resolved or not.
        resolved: those with a Cα.
        matched: those that the prediction has a Cα for.
        identity: share of matched residues with equal letters; X equals any.
        pairs: Cα pairs that count.
        lddt_ca: mean over pairs, 0 to 1, the headline; NaN without pairs.
        lddt_ca_residue_mean: mean of the residues' scores, 0 to 1; NaN without pairs.
        lddt_all_atom: over all heavy atoms, 0 to 1; NaN where one of the two has only Cα.
        rmsd: of the matched Cα after superposition, Å.
        gdt_ts: 0 to 1.
        gdt_ha: 0 to 1.
        tm_score: 0 to 1, by the reference's resolved residues.
        plddt: mean of the prediction's residues, 0 to 100; NaN if it states none.
        match: how residues were matched: sequence, number or alignment.
        prediction: where the prediction was.
        reference: where the truth was.
        note: what else is to be known.
    """

    id: str
    split: str
    status: str
    length: int | None
    resolved: int | None
    matched: int | None
    identity: float | None
    pairs: int | None
    lddt_ca: float | None
    lddt_ca_residue_mean: float | None
    lddt_all_atom: float | None
    rmsd: float | None
    gdt_ts: float | None
    gdt_ha: float | None
    tm_score: float | None
    plddt: float | None
    match: str
    prediction: str
    reference: str
    note: str


METRICS = (
    *("lddt_ca", "lddt_ca_residue_mean", "lddt_all_atom", "rmsd", "gdt_ts", "gdt_ha"),
    *("tm_score", "plddt"),
)
"""Columns of `Score` of which means are taken."""


@dataclass(frozen=True, eq=False)
class ResidueScores:
    """The residues of one reference, each column as long as the chain.

    Attributes:
        number: author's residue number; "" where it is not modelled, or is not known.
        name: one-letter code.
        lddt_ca: 0 to 1; NaN without score.
        lddt_all_atom: 0 to 1; NaN without score.
        plddt: 0 to 100; NaN where unknown.
        resolved: whether the reference has its Cα.
        found: whether the prediction has its Cα.
    """

    name: str
    number: tuple[str, ...]
    lddt_ca: Float64[np.ndarray, "n"]
    lddt_all_atom: Float64[np.ndarray, "n"]
    plddt: Float64[np.ndarray, "n"]
    resolved: Bool[np.ndarray, "n"]
    found: Bool[np.ndarray, "n"]


@dataclass(frozen=True, eq=False)
class Scored:
    """What comes of one pair.

    Attributes:
        row: its line of the table.
        calibration: of its residues; None if it has no scores.
        residues: its residues where they were asked for.
        alignment: lines that show why the sequences do not fit; "" if they do.
    """

    row: Score
    calibration: Calibration | None = None
    residues: ResidueScores | None = None
    alignment: str = ""


def score_pair(pair: Pair, match: MatchMethod = "auto", per_residue: bool = False) -> Scored:
    """Scores one prediction, or says why it cannot be.

    Args:
        pair: what is compared; its chains are in files or in memory.
        match: how residues are matched.
        per_residue: whether the residues' scores are wanted.
    """
    _take_one_core()
    if pair.fault:
        return not_scored(pair, pair.fault)
    try:
        atoms = _atoms(pair, match)
    except SequenceMismatchError as error:
        return replace(not_scored(pair, str(error)), alignment=error.alignment)
    except UserError as error:
        return not_scored(pair, str(error))
    return _scored(pair, atoms, per_residue)


@cache
def _take_one_core() -> None:
    """In a worker: its siblings have the other cores, and threads on busy cores wait in circles."""
    if parent_process() is not None:
        torch.set_num_threads(1)


def crashed(pair: Pair, error: BaseException) -> Scored:
    """A pair whose scoring failed in a way that nobody foresaw."""
    text = f": {error}" if str(error) else ""
    return not_scored(pair, f"scoring it failed ({type(error).__name__}{text})")


def not_scored(pair: Pair, reason: str) -> Scored:
    """A line without scores."""
    numbers = dict.fromkeys(("length", "resolved", "matched", "identity", "pairs", *METRICS))
    row = Score(
        id=pair.id,
        split=pair.split,
        status=shown(" ".join(reason.split())),
        match="",
        prediction=pair.prediction_place,
        reference=pair.reference_place,
        note="",
        **numbers,
    )
    return Scored(row)


@dataclass(frozen=True, eq=False)
class _Atoms:
    """The atoms of both, by the reference's residues.

    Attributes:
        aatype: of the reference.
        numbers: author's, of the reference.
        true: atom14 coordinates in Å.
        known: which the reference has.
        predicted: atom14 coordinates in Å, in the reference's columns.
        found: which the prediction has.
        plddt: 0 to 100, by the reference's residues; None if there is none.
        mean_plddt: over all residues of the prediction.
        side_chains: whether both have more than Cα.
        residues: how they were matched.
        note: see `Score`.
    """

    aatype: Int64[np.ndarray, "n"]
    numbers: tuple[str, ...]
    true: Float32[np.ndarray, "n 14 3"]
    known: Bool[np.ndarray, "n 14"]
    predicted: Float32[np.ndarray, "n 14 3"]
    found: Bool[np.ndarray, "n 14"]
    plddt: Float64[np.ndarray, "n"] | None
    mean_plddt: float
    side_chains: bool
    residues: Residues
    note: str


def _atoms(pair: Pair, match: MatchMethod) -> _Atoms:
    """Reads both chains and matches their residues.

    Raises:
        UserError: one cannot be read, or they do not fit together.
    """
    reference, prediction = pair.reference, pair.prediction
    if isinstance(prediction, FoldedChain):
        assert isinstance(reference, Features)
        return _folded_atoms(reference, prediction)
    assert reference is not None
    assert prediction is not None
    true = _read(reference, "reference")
    predicted = _read(prediction, "prediction")
    return _matched_atoms(true, predicted, match_residues(true, predicted, match))


def _read(source: Source, what: str) -> Chain:
    if isinstance(source, InFile):
        try:
            chain = from_structure(*source.read(predicted=what == "prediction"))
        except UserError as error:
            reason = without_place(error, source.item.place)
            raise UserError(f"{what}: {reason}") from error
    else:
        assert isinstance(source, Features)
        chain = from_features(source)
    if not chain.atom_mask.any():
        lacking = "finite coordinates"
        lacking += " and an occupancy above 0" if what == "reference" else ""
        raise UserError(f"{what}: no atom of the twenty amino acids has {lacking}")
    return chain


def _folded_atoms(reference: Features, folded: FoldedChain) -> _Atoms:
    n = len(reference)
    return _Atoms(
        aatype=reference.aatype,
        numbers=("",) * n,
        true=reference.positions,
        known=reference.atom_mask,
        predicted=folded.positions,
        found=folded.atom_mask,
        plddt=folded.plddt,
        mean_plddt=float(folded.plddt.mean()),
        side_chains=True,
        residues=Residues(np.arange(n), "sequence", 1.0),
        note="",
    )


def _matched_atoms(true: Chain, predicted: Chain, residues: Residues) -> _Atoms:
    aatype = encode(true.sequence)
    columns, exists = ATOM14_TO_ATOM37[aatype], ATOM14_MASK[aatype]
    rows = np.arange(len(true))[:, None]
    places = residues.places[:, None]  # -1 takes any row, whose atoms then count as missing
    plddt, mean = None, math.nan
    if predicted.plddt is not None:
        plddt = np.where(residues.places < 0, np.nan, predicted.plddt[residues.places])
        mean = float(np.nanmean(predicted.plddt))
    return _Atoms(
        aatype=aatype,
        numbers=true.numbers,
        true=true.positions[rows, columns],
        known=true.atom_mask[rows, columns] & exists,
        predicted=predicted.positions[places, columns],
        found=predicted.atom_mask[places, columns] & exists & (places >= 0),
        plddt=plddt,
        mean_plddt=mean,
        side_chains=not (true.trace_only or predicted.trace_only),
        residues=residues,
        note="; ".join(note for note in _notes(true, predicted, residues) if note),
    )


def _notes(true: Chain, predicted: Chain, residues: Residues) -> Iterator[str]:
    """What is to be known of the scores; "" for nothing."""
    yield predicted.note
    for what, chain in (("prediction", predicted), ("reference", true)):
        if chain.models > 1:
            yield f"{what}: several models, the first is scored"
        if chain.trace_only:
            yield f"{what}: Cα only, no all-atom lDDT"
        elif chain.backbone_only:
            yield f"{what}: no side chains"
        for note in chain.notes:
            yield f"{what}: {note}"
    yield residues.note
    left = int(np.delete(predicted.atom_mask[:, _CA], residues.places[residues.places >= 0]).sum())
    yield f"{WITHOUT_PLACE}: {left}" if left else ""


def _scored(pair: Pair, atoms: _Atoms, per_residue: bool) -> Scored:
    resolved, found = atoms.known[:, _CA], atoms.found[:, _CA]
    if not resolved.any():
        return not_scored(pair, "reference: no Cα is resolved")
    if not (resolved & found).any():
        return not_scored(pair, "no Cα of the prediction belongs to a resolved residue")
    ca = _lddt_ca(atoms)
    all_atom = _lddt_all_atom(atoms) if atoms.side_chains else None
    superposed = superposition_scores(
        atoms.predicted[:, _CA].astype(np.float64),
        atoms.true[:, _CA].astype(np.float64),
        resolved,
        found,
    )
    row = Score(
        id=pair.id,
        split=pair.split,
        status=SCORED,
        length=len(resolved),
        resolved=int(resolved.sum()),
        matched=int((resolved & found).sum()),
        identity=atoms.residues.identity,
        pairs=int(ca.pairs),
        lddt_ca=float(ca.per_chain),
        lddt_ca_residue_mean=float(ca.mean_per_residue),
        lddt_all_atom=float(all_atom.per_chain) if all_atom else math.nan,
        rmsd=superposed.rmsd,
        gdt_ts=superposed.gdt_ts,
        gdt_ha=superposed.gdt_ha,
        tm_score=superposed.tm_score,
        plddt=atoms.mean_plddt,
        match=atoms.residues.method,
        prediction=pair.prediction_place,
        reference=pair.reference_place,
        note=atoms.note,
    )
    residues = _residues(atoms, ca, all_atom) if per_residue else None
    return Scored(row, calibration(atoms.plddt, ca.per_residue[0].numpy()), residues)


def _lddt_ca(atoms: _Atoms) -> LDDT:
    predicted, true, known, found = _batch_of_one(atoms)
    return lddt_ca(predicted, true, known, predicted_atom_mask=found)


def _lddt_all_atom(atoms: _Atoms) -> AllAtomLDDT:
    predicted, true, known, found = _batch_of_one(atoms)
    aatype = torch.from_numpy(atoms.aatype)[None]
    return lddt_all_atom(
        predicted.double(),
        true.double(),
        known,
        aatype=aatype,
        predicted_atom_mask=found,
        naming="openstructure",
    )


def _batch_of_one(atoms: _Atoms) -> list[torch.Tensor]:
    arrays = (atoms.predicted, atoms.true, atoms.known, atoms.found)
    return [torch.from_numpy(array)[None] for array in arrays]


def _residues(atoms: _Atoms, ca: LDDT, all_atom: AllAtomLDDT | None) -> ResidueScores:
    unknown = np.full(len(atoms.aatype), np.nan)
    return ResidueScores(
        name="".join(RESIDUES_X[k] for k in atoms.aatype),
        number=atoms.numbers,
        lddt_ca=ca.per_residue[0].numpy(),
        lddt_all_atom=all_atom.per_residue[0].numpy() if all_atom else unknown,
        plddt=unknown if atoms.plddt is None else atoms.plddt,
        resolved=atoms.known[:, _CA],
        found=atoms.found[:, _CA],
    )
