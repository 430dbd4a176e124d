"""Writing chains, one or all of a model, as PDB or mmCIF."""

import itertools
import re
import string
from collections.abc import Iterator, Mapping, Sequence

import gemmi
import numpy as np

from esmfold_peft.errors import UserError
from esmfold_peft.protein.modelcif import ModelRecord, add_model
from esmfold_peft.protein.residues import ATOM14, ATOM37, ATOM37_INDEX, ONE_TO_THREE
from esmfold_peft.protein.structure import ProteinStructure

# The widths of the columns of the PDB format.
_PDB_CHAINS = string.ascii_uppercase + string.ascii_lowercase + string.digits
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


def to_pdb(structure: ProteinStructure | Sequence[ProteinStructure], chain: str = "A") -> str:
    """Writes the chains of a model in PDB format: SEQRES with every residue, ATOM, TER, END.

    Residues have the author's numbers, or `residue_index + 1` where there are none, as in a
    prediction.

    Args:
        structure: one chain, or several of one model, which are named A to Z, a to z, 0 to 9.
        chain: one letter or digit, the name of a single chain.

    Raises:
        UserError: the chains do not fit into the columns of the format (more than 62, numbers
            over 9,999, more than 99,999 atoms, coordinates outside -999.999 to 9999.999 Å, a chain
            name of several characters), or a coordinate is not finite.
    """
    chains = _named(structure, chain, _pdb_names())
    _check_finite(chains)
    _check_columns(chains)
    options = gemmi.PdbWriteOptions(minimal=True)
    options.seqres_records = True
    options.cryst1_record = False
    options.end_record = True
    return _to_gemmi(chains).make_pdb_string(options)


def to_mmcif(
    structure: ProteinStructure | Sequence[ProteinStructure],
    chain: str = "A",
    model: ModelRecord | None = None,
) -> str:
    """Writes the chains of a model as mmCIF: entry, experiment if known, entities, numbers, atoms.

    label_seq_id counts the residues of `sequence` from 1, as the format demands; the author's
    numbers are those of the structure, or `residue_index + 1` where there are none, as in a
    prediction. Chains of the same sequence are one entity.

    Args:
        structure: one chain, or several of one model, which are named A to Z, AA, AB, ...; the
            entry has the `id` and the experiment of the first.
        chain: author's and label name of a single chain.
        model: of a prediction, adds the categories of ModelCIF and rounds coordinates to 0.001 Å
            and B-factors (pLDDT) to 0.01.

    Raises:
        UserError: a coordinate is not finite.
    """
    chains = _named(structure, chain, _mmcif_names())
    _check_finite(chains)
    first = next(iter(chains.values()))
    document = gemmi.cif.Document()
    name = re.sub(r"[^A-Za-z0-9._-]", "_", first.id)
    block = document.add_new_block(name)
    block.set_pair("_entry.id", gemmi.cif.quote(first.id if model is None else name))
    _add_experiment(block, first)
    whole = _to_gemmi(chains)
    if model is not None:
        _round(whole)
    whole.update_mmcif_block(block, gemmi.MmcifOutputGroups(False, **_GROUPS))
    sequences = _sequences(chains)
    _complete_sequences(block, sequences)
    _add_numbering(block, chains)
    if model is not None:
        add_model(block, chains, sequences, model)
    return document.as_string()


def _named(
    structure: ProteinStructure | Sequence[ProteinStructure], chain: str, names: Iterator[str]
) -> dict[str, ProteinStructure]:
    """The chains by their names in the file."""
    if isinstance(structure, ProteinStructure):
        return {chain: structure}
    return dict(zip(names, structure, strict=False))


def _pdb_names() -> Iterator[str]:
    """A to Z, a to z, 0 to 9, and then names that do not fit."""
    return itertools.chain(_PDB_CHAINS, map(str, itertools.count(len(_PDB_CHAINS) + 1)))


def _mmcif_names() -> Iterator[str]:
    """A to Z, AA, AB, ..."""
    for length in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_uppercase, repeat=length))


def _sequences(chains: Mapping[str, ProteinStructure]) -> list[str]:
    """The sequences of the entities, which are numbered from 1."""
    return list(dict.fromkeys(chain.sequence for chain in chains.values()))


def _check_finite(chains: Mapping[str, ProteinStructure]) -> None:
    for name, chain in chains.items():
        finite = np.isfinite(chain.positions).all(-1) & np.isfinite(chain.b_factors)
        broken = np.argwhere(chain.atom_mask & ~finite)
        if len(broken):
            place, column = broken[0].tolist()
            residue = f"{chain.sequence[place]}{_number(chain, place)}"
            whose = f" of chain {name}" if len(chains) > 1 else ""
            raise UserError(
                f"{chain.id}: {ATOM37[column]} of residue {residue}{whose} is not finite"
            )


