"""Which chains a store leaves out."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from esmfold_peft.config import FilterConfig
from esmfold_peft.datasets.records import MOST_ANGSTROM
from esmfold_peft.protein.residues import ATOM37_INDEX
from esmfold_peft.protein.structure import ProteinStructure

_CA = ATOM37_INDEX["CA"]


@dataclass(frozen=True)
class Rejected:
    """A file, or one of its chains, that is left out of a store.

    Attributes:
        file: as the store's `source`; of an id that was not found, the list that names it.
        id: of the chain; empty for a whole file.
        kind: which rule, in one or two words.
        reason: with the value.
    """

    file: str
    id: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Note:
    """A part of a chain that the reader left out, or a decision of the reader."""

    file: str
    id: str
    note: str


def resolved_residues(chain: ProteinStructure) -> int:
    """Residues with a Cα."""
    return int(chain.atom_mask[:, _CA].sum())


def confident_part(chain: ProteinStructure, least: float) -> ProteinStructure:
    """A prediction without the atoms of its uncertain residues, and without resolution and date.

    Residues whose Cα has a B-factor (pLDDT, 0 to 100) below `least` lose their atoms (ESMFold: 50).
    The date of a prediction does not tell when its sequence or structure became known.
    """
    mask = chain.atom_mask & (chain.b_factors[:, _CA] >= least)[:, None]
    return replace(
        chain,
        atom_mask=mask,
        positions=chain.positions * mask[..., None],
        b_factors=chain.b_factors * mask,
        resolution=None,
        release_date=None,
    )


def reason_against_prediction(chain: ProteinStructure, least: float) -> tuple[str, str] | None:
    """Why a whole prediction is left out, as (kind, reason); None if it is not.

    `least` is the lowest mean of the B-factors, which are pLDDT (ESMFold: 70).
    """
    values = chain.b_factors[chain.atom_mask[:, _CA], _CA]
    if not len(values):
        return None  # the filter of resolved residues rejects it
    if values.min() < 0 or values.max() > 100 or values.max() <= 1:
        low, high = values.min(), values.max()
        return "pLDDT", f"B-factors from {low:g} to {high:g} are no pLDDT of 0 to 100"
    if values.mean() < least:
        return "pLDDT", f"mean pLDDT {values.mean():.1f}, below {least:g}"
    return None


def reason_against(chain: ProteinStructure, filters: FilterConfig) -> tuple[str, str] | None:
    """Why a chain is left out by what its file holds, as (kind, reason); None if it is not."""
    length, resolved = len(chain), resolved_residues(chain)
    if filters.min_length is not None and length < filters.min_length:
        return "length", f"{length} residues, fewer than {filters.min_length}"
    if filters.max_length is not None and length > filters.max_length:
        return "length", f"{length} residues, more than {filters.max_length}"
    if resolved < filters.min_resolved:
        return "resolved", f"{resolved} resolved residues, fewer than {filters.min_resolved}"
    # DISCREPANCY: OpenFold reads a modified residue as its parent (its version 2.1 as X), and since
    # version 2 leaves out every chain with an X; version 1 counts X as any letter.
    unknown = chain.sequence.count("X") / length
    if unknown > filters.max_unknown:
        most = f"more than {filters.max_unknown:.0%}"
        return "unknown", f"{unknown:.0%} of the residues are X, {most}"
    (letter, count), *_ = Counter(chain.sequence.replace("X", "") or "X").most_common(1)
    if count / length > filters.max_dominance:
        most = f"more than {filters.max_dominance:.0%}"
        return "dominance", f"{count / length:.0%} of the residues are {letter}, {most}"
    if np.abs(chain.positions).max() > MOST_ANGSTROM:
        return "coordinates", f"an atom farther than {MOST_ANGSTROM:,.0f} Å from the origin"
    released = chain.release_date.isoformat() if chain.release_date else None
    return reason_against_entry(chain.resolution, released, filters)


def reason_against_entry(
    resolution: float | None, release_date: str | None, filters: FilterConfig
) -> tuple[str, str] | None:
    """Why a chain is left out by what its entry states, as (kind, reason); None if it is not.

    An unknown resolution (Å) or date (ISO) is no reason.
    """
    if None not in (resolution, filters.max_resolution) and resolution > filters.max_resolution:  # pyright: ignore
        return "resolution", f"resolution {resolution:g} Å, worse than {filters.max_resolution:g}"
    if release_date is None:
        return None
    if filters.min_date is not None and release_date < filters.min_date:
        return "date", f"released on {release_date}, before {filters.min_date}"
    if filters.max_date is not None and release_date > filters.max_date:
        return "date", f"released on {release_date}, after {filters.max_date}"
    return None
