"""The pages of predictions as text: hostile headers, embedded data, no loads."""

import base64
import hashlib
import json
import re
import tomllib
from dataclasses import replace
from fnmatch import fnmatch
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from esmfold_peft.prediction.html_text import asset, data_block, escaped
from esmfold_peft.prediction.index_page import IndexRow, index_page
from esmfold_peft.prediction.page import PageRecord, record_page
from tests.prediction.pages import Page, real_record

ROOT = Path(__file__).parents[2]
HOSTILE = [
    "</script><script>alert(1)</script>",
    "--><img src=x onerror=alert(1)><!--",
    "\"'><b>&amp;&lt;",
    "</title></style></textarea></template><base href=//evil>",
    "nul\0 escape\x1b[31m tab\there lone \ud800 back\u202ewards \u2028 蛋白 é",
    "x" * 5000,
]
SHOWN = "nul\ufffd escape\ufffd[31m tab here lone \ufffd back\ufffdwards \u2028 蛋白 é"


@pytest.fixture(scope="module")
def record(example: Path) -> PageRecord:
    return real_record(example)


@cache
def plain_tags(with_pae: bool) -> list[str]:
    return Page(record_page(with_header("plain", with_pae))).tags


def with_header(header: str, with_pae: bool = True) -> PageRecord:
    record = replace(real_record(ROOT / "data" / "example"), name=header, header=header)
    return record if with_pae else replace(record, pae=None)


@pytest.mark.parametrize("header", HOSTILE, ids=range(len(HOSTILE)))
def test_a_header_is_shown_and_is_never_markup(header: str):
    page = Page(record_page(with_header(header)))
    assert page.tags == plain_tags(True)
    shown = SHOWN if header.startswith("nul") else header
    assert [text for tag, text in page.texts if tag == "bdi"][:3] == [shown, shown, shown]
    assert "onerror" not in {name for _, name, _ in page.attributes}


@given(st.lists(st.text(st.characters(exclude_categories=())), min_size=3, max_size=3))
@example(HOSTILE[:3])
@example(HOSTILE[2:5])
@example([HOSTILE[k] for k in (1, 3, 0)])
@settings(max_examples=60, deadline=None)
def test_any_text_can_stand_in_the_table(texts: list[str]):
    name, header, problem = texts
    source = index_page([IndexRow(name, header, 1, 5, problem=problem or "failed")])
    source.encode()
    page = Page(source)
    assert page.tags.count("tr") == 2
    assert page.tags.count("script") == 1
    shown = [text for tag, text in page.texts if tag == "bdi"]
    assert [escaped(text) for text in shown] == [
        escaped(t) for t in (name, header, problem or "failed")
    ]


def test_data_come_back_from_the_page(record: PageRecord):
    data = json.loads(Page(record_page(record)).scripts()[0])
    assert data["pdb"] == record.pdb_text
    assert [chain["sequence"] for chain in data["chains"]] == list(record.chains)
    np.testing.assert_allclose(data["plddt"], record.plddt, atol=0.0051)
    values = np.frombuffer(base64.b64decode(data["pae"]["base64"]), np.uint8)
    pae = values.reshape(record.pae.shape) / data["pae"]["perAngstrom"]
    assert 0.04 < np.abs(pae - record.pae).max() <= 1 / 16 + 1e-5
    limits = replace(record, pae=np.tile(np.float32([[0.0, 31.75, 40.0]]), (59, 20))[:, :59])
    data = json.loads(Page(record_page(limits)).scripts()[0])
    assert list(base64.b64decode(data["pae"]["base64"])[:3]) == [0, 254, 255]


@pytest.mark.parametrize("largest", [31.16, 31.75, 36.17, 77.5])
def test_a_page_shows_the_largest_error_of_any_number_of_bins(largest: float, record: PageRecord):
    pae = np.full_like(record.pae, largest)
    data = json.loads(Page(record_page(replace(record, pae=pae, largest_pae=largest))).scripts()[0])
    shown = base64.b64decode(data["pae"]["base64"])[0] / data["pae"]["perAngstrom"]
    assert shown == pytest.approx(largest, abs=0.51 / data["pae"]["perAngstrom"])
    assert data["pae"]["limit"] == largest