def _check_columns(chains: Mapping[str, ProteinStructure]) -> None:
    """Refuses chains that the PDB format cannot hold.

    gemmi would cut them off, or number them in a way (hybrid-36) that few readers know.
    """
    # A TER has a number too.
    serials = sum(int(chain.atom_mask.sum()) + 1 for chain in chains.values())
    checks = [
        (len(chains) <= len(_PDB_CHAINS), f"more than {len(_PDB_CHAINS)} chains"),
        (serials <= _PDB_ATOMS, f"more than {_PDB_ATOMS} atoms"),
        *itertools.chain.from_iterable(itertools.starmap(_chain_fits, chains.items())),
    ]
    wrong = next((what for fits, what in checks if not fits), None)
    if wrong is not None:
        entry = next(iter(chains.values())).id
        raise UserError(f"{entry}: does not fit the PDB format ({wrong}); write mmCIF")


def _chain_fits(name: str, chain: ProteinStructure) -> Iterator[tuple[bool, str]]:
    """For each limit of the format whether a chain obeys it, and what is wrong if not."""
    yield len(name) == 1, f'the chain name "{name}" is not one character'
    yield len(chain) <= _PDB_RESIDUES, f"more than {_PDB_RESIDUES} residues"
    for values, limits, what, unit in (
        ([_seqid(chain, p).num for p in range(len(chain))], _PDB_NUMBERS, "residue numbers", ""),
        (chain.positions[chain.atom_mask], _PDB_COORDINATES, "coordinates", " Å"),
        (chain.b_factors[chain.atom_mask], _PDB_B_FACTORS, "B-factors", ""),
    ):
        inside = (np.array(values) >= limits[0]) & (np.array(values) <= limits[1])
        yield bool(inside.all()), f"{what} outside {limits}{unit}"


def _to_gemmi(chains: Mapping[str, ProteinStructure]) -> gemmi.Structure:
    result = gemmi.Structure()
    result.name = next(iter(chains.values())).id
    result.add_model(gemmi.Model(1))
    for name, structure in chains.items():
        chain = result[0].add_chain(gemmi.Chain(name))
        for place in np.flatnonzero(structure.atom_mask.any(-1)).tolist():
            chain.add_residue(_residue(structure, place)).subchain = name
    for number, sequence in enumerate(_sequences(chains), start=1):
        entity = gemmi.Entity(str(number))
        entity.entity_type = gemmi.EntityType.Polymer
        entity.polymer_type = gemmi.PolymerType.PeptideL
        entity.full_sequence = [ONE_TO_THREE[letter] for letter in sequence]
        entity.subchains = [name for name, each in chains.items() if each.sequence == sequence]
        result.entities.append(entity)
    return result


def _residue(structure: ProteinStructure, place: int) -> gemmi.Residue:
    residue = gemmi.Residue()
    residue.name = ONE_TO_THREE[structure.sequence[place]]
    residue.seqid = _seqid(structure, place)
    residue.label_seq = place + 1
    residue.entity_type = gemmi.EntityType.Polymer
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


def _seqid(structure: ProteinStructure, place: int) -> gemmi.SeqId:
    text = _number(structure, place)
    code = "" if text[-1].isdigit() else text[-1]
    # From one text gemmi would make the code lower case.
    return gemmi.SeqId(int(text.removesuffix(code)), code or " ")


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


def _round(structure: gemmi.Structure) -> None:
    """Removes the digits of float32, a quarter of a file, which mean nothing in a prediction."""
    for site in structure[0].all():
        site.atom.pos = gemmi.Position(*(round(x, 3) for x in site.atom.pos.tolist()))
        site.atom.b_iso = round(site.atom.b_iso, 2)


def _complete_sequences(block: gemmi.cif.Block, sequences: Sequence[str]) -> None:
    """Adds items that gemmi leaves out and biotite or the dictionary need."""
    canonical = "_entity_poly.pdbx_seq_one_letter_code_can"
    block.find_loop("_entity_poly.entity_id").get_loop().add_columns([canonical], "?")
    for sequence, row in zip(sequences, block.find([canonical]), strict=True):
        row[0] = gemmi.cif.quote(sequence)
    for row in block.find("_entity_poly_seq.", ["hetero"]):
        row[0] = "n"


def _add_numbering(block: gemmi.cif.Block, chains: Mapping[str, ProteinStructure]) -> None:
    """Adds the table of residues with coordinates and of the author's numbers."""
    loop = block.init_loop("_pdbx_poly_seq_scheme.", _SCHEME)
    sequences = _sequences(chains)
    for name, chain in chains.items():
        for row in _numbering(name, chain, str(sequences.index(chain.sequence) + 1)):
            loop.add_row(row)


def _numbering(name: str, structure: ProteinStructure, entity: str) -> Iterator[list[str]]:
    for place, letter in enumerate(structure.sequence):
        residue, label = ONE_TO_THREE[letter], str(place + 1)
        seqid = _seqid(structure, place)
        number, modelled = str(seqid.num), structure.atom_mask[place].any()
        numbered = modelled or not any(structure.residue_names)
        yield (
            [name, entity, label, residue, label, name, "n"]
            + [number if numbered else "?", seqid.icode.strip() or "."]
            + ([number, residue, residue] if modelled else ["?", "?", "?"])
        )
