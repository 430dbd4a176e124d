"""Commands in processes of their own that start at once: forks of one that has imported all.

A command that is started afresh imports PyTorch and Lightning for several seconds. The tests that
kill trainings start dozens.
"""

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).parents[1]


@dataclass
class Started:
    """A command that runs.

    Attributes:
        nursery: its parent.
        pid: its number.
        log: what it prints.
    """

    nursery: "Nursery"
    pid: int
    log: Path

    def wait(self, seconds: float = 240) -> int:
        """Its exit code, or minus the signal that ended it."""
        deadline = time.monotonic() + seconds
        while (code := self.nursery.ask(poll=self.pid)["code"]) is None:
            assert time.monotonic() < deadline, self.printed()
            time.sleep(0.02)
        return code

    def running(self) -> bool:
        return self.nursery.ask(poll=self.pid)["code"] is None

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal to it and its workers."""
        os.killpg(self.pid, number)

    def send(self, number: int) -> None:
        """Sends a signal to it alone."""
        os.kill(self.pid, number)

    def printed(self) -> str:
        return self.log.read_text(errors="replace")


class Nursery:
    """The parent of commands."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.nursery"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def start(
        self, *arguments: object, before: str = "", environment: dict[str, str] | None = None
    ) -> Started:
        """Starts `esmfold-peft` with arguments.

        Args:
            arguments: of the command line.
            before: Python source that runs in the process before the command.
            environment: variables besides.
        """
        self._count += 1
        log = self._folder / f"{self._count}.log"
        words = [str(argument) for argument in arguments]
        answer = self.ask(
            arguments=words, before=before, environment=environment or {}, log=str(log)
        )
        return Started(self, answer["pid"], log)

    def run(self, *arguments: object, code: int = 0, **options) -> str:
        """Runs a command, which must end with an exit code; gives what it printed."""
        started = self.start(*arguments, **options)
        found = started.wait()
        assert found == code, f"exit code {found}\n{started.printed()}"
        return started.printed()

    def ask(self, **question) -> dict:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(question) + "\n")
        self._server.stdin.flush()
        ready, _, _ = select.select([self._server.stdout], [], [], 120)
        assert ready, "no answer"
        return json.loads(self._server.stdout.readline())

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.communicate(timeout=30)


@cache
def nursery() -> Nursery:
    """The nursery of this process of pytest."""
    folder = tempfile.TemporaryDirectory()
    made = Nursery(Path(folder.name))
    atexit.register(folder.cleanup)
    atexit.register(made.close)
    return made


def serve() -> None:
    """Answers the questions of a nursery."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # some packages print while they are imported
        _serve(answers)


def _serve(answers: TextIO) -> None:
    import openfold3.core.model.latent.evoformer  # noqa: F401

    import esmfold_peft.commands.evaluate
    import esmfold_peft.commands.predict
    import esmfold_peft.commands.prepare
    import esmfold_peft.commands.train  # noqa: F401

    codes: dict[int, int] = {}
    for line in sys.stdin:
        question = json.loads(line)
        if "poll" in question:
            pid = question["poll"]
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
            answer = {"code": codes.get(pid)}
        else:
            pid = os.fork()
            if not pid:
                _child(**question)
            answer = {"pid": pid}
        print(json.dumps(answer), file=answers, flush=True)


def _child(arguments: list[str], before: str, environment: dict[str, str], log: str) -> None:
    code = 70
    try:
        os.setpgid(0, 0)
        file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for stream, descriptor in ((0, nothing), (1, file), (2, file)):
            os.dup2(descriptor, stream)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.update(environment)
        sys.modules[
            "__main__"
        ].__spec__ = None  # Lightning would start further processes by its name
        sys.argv = [str(ROOT / "esmfold_peft" / "__main__.py"), *arguments]
        exec(before, {})
        from esmfold_peft.cli import main

        code = main(arguments)
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
