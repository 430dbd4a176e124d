"""The protein chains among the molecules of a file.

mmCIF states which molecule an atom belongs to, but some programs state it wrongly. PDB files have a
chain's name, which may be blank or also be that of ligands and water, and TER, which ends a
molecule or marks a break. Only amino acids belong to a chain, even if the file states otherwise.
"""

import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, pairwise

import gemmi

from esmfold_peft.protein.amino_acids import (
    STANDARD,
    is_amino_acid,
    is_known,
    may_be_listed,
    usual_name,
)
from esmfold_peft.protein.numbering import increases, is_bonded

_PEPTIDES = (
    gemmi.PolymerType.PeptideL,
    gemmi.PolymerType.PeptideD,
    gemmi.PolymerType.CyclicPseudoPeptide,
)


@dataclass(eq=False)
class Polymer:
    """A protein chain of a file.

    Attributes:
        author: its name (auth_asym_id); "A-2" for the second protein of chain A.
        label: its label_asym_id; that of the author in a PDB file.
        entity: its label_entity_id; None in a PDB file.
        deposited: the names of its deposited sequence; empty if the file states none.
        residues: the amino acids with coordinates, under their usual names.
        notes: what the reader left out or decided.
    """

    author: str
    label: str
    entity: str | None
    deposited: list[str]
    residues: list[gemmi.Residue]
    notes: list[str] = field(default_factory=list)


def mmcif_polymers(structure: gemmi.Structure, authors: dict[str, str]) -> list[Polymer]:
    """The protein chains of the first model of an mmCIF file that has any, in its order.

    Args:
        structure: gemmi's, of the file.
        authors: the author's names of chains that have another in `structure`.
    """
    return _first(_mmcif_model(structure, model, authors) for model in structure)


def _mmcif_model(
    structure: gemmi.Structure, model: gemmi.Model, authors: dict[str, str]
) -> list[Polymer]:
    groups: dict[tuple[str, str, str], list[gemmi.Residue]] = {}
    entities: dict[tuple[str, str, str], gemmi.Entity | None] = {}
    for chain in model:
        for span in chain.subchains():
            # Some programs give several molecules one label.
            for entity, residues in groupby(span, key=lambda residue: residue.entity_id):
                key = chain.name, span.subchain_id(), entity
                groups.setdefault(key, []).extend(residues)
                entities[key] = structure.get_entity(entity) or structure.get_entity_of(span)
    found = []
    for key, residues in groups.items():
        entity, notes = entities[key], []
        deposited = list(entity.full_sequence) if entity else []
        chosen = _amino_acids(residues, deposited)
        # Some programs state wrong types or none, and list ligands in a sequence.
        if not (deposited and entity and entity.polymer_type in _PEPTIDES):
            chosen = _without_ligands(chosen, notes)
        if chosen:
            name, label, entity_id = key
            author = authors.get(name, name) or label
            found.append(Polymer(author, label, entity_id or None, deposited, chosen, notes))
    return _with_own_names(found)


def _first(models: Iterable[list[Polymer]]) -> list[Polymer]:
    """The chains of the first model that has any; one may hold a ligand alone."""
    for number, polymers in enumerate(models, start=1):
        if polymers:
            for polymer in polymers if number > 1 else ():
                polymer.notes.append(f"read from model {number}; earlier models have no protein")
            return polymers
    return []


def pdb_polymers(structure: gemmi.Structure) -> list[Polymer]:
    """The protein chains of the first model of a PDB file that has any, in its order.

    gemmi has parted the chains of `structure` at every TER.
    """
    deposited = {
        entity.name: [name for name in entity.full_sequence if may_be_listed(name.upper())]
        for entity in structure.entities
    }
    return _first(_pdb_model(model, deposited) for model in structure)


def _pdb_model(model: gemmi.Model, deposited: dict[str, list[str]]) -> list[Polymer]:
    found: dict[str, list[Polymer]] = {}
    for chain in model:
        for residues in _parts(chain, deposited.get(chain.name, [])):
            _add(found.setdefault(chain.name, []), chain.name, residues, deposited)
    _name_blank_ones(found.get("", []), [chain.name for chain in model])
    return _with_own_names([polymer for chains in found.values() for polymer in chains])


def _amino_acids(residues: Iterable[gemmi.Residue], deposited: list[str]) -> list[gemmi.Residue]:
    """The amino acids, under their usual names, and the caps that the deposited sequence names."""
    named = {name.upper() for names in set(deposited) for name in names.split(",")}
    named = {name for name in named if may_be_listed(name)}
    found: list[gemmi.Residue] = []
    lone: list[gemmi.Residue] = []
    for residue in residues:
        usual = usual_name(residue)
        if usual != residue.name:
            residue.name = usual
        if residue[0].name.islower():
            for atom in residue:
                atom.name = atom.name.upper()
        kind = usual in named or is_amino_acid(residue)
        if kind is not False:
            found.append(residue)
        if kind is None:
            lone.append(residue)
    if lone:
        found = [r for k, r in enumerate(found) if r not in lone or _has_neighbour(found, k)]
    # SEQRES lists nucleic acids too: a listed name alone does not make a protein.
    protein = any(residue.name not in named or is_amino_acid(residue) for residue in found)
    return found if protein else []


