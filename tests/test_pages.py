"""What README and docs/ name exists, and their commands are read by the program."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from esmfold_peft.cli import parse

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[str]:
    """The pages' code blocks in a language, continued lines joined."""
    texts = ((ROOT / page).read_text().replace("\\\n", " ") for page in PAGES)
    pattern = re.compile(rf"^```{language}\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
    return [block for text in texts for block in pattern.findall(text)]


def documented_commands() -> list[str]:
    """Every line of the pages' code blocks that calls the program."""
    lines = [line.strip() for block in blocks("sh") for line in block.splitlines()]
    calls = [re.sub(r"^.*?esmfold-peft", "esmfold-peft", x) for x in lines if "esmfold-peft " in x]
    return list(dict.fromkeys(calls))


def documented_scripts() -> list[tuple[str, list[str]]]:
    """Every Python script that a code block calls, with its flags."""
    lines = [line.partition("#")[0] for block in blocks("sh") for line in block.splitlines()]
    found = [re.search(r"python (scripts/\S+\.py)(.*)", line) for line in lines]
    return [(m[1], re.findall(r"(?<=\s)--[\w-]+", m[2])) for m in found if m]


@pytest.mark.parametrize("command", documented_commands())
def test_every_documented_command_parses(command: str, monkeypatch):
    monkeypatch.chdir(ROOT)
    parse(shlex.split(command, comments=True)[1:])


def test_the_pages_have_commands():
    assert len(documented_commands()) >= 40
    assert len(documented_scripts()) >= 5


@pytest.mark.parametrize(("script", "flags"), documented_scripts())
def test_a_documented_script_has_its_flags(script: str, flags: list[str]):
    # Scripts of one folder share their flags.
    texts = [path.read_text() for path in (ROOT / script).parent.glob("*.py")]
    code = (ROOT / script).read_text() + "".join(t for t in texts if "def command_line" in t)
    assert [flag for flag in flags if f'"{flag}"' not in code] == []


@pytest.mark.parametrize("snippet", blocks("python"))
def test_a_documented_snippet_runs(snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With the shipped model in the place of the reader's."""
    shutil.copytree(ROOT / "data" / "nano", tmp_path / "data" / "nano")
    shutil.copytree(ROOT / "data" / "nano", tmp_path / "runs")
    (tmp_path / "runs" / "base").rename(tmp_path / "runs" / "lorta_r8")
    monkeypatch.chdir(tmp_path)
    exec(snippet, {})
    assert list(tmp_path.glob("*/*.pdb"))


def paths_of(page: str) -> set[str]:
    """Every file and folder of the project that a page names; * stands for several."""
    folders = r"(?<![\w/])(?:configs|docs|esmfold_peft|scripts|tests)/[\w./*-]*[\w*](?![\w<])"
    return set(re.findall(folders, (ROOT / page).read_text()))


@pytest.mark.parametrize("page", PAGES)
def test_every_path_that_a_page_names_exists(page: str):
    assert [path for path in paths_of(page) if not any(ROOT.glob(path))] == []


def test_the_pages_name_paths():
    assert len(paths_of("README.md")) > 10
    assert len(paths_of("docs/develop.md")) > 10
