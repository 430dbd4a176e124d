"""A chain as bytes: its record in a store.

A record holds the sequence, the residues' numbers, which atoms are known, and the coordinates, in
some 40 bytes for a residue with all its atoms. Coordinates are kept to 0.001 Å, the precision of
the archive's files. The atoms are those of `Features` (atom14), without OXT, B-factors and the
author's numbers.

    byte 0        version
    4 bytes       number of residues n
    n bytes       sequence, one-letter codes
    the rest      zlib: n x uint16 atom masks, n x int32 steps of residue_index, coordinates

Coordinates are whole thousandths of an Å, each minus that of the known atom before it: most of
these small numbers fit two bytes. Bytes of the same significance are next to each other, which
compresses better.
"""

import hashlib
import struct
import zlib

import numpy as np
from jaxtyping import Bool, Float32

from esmfold_peft.datasets.features import Features
from esmfold_peft.errors import UserError
from esmfold_peft.protein.residues import RESIDUES_X, encode

MOST_ANGSTROM = 100_000.0
"""Coordinates farther from the origin are damage: files of the archive have four digits."""

_HEADER = struct.Struct("<BI")
_VERSION = 1
_PER_ANGSTROM = 1000.0
_BITS = 1 << np.arange(14, dtype=np.uint16)
_LETTERS = np.frombuffer(RESIDUES_X.encode(), dtype=np.uint8)


def to_record(chain: Features) -> bytes:
    """Packs a chain, whose coordinates are within `MOST_ANGSTROM`."""
    masks = (chain.atom_mask * _BITS).sum(-1, dtype=np.uint16)
    steps = np.diff(chain.residue_index, prepend=-1).astype("<i4")
    packed = masks.astype("<u2").tobytes() + steps.tobytes() + _pack(chain)
    header = _HEADER.pack(_VERSION, len(chain))
    return header + _LETTERS[chain.aatype].tobytes() + zlib.compress(packed)


def from_record(record: bytes, name: str, resolution: float) -> Features:
    """Unpacks a chain; `resolution` in Å, NaN if unknown.

    Raises:
        UserError: the record is damaged, or of another version.
    """
    try:
        return _unpack(record, name, resolution)
    except (ValueError, zlib.error, struct.error) as error:
        raise UserError(f"{name}: its record in the store is damaged ({error})") from error


def record_hash(record: bytes) -> str:
    """The first 32 hex digits of the SHA-256 of a record."""
    return hashlib.sha256(record).hexdigest()[:32]


def sequence_of(record: bytes) -> str:
    """The sequence in a record, without unpacking the rest."""
    n = _HEADER.unpack_from(record)[1]
    return record[_HEADER.size : _HEADER.size + n].decode("ascii")


def _unpack(record: bytes, name: str, resolution: float) -> Features:
    version, n = _HEADER.unpack_from(record)
    if version != _VERSION:
        raise ValueError(f"version {version} instead of {_VERSION}")
    packed = zlib.decompress(record[_HEADER.size + n :])
    masks = np.frombuffer(packed, "<u2", n)
    steps = np.frombuffer(packed, "<i4", n, offset=masks.nbytes)
    atom_mask = (masks[:, None] & _BITS) != 0
    positions = np.zeros((n, 14, 3), dtype=np.float32)
    positions[atom_mask] = _coordinates(packed[masks.nbytes + steps.nbytes :], atom_mask)
    return Features(
        id=name,
        aatype=encode(sequence_of(record)),
        residue_index=np.cumsum(steps, dtype=np.int64) - 1,
        positions=positions,
        atom_mask=atom_mask,
        resolution=resolution,
    )


def _pack(chain: Features) -> bytes:
    known = chain.positions[chain.atom_mask].astype(np.float64)
    thousandths = np.rint(known * _PER_ANGSTROM).astype(np.int64)
    steps = np.diff(thousandths, axis=0, prepend=0).T
    # Small numbers of either sign become small ones without a sign: 0, -1, 1, -2, 2, ...
    unsigned = ((steps << 1) ^ (steps >> 63)).astype("<u4")
    return np.moveaxis(unsigned[..., None].view(np.uint8), -1, 0).tobytes()


def _coordinates(
    packed: bytes, atom_mask: Bool[np.ndarray, "n 14"]
) -> Float32[np.ndarray, "atoms 3"]:
    planes = np.frombuffer(packed, np.uint8).reshape(4, 3, int(atom_mask.sum()))
    unsigned = np.ascontiguousarray(np.moveaxis(planes, 0, -1)).view("<u4")[..., 0].astype(np.int64)
    thousandths = np.cumsum((unsigned >> 1) ^ -(unsigned & 1), axis=-1)
    return (thousandths.T / _PER_ANGSTROM).astype(np.float32)
