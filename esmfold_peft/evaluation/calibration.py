"""How well pLDDT predicts the lDDT-Cα of a residue, from sums over the residues of many chains."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

BINS = 20
"""Of pLDDT, 5 wide each."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Sums over residues that have both a pLDDT and an lDDT-Cα.

    Attributes:
        count: residues in each bin of pLDDT.
        plddt: sum of their pLDDT, 0 to 1 each.
        lddt: sum of their lDDT-Cα, 0 to 1 each.
        squares: sums of pLDDT squared, lDDT squared, and of their products.
    """

    count: Int64[np.ndarray, "20"]
    plddt: Float64[np.ndarray, "20"]
    lddt: Float64[np.ndarray, "20"]
    squares: Float64[np.ndarray, "3"]

    def __add__(self, other: "Calibration") -> "Calibration":
        """The sums over both."""
        return Calibration(
            self.count + other.count,
            self.plddt + other.plddt,
            self.lddt + other.lddt,
            self.squares + other.squares,
        )

    @property
    def residues(self) -> int:
        """How many residues were counted."""
        return int(self.count.sum())

    def error(self) -> float | None:
        """Mean over residues of |mean pLDDT - mean lDDT-Cα| of their bin, 0 to 1."""
        if not self.residues:
            return None
        return float(np.abs(self.plddt - self.lddt).sum() / self.residues)

    def pearson(self) -> float | None:
        """Correlation over residues; None if one of the two does not vary."""
        n, x, y = self.residues, float(self.plddt.sum()), float(self.lddt.sum())
        xx, yy, xy = (float(value) for value in self.squares)
        spread = (n * xx - x * x) * (n * yy - y * y)
        # Equal numbers leave their rounding errors.
        if n < 2 or spread <= (1e-12 * n * n) ** 2:
            return None
        return (n * xy - x * y) / math.sqrt(spread)


def calibration(
    plddt: Float64[np.ndarray, "n"] | None = None,
    lddt: Float64[np.ndarray, "n"] | None = None,
) -> Calibration:
    """The sums over one chain: pLDDT 0 to 100, lDDT 0 to 1, NaN where unknown; None for nothing."""
    if plddt is None or lddt is None:
        plddt = lddt = np.zeros(0)
    known = np.isfinite(plddt) & np.isfinite(lddt)
    x, y = plddt[known] / 100, lddt[known]
    bins = np.clip((x * BINS).astype(np.int64), 0, BINS - 1)
    return Calibration(
        count=np.bincount(bins, minlength=BINS),
        plddt=np.bincount(bins, x, BINS).astype(np.float64),  # nothing is counted as integers
        lddt=np.bincount(bins, y, BINS).astype(np.float64),
        squares=np.array([(x * x).sum(), (y * y).sum(), (x * y).sum()]),
    )
