"""What a list of ids may hold, and wrong command lines (scripts/fetch_pdb.py)."""

import socket

import pytest


def test_ids_of_entries_and_chains_name_each_entry_once(script, tmp_path):
    listed = tmp_path / "ids.txt"
    listed.write_text(
        "# comment\n1ubq, 1UBQ_A\n\npdb_00001ubq 4HHB_AAA # more\r\npdb_10001abc_B,2cbp\n"
    )
    assert script("fetch_pdb").read_ids(listed) == ["1ubq", "4hhb", "pdb_10001abc", "2cbp"]


@pytest.mark.parametrize(
    "word", ["ubq1", "1ubq_", "1ubqA", "1ubq_ABCDE", "pdb_00000abc", "../1ubq", "1ubq.cif"]
)
def test_a_wrong_id_is_named_before_anything_is_fetched(fetch, server, capsys, tmp_path, word):
    assert fetch(f"1ubq\n\n{word}\n") == 2
    error = capsys.readouterr().err
    assert error == (
        f"fetch_pdb: error: {tmp_path}/ids.txt:3: {word!r} is not the id of a PDB entry or chain,"
        " such as 1ubq or 1ubq_A\n"
    )
    assert not server.requests
    assert not (tmp_path / "mmcif").exists()


def test_a_list_without_ids_is_an_error(fetch, capsys):
    assert fetch("# nothing\n") == 2
    assert "holds no ids" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        "--output o",
        "ids.txt --mirror --output o",
        "ids.txt --delete --output o",
        "ids.txt --output o --server ftp://host",
        "ids.txt --output o --server http://host:port",
        "ids.txt --output o --connections 0",
        "ids.txt --output o --timeout nan",
    ],
)
def test_a_wrong_command_line_is_one_line(script, capsys, wrong):
    with pytest.raises(SystemExit, match="2"):
        script("fetch_pdb").parse(wrong.split())
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert ": error: " in error


def test_a_server_that_nobody_answers_at_ends_the_command(script, tmp_path, capsys):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    (tmp_path / "ids.txt").write_text("1ubq 2cbp 4hhb\n")
    words = [str(tmp_path / "ids.txt"), "--output", str(tmp_path / "out"), "--server", url]
    assert script("fetch_pdb").main([*words, "--retries", "0"]) == 2
    assert "nothing was fetched" in capsys.readouterr().err
