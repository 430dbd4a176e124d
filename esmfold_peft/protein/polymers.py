"""The protein chains among the molecules of a file.

mmCIF says which molecule an atom belongs to, though not every program says it rightly; PDB files
have a chain's name, which may be blank or serve for ligands and water too, and TER, which ends a
molecule or marks a break. What is no amino acid belongs to no chain, whatever the file calls it.
"""

import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, pairwise

import gemmi

from esmfold_peft.protein.amino_acids import STANDARD, is_amino_acid, is_known, usual_name
from esmfold_peft.protein.numbering import increases, is_bonded

_PEPTIDES = (gemmi.PolymerType.PeptideL, gemmi.PolymerType.PeptideD)
_NOT_STATED = (None, gemmi.PolymerType.Unknown, gemmi.PolymerType.Other)


@dataclass(eq=False)
class Polymer:
    """A protein chain of a file.

    Attributes:
        author: its name (auth_asym_id); "A-2" for the second protein of chain A.
        label: its label_asym_id; that of the author in a PDB file.
        entity: its label_entity_id; None in a PDB file.
        deposited: the names of its deposited sequence; empty if the file states none.
        residues: the amino acids that the file has coordinates of, under their usual names.
        notes: what is to be known of how it was read.
    """

    author: str
    label: str
    entity: str | None
    deposited: list[str]
    residues: list[gemmi.Residue]
    notes: list[str] = field(default_factory=list)


def mmcif_polymers(structure: gemmi.Structure) -> list[Polymer]:
    """The protein chains of the first model of an mmCIF file, in its order."""
    groups: dict[tuple[str, str, str], list[gemmi.Residue]] = {}
    entities: dict[tuple[str, str, str], gemmi.Entity | None] = {}
    for chain in structure[0]:
        for span in chain.subchains():
            for entity, residues in _by_entity(span):
                key = chain.name or span.subchain_id(), span.subchain_id(), entity
                groups.setdefault(key, []).extend(residues)
                entities[key] = structure.get_entity(entity) or structure.get_entity_of(span)
    found = []
    for key, residues in groups.items():
        entity, notes = entities[key], []
        kind = entity.polymer_type if entity else None
        deposited = list(entity.full_sequence) if entity else []
        if kind in _PEPTIDES:
            chosen = _amino_acids(residues, deposited)
        elif kind in _NOT_STATED:
            chosen = _without_ligands(_amino_acids(residues, deposited), notes)
        else:
            continue
        if chosen:
            author, label, name = key
            found.append(Polymer(author, label, name or None, deposited, chosen, notes))
    return _with_own_names(found)


def _by_entity(span: gemmi.ResidueSpan) -> Iterator[tuple[str, Iterable[gemmi.Residue]]]:
    """The residues of one label, which some programs give to several molecules."""
    if span[0].entity_id == span[-1].entity_id:
        yield span[0].entity_id, span
    else:
        yield from groupby(span, key=lambda residue: residue.entity_id)


def pdb_polymers(structure: gemmi.Structure) -> list[Polymer]:
    """The protein chains of the first model of a PDB file, in its order.

    Args:
        structure: whose chains gemmi has parted at every TER.
    """
    deposited = {entity.name: list(entity.full_sequence) for entity in structure.entities}
    found: dict[str, list[Polymer]] = {}
    for chain in structure[0]:
        for residues in _parts(chain, deposited.get(chain.name, [])):
            _add(found.setdefault(chain.name, []), chain.name, residues, deposited)
    polymers = [polymer for chains in found.values() for polymer in chains]
    _name_blank_ones(found.pop("", []), [chain.name for chain in structure[0]])
    return _with_own_names(polymers)


