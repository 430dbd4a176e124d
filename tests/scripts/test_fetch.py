"""Fetching from a server that breaks off, stalls, lies and refuses (scripts/fetch_pdb.py)."""

import csv
import gzip
import socket
import threading
import time
from pathlib import Path

import pytest

from esmfold_peft.disk import downloads

PATH = "/1ubq.cif.gz"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def failures(output: Path) -> dict[str, str]:
    with (output / "failed.csv").open() as file:
        return {row["id"]: row["reason"] for row in csv.DictReader(file)}


def test_files_arrive_byte_for_byte_and_are_then_trusted(fetch, server, output, structure, capsys):
    for id in ("1ubq", "2cbp", "4hhb"):
        server.plan(f"/{id}.cif.gz", server.whole(structure))
    assert fetch("1ubq 2CBP_A 4hhb") == 0
    assert names(output) == ["1ubq.cif.gz", "2cbp.cif.gz", "4hhb.cif.gz"]
    assert (output / "2cbp.cif.gz").read_bytes() == structure
    assert fetch("1ubq 2CBP_A 4hhb") == 0
    assert len(server.requests) == 3
    said = capsys.readouterr().out
    assert said == ("3 fetched, 0 already there, 0 failed\n0 fetched, 3 already there, 0 failed\n")


def test_a_broken_transfer_goes_on_where_it_ended(fetch, server, output, structure):
    server.plan(PATH, server.cut(structure, 3000), server.whole(structure))
    assert fetch() == 0
    assert server.asked(PATH) == [None, "bytes=3000-"]
    assert (output / "1ubq.cif.gz").read_bytes() == structure
    assert names(output) == ["1ubq.cif.gz"]


def test_a_server_without_ranges_begins_anew(fetch, server, output, structure):
    server.plan(PATH, server.cut(structure, 3000), server.page(structure))
    assert fetch() == 0
    assert server.asked(PATH) == [None, "bytes=3000-"]
    assert (output / "1ubq.cif.gz").read_bytes() == structure


@pytest.mark.parametrize("status", [206, 416])
def test_a_refused_or_another_range_begins_anew_at_once(fetch, server, output, structure, status):
    (output / ".1ubq.cif.gz.part").write_bytes(structure[:50])

    def refuse(handler):
        handler.reply(status, b"x", Content_Range="bytes 7-7/100")

    server.plan(PATH, refuse, server.whole(structure))
    assert fetch("1ubq", "--retries", "0") == 0
    assert server.asked(PATH) == ["bytes=50-", None]
    assert (output / "1ubq.cif.gz").read_bytes() == structure


def test_the_rest_of_another_file_is_thrown_away(fetch, server, output, structure):
    (output / ".1ubq.cif.gz.part").write_bytes(b"\x1f\x8b" + bytes(500))
    server.plan(PATH, server.whole(structure))
    assert fetch() == 0
    assert server.asked(PATH) == ["bytes=502-", None]
    assert (output / "1ubq.cif.gz").read_bytes() == structure


def test_a_length_that_the_body_never_has_is_a_failure(fetch, server, output, structure):
    server.plan(PATH, lambda handler: handler.reply(200, structure, len(structure) + 9))
    assert fetch() == 1
    size = len(structure)
    assert failures(output) == {
        "1ubq": f"the connection ended after {size} of {size + 9} bytes (attempts: 4)"
    }
    assert not (output / "1ubq.cif.gz").exists()


def test_without_a_length_the_checksum_decides(fetch, server, output, structure):
    def endless(handler, data):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(data)

    server.plan(PATH, lambda h: endless(h, structure[:-9]), lambda h: endless(h, structure))
    assert fetch() == 0
    assert (output / "1ubq.cif.gz").read_bytes() == structure
    assert server.asked(PATH) == [None, None]


def test_damaged_data_are_fetched_once_more(fetch, server, output, structure):
    damaged = bytearray(structure)
    damaged[len(damaged) // 2] ^= 0xFF
    server.plan(PATH, server.whole(bytes(damaged)), server.whole(structure))
    assert fetch() == 0
    assert (output / "1ubq.cif.gz").read_bytes() == structure
    assert server.asked(PATH) == [None, None]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"<html>maintenance</html>", "not a whole gzip file (Not a gzipped file (b'<h'))"),
        (gzip.compress(b"<html></html>", mtime=0), "not an mmCIF file (no data_ at its start)"),
        (b"", "not an mmCIF file (no data_ at its start)"),
    ],
)
def test_a_page_in_place_of_a_file_is_a_failure(fetch, server, output, body, reason):
    server.plan(PATH, server.page(body))
    assert fetch() == 1
    assert failures(output) == {"1ubq": f"{reason} (attempts: 4)"}
    assert names(output) == ["failed.csv"]


