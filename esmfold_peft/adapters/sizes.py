"""Sizes of the published ESM-2 models (Lin et al. 2023)."""

from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.errors import UserError

SIZES = {
    "esm2_t6_8M_UR50D": AttentionShape(layers=6, width=320, heads=20),
    "esm2_t12_35M_UR50D": AttentionShape(layers=12, width=480, heads=20),
    "esm2_t30_150M_UR50D": AttentionShape(layers=30, width=640, heads=20),
    "esm2_t33_650M_UR50D": AttentionShape(layers=33, width=1280, heads=20),
    "esm2_t36_3B_UR50D": AttentionShape(layers=36, width=2560, heads=40),
    "esm2_t48_15B_UR50D": AttentionShape(layers=48, width=5120, heads=40),
}
"""Sizes of the published models."""


def size_of(name: str) -> AttentionShape:
    """Sizes of a published model.

    Raises:
        UserError: no such name.
    """
    if name not in SIZES:
        raise UserError(f'language model "{name}" is unknown; there are {", ".join(SIZES)}')
    return SIZES[name]