def _has_neighbour(residues: list[gemmi.Residue], row: int) -> bool:
    """Whether a Cα is as far from the one before or behind it as in a chain."""
    near = residues[max(row - 1, 0) : row + 2]
    return any(is_bonded(one, other) is True for one, other in pairwise(near))


def _parts(chain: gemmi.Chain, deposited: list[str]) -> Iterator[list[gemmi.Residue]]:
    """The molecules in a stretch between two TER: segments and blank names may hide some.

    Two molecules are not bonded, and differ in the segment's name or, in a chain without a name,
    the second begins with a lower number.
    """
    part: list[gemmi.Residue] = []
    for residue in _amino_acids(chain, deposited):
        if part:
            last = part[-1]
            another = last.segment != residue.segment or not (
                chain.name or increases(last, residue) or last.seqid == residue.seqid
            )
            if another and is_bonded(last, residue) is not True:
                yield part
                part = []
        part.append(residue)
    if part:
        yield part


def _add(
    chains: list[Polymer], name: str, residues: list[gemmi.Residue], deposited: dict[str, list[str]]
) -> None:
    """Adds a part to the last chain of its name if it continues it, else as a new chain."""
    notes: list[str] = []
    last = chains[-1] if chains else None
    if last is not None and _is_rest(last.residues[-1], residues[0]):
        for atom in residues[0]:
            last.residues[-1].add_atom(atom)
        last.residues += residues[1:]
        return
    if last is not None and is_bonded(last.residues[-1], residues[0]):
        last.residues += residues
        return
    residues = _without_ligands(residues, notes)
    if last is not None and (not residues or _continues(last, residues)):
        last.residues += residues
        last.notes += notes
    elif residues:
        chains.append(Polymer(name, name, None, deposited.get(name, []), residues, notes))


def _is_rest(one: gemmi.Residue, other: gemmi.Residue) -> bool:
    """Whether TER splits one residue into these two."""
    names = {atom.name for atom in one}
    same = one.seqid == other.seqid and one.name == other.name
    return same and names.isdisjoint(atom.name for atom in other)


def _continues(chain: Polymer, residues: list[gemmi.Residue]) -> bool:
    """Whether a part that is not bonded to a chain continues it after a break.

    The length of SEQRES decides, without SEQRES the residue numbers. Chains without a name share
    one SEQRES.
    """
    rises, named = increases(chain.residues[-1], residues[0]), chain.author != ""
    if chain.deposited:
        fits = len(chain.residues) + len(residues) <= len(chain.deposited)
        return fits and (rises or named)
    return rises and named


def _without_ligands(residues: list[gemmi.Residue], notes: list[str]) -> list[gemmi.Residue]:
    """Leaves out amino acids that are free molecules: HETATM, and bonded to no neighbour.

    Where all are HETATM (some programs write whole proteins so), those with a bond are a chain.
    """
    if not residues:
        return []
    bonds = [False, *(is_bonded(one, other) is not False for one, other in pairwise(residues))]
    bound = [one or other for one, other in pairwise([*bonds, False])]
    sure = [row for row, residue in enumerate(residues) if residue.het_flag != "H"]
    inside = range(sure[0], sure[-1]) if sure else range(0)
    kept, free = [], []
    for row, (residue, has_bond) in enumerate(zip(residues, bound, strict=True)):
        backbone = any(residue.find_atom(name, "*") for name in ("N", "CA", "C"))
        chained = (has_bond and backbone) or not _may_be_free(residue, inside=row in inside)
        (kept if chained and (sure or any(bound)) else free).append(residue)
    if free:
        names = listed([f"{residue.name} {residue.seqid}" for residue in free])
        notes.append(f"free amino acids are left out: {names}")
    return kept


def _may_be_free(residue: gemmi.Residue, *, inside: bool) -> bool:
    """Whether a residue without a bond may be a ligand; a modified one inside a chain is not."""
    if residue.het_flag != "H" or residue.name == "MSE":
        return False
    return residue.name in STANDARD or not is_known(residue.name) or not inside


def _name_blank_ones(chains: list[Polymer], names: list[str]) -> None:
    """Gives chains without a name (a blank in a PDB file) the first letters that are free."""
    letters = string.ascii_uppercase + string.ascii_lowercase + string.digits
    free = (letter for letter in letters if letter not in names)
    if len(chains) > 1:
        note = f"the file names no chains; this is one of its {len(chains)} molecules"
        for chain in chains:
            chain.deposited = []  # SEQRES without a name may be of any of them
            chain.notes.append(note)
    for number, chain in enumerate(chains, start=1):
        chain.author = chain.label = next(free, f"blank{number}")


def _with_own_names(polymers: list[Polymer]) -> list[Polymer]:
    """Tells proteins of one author's chain apart: A, A-2, A-3."""
    taken = {polymer.author for polymer in polymers}
    seen: set[str] = set()
    for polymer in polymers:
        if polymer.author in seen:
            numbered = (f"{polymer.author}-{number}" for number in range(2, len(taken) + 3))
            name = next(name for name in numbered if name not in taken)
            polymer.notes.append(f"another protein of chain {polymer.author}, named {name}")
            polymer.author = name
            taken.add(name)
        seen.add(polymer.author)
    return polymers


def listed(names: list[str], most: int = 5) -> str:
    """Names as a list; of many, only the first and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
