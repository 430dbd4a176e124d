"""A server on 127.0.0.1 that answers as it is told, faults included, and remembers requests."""

import importlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
MOST_REQUESTS = 200


class Handler(BaseHTTPRequestHandler):
    """Hands a request to the answer that is planned for it."""

    def do_GET(self):
        length = int(self.headers.get("Content-Length", 0))
        self.server.faulty.answer(self, self.rfile.read(length))

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_):
        pass

    def reply(self, status: int, body: bytes = b"", length: int | None = None, **headers: str):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def begin(self) -> int:
        """Where the range that is asked for begins."""
        return int(self.headers.get("Range", "bytes=0-")[len("bytes=") : -1])


Answer = Callable[[Handler], None]


@dataclass(frozen=True)
class Request:
    """What a client asked."""

    path: str
    range: str | None
    body: bytes


@dataclass
class FaultyServer:
    """Answers a path by the next of its plan, and by the last one from then on."""

    url: str
    plans: dict[str, list[Answer]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def plan(self, path: str, *answers: Answer) -> None:
        self.plans[path] = list(answers)

    def answer(self, handler: Handler, body: bytes) -> None:
        path, asked = handler.path, handler.headers.get("Range")
        self.requests.append(Request(path, asked, body))
        answers = self.plans.get(path)
        if answers is None or len(self.requests) > MOST_REQUESTS:
            handler.reply(404)
            return
        (answers.pop(0) if len(answers) > 1 else answers[0])(handler)

    def asked(self, path: str) -> list[str | None]:
        """The ranges of the requests for a path."""
        return [request.range for request in self.requests if request.path == path]

    def stalled(self, data: bytes, at: int) -> Answer:
        """Sends the beginning and then nothing."""

        def answer(handler: Handler) -> None:
            handler.reply(200, data[:at], len(data))
            self.closing.wait()

        return answer

    @staticmethod
    def whole(data: bytes) -> Answer:
        """Sends everything, or the range that is asked for."""

        def answer(handler: Handler) -> None:
            begin = handler.begin()
            if not begin:
                handler.reply(200, data)
            elif begin >= len(data):
                handler.reply(416)
            else:
                span = f"bytes {begin}-{len(data) - 1}/{len(data)}"
                handler.reply(206, data[begin:], Content_Range=span)

        return answer

    @staticmethod
    def page(data: bytes) -> Answer:
        """Sends the bytes as a success and knows no ranges."""
        return lambda handler: handler.reply(200, data)

    @staticmethod
    def cut(data: bytes, at: int) -> Answer:
        """Breaks off, though it announced more."""
        return lambda handler: handler.reply(200, data[:at], len(data))

    @staticmethod
    def status(code: int, **headers: str) -> Answer:
        """Refuses."""
        return lambda handler: handler.reply(code, b"sorry", **headers)


@pytest.fixture
def server(monkeypatch):
    """A running server; it and all its connections end with the test."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        http.faulty = FaultyServer(f"http://127.0.0.1:{http.server_port}")
        thread = threading.Thread(target=http.serve_forever, args=(0.02,))
        thread.start()
        yield http.faulty
        http.faulty.closing.set()
        http.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def script():
    """Imports a script by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module


@pytest.fixture(scope="session")
def structure(example) -> bytes:
    """A real file of the PDB."""
    return (example / "held_out" / "1ubq_A.cif.gz").read_bytes()


@pytest.fixture
def output(tmp_path) -> Path:
    """The folder that `fetch` fills."""
    folder = tmp_path / "mmcif"
    folder.mkdir()
    return folder


@pytest.fixture
def words(server, tmp_path):
    """The command line of fetch_pdb.py for a list of ids and more flags."""

    def line(ids: str, *more: str) -> list[str]:
        listed = tmp_path / "ids.txt"
        listed.write_text(ids)
        patient = "--retries 3 --pause 0.01 --timeout 60 --connections 2".split()
        where = ["--output", str(tmp_path / "mmcif"), "--server", server.url]
        return [str(listed), *where, *patient, *more]

    return line


@pytest.fixture
def pauses(script, monkeypatch) -> list[float]:
    """The seconds that every retry would wait, which here take none."""
    found: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            found.append(timeout)
            return self.is_set()

    monkeypatch.setattr(script("fetch_pdb"), "Event", Stop)
    return found


@pytest.fixture
def fetch(script, words):
    """Runs fetch_pdb.py in this process and returns the exit code."""

    def run(ids: str = "1ubq", *more: str) -> int:
        return script("fetch_pdb").main(words(ids, *more))

    return run