def test_embedded_data_cannot_end_their_element():
    data = {"text": [*HOSTILE, "<!-- <script>"]}
    page = Page(data_block(data))
    assert page.tags == ["script"]
    assert json.loads(page.scripts()[0]) == data


@pytest.mark.parametrize("kind", ["record", "index"])
def test_a_page_loads_nothing_and_runs_only_its_own_scripts(kind: str, record: PageRecord):
    row = IndexRow("a", "h", 1, 5, 70.0, 0.5, "a.html")
    page = Page(record_page(record, "index.html") if kind == "record" else index_page([row]))
    assert set(page.values("href")) <= {
        *("data:,", "./index.html", "./1oai_A.pdb", "./1oai_A.cif", "./a.html")
    }
    loading = {"src", "srcset", "action", "data", "poster", "background", "style"}
    assert not loading & {name for _, name, _ in page.attributes}
    [style] = [text for tag, text in page.texts if tag == "style"]
    assert "url(" not in style
    assert "@import" not in style
    policy = dict(
        part.split(" ", 1) for value in page.values("content")[:1] for part in value.split("; ")
    )
    assert policy["default-src"] == "'none'"
    run = [script for script in page.scripts() if not script.startswith('{"chains"')]
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in run]
    assert policy["script-src"].split() == [f"'sha256-{digest}'" for digest in digests]
    assert len(run) == (2 if kind == "record" else 1)
    assert not re.search(r"https?:|fetch\(|XMLHttp|import|eval|innerHTML", run[-1])


def test_a_file_name_cannot_lead_elsewhere(record: PageRecord):
    page = Page(record_page(replace(record, files=("javascript:alert(1)", "../x", "//h/x"))))
    links = [link for link in page.values("href") if link != "data:,"]
    assert links == ["./javascript%3Aalert%281%29", "./..%2Fx", "./%2F%2Fh%2Fx"]


def test_bands_are_those_of_the_alphafold_database(record: PageRecord):
    values = np.float32([100, 90.01, 90, 70.01, 70, 50.01, 50, 0])
    page = Page(record_page(replace(record, chains=("A" * 8,), plddt=values, pae=None)))
    parts = [text for tag, text in page.texts if tag == "/svg" and "%" in text]
    assert [part.rsplit(": ")[1] for part in parts] == ["25 %"] * 4
    assert page.values("fill") == ["#0053D6", "#65CBF3", "#FFDB13", "#FF7D45"]


def test_what_was_not_computed_is_not_shown(record: PageRecord):
    source = record_page(replace(record, pae=None, ptm=None, pdb_text=""))
    assert 'id="pae"' not in source
    assert "pTM" not in {text for _, text in Page(source).texts}
    assert "pTM" in {text for _, text in Page(record_page(record)).texts}
    assert "too large for the PDB format" in source
    with pytest.raises(ValueError, match="1oai_A: 59 residues, pLDDT of 58"):
        record_page(replace(record, plddt=record.plddt[1:], pae=None))
    with pytest.raises(ValueError, match=r"2 sequences, chains \['A'\]"):
        record_page(replace(record, chains=(record.chains[0][:9], record.chains[0][9:])))


def test_the_bundled_viewer_is_the_published_one_and_its_licence_travels(record: PageRecord):
    published = "f7cc78921ae72e7623e89cdd111434f58c2efddd2ffda1cd212644b406fb8016"
    assert hashlib.sha256(asset("3Dmol-min.js").encode()).hexdigest() == published
    assert published in asset("README.md")
    source = record_page(record)
    assert f"<!--\n{asset('3Dmol-LICENSE.txt')}-->" in source
    assert "--" not in asset("3Dmol-LICENSE.txt")
    assert len(source.encode()) < 640_000


def test_every_asset_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["esmfold_peft.prediction"]
    for file in (files("esmfold_peft.prediction") / "assets").iterdir():
        assert any(fnmatch(f"assets/{file.name}", pattern) for pattern in patterns), file.name
