"""Writing one chain as PDB or mmCIF."""

import gemmi
import numpy as np

from esmfold_peft.errors import UserError
from esmfold_peft.protein.residues import ATOM14, ATOM37, ATOM37_INDEX, ONE_TO_THREE
from esmfold_peft.protein.structure import ProteinStructure

_ENTITY = "1"
# The widths of the columns of the PDB format.
_PDB_RESIDUES = 9_999
_PDB_NUMBERS = (-999, 9_999)
_PDB_ATOMS = 99_999
_PDB_COORDINATES = (-999.999, 9999.999)
_PDB_B_FACTORS = (-99.99, 999.99)
_GROUPS = {
    **dict.fromkeys(("entity", "entity_poly", "entity_poly_seq", "struct_asym", "chem_comp"), True),
    **dict.fromkeys(("atoms", "auth_all", "group_pdb"), True),
}
_SCHEME = [
    *("asym_id", "entity_id", "seq_id", "mon_id", "ndb_seq_num", "pdb_strand_id", "hetero"),
    *("pdb_seq_num", "pdb_ins_code", "auth_seq_num", "auth_mon_id", "pdb_mon_id"),
]


def to_pdb(structure: ProteinStructure, chain: str = "A") -> str:
    """Writes a chain in PDB format: SEQRES with every residue, ATOM, TER, END.

    Residues have the author's numbers, or `residue_index + 1` where there are none, as in a
    prediction.

    Args:
        structure: the chain; its `b_factors` fill the B-factor column.
        chain: one letter or digit.

    Raises:
        UserError: the chain does not fit into the columns of the format (numbers over 9,999, more
            than 99,999 atoms, coordinates outside -999.999 to 9999.999 Å, a chain name of several
            characters), or a coordinate is not finite.
    """
    _check_finite(structure)
    _check_columns(structure, chain)
    options = gemmi.PdbWriteOptions(minimal=True)
    options.seqres_records = True
    options.cryst1_record = False
    options.end_record = True
    return _to_gemmi(structure, chain).make_pdb_string(options)


def to_mmcif(structure: ProteinStructure, chain: str = "A") -> str:
    """Writes a chain as mmCIF: entry, experiment if known, entity, sequence, numbering, atoms.

    label_seq_id counts the residues of `sequence` from 1, as the format demands; the author's
    numbers are those of the structure, or `residue_index + 1` where there are none, as in a
    prediction.

    Args:
        structure: the chain; its `b_factors` fill B_iso_or_equiv, its `id` is the entry's.
        chain: author's and label name of the chain.

    Raises:
        UserError: a coordinate is not finite.
    """
    _check_finite(structure)
    document = gemmi.cif.Document()
    block = document.add_new_block(
        "".join(c if c.isalnum() or c in "-_." else "_" for c in structure.id)
    )
    block.set_pair("_entry.id", gemmi.cif.quote(structure.id))
    _add_experiment(block, structure)
    _to_gemmi(structure, chain).update_mmcif_block(block, gemmi.MmcifOutputGroups(False, **_GROUPS))
    _complete_sequence(block, structure)
    _add_numbering(block, structure, chain)
    return document.as_string()


def _check_finite(structure: ProteinStructure) -> None:
    broken = structure.atom_mask & ~(
        np.isfinite(structure.positions).all(-1) & np.isfinite(structure.b_factors)
    )
    if broken.any():
        place, column = np.argwhere(broken)[0].tolist()
        residue = f"{structure.sequence[place]}{_number(structure, place)}"
        raise UserError(f"{structure.id}: {ATOM37[column]} of residue {residue} is not finite")


def _check_columns(structure: ProteinStructure, chain: str) -> None:
    """Refuses what the PDB format cannot hold.

    gemmi would cut it off, or number it in a way (hybrid-36) that few readers know.
    """
    numbers = np.array([gemmi.SeqId(_number(structure, p)).num for p in range(len(structure))])
    known = structure.atom_mask
    for fits, what in (
        (len(chain) == 1, f'the chain name "{chain}" is not one character'),
        (len(structure) <= _PDB_RESIDUES, f"more than {_PDB_RESIDUES} residues"),
        (_within(numbers, _PDB_NUMBERS), f"residue numbers outside {_PDB_NUMBERS}"),
        (int(known.sum()) < _PDB_ATOMS, f"more than {_PDB_ATOMS} atoms"),
        (
            _within(structure.positions[known], _PDB_COORDINATES),
            f"coordinates outside {_PDB_COORDINATES} Å",
        ),
        (
            _within(structure.b_factors[known], _PDB_B_FACTORS),
            f"B-factors outside {_PDB_B_FACTORS}",
        ),
    ):
        if not fits:
            raise UserError(f"{structure.id}: does not fit the PDB format ({what}); write mmCIF")


