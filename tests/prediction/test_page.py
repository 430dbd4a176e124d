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
from esmfold_peft.prediction.pages import index_html, page_html
from esmfold_peft.prediction.result import Prediction
from esmfold_peft.prediction.row_journal import PredictionRow
from tests.prediction.pages import FILES, Page, real_prediction

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
def prediction(example: Path) -> Prediction:
    return real_prediction(example)


@cache
def plain_tags() -> list[str]:
    return Page(page_html(with_header("plain"))).tags


def with_header(header: str) -> Prediction:
    plain = real_prediction(ROOT / "data" / "example")
    found = replace(plain, name=header, header=header)
    found.__dict__["pdb_text"] = plain.pdb_text  # gemmi writes no name of half a surrogate pair
    return found


def row_of(name: str, header: str = "h", status: str = "ok", **more) -> PredictionRow:
    where = {"fasta": "x", "line": 1, "replaced": 0, "adapter": "", "seed": 0, "warnings": ""}
    counts = {"chains": 1, "length": 5}
    return PredictionRow(
        name=name, id=name, header=header, status=status, hash="", **where, **counts, **more
    )


@pytest.mark.parametrize("header", HOSTILE, ids=range(len(HOSTILE)))
def test_a_header_is_shown_and_is_never_markup(header: str):
    page = Page(page_html(with_header(header)))
    assert page.tags == plain_tags()
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
    source = index_html([row_of(name, header, problem or "failed")])
    source.encode()
    page = Page(source)
    assert page.tags.count("tr") == 2
    assert page.tags.count("script") == 1
    shown = [text for tag, text in page.texts if tag == "bdi"]
    assert [escaped(text) for text in shown] == [
        escaped(t) for t in (name, header, problem or "failed")
    ]


def test_data_come_back_from_the_page(prediction: Prediction):
    data = json.loads(Page(page_html(prediction)).scripts()[0])
    assert data["pdb"] == prediction.pdb_text
    assert [chain["sequence"] for chain in data["chains"]] == list(prediction.chains)
    np.testing.assert_allclose(data["plddt"], prediction.plddt, atol=0.0051)
    values = np.frombuffer(base64.b64decode(data["pae"]["base64"]), np.uint8)
    pae = values.reshape(prediction.pae.shape) / data["pae"]["perAngstrom"]
    assert 0.04 < np.abs(pae - prediction.pae).max() <= 1 / 16 + 1e-5
    limits = replace(prediction, pae=np.tile(np.float32([[0.0, 31.75, 40.0]]), (59, 20))[:, :59])
    data = json.loads(Page(page_html(limits)).scripts()[0])
    assert list(base64.b64decode(data["pae"]["base64"])[:3]) == [0, 254, 255]


@pytest.mark.parametrize("largest", [31.16, 31.75, 36.17, 77.5])
def test_a_page_shows_the_largest_error_of_any_number_of_bins(
    largest: float, prediction: Prediction
):
    pae = np.full_like(prediction.pae, largest)
    data = json.loads(
        Page(page_html(replace(prediction, pae=pae, largest_pae=largest))).scripts()[0]
    )
    shown = base64.b64decode(data["pae"]["base64"])[0] / data["pae"]["perAngstrom"]
    assert shown == pytest.approx(largest, abs=0.51 / data["pae"]["perAngstrom"])
    assert data["pae"]["limit"] == largest


def test_embedded_data_cannot_end_their_element():
    data = {"text": [*HOSTILE, "<!-- <script>"]}
    page = Page(data_block(data))
    assert page.tags == ["script"]
    assert json.loads(page.scripts()[0]) == data


@pytest.mark.parametrize("kind", ["record", "index"])
def test_a_page_loads_nothing_and_runs_only_its_own_scripts(kind: str, prediction: Prediction):
    row = row_of("a", plddt=70.0, ptm=0.5, html="a.html")
    one = page_html(prediction, FILES, {"recycles": "3"}, "index.html")
    page = Page(one if kind == "record" else index_html([row]))
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


def test_a_file_name_cannot_lead_elsewhere(prediction: Prediction):
    page = Page(page_html(prediction, ("javascript:alert(1)", "../x", "//h/x")))
    links = [link for link in page.values("href") if link != "data:,"]
    assert links == ["./javascript%3Aalert%281%29", "./..%2Fx", "./%2F%2Fh%2Fx"]


def test_bands_are_those_of_the_alphafold_database(prediction: Prediction):
    values = np.float32([100, 90.01, 90, 70.01, 70, 50.01, 50, 0])
    eight = {"positions": prediction.positions[:8], "atom_mask": prediction.atom_mask[:8]}
    eight["atom_plddt"] = np.repeat(values[:, None], 37, 1)
    page = Page(page_html(replace(prediction, chains=("A" * 8,), pae=None, **eight)))
    parts = [text for tag, text in page.texts if tag == "/svg" and "%" in text]
    assert [part.rsplit(": ")[1] for part in parts] == ["25 %"] * 4
    assert page.values("fill") == ["#0053D6", "#65CBF3", "#FFDB13", "#FF7D45"]


def test_what_was_not_computed_is_not_shown(prediction: Prediction):
    far = prediction.positions - 1234.5  # does not fit into the PDB format
    source = page_html(replace(prediction, pae=None, ptm=None, positions=far))
    assert 'id="pae"' not in source
    assert "pTM" not in {text for _, text in Page(source).texts}
    assert "pTM" in {text for _, text in Page(page_html(prediction)).texts}
    assert "too large for the PDB format" in source


def test_the_bundled_viewer_is_the_published_one_and_its_licence_travels(prediction: Prediction):
    published = "f7cc78921ae72e7623e89cdd111434f58c2efddd2ffda1cd212644b406fb8016"
    assert hashlib.sha256(asset("3Dmol-min.js").encode()).hexdigest() == published
    assert published in asset("README.md")
    source = page_html(prediction)
    assert f"<!--\n{asset('3Dmol-LICENSE.txt')}-->" in source
    assert "--" not in asset("3Dmol-LICENSE.txt")
    assert len(source.encode()) < 640_000


def test_every_asset_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["esmfold_peft.prediction"]
    for file in (files("esmfold_peft.prediction") / "assets").iterdir():
        assert any(fnmatch(f"assets/{file.name}", pattern) for pattern in patterns), file.name
