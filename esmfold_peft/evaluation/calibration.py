"""How far pLDDT tells the lDDT-Cα of a residue, from sums over the residues of many chains."""

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
        """Correlation over residues; None where one of the two does not vary."""
        n, x, y = self.residues, float(self.plddt.sum()), float(self.lddt.sum())
        xx, yy, xy = (float(value) for value in self.squares)
        spread = (n * xx - x * x) * (n * yy - y * y)
        # What is left of equal numbers is their rounding.
        if n < 2 or spread <= (1e-12 * n * n) ** 2:
            return None
        return (n * xy - x * y) / math.sqrt(spread)


def no_calibration() -> Calibration:
    """Sums over nothing."""
    return Calibration(np.zeros(BINS, np.int64), np.zeros(BINS), np.zeros(BINS), np.zeros(3))


def calibration(
    plddt: Float64[np.ndarray, "n"] | None, lddt: Float64[np.ndarray, "n"]
) -> Calibration:
    """The sums over one chain.

    Args:
        plddt: 0 to 100, NaN where unknown; None if the chain has none.
        lddt: 0 to 1, NaN where there is no score.
    """
    if plddt is None:
        return no_calibration()
    known = np.isfinite(plddt) & np.isfinite(lddt)
    x, y = plddt[known] / 100, lddt[known]
    bins = np.clip((x * BINS).astype(np.int64), 0, BINS - 1)
    return Calibration(
        count=np.bincount(bins, minlength=BINS),
        plddt=np.bincount(bins, x, BINS),
        lddt=np.bincount(bins, y, BINS),
        squares=np.array([(x * x).sum(), (y * y).sum(), (x * y).sum()]),
    )