def _within(values: np.ndarray, limits: tuple[float, float] | tuple[int, int]) -> bool:
    return bool(((values >= limits[0]) & (values <= limits[1])).all())


def _to_gemmi(structure: ProteinStructure, chain_name: str) -> gemmi.Structure:
    chain = gemmi.Chain(chain_name)
    for place, letter in enumerate(structure.sequence):
        if structure.atom_mask[place].any():
            residue = chain.add_residue(_residue(structure, place, ONE_TO_THREE[letter]))
            residue.subchain = chain_name
    model = gemmi.Model(1)
    model.add_chain(chain)
    result = gemmi.Structure()
    result.name = structure.id
    result.add_model(model)
    result.entities.append(_entity(structure, chain_name))
    return result


def _entity(structure: ProteinStructure, chain_name: str) -> gemmi.Entity:
    entity = gemmi.Entity(_ENTITY)
    entity.entity_type = gemmi.EntityType.Polymer
    entity.polymer_type = gemmi.PolymerType.PeptideL
    entity.full_sequence = [ONE_TO_THREE[letter] for letter in structure.sequence]
    entity.subchains = [chain_name]
    return entity


def _residue(structure: ProteinStructure, place: int, name: str) -> gemmi.Residue:
    residue = gemmi.Residue()
    residue.name = name
    residue.seqid = gemmi.SeqId(_number(structure, place))
    residue.label_seq = place + 1
    residue.entity_type = gemmi.EntityType.Polymer
    residue.entity_id = _ENTITY
    residue.het_flag = "A"
    for atom_name in (*ATOM14[structure.sequence[place]], "OXT"):
        column = ATOM37_INDEX[atom_name]
        if not structure.atom_mask[place, column]:
            continue
        atom = gemmi.Atom()
        atom.name = atom_name
        atom.element = gemmi.Element(atom_name[0])
        atom.pos = gemmi.Position(*structure.positions[place, column].tolist())
        atom.b_iso = float(structure.b_factors[place, column])
        residue.add_atom(atom)
    return residue


def _number(structure: ProteinStructure, place: int) -> str:
    return structure.residue_names[place] or str(structure.residue_index[place] + 1)


def _add_experiment(block: gemmi.cif.Block, structure: ProteinStructure) -> None:
    entry = gemmi.cif.quote(structure.id)
    if structure.method is not None:
        block.set_pair("_exptl.entry_id", entry)
        block.set_pair("_exptl.method", gemmi.cif.quote(structure.method))
    if structure.resolution is not None:
        block.set_pair("_refine.entry_id", entry)
        block.set_pair("_refine.ls_d_res_high", f"{structure.resolution:g}")
    if structure.release_date is not None:
        block.set_pair("_pdbx_audit_revision_history.ordinal", "1")
        revision = structure.release_date.isoformat()
        block.set_pair("_pdbx_audit_revision_history.revision_date", revision)


def _complete_sequence(block: gemmi.cif.Block, structure: ProteinStructure) -> None:
    """Adds what gemmi leaves out and biotite or the dictionary ask for."""
    polymers = block.find_loop("_entity_poly.entity_id").get_loop()
    canonical = gemmi.cif.quote(structure.sequence)
    polymers.add_columns(["_entity_poly.pdbx_seq_one_letter_code_can"], canonical)
    for row in block.find("_entity_poly_seq.", ["hetero"]):
        row[0] = "n"


def _add_numbering(block: gemmi.cif.Block, structure: ProteinStructure, chain: str) -> None:
    """Adds the table that says which residues have coordinates and how the author numbered them."""
    loop = block.init_loop("_pdbx_poly_seq_scheme.", _SCHEME)
    for place, letter in enumerate(structure.sequence):
        name, label = ONE_TO_THREE[letter], str(place + 1)
        seqid = gemmi.SeqId(_number(structure, place))
        number, modelled = str(seqid.num), structure.atom_mask[place].any()
        numbered = modelled or not any(structure.residue_names)
        loop.add_row(
            [chain, _ENTITY, label, name, label, chain, "n"]
            + [number if numbered else "?", seqid.icode.strip() or "."]
            + ([number, name, name] if modelled else ["?", "?", "?"])
        )
