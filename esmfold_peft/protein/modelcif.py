"""The categories of ModelCIF beside the atoms of a predicted model (Vallat et al. 2023).

ModelCIF extends mmCIF by how a model was made and how much each of its residues can be trusted.
Every category that its dictionary or programs that read it require is here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import gemmi
import numpy as np

from esmfold_peft.protein.residues import ATOM37_INDEX, ONE_TO_THREE
from esmfold_peft.protein.structure import ProteinStructure

_DICTIONARY = ("mmcif_ma.dic", "1.4.2", "https://github.com/ihmwg/ModelCIF")
_CITATION = "primary"
_ESMFOLD = (
    *("Evolutionary-scale prediction of atomic-level protein structure with a language model",),
    *("Science", 379, 1123, 1130, 2023, "10.1126/science.ade2574"),
)
_ESMFOLD_AUTHORS = (
    "Lin, Z.; Akin, H.; Rao, R.; Hie, B.; Zhu, Z.; Lu, W.; Smetanin, N.; Verkuil, R.; Kabeli, O.; "
    "Shmueli, Y.; dos Santos Costa, A.; Fazel-Zarandi, M.; Sercu, T.; Candido, S.; Rives, A."
)
_MODEL = _SOFTWARE_GROUP = 1
_TARGETS, _COORDINATES = 1, 2
"""Groups of data: input and output of the prediction."""
_LOCAL, _MEAN, _PTM = 1, 2, 3
"""Metrics."""


@dataclass(frozen=True)
class ModelRecord:
    """A file's facts about a prediction; `ptm` (0 to 1) is None if it was not computed."""

    title: str
    software: str
    version: str
    ptm: float | None


def add_model(
    block: gemmi.cif.Block,
    chains: Mapping[str, ProteinStructure],
    sequences: Sequence[str],
    record: ModelRecord,
) -> None:
    """Adds the categories of ModelCIF to a block that has entities, chains and atoms, in place.

    Args:
        block: `_chem_comp` gets its types.
        chains: label name of each chain, and the chain; pLDDT (0 to 100) is the B-factor of CA.
        sequences: of the entities, which are numbered from 1.
        record: title, software and pTM.
    """
    _table(block, "audit_conform", "dict_name dict_version dict_location", _DICTIONARY)
    entry = gemmi.cif.as_string(block.find_value("_entry.id"))
    items = "entry_id title pdbx_structure_determination_methodology"
    _table(block, "struct", items, (entry, record.title, "computational"))
    for row in block.find("_chem_comp.", ["id", "type"]):  # gemmi leaves the types out
        row[1] = gemmi.cif.quote("peptide linking" if row[0] == "GLY" else "L-peptide linking")
    elements = sorted({*block.find_values("_atom_site.type_symbol")})
    _table(block, "atom_type", "symbol", *((element,) for element in elements))
    _add_software(block, record)
    _add_targets(block, chains, sequences)
    _add_model_list(block, len(sequences))
    _add_metrics(block, chains, record.ptm)


def _table(block: gemmi.cif.Block, category: str, items: str, *rows: tuple[str | int, ...]) -> None:
    loop = block.init_loop(f"_{category}.", items.split())
    for row in rows:
        loop.add_row([_quoted(str(value)) for value in row])


def _quoted(text: str) -> str:
    """A value in the characters that CIF allows: printable ASCII."""
    return gemmi.cif.quote(" ".join(text.split()).encode("ascii", "backslashreplace").decode())


def _add_software(block: gemmi.cif.Block, record: ModelRecord) -> None:
    items = "title journal_abbrev journal_volume page_first page_last year pdbx_database_id_DOI"
    _table(block, "citation", f"id {items}", (_CITATION, *_ESMFOLD))
    authors = enumerate(_ESMFOLD_AUTHORS.split("; "), start=1)
    names = ((_CITATION, number, name) for number, name in authors)
    _table(block, "citation_author", "citation_id ordinal name", *names)
    items = "pdbx_ordinal name version type classification description citation_id"
    role = ("program", "model building", "structure prediction by ESMFold")
    _table(block, "software", items, (1, record.software, record.version, *role, _CITATION))
    items = "ordinal_id group_id software_id"
    _table(block, "ma_software_group", items, (1, _SOFTWARE_GROUP, 1))


