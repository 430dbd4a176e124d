"""Published weights from Hugging Face, checked and ready to be named as `weights`."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from esmfold_peft.adapters.base import size_of
from esmfold_peft.console import watched_bytes
from esmfold_peft.disk.downloads import Patience, UnavailableError, fetch_bytes, fetch_file
from esmfold_peft.disk.files import make_folder
from esmfold_peft.errors import UserError

ESMFOLD = "esmfold_v1"
_SERVER = "https://huggingface.co"
_PATIENCE = Patience(retries=5, pause=1.0, timeout=60.0)
_INDEX = ".index.json"
"""End of the file that says which tensors are in which part of weights in several files."""


@dataclass(frozen=True)
class Fetched:
    """Weights in a folder.

    Attributes:
        source: address of their page.
        licence: as that page states it; None where it does not.
        hashes: SHA-256 of each file that has one there.
    """

    source: str
    licence: str | None
    hashes: dict[str, str]


def fetch_weights(name: str, folder: Path) -> Fetched:
    """Downloads weights and compares their SHA-256 with the published one.

    A second call resumes a download that was interrupted. Files that are there are only checked.
    The environment variable HF_ENDPOINT names another server, as for Hugging Face's own programs.

    Args:
        name: official name of an ESM-2, or esmfold_v1.
        folder: receives config.json and the weights, as safetensors where these are published.

    Raises:
        UserError: the name is unknown, the download fails, or a file is not the published one; it
            is then deleted.
    """
    if name != ESMFOLD:
        size_of(name)
    server = os.environ.get("HF_ENDPOINT", _SERVER).rstrip("/")
    source = f"{server}/facebook/{name}"
    address = f"{server}/api/models/facebook/{name}?blobs=true"
    try:
        found = json.loads(fetch_bytes(address, _PATIENCE))
        files = {file["rfilename"]: file for file in found["siblings"]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{address}: does not answer as Hugging Face does") from error
    kind = ".safetensors" if any(file.endswith(".safetensors") for file in files) else ".bin"
    wanted = [file for file in files if file.endswith(("config.json", kind, kind + _INDEX))]
    make_folder(folder)
    for file in wanted:
        if not (folder / file).exists():
            _fetch(f"{source}/resolve/{found['sha']}/{file}", folder / file, files[file]["size"])
    hashes = {f: files[f]["lfs"]["sha256"] for f in wanted if files[f].get("lfs")}
    for file, published in hashes.items():
        _check(folder / file, published, source)
    return Fetched(source, (found.get("cardData") or {}).get("license"), hashes)


def _fetch(url: str, path: Path, size: int) -> None:
    with watched_bytes(path.name, size) as received:
        try:
            fetch_file(url, path, _PATIENCE, Event(), received=received)
        except UnavailableError as error:
            raise UserError(f"{url}: {error}; give the same command again to resume") from error


def _check(path: Path, published: str, source: str) -> None:
    with path.open("rb") as content:
        own = hashlib.file_digest(content, "sha256").hexdigest()
    if own != published:
        path.unlink()
        raise UserError(
            f"{path}: has SHA-256 {own}, and {source} publishes {published}; the file was deleted;"
            " give the same command again"
        )
