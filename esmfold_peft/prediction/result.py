"""The prediction of one sequence: its numbers, its files, and what a notebook shows of it."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float32

from esmfold_peft import __version__
from esmfold_peft.disk.files import make_folder, write_atomically
from esmfold_peft.errors import UserError
from esmfold_peft.geometry.atoms import atom14_to_atom37, atom14_to_atom37_mask
from esmfold_peft.model.inference import Folded
from esmfold_peft.prediction.html_text import escaped
from esmfold_peft.prediction.names import file_names
from esmfold_peft.protein.modelcif import ModelRecord
from esmfold_peft.protein.residues import ATOM37_INDEX, encode
from esmfold_peft.protein.structure import ProteinStructure
from esmfold_peft.protein.write import to_mmcif, to_pdb

BANDS = (
    (90.0, "#0053D6", "very high (> 90)"),
    (70.0, "#65CBF3", "high (70 to 90)"),
    (50.0, "#FFDB13", "low (50 to 70)"),
    (-1.0, "#FF7D45", "very low (< 50)"),
)
"""Lower limit of pLDDT, colour and name of the bands of the AlphaFold database, best first."""

_HINT = "<p><code>pip install 'esmfold-peft[notebook]'</code> shows the structure here in 3D.</p>"


@dataclass(frozen=True, eq=False)
class Prediction:
    """A predicted structure and its confidence.

    Attributes:
        name: of its files and of the entry in them.
        header: of the FASTA record; "" if it has none.
        chains: one-letter codes of each chain. The n residues below are all chains in this order.
        positions: atom37 coordinates in Å, 0 where the residue has no such atom.
        atom_mask: which atoms the residues have.
        atom_plddt: predicted lDDT of each atom, 0 to 100.
        pae: expected error in Å of residue j seen from residue i; None if it was not predicted.
        largest_pae: the largest error in Å that the model can predict; None like `pae`.
        ptm: predicted TM-score, 0 to 1; None like `pae`.
    """

    name: str
    header: str
    chains: tuple[str, ...]
    positions: Float32[np.ndarray, "n 37 3"]
    atom_mask: Bool[np.ndarray, "n 37"]
    atom_plddt: Float32[np.ndarray, "n 37"]
    pae: Float32[np.ndarray, "n n"] | None = None
    largest_pae: float | None = None
    ptm: float | None = None

    @classmethod
    def from_folded(
        cls, name: str, header: str, chains: Sequence[str], folded: Folded
    ) -> "Prediction":
        """The model's prediction of `chains`, without linkers, by atom names."""
        sequence = "".join(chains)
        aatype = torch.from_numpy(encode(sequence))[None]
        every = torch.ones(1, len(sequence), 14, dtype=torch.bool)
        mask = atom14_to_atom37_mask(aatype, every)[0].numpy()
        return cls(
            name=name,
            header=header,
            chains=tuple(chains),
            positions=atom14_to_atom37(aatype, folded.positions[None])[0].numpy(),
            atom_mask=mask,
            atom_plddt=(mask * 100 * folded.atom_plddt.numpy()).astype(np.float32),
            pae=None if folded.pae is None else folded.pae.numpy(),
            largest_pae=folded.largest_pae,
            ptm=folded.ptm,
        )

    @property
    def plddt(self) -> Float32[np.ndarray, "n"]:
        """Predicted lDDT of each residue's Cα, 0 to 100."""
        return self.atom_plddt[:, ATOM37_INDEX["CA"]]

    def structures(self) -> list[ProteinStructure]:
        """The chains, each numbered from 1, with pLDDT as B-factors."""
        ends = np.cumsum([len(chain) for chain in self.chains])
        parts = [slice(end - len(c), end) for end, c in zip(ends, self.chains, strict=True)]
        return [
            ProteinStructure(
                id=self.name,
                sequence=chain,
                residue_index=np.arange(len(chain), dtype=np.int32),
                residue_names=("",) * len(chain),
                positions=self.positions[part],
                atom_mask=self.atom_mask[part],
                b_factors=self.atom_plddt[part],
            )
            for chain, part in zip(self.chains, parts, strict=True)
        ]

    def to_pdb(self) -> str:
        """The structure in PDB format, pLDDT in the B-factor column.

        Raises:
            UserError: it does not fit into the columns of the format.
        """
        return to_pdb(self.structures())

    @cached_property
    def pdb_text(self) -> str:
        """`to_pdb`, or "" if the structure does not fit into the format."""
        try:
            return self.to_pdb()
        except UserError:
            return ""

    def to_mmcif(self) -> str:
        """The structure as mmCIF with ModelCIF's categories, pLDDT as B-factors and as a metric."""
        record = ModelRecord(
            title=self.header or self.name,
            software="esmfold_peft",
            version=__version__,
            ptm=self.ptm,
        )
        return to_mmcif(self.structures(), model=record)

    def save(self, folder: Path | str) -> list[Path]:
        """Writes <name>.cif, <name>.pdb and, where PAE was predicted, <name>.pae.npz and .pae.json.

        Makes the folder if it is missing and replaces files of the same names. Returns the files;
        there is no PDB file of a structure that does not fit into the format.
        """
        return [Path(folder) / name for name in self.write(Path(folder)).values()]

    def write(self, folder: Path) -> dict[str, str]:
        """`save`; returns names of the files by kind: mmcif, pdb, pae_npz and pae_json."""
        make_folder(folder)
        (name,) = file_names([self.name])
        written = {"mmcif": f"{name}.cif"}
        write_atomically(folder / written["mmcif"], self.to_mmcif())
        if self.pdb_text:
            written["pdb"] = f"{name}.pdb"
            write_atomically(folder / written["pdb"], self.pdb_text)
        if self.pae is not None:
            written |= {"pae_npz": f"{name}.pae.npz", "pae_json": f"{name}.pae.json"}
            write_atomically(folder / written["pae_npz"], self._pae_npz())
            write_atomically(folder / written["pae_json"], self._pae_json())
        return written

    def _pae_npz(self) -> bytes:
        """NumPy's arrays pae (n, n) in Å, plddt (n) 0 to 100, ptm (), chain_lengths, compressed."""
        assert self.pae is not None
        stream = io.BytesIO()
        np.savez_compressed(
            stream,
            pae=self.pae,
            plddt=self.plddt,
            ptm=np.float32(self.ptm),
            chain_lengths=np.array([len(chain) for chain in self.chains]),
        )
        return stream.getvalue()

    def _pae_json(self) -> str:
        """PAE in the format of the AlphaFold database (version 4): whole Å, one matrix."""
        assert self.pae is not None
        assert self.largest_pae is not None
        whole = int(self.largest_pae)  # no number is above the maximum that the file states
        # Row by row: ten thousand residues are a hundred million numbers.
        rows = (
            json.dumps(np.rint(row).astype(int).clip(max=whole).tolist(), separators=(",", ":"))
            for row in self.pae
        )
        matrix = f'"predicted_aligned_error":[{",".join(rows)}]'
        return f'[{{{matrix},"max_predicted_aligned_error":{self.largest_pae:g}}}]\n'

    def _repr_html_(self) -> str:
        """A notebook's cell: facts, and a 3D view where py3Dmol is installed."""
        facts = {
            "name": self.name,
            "header": self.header,
            "residues": " + ".join(str(len(chain)) for chain in self.chains),
            "mean pLDDT": f"{self.plddt.mean():.1f}",
            "pTM": "" if self.ptm is None else f"{self.ptm:.2f}",
        }
        rows = "".join(
            f"<tr><th>{escaped(name)}</th><td>{escaped(value)}</td></tr>"
            for name, value in facts.items()
            if value
        )
        view = ""
        if self.pdb_text:
            view = _notebook_view(self.pdb_text) if find_spec("py3Dmol") else _HINT
        return f"<table>{rows}</table>{view}"


def _notebook_view(pdb_text: str) -> str:
    """The 3D view; it loads 3Dmol.js from the network."""
    import py3Dmol  # optional

    view = py3Dmol.view(width=640, height=420)
    view.addModel(pdb_text, "pdb")
    for (chain, colour), residues in residues_by_colour(pdb_text).items():
        view.setStyle({"chain": chain, "resi": residues}, {"cartoon": {"color": colour}})
    view.zoomTo()
    return view._make_html()


def residues_by_colour(pdb_text: str) -> dict[tuple[str, str], list[int]]:
    """Numbers of the residues of each chain and colour of pLDDT, by the B-factor of the Cα."""
    found: dict[tuple[str, str], list[int]] = {}
    for line in pdb_text.splitlines():
        if line.startswith("ATOM") and line[12:16].strip() == "CA":
            plddt = float(line[60:66])
            colour = next(colour for limit, colour, _ in BANDS if plddt > limit)
            found.setdefault((line[21], colour), []).append(int(line[22:26]))
    return found
