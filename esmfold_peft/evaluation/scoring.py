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
from esmfold_peft.evaluation.chain import Chain, from_features
from esmfold_peft.evaluation.matching import Residues, SequenceMismatchError, match_residues
from esmfold_peft.evaluation.pairing import FoldedChain, Pair, Source
from esmfold_peft.evaluation.sides import InFile, without_place
from esmfold_peft.metrics.lddt import LDDT, AllAtomLDDT, lddt_all_atom, lddt_ca
from esmfold_peft.metrics.superposition import superposition_scores
from esmfold_peft.preparation.sources import shown
from esmfold_peft.protein.residues import ATOM14_MASK, ATOM14_TO_ATOM37, RESIDUES_X, encode

SCORED = "ok"
"""The status of a chain with scores; the status of another chain is the reason why it has none."""

WITHOUT_PLACE = "residues of the prediction without a place in the reference"
"""The note that ends with a number."""

_CA = 1


@dataclass(frozen=True, kw_only=True)
class Score:
    """One line of scores.csv; None is an empty cell.

    Attributes:
        id: name of the chain.
        split: of a run, or the path of a store; "" for files.
        status: "ok", or why there are no scores.
        length: residues of the reference, resolved or not.
        resolved: those with a Cα.
        matched: resolved residues whose Cα the prediction has.
        identity: share of matched residues with equal letters; X equals any.
        pairs: Cα pairs that count.
        lddt_ca: mean over pairs, 0 to 1, the headline; None without pairs.
        lddt_ca_residue_mean: mean of the residues' scores, 0 to 1; None without pairs.
        lddt_all_atom: over all heavy atoms, 0 to 1; None if one of the two chains has only Cα.
        rmsd: of the matched Cα after superposition, Å.
        gdt_ts: 0 to 1.
        gdt_ha: 0 to 1.
        tm_score: 0 to 1, by the reference's resolved residues.
        plddt: mean of the prediction's residues, 0 to 100; None if it states none.
        match: how residues were matched: sequence, number or alignment.
        prediction: where the prediction was.
        reference: where the truth was.
        note: what a reader of the scores should know.
    """

    id: str
    split: str
    status: str
    length: int | None = None
    resolved: int | None = None
    matched: int | None = None
    identity: float | None = None
    pairs: int | None = None
    lddt_ca: float | None = None
    lddt_ca_residue_mean: float | None = None
    lddt_all_atom: float | None = None
    rmsd: float | None = None
    gdt_ts: float | None = None
    gdt_ha: float | None = None
    tm_score: float | None = None
    plddt: float | None = None
    match: str = ""
    prediction: str
    reference: str
    note: str = ""


METRICS = (
    *("lddt_ca", "lddt_ca_residue_mean", "lddt_all_atom", "rmsd", "gdt_ts", "gdt_ha"),
    *("tm_score", "plddt"),
)
"""Columns of `Score` that are averaged over chains."""


def number(value: float) -> float | None:
    """A number for a table; None if it is not finite."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True, eq=False)
class ResidueScores:
    """The residues of one reference; scores are 0 to 1, pLDDT 0 to 100, NaN where unknown.

    Attributes:
        name: one-letter codes.
        number: author's residue number; "" if it is not modelled, or is not known.
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
    """The result for one pair; `alignment` shows why the sequences do not fit, "" if they do."""

    row: Score
    calibration: Calibration | None = None
    residues: ResidueScores | None = None
    alignment: str = ""


def score_pair(pair: Pair, match: MatchMethod = "auto", per_residue: bool = False) -> Scored:
    """Scores one prediction, of chains in files or in memory, or gives the reason why not."""
    _take_one_core()
    if pair.fault:
        return not_scored(pair, pair.fault)
    try:
        return _scored(pair, _atoms(pair, match), per_residue)
    except SequenceMismatchError as error:
        return not_scored(pair, str(error), error.alignment)
    except UserError as error:
        return not_scored(pair, str(error))


