"""`prepare` in a process of its own, which can be killed, and its sources."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from esmfold_peft.protein.read import read_structure
from esmfold_peft.protein.write import to_mmcif
from tests.preparation.conftest import contents

ROOT = Path(__file__).parents[2]
TABLES = ("manifest.csv", "rejected.csv", "report.json")
_MAIN = """
import esmfold_peft.commands.prepare as prepare
from esmfold_peft.cli import main
prepare._FILES_IN_A_UNIT = {files}
raise SystemExit(main())
"""


def command(*sources: Path, output: Path, workers: int = 1, files: int = 4) -> list[str]:
    """A run in units of a few files, so that there are many moments to be killed at."""
    options = ["--output", str(output), "--clusters", "none", "--workers", str(workers)]
    main = _MAIN.format(files=files)
    return [sys.executable, "-c", main, "prepare", *map(str, sources), *options]


def start(*args, **settings) -> subprocess.Popen:
    """Starts a run and its workers as a group of processes of their own."""
    return subprocess.Popen(
        command(*args, **settings),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finished(*args, **settings) -> str:
    """Runs to the end, which must be a good one; gives what it said."""
    run = start(*args, **settings)
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 0, said
    return said


def require_nobody_left(group: int, seconds: float = 120.0) -> None:
    """Waits until every process of a group has ended."""
    end = time.monotonic() + seconds
    while _members(group):
        assert time.monotonic() < end, f"processes {_members(group)} outlive the run"
        time.sleep(0.02)


def _members(group: int) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            state, _, pgid = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(pgid) == group and state != "Z":
            found.append(int(name))
    return found


def kill(run: subprocess.Popen) -> None:
    """Kills the main process alone, as the kernel or a user would."""
    run.send_signal(signal.SIGKILL)
    run.communicate()
    require_nobody_left(run.pid)


def same_store(one: Path, other: Path) -> bool:
    """Whether two stores have the same contents, byte by byte, and no other files."""
    return (
        contents(one) == contents(other)
        and all((one / name).read_bytes() == (other / name).read_bytes() for name in TABLES)
        and sorted(p.name for p in one.iterdir()) == sorted(p.name for p in other.iterdir())
    )


def many_entries(example: Path, number: int) -> dict[str, bytes]:
    """mmCIF files of the smallest chains under as many PDB codes."""
    files = sorted(example.glob("*/*.cif.gz"), key=lambda file: file.stat().st_size)[:8]
    texts = [to_mmcif(replace(read_structure(file), id="QQQQ")) for file in files]
    codes = [f"{1 + k // 1296}{_digit(k // 36)}{_digit(k)}x" for k in range(number)]
    return {
        f"{code}.cif": texts[k % len(texts)].replace("QQQQ", code).encode()
        for k, code in enumerate(codes)
    }


def _digit(number: int) -> str:
    return "0123456789abcdefghijklmnopqrstuvwxyz"[number % 36]
