"""What README and docs/ name exists, and their commands are read by the program."""

import re
import shlex
from pathlib import Path

import pytest

from esmfold_peft.cli import parse

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


def documented_commands() -> list[str]:
    """Every line of the pages' code blocks that calls the program, continuations joined."""
    texts = ((ROOT / page).read_text().replace("\\\n", " ") for page in PAGES)
    blocks = [
        block
        for text in texts
        for block in re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    ]
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    calls = [re.sub(r"^.*?esmfold-peft", "esmfold-peft", x) for x in lines if "esmfold-peft " in x]
    return list(dict.fromkeys(calls))


@pytest.mark.parametrize("command", documented_commands())
def test_every_documented_command_parses(command: str, monkeypatch):
    monkeypatch.chdir(ROOT)
    parse(shlex.split(command, comments=True)[1:])


def test_the_pages_have_commands():
    assert len(documented_commands()) >= 40


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