@cache
def _take_one_core() -> None:
    """In a worker: its siblings have the other cores, and threads of torch wait busily."""
    if parent_process() is not None:
        torch.set_num_threads(1)


def crashed(pair: Pair, error: BaseException) -> Scored:
    """A pair whose scoring failed with an unexpected error."""
    text = f": {error}" if str(error) else ""
    return not_scored(pair, f"scoring it failed ({type(error).__name__}{text})")


def not_scored(pair: Pair, reason: str, alignment: str = "") -> Scored:
    """A line without scores."""
    return Scored(_row(pair, shown(" ".join(reason.split()))), alignment=alignment)


def _row(pair: Pair, status: str) -> Score:
    return Score(
        id=pair.id,
        split=pair.split,
        status=status,
        prediction=pair.prediction_place,
        reference=pair.reference_place,
    )


@dataclass(frozen=True, eq=False)
class _Atoms:
    """The atoms of both, by the reference's residues and atom14 columns, in Å.

    Attributes:
        known: atoms that the reference has.
        found: atoms that the prediction has.
        plddt: 0 to 100; None if there is none.
        mean_plddt: over all residues of the prediction, with a place in the reference or not.
        side_chains: whether both have more than Cα.
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
    """Reads both chains and matches their residues; UserError if that cannot be."""
    reference, prediction = pair.reference, pair.prediction
    if isinstance(prediction, FoldedChain):
        assert isinstance(reference, Features)
        return _folded_atoms(reference, prediction)
    true, predicted = _read(reference, "reference"), _read(prediction, "prediction")
    return _matched_atoms(true, predicted, match_residues(true, predicted, match))


def _read(source: Source | None, what: str) -> Chain:
    if isinstance(source, InFile):
        try:
            chain = source.read(predicted=what == "prediction")
        except UserError as error:
            raise UserError(f"{what}: {without_place(error, source.item.place)}") from error
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
    """What a reader of the scores should know; "" for nothing."""
    yield predicted.plddt_note
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
    ca, all_atom = _lddts(atoms)
    superposed = superposition_scores(
        atoms.predicted[:, _CA].astype(np.float64),
        atoms.true[:, _CA].astype(np.float64),
        resolved,
        found,
    )
    row = replace(
        _row(pair, SCORED),
        length=len(resolved),
        resolved=int(resolved.sum()),
        matched=int((resolved & found).sum()),
        identity=atoms.residues.identity,
        pairs=int(ca.pairs),
        lddt_ca=number(float(ca.per_chain)),
        lddt_ca_residue_mean=number(float(ca.mean_per_residue)),
        lddt_all_atom=number(float(all_atom.per_chain)) if all_atom else None,
        rmsd=number(superposed.rmsd),
        gdt_ts=number(superposed.gdt_ts),
        gdt_ha=number(superposed.gdt_ha),
        tm_score=number(superposed.tm_score),
        plddt=number(atoms.mean_plddt),
        match=atoms.residues.method,
        note=atoms.note,
    )
    residues = _residues(atoms, ca, all_atom) if per_residue else None
    return Scored(row, calibration(atoms.plddt, ca.per_residue[0].numpy()), residues)


def _lddts(atoms: _Atoms) -> tuple[LDDT, AllAtomLDDT | None]:
    """lDDT-Cα, and that of all atoms if both chains have more than Cα."""
    arrays = (atoms.predicted, atoms.true, atoms.known, atoms.found)
    predicted, true, known, found = (torch.from_numpy(array)[None] for array in arrays)
    ca = lddt_ca(predicted, true, known, predicted_atom_mask=found)
    if not atoms.side_chains:
        return ca, None
    all_atom = lddt_all_atom(
        predicted.double(),
        true.double(),
        known,
        aatype=torch.from_numpy(atoms.aatype)[None],
        predicted_atom_mask=found,
        naming="openstructure",
    )
    return ca, all_atom


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
