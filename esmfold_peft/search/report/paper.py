"""What LoRTA (arXiv 2410.04060) prints in Table 10, on its own validation set."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperRow:
    """A row of Table 10.

    Attributes:
        alpha: the better of the paper's search.
        lddt_ca: of validation, 0 to 1.
    """

    alpha: float
    lddt_ca: float


TABLE_10: dict[tuple[str, int | None], PaperRow] = {
    ("lora", 1): PaperRow(128.0, 0.668),
    ("lorta", 64): PaperRow(128.0, 0.663),
    ("lorta", 8): PaperRow(256.0, 0.667),
    ("lorta", 1): PaperRow(2.0, 0.656),
}
