"""Where a run stands in its sequence of samples, as its checkpoints keep it."""

import hashlib
from pathlib import Path
from typing import Any

from esmfold_peft.config import DataConfig
from esmfold_peft.datasets.manifest import manifest_path
from esmfold_peft.errors import UserError


def manifest_hash(store: Path) -> str:
    """SHA-256 of a store's manifest, which holds the hash of every chain.

    Raises:
        UserError: there is no store.
    """
    return hashlib.sha256(manifest_path(store).read_bytes()).hexdigest()


def order_of(data: DataConfig, seed: int) -> dict[str, Any]:
    """All that decides which chain a sample's number shows, by the names of the settings.

    Args:
        data: of the run.
        seed: of the run.
    """
    hashes = [manifest_hash(path)[:16] for path, _ in data.shares]
    mixed = [
        f"{share:g} of {name}" for share, name in zip(data.mix.values(), hashes[1:], strict=True)
    ]
    return {
        "seed": seed,
        "data.train": f"manifest {hashes[0]}",
        "data.mix": ", ".join(mixed) or "none",
        "data.cluster_weight": data.cluster_weight,
        "data.length_weight": data.length_weight,
    }


def require_order(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Refuses a position in another sequence of samples.

    Args:
        found: `order_of` the run that wrote the checkpoint.
        expected: `order_of` this run.

    Raises:
        UserError: they differ; names each setting that does.
    """
    differing = [name for name in expected if found.get(name) != expected[name]]
    if differing:
        changes = "; ".join(f"{n}: {expected[n]} instead of {found.get(n)}" for n in differing)
        raise UserError(f"the checkpoint belongs to another sequence of samples: {changes}")
