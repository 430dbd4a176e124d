"""Published weights from a server of this machine that answers as Hugging Face's does."""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from esmfold_peft.cli import main

NAME = "esm2_t6_8M_UR50D"
COMMIT = "0" * 40
CONFIG = b'{"hidden_size": 320}'
WEIGHTS = bytes(range(256)) * 20_000
TENSORS = "model.safetensors"


class Hub(ThreadingHTTPServer):
    """A repository with a config and weights.

    `claimed` is the SHA-256 that it publishes; `asked` has the ranges of the weights that it was
    asked for.
    """

    claimed = hashlib.sha256(WEIGHTS).hexdigest()
    asked: list[str | None]


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self):
        if self.path.startswith(f"/api/models/facebook/{NAME}?"):
            weights = {"size": len(WEIGHTS), "sha256": self.server.claimed, "pointerSize": 134}
            files = [
                {"rfilename": "config.json", "size": len(CONFIG)},
                {"rfilename": "pytorch_model.bin", "size": 1, "lfs": weights},
                {"rfilename": TENSORS, "size": len(WEIGHTS), "lfs": weights},
            ]
            content = {"id": f"facebook/{NAME}", "sha": COMMIT, "siblings": files}
            self._send(json.dumps(content | {"cardData": {"license": "mit"}}).encode())
        elif self.path.endswith("config.json"):
            self._send(CONFIG)
        elif self.path.endswith(TENSORS):
            asked = self.headers["Range"]
            self.server.asked.append(asked)
            self._send(WEIGHTS, int(re.findall(r"\d+", asked)[0]) if asked else 0)
        else:
            self.send_error(404)

    def _send(self, content: bytes, start: int = 0):
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[start:])

    def log_message(self, *_: object):
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub(("127.0.0.1", 0), Handler)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetch(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command, whose files go into the folder `weights`."""
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
    folder = str(tmp_path / "weights")
    return lambda name=NAME: main(["weights", "fetch", name, "--output", folder])


def test_weights_arrive_with_their_source_licence_and_hash(
    hub: Hub, fetch: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert fetch() == 0
    folder, printed = tmp_path / "weights", capsys.readouterr().out
    assert (folder / TENSORS).read_bytes() == WEIGHTS
    assert (folder / "config.json").read_bytes() == CONFIG
    assert not (folder / "pytorch_model.bin").exists()  # the same weights again
    assert f"source: http://127.0.0.1:{hub.server_port}/facebook/{NAME}\n" in printed
    assert "licence: mit\n" in printed
    assert f"{TENSORS}: SHA-256 {hub.claimed}, as published\n" in printed
    assert f"use: --model.language_model.weights {folder}\n" in printed


def test_an_interrupted_download_goes_on_where_it_was(
    hub: Hub, fetch: Callable[..., int], tmp_path: Path
):
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / f".{TENSORS}.part").write_bytes(WEIGHTS[:1_000_000])
    assert fetch() == 0
    assert hub.asked == ["bytes=1000000-"]
    assert (folder / TENSORS).read_bytes() == WEIGHTS


def test_what_is_there_is_checked_and_not_fetched_again(
    hub: Hub, fetch: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert fetch() == fetch() == 0
    assert hub.asked == [None]
    file = tmp_path / "weights" / TENSORS
    file.write_bytes(WEIGHTS[:-1] + b"x")
    capsys.readouterr()
    assert fetch() == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"esmfold-peft weights fetch: error: {file}: has SHA-256 ")
    assert hub.claimed in line
    assert not file.exists()
    assert fetch() == 0


def test_a_name_that_the_server_lacks_is_one_line(
    fetch: Callable[..., int], capsys: pytest.CaptureFixture[str]
):
    assert fetch("esm2_t12_35M_UR50D") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "HTTP 404" in line


def test_a_page_instead_of_an_answer_is_one_line(
    hub: Hub,
    fetch: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(json, "dumps", lambda _: "<html>")
    assert fetch() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("does not answer as Hugging Face does")


def test_an_unknown_name_is_one_line(
    hub: Hub, fetch: Callable[..., int], capsys: pytest.CaptureFixture[str]
):
    assert fetch("esm2_t7") == 2
    assert "esm2_t7" in capsys.readouterr().err
    assert hub.asked == []
