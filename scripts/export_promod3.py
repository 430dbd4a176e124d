"""Writes the protein backbones of Debian's package promod3-data as PDB files in one tar.

    apt install python3-promod3 promod3-data
    /usr/bin/python3 scripts/export_promod3.py chains.tar

The package holds N, CA, C, O and CB of 21,119 chains of the Protein Data Bank up to 2021, without
resolution or date. A chain is skipped if it is shorter than 40 or longer than 400 residues, has a
residue beyond the standard twenty, or is broken (C to N further than 2 Å). Runs in the system's
Python, which alone has ProMod3. `esmfold-peft prepare chains.tar` reads the result.
"""

import argparse
import io
import tarfile

import numpy as np

NAMES = dict(
    zip(
        "ARNDCQEGHILKMFPSTWYV",
        "ALA ARG ASN ASP CYS GLN GLU GLY HIS ILE LEU LYS MET PHE PRO SER THR TRP TYR VAL".split(),
        strict=True,
    )
)
ATOMS = ("N", "CA", "C", "O", "CB")
SHORTEST, LONGEST, BOND = 40, 400, 2.0


def main():
    """Writes the tar and says how many chains it has."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", help="the tar to write")
    args = parser.parse_args()
    from promod3 import loop

    database = loop.LoadStructureDB()
    written = 0
    with tarfile.open(args.output, "w") as tar:
        for index in range(database.GetNumCoords()):
            info = database.GetCoordInfo(index)
            sequence = str(database.GetSequence(index))
            if not SHORTEST <= len(sequence) <= LONGEST or set(sequence) - set(NAMES):
                continue
            xyz = coordinates(database.GetBackboneList(index))
            bonds = np.linalg.norm(xyz[:-1, ATOMS.index("C")] - xyz[1:, ATOMS.index("N")], axis=1)
            if (bonds > BOND).any():
                continue
            data = pdb_text(sequence, xyz, info.chain_name).encode()
            entry = tarfile.TarInfo(f"{info.id.lower()}_{info.chain_name}.pdb")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
            written += 1
    print(f"{written:,} of {database.GetNumCoords():,} chains written")


def coordinates(backbone):
    """Positions in Å: residues x ATOMS x 3."""
    getters = (backbone.GetN, backbone.GetCA, backbone.GetC, backbone.GetO, backbone.GetCB)
    return np.array([[list(get(i).data) for get in getters] for i in range(len(backbone))])


def pdb_text(sequence, xyz, chain):
    """A chain in PDB format. Glycine has no CB; ProMod3 computes one."""
    lines = [
        f"SEQRES {1 + start // 13:3} {chain} {len(sequence):4}  "
        + " ".join(NAMES[letter] for letter in sequence[start : start + 13])
        for start in range(0, len(sequence), 13)
    ]
    serial = 0
    for number, (letter, atoms) in enumerate(zip(sequence, xyz, strict=True), 1):
        for atom, (x, y, z) in zip(ATOMS, atoms, strict=True):
            if atom == "CB" and letter == "G":
                continue
            serial += 1
            lines.append(
                f"ATOM  {serial:5}  {atom:3} {NAMES[letter]} {chain}{number:4}    "
                f"{x:8.3f}{y:8.3f}{z:8.3f}  1.00 20.00          {atom[0]:>2}"
            )
    return "\n".join([*lines, "TER", "END", ""])


if __name__ == "__main__":
    main()
