"""HTML files that need no other file: escaped text, embedded data, a strict policy."""

import base64
import hashlib
import html
import json
import unicodedata
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import quote

_UNSEEN = {"Cc", "Cs"}
"""Unicode categories that no page can show: control characters and halves of surrogate pairs."""
_REORDERING = {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}
"""Characters that change the direction of the text after them."""


@cache
def asset(name: str) -> str:
    """The text of a file of `assets/`, its line ends unchanged."""
    return (files("esmfold_peft.prediction") / "assets" / name).read_bytes().decode()


def escaped(text: str) -> str:
    """Text as HTML shows it, in elements and in quoted attributes.

    A tab becomes a space; other control characters, lone surrogates (bytes of a FASTA that are not
    UTF-8, which could not be written) and characters that change the direction become U+FFFD.
    """
    shown = (
        "\ufffd" if unicodedata.category(letter) in _UNSEEN or letter in _REORDERING else letter
        for letter in text.replace("\t", " ")
    )
    return html.escape("".join(shown))


def link(name: str) -> str:
    """Address of a file next to the page; a name cannot become another scheme or folder."""
    return f"./{quote(name, safe='')}"


def data_block(data: Any) -> str:
    """A script element that holds JSON and is not run; nothing in the data can end it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="data">{text}</script>'


def document(title: str, body: str, scripts: Sequence[str]) -> str:
    """A whole page that may run these scripts in this order, and load or send nothing.

    The policy names the scripts and the style by their hashes: even if text of a user came through
    unescaped, the browser would not run it. `title` is not yet escaped; `body` is HTML.
    """
    style = asset("page.css")
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_hash_source, scripts))};"
        f" style-src {_hash_source(style)}; img-src data:; base-uri 'none'; form-action 'none'"
    )
    content = "\n".join((body, *(f"<script>{script}</script>" for script in scripts)))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escaped(title)}</title>
<style>{style}</style>
</head>
<body>
{content}
</body>
</html>
"""


def closed(*parts: str) -> str:
    """Several files of JavaScript as one strict scope."""
    return "(() => {\n'use strict';\n" + "\n".join(parts) + "})();"


def _hash_source(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
