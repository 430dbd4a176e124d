"""Where a training crop begins."""

import numpy as np


def crop_start(length: int, crop: int, clamped: bool, rng: np.random.Generator) -> int:
    """Draws the first residue of a contiguous crop (AF2 Suppl. 1.2.8).

    Args:
        length: residues in the chain.
        crop: residues in the crop; a shorter chain is not cropped.
        clamped: whether the chain's FAPE is clamped. Clamped crops begin anywhere with equal
            probability, unclamped ones more often near the N-terminus, as in AlphaFold 2.
        rng: source of the draw.
    """
    last = max(length - crop, 0)
    if not clamped:
        last -= int(rng.integers(last + 1))
    return int(rng.integers(last + 1))