def _amino_acids(residues: Iterable[gemmi.Residue], deposited: list[str]) -> list[gemmi.Residue]:
    """The amino acids, under their usual names, and what else the deposited sequence names."""
    named = {name.upper() for names in set(deposited) for name in names.split(",")}
    found: list[gemmi.Residue] = []
    for residue in residues:
        usual = usual_name(residue)
        if usual != residue.name:
            residue.name = usual
        if usual in named or is_amino_acid(residue):
            found.append(residue)
    return found


def _parts(chain: gemmi.Chain, deposited: list[str]) -> Iterator[list[gemmi.Residue]]:
    """A stretch between two TER; of a chain without a name, the molecules that make it up.

    These differ in the segment's name, or are not bonded and begin with a lower number.
    """
    part: list[gemmi.Residue] = []
    for residue in _amino_acids(chain, deposited):
        if part and not chain.name and _begins_another(part[-1], residue):
            yield part
            part = []
        part.append(residue)
    if part:
        yield part


def _begins_another(one: gemmi.Residue, other: gemmi.Residue) -> bool:
    if one.segment == other.segment and (increases(one, other) or _same_position(one, other)):
        return False
    return is_bonded(one, other) is not True


def _add(
    chains: list[Polymer], name: str, residues: list[gemmi.Residue], deposited: dict[str, list[str]]
) -> None:
    """Adds a part to the last chain of its name where it goes on, else as a chain of its own."""
    notes: list[str] = []
    last = chains[-1] if chains else None
    if last is not None and is_bonded(last.residues[-1], residues[0]):
        last.residues += residues
        return
    residues = _without_ligands(residues, notes)
    if last is not None and (not residues or _goes_on(last, residues)):
        last.residues += residues
        last.notes += notes
    elif residues:
        chains.append(Polymer(name, name, None, deposited.get(name, []), residues, notes))


def _goes_on(chain: Polymer, residues: list[gemmi.Residue]) -> bool:
    """Whether a part that is not bonded to a chain is its rest behind a break.

    SEQRES tells by its length, otherwise the numbers do. Chains without a name share theirs.
    """
    rises = increases(chain.residues[-1], residues[0])
    if chain.deposited:
        fits = len(chain.residues) + len(residues) <= len(chain.deposited)
        return fits and (rises or chain.author != "")
    return rises and chain.author != ""


def _without_ligands(residues: list[gemmi.Residue], notes: list[str]) -> list[gemmi.Residue]:
    """Leaves out amino acids that are free molecules.

    These are standard or of unknown names, HETATM, and bonded to no neighbour. Where all are HETATM
    (some programs write whole proteins so), a chain is what has a bond.
    """
    bonds = [False, *(is_bonded(one, other) is not False for one, other in pairwise(residues))]
    bound = [one or other for one, other in pairwise([*bonds, False])] if residues else []
    kept = [b or not _may_be_free(r) for r, b in zip(residues, bound, strict=True)]
    if all(residue.het_flag == "H" for residue in residues) and not any(bound):
        kept = [False] * len(residues)
    free = [f"{r.name} {r.seqid}" for r, keep in zip(residues, kept, strict=True) if not keep]
    if free:
        notes.append(f"free amino acids are no part of a chain: {listed(free)}")
    return [residue for residue, keep in zip(residues, kept, strict=True) if keep]


def _may_be_free(residue: gemmi.Residue) -> bool:
    return residue.het_flag == "H" and (residue.name in STANDARD or not is_known(residue.name))


def _same_position(one: gemmi.Residue, other: gemmi.Residue) -> bool:
    return one.seqid == other.seqid


def _name_blank_ones(chains: list[Polymer], names: list[str]) -> None:
    """Gives chains without a name (a blank in a PDB file) the first letters that are free."""
    letters = string.ascii_uppercase + string.ascii_lowercase + string.digits
    free = (letter for letter in letters if letter not in names)
    if len(chains) > 1:
        # SEQRES without a name says nothing of which is which.
        for chain in chains:
            chain.deposited = []
            chain.notes.append(f"one of {len(chains)} molecules that the file gives no chain names")
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
    """Names, of many only the first and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
