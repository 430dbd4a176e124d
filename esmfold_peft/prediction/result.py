"""The prediction of one sequence, as files, notebooks and programs use it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float32

from esmfold_peft import __version__
from esmfold_peft.errors import UserError
from esmfold_peft.geometry.atoms import atom14_to_atom37, atom14_to_atom37_mask
from esmfold_peft.model.inference import Folded
from esmfold_peft.prediction.files import write_files
from esmfold_peft.prediction.notebook import notebook_html
from esmfold_peft.protein.residues import ATOM37_INDEX, encode
from esmfold_peft.protein.structure import ProteinStructure
from esmfold_peft.protein.write import ModelRecord, to_mmcif, to_pdb

_CA = ATOM37_INDEX["CA"]


@dataclass(frozen=True, eq=False)
class Prediction:
    """A predicted structure and how far it can be trusted.

    Attributes:
        name: of its files and of the entry in them.
        header: of the FASTA record; "" if it has none.
        chains: one-letter codes of each chain; the n residues below are theirs, one chain after the
            other.
        positions: atom37 coordinates in Å, 0 where the residue has no such atom.
        atom_mask: which atoms there are.
        atom_plddt: predicted lDDT of each atom, 0 to 100.
        pae: expected error in Å of residue j seen from residue i; None if it was not predicted.
        largest_pae: Å beyond which the model predicts no aligned error; None like `pae`.
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
        """What the model returned, by atom names.

        Args:
            name: of the files.
            header: of the FASTA record.
            chains: what was folded.
            folded: the prediction of it, without linkers.
        """
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
        return self.atom_plddt[:, _CA]

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
        """Writes <name>.pdb, <name>.cif and, where PAE was predicted, <name>.pae.npz and .pae.json.

        Args:
            folder: is made where it is missing; files of the same names are replaced.

        Returns:
            The files. There is no PDB file of what does not fit into its format.
        """
        written = write_files(Path(folder), self)
        return [Path(folder) / name for name in written.values()]

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        try:
            pdb = self.to_pdb()
        except UserError:
            pdb = ""
        return notebook_html(pdb, self.facts())

    def facts(self) -> dict[str, str]:
        """Name, header, length, mean pLDDT and pTM, as they are shown."""
        facts = {
            "name": self.name,
            "header": self.header,
            "residues": " + ".join(str(len(chain)) for chain in self.chains),
            "mean pLDDT": f"{self.plddt.mean():.1f}",
            "pTM": "" if self.ptm is None else f"{self.ptm:.2f}",
        }
        return {name: value for name, value in facts.items() if value}
