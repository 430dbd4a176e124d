"""`esmfold-peft prepare`: structure files to a manifest of their protein chains."""

import os
from dataclasses import dataclass
from pathlib import Path

from esmfold_peft.config import PrepareConfig
from esmfold_peft.console import report, watched
from esmfold_peft.csv_text import csv_text
from esmfold_peft.datasets.manifest import FILE_NAME, ManifestEntry, manifest_text
from esmfold_peft.errors import UserError
from esmfold_peft.protein.files import make_folder, write_atomically
from esmfold_peft.protein.read import read_chains
from esmfold_peft.protein.residues import ATOM37_INDEX
from esmfold_peft.protein.structure import ProteinStructure

_SUFFIXES = (".cif", ".cif.gz", ".mmcif", ".mmcif.gz", ".pdb", ".pdb.gz", ".ent", ".ent.gz")


@dataclass(frozen=True)
class Rejected:
    """What is left out of a manifest: a file, or one of its chains, and why."""

    file: str
    id: str
    reason: str


def run(config: PrepareConfig) -> int:
    """Lists usable chains in manifest.csv, and the others with the reason in rejected.csv.

    Raises:
        UserError: a source does not exist, or no chain is left.
    """
    files = _structure_files(config.sources)
    entries: dict[str, ManifestEntry] = {}
    rejected: list[Rejected] = []
    for file in watched(files, "reading structures", len(files)):
        try:
            chains = read_chains(file)
        except UserError as error:
            rejected.append(Rejected(str(file), "", str(error)))
            continue
        for chain in chains:
            reason = _reason_against(chain, config, entries)
            if reason:
                rejected.append(Rejected(str(file), chain.id, reason))
            else:
                entries[chain.id] = _entry(chain, file, config.output)
    if not entries:
        reasons = f"; {rejected[0].reason}" if rejected else ""
        raise UserError(f"{config.sources[0]}: no usable chain in {len(files)} files{reasons}")
    make_folder(config.output)
    write_atomically(config.output / "rejected.csv", csv_text(Rejected, rejected))
    write_atomically(config.output / FILE_NAME, manifest_text(list(entries.values())))
    report(
        f"{len(entries)} chains of {len(files)} files in {config.output / FILE_NAME},"
        f" {len(rejected)} left out (rejected.csv)",
    )
    return 0


def _structure_files(sources: tuple[Path, ...]) -> list[Path]:
    files: list[Path] = []
    for source in sources:
        if source.is_dir():
            inside = [p for p in source.rglob("*") if p.name.lower().endswith(_SUFFIXES)]
            files += sorted(p for p in inside if p.is_file())
        elif source.is_file():
            files.append(source)
        else:
            raise UserError(f"{source}: no such file or folder")
    return files


def _reason_against(
    chain: ProteinStructure, config: PrepareConfig, entries: dict[str, ManifestEntry]
) -> str | None:
    resolved = _resolved(chain)
    if resolved < config.min_resolved:
        return f"{resolved} resolved residues, fewer than {config.min_resolved}"
    if chain.id in entries:
        return f"the id is taken by {entries[chain.id].file}"
    return None


def _resolved(chain: ProteinStructure) -> int:
    return int(chain.atom_mask[:, ATOM37_INDEX["CA"]].sum())


def _entry(chain: ProteinStructure, file: Path, output: Path) -> ManifestEntry:
    return ManifestEntry(
        id=chain.id,
        file=os.path.relpath(file, output),
        chain=chain.chain,
        length=len(chain),
        resolved=_resolved(chain),
        resolution=chain.resolution,
        release_date=chain.release_date.isoformat() if chain.release_date else None,
    )
