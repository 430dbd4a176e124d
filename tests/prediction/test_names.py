"""File names: safe, unique, and the same every time."""

import re
import time
from itertools import product
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from esmfold_peft.prediction.names import file_names

ENDINGS = [".pdb", ".cif", ".pae.npz", ".pae.json", ".npz", ".json"]
OWN = {"predictions.csv", "index.html"}
# Ids that collide often: few letters, what numbering adds, reserved words.
WORDS = st.lists(
    st.sampled_from(
        ["a", "A", "-2", "-3", ".", "/", "..", "con", "NUL", "lpt1", ".pae", "é", "index"]
    ),
    max_size=4,
).map("".join)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=150), WORDS), max_size=12))
@example(["x" * 100 + "1", "x" * 100, "x" * 100 + "2", "x" * 92 + "-2"])
def test_names_are_safe_and_unique_with_every_ending(ids: list[str]) -> None:
    names = file_names(ids)
    files = [name + ending for name, ending in product(names, ENDINGS)]
    assert len({file.lower() for file in files} | OWN) == len(ids) * len(ENDINGS) + len(OWN)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name)
        assert not name.endswith(".")
        assert Path(name).name == name
    assert not any(PureWindowsPath(file).is_reserved() for file in files)
    assert file_names(ids) == names


@pytest.mark.parametrize(
    ("ids", "names"),
    [
        (["1ubq_A", "1UBQ_a", "../etc/passwd"], ["1ubq_A", "1UBQ_a-2", "_etc_passwd"]),
        (["a", "a", "a"], ["a", "a-2", "a-3"]),
        # A record that has such a name of itself keeps it, wherever it stands.
        (["a", "a", "a-2", "A"], ["a", "a-3", "a-2", "A-4"]),
        (["a-2", "a", "a-2"], ["a-2", "a", "a-2-2"]),
        (["", "", "record", "..", "-"], ["record", "record-2", "record-3", "record-4", "record-5"]),
        (["sp|P69905|HBA_HUMAN", "tr:Q9.1"], ["sp_P69905_HBA_HUMAN", "tr_Q9.1"]),
        (["CON", "con.x", "nul.", "COM1", "COM10", "console"],
         ["_CON", "_con.x", "_nul", "_COM1", "COM10", "console"]),
        (["index.", "Predictions", "index.1"], ["_index", "_Predictions", "index.1"]),
        (["a.pae", "a", "b.PDB", "c.v2"], ["a_pae", "a", "b_PDB", "c.v2"]),
        (["ünï", "\udce9", "a\nb", "中文"], ["_n_", "_", "a_b", "__"]),
        (["m" * 300, "m" * 300], ["m" * 100, "m" * 92 + "-2"]),
        ([], []),
    ],
)  # fmt: skip
def test_what_becomes_of_ids(ids: list[str], names: list[str]) -> None:
    assert file_names(ids) == names


@pytest.mark.parametrize(
    "ids",
    [
        ["x"] * 100_000,
        ["x", *(f"x-{number}" for number in range(15_000)), *["x"] * 15_000],
        [f"{'x' * 95}{number:05d}" for number in range(15_000)] * 2,
    ],
    ids=["equal", "taken", "alike"],
)
def test_time_is_linear(ids: list[str]) -> None:
    start = time.process_time()
    assert len({name.lower() for name in file_names(ids)}) == len(ids)
    # Seconds, with the checks of types; a quadratic one takes minutes.
    assert time.process_time() - start < 30
