"""A full disk, a second command, a killed one, Ctrl-C (scripts/fetch_pdb.py)."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "fetch_pdb.py"
PATH = "/1ubq.cif.gz"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def wait_for(condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def start(words: list[str]) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, str(SCRIPT), *words], **pipes)


def test_a_full_disk_ends_the_command_with_one_line(fetch, server, output, structure, capsys):
    (output / ".1ubq.cif.gz.part").symlink_to("/dev/full")
    server.plan(PATH, server.whole(structure))
    assert fetch("1ubq 2cbp 4hhb") == 2
    error = capsys.readouterr().err
    assert error == f"fetch_pdb: error: {output}/.1ubq.cif.gz.part: No space left on device\n"


def test_a_second_command_on_the_same_folder_is_refused(fetch, server, output, capsys):
    handle = os.open(output, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert fetch() == 2
    os.close(handle)
    assert "another fetch_pdb is writing to it" in capsys.readouterr().err
    assert not server.requests


def test_a_killed_command_resumes_with_the_missing_files(server, words, output, structure):
    for id in ("1aaa", "1bbb"):
        server.plan(f"/{id}.cif.gz", server.whole(structure))
    server.plan("/1ccc.cif.gz", server.stalled(structure, 4000), server.whole(structure))
    running = start(words("1aaa 1bbb 1ccc", "--connections", "1", "--timeout", "60"))
    part = output / ".1ccc.cif.gz.part"
    wait_for(lambda: part.exists() and part.stat().st_size == 4000)
    running.kill()
    running.communicate()
    assert names(output) == [part.name, "1aaa.cif.gz", "1bbb.cif.gz"]
    again = start(words("1aaa 1bbb 1ccc"))
    said, error = again.communicate(timeout=120)
    assert (again.returncode, said, error) == (0, "1 fetched, 2 already there, 0 failed\n", "")
    assert server.asked("/1aaa.cif.gz") == server.asked("/1bbb.cif.gz") == [None]
    assert server.asked("/1ccc.cif.gz") == [None, "bytes=4000-"]
    assert (output / "1ccc.cif.gz").read_bytes() == structure


def test_ctrl_c_stops_at_once_with_one_line(server, words, output, structure):
    # The connection would wait for another byte longer than this test waits for the end.
    server.plan(PATH, server.stalled(structure, 10))
    running = start(words("1ubq", "--timeout", "600"))
    part = output / ".1ubq.cif.gz.part"
    wait_for(lambda: part.exists() and part.stat().st_size == 10)
    running.send_signal(signal.SIGINT)
    _, error = running.communicate(timeout=120)
    assert running.returncode == 130
    assert error == "fetch_pdb: stopped; run the same command again to resume\n"
