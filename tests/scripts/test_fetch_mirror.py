"""The whole archive by rsync, from a folder and from a daemon (scripts/fetch_pdb.py)."""

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

needs_rsync = pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync")


@pytest.fixture
def archive(tmp_path, structure) -> Path:
    folder = tmp_path / "archive"
    for name in ("ub/1ubq.cif.gz", "cb/2cbp.cif.gz"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(structure)
    (folder / "ub" / "index.html").write_text("not a structure")
    return folder


def entries(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@needs_rsync
def test_a_mirror_keeps_what_left_the_archive_unless_told(script, archive, tmp_path, capsys):
    output = tmp_path / "mirror"
    command = ["--mirror", "--output", str(output), "--server", str(archive)]
    assert script("fetch_pdb").main(command) == 0
    assert entries(output) == ["cb/2cbp.cif.gz", "ub/1ubq.cif.gz"]
    said = capsys.readouterr()
    assert said.out == f"{output} is up to date\n"
    assert said.err.startswith("rsync --recursive --links --times --partial-dir=.rsync-partial")
    (archive / "cb/2cbp.cif.gz").unlink()
    (output / "mine.txt").write_text("kept")
    assert script("fetch_pdb").main(command) == 0
    assert entries(output) == ["cb/2cbp.cif.gz", "mine.txt", "ub/1ubq.cif.gz"]
    assert script("fetch_pdb").main([*command, "--delete"]) == 0
    assert entries(output) == ["mine.txt", "ub/1ubq.cif.gz"]


@needs_rsync
def test_a_mirror_comes_from_a_daemon(script, archive, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = tmp_path / "rsyncd.conf"
    owner = f"uid = {os.getuid()}\ngid = {os.getgid()}\n" if os.getuid() == 0 else ""
    settings.write_text(f"{owner}use chroot = no\n[ftp_data]\npath = {archive.parent}\n")
    daemon = ["rsync", "--daemon", "--no-detach", "--address=127.0.0.1", f"--port={port}"]
    with subprocess.Popen([*daemon, f"--config={settings}", "--log-file=/dev/null"]) as running:
        url = f"rsync://127.0.0.1:{port}/ftp_data/archive"
        command = ["--mirror", "--output", str(tmp_path / "mirror"), "--server", url]
        try:  # retries wait for the daemon
            assert script("fetch_pdb").main([*command, "--pause", "0.2"]) == 0
        finally:
            running.terminate()
    assert entries(tmp_path / "mirror") == ["cb/2cbp.cif.gz", "ub/1ubq.cif.gz"]


@needs_rsync
def test_a_mirror_without_a_server_fails(script, tmp_path, capfd):
    url = f"{tmp_path}/nothing"
    command = ["--mirror", "--output", str(tmp_path / "mirror"), "--server", url]
    assert script("fetch_pdb").main(command) == 1
    assert "rsync ended with code 23" in capfd.readouterr().err


def test_a_mirror_says_that_rsync_is_missing(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert script("fetch_pdb").main(["--mirror", "--output", str(tmp_path / "mirror")]) == 2
    error = capsys.readouterr().err
    assert error == (
        "fetch_pdb: error: rsync is not installed (apt install rsync, or conda-forge's rsync)\n"
    )