def test_comments_may_come_before_the_data(fetch, server, output):
    data = gzip.compress(b"# a file\n#\n\ndata_1UBQ\n", mtime=0)
    server.plan(PATH, server.whole(data))
    assert fetch() == 0
    assert (output / "1ubq.cif.gz").read_bytes() == data


def test_what_is_missing_is_asked_for_once_and_listed_after_the_others(
    fetch, server, output, structure, capsys
):
    server.plan(PATH, server.whole(structure))
    assert fetch("9xyz 1ubq 8xyz") == 1
    assert failures(output) == {"8xyz": "HTTP 404 Not Found", "9xyz": "HTTP 404 Not Found"}
    assert len(server.requests) == 3
    assert names(output) == ["1ubq.cif.gz", "failed.csv"]
    assert capsys.readouterr().out == (
        f"1 fetched, 0 already there, 2 failed ({output}/failed.csv)\n"
    )
    assert fetch("1ubq") == 0
    assert names(output) == ["1ubq.cif.gz"]  # without the old list of failures


def test_an_overloaded_server_is_asked_again(fetch, server, structure):
    busy = server.status(503)
    server.plan(PATH, busy, busy, server.whole(structure))
    assert fetch() == 0
    assert len(server.requests) == 3


def test_retries_and_pauses_have_an_end(fetch, server, output, pauses):
    server.plan(PATH, server.status(500))
    assert fetch("1ubq", "--retries", "2", "--pause", "0.1") == 1
    assert failures(output) == {"1ubq": "HTTP 500 Internal Server Error (attempts: 3)"}
    assert len(server.requests) == 3
    assert pauses == [0.1, 0.2]


def in_an_hour() -> str:
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 3600))


@pytest.mark.parametrize(
    ("value", "seconds"), [(lambda: "1", 1), (in_an_hour, 3600)], ids=["seconds", "date"]
)
def test_retry_after_is_honoured(
    fetch, script, server, structure, pauses, monkeypatch, value, seconds
):
    monkeypatch.setattr(downloads, "LONGEST_PAUSE", 86400)
    server.plan(PATH, server.status(429, Retry_After=value()), server.whole(structure))
    assert fetch() == 0
    assert len(server.requests) == 2
    assert pauses == pytest.approx([seconds], rel=0.1)  # some pass before a date is read


def test_a_pause_takes_its_time():
    began, tried = time.monotonic(), []

    def attempt() -> None:
        tried.append(time.monotonic() - began)
        if len(tried) == 1:
            raise downloads.TransientError("busy")

    patience = downloads.Patience(retries=1, pause=0.2, timeout=1.0)
    downloads.persistently(attempt, patience, threading.Event())
    assert tried[1] >= 0.2


def test_retry_after_is_bounded(fetch, server, structure, pauses):
    server.plan(PATH, server.status(429, Retry_After="86400"), server.whole(structure))
    assert fetch() == 0
    assert pauses == [120]


def test_a_stalled_connection_is_given_up_and_resumed(fetch, server, output, structure):
    stalled, whole = server.stalled(structure, 2000), server.whole(structure)
    server.plan(PATH, lambda handler: (whole if handler.begin() else stalled)(handler))
    # On a busy machine the beginning may take longer than a second, and is asked for again.
    assert fetch("1ubq", "--timeout", "1", "--retries", "20") == 0
    asked = server.asked(PATH)
    assert asked[0] is None
    assert asked[-1] == "bytes=2000-"
    assert set(asked) == {None, "bytes=2000-"}
    assert (output / "1ubq.cif.gz").read_bytes() == structure


def test_a_server_that_is_not_there_ends_the_command_early(fetch, server, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server.url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    ids = " ".join(f"{n}abc" for n in range(1, 10))
    assert fetch(ids, "--retries", "1") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"fetch_pdb: error: {server.url}: [Errno 111] Connection refused")
    assert error.count("\n") == 1