def _add_targets(
    block: gemmi.cif.Block, chains: Mapping[str, ProteinStructure], sequences: Sequence[str]
) -> None:
    """The targets and the data: a sequence for each entity, and one set of coordinates."""
    entities = range(1, len(sequences) + 1)
    data = [(entity, f"sequence of entity {entity}", "target") for entity in entities]
    data.append((len(sequences) + 1, "model", "model coordinates"))
    _table(block, "ma_data", "id name content_type", *data)
    groups = ((i, _TARGETS if kind == "target" else _COORDINATES, i) for i, _, kind in data)
    _table(block, "ma_data_group", "ordinal_id group_id data_id", *groups)
    # "designed" is the convention for targets that are not taken from a named entry of a database.
    origins = ((entity, entity, "designed") for entity in entities)
    _table(block, "ma_target_entity", "entity_id data_id origin", *origins)
    instances = ((name, sequences.index(chain.sequence) + 1) for name, chain in chains.items())
    _table(block, "ma_target_entity_instance", "asym_id entity_id", *instances)


def _add_model_list(block: gemmi.cif.Block, entities: int) -> None:
    """The one model and the one step that made it."""
    items = "ordinal_id model_id model_name data_id model_type"
    _table(block, "ma_model_list", items, (1, _MODEL, "model", entities + 1, "Ab initio model"))
    items = "ordinal_id protocol_id step_id method_type step_name software_group_id"
    step = (1, 1, 1, "modeling", "structure from sequence", _SOFTWARE_GROUP, _TARGETS, _COORDINATES)
    _table(block, "ma_protocol_step", f"{items} input_data_group_id output_data_group_id", step)


def _add_metrics(
    block: gemmi.cif.Block, chains: Mapping[str, ProteinStructure], ptm: float | None
) -> None:
    rows = [row for name, chain in chains.items() for row in _plddt(name, chain)]
    mean = sum(float(value) for *_, value in rows) / max(len(rows), 1)
    metrics = [
        (_LOCAL, "pLDDT", "pLDDT", "local", "predicted lDDT-CA of a residue, 0 to 100"),
        (_MEAN, "mean pLDDT", "pLDDT", "global", "mean of pLDDT over the residues, 0 to 100"),
    ]
    values = [(1, _MODEL, _MEAN, f"{mean:.2f}")]
    if ptm is not None:
        metrics.append((_PTM, "pTM", "pTM", "global", "predicted TM-score, 0 to 1"))
        values.append((2, _MODEL, _PTM, f"{ptm:.4f}"))
    items = "id name type mode description software_group_id"
    _table(block, "ma_qa_metric", items, *((*metric, _SOFTWARE_GROUP) for metric in metrics))
    _table(block, "ma_qa_metric_global", "ordinal_id model_id metric_id metric_value", *values)
    items = "ordinal_id model_id metric_id label_asym_id label_seq_id label_comp_id metric_value"
    scores = ((number, _MODEL, _LOCAL, *row) for number, row in enumerate(rows, start=1))
    _table(block, "ma_qa_metric_local", items, *scores)


def _plddt(name: str, chain: ProteinStructure) -> Iterator[tuple[str, int, str, str]]:
    """Chain, number, residue and pLDDT of each residue with a CA."""
    ca = ATOM37_INDEX["CA"]
    for place in np.flatnonzero(chain.atom_mask[:, ca]).tolist():
        value = f"{chain.b_factors[place, ca]:.2f}"
        yield name, place + 1, ONE_TO_THREE[chain.sequence[place]], value
