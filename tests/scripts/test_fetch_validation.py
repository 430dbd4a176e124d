"""The list of chains to validate on, as CAMEO and RCSB answer (scripts/fetch_validation.py)."""

import json

import pytest

MONTHS = ["--from", "2022-08-01", "--to", "2022-10-31"]
TARGETS = "/modeling/targets/6-months/ajax/?to_date=2022-10-31"


@pytest.fixture
def listed(script, server, tmp_path):
    """Runs the script in this process and returns its exit code and what it wrote."""

    def run(*more: str) -> tuple[int, str | None]:
        output = tmp_path / "validation.txt"
        where = ["--output", str(output), "--server", server.url, "--data-server", server.url]
        given = [*where, "--retries", "1", "--pause", "0.01", *(more or MONTHS)]
        code = script("fetch_validation").main(given)
        return code, output.read_text() if output.exists() else None

    return run


def target(id: str, chain: str, date: str, length: int = 100) -> dict[str, object]:
    """A row as CAMEO's, less what is not read."""
    return {"pdbid": id, "pdbid_chain": chain, "date": date, "seq_length": length}


def answer(server, path: str, *contents: object) -> None:
    server.plan(path, *(server.page(json.dumps(content).encode()) for content in contents))


def ids(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_targets_in_the_dates_are_listed_once_and_sorted(listed, server, tmp_path):
    rows = [
        target("7Y3K", "A", "2022-10-22"),
        target("7ocj", "G", "2022-10-22"),
        target("7y3k", "A", "2022-10-22"),
        target("7wat", "B", "2022-10-31", 700),
        target("7sh1", "B", "2022-10-22", 701),
        target("7aaa", "A", "2022-07-30"),
        target("7bbb", "A", "2022-11-05"),
        target("7ccc", "aB", "2022-08-01"),
    ]
    answer(server, TARGETS, {"aaData": rows})
    code, text = listed()
    assert code == 0
    assert ids(text) == ["7ccc_aB", "7ocj_G", "7wat_B", "7y3k_A"]
    source, command = text.splitlines()[:2]
    assert source == (
        f"# CAMEO targets submitted from 2022-08-01 to 2022-10-31, source {server.url}"
    )
    assert command.startswith(f"# python scripts/fetch_validation.py --output {tmp_path}")


def test_fetch_pdb_reads_the_list(script, listed, server, tmp_path):
    answer(server, TARGETS, {"aaData": [target("7ocj", "G", "2022-10-22")]})
    listed()
    assert script("fetch_pdb").read_ids(tmp_path / "validation.txt") == ["7ocj"]


@pytest.mark.parametrize(
    ("begin", "period"),
    [
        ("2022-10-31", "1-week"),
        ("2022-10-24", "1-month"),
        ("2022-10-01", "3-months"),
        ("2021-11-02", "1-year"),
    ],
)
def test_the_shortest_period_is_asked_for(listed, server, begin, period):
    listed("--from", begin, "--to", "2022-10-31")
    path = f"/modeling/targets/{period}/ajax/?to_date=2022-10-31"
    assert [request.path for request in server.requests] == [path]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"<html>moved</html>", "the answer is not JSON but starts '<html>moved</html>'"),
        (b"", "the answer is not JSON but starts ''"),
        (b"[]", "no 'aaData' (list) in the answer"),
        (b'{"aaData": {}}', "no 'aaData' (list) in the answer"),
        (b'{"aaData": ["7ocj"]}', "target 1: no 'date' (str) in the answer"),
        (b'{"aaData": [{"date": "soon"}]}', "target 1: its date is 'soon'"),
        (b'{"aaData": [{"date": "2022-10-22"}]}', "target 1: no 'pdbid' (str) in the answer"),
        (b'{"aaData": []}', "no chains from 2022-08-01 to 2022-10-31"),
    ],
)
def test_an_answer_of_another_form_is_one_line(listed, server, capsys, body, reason):
    server.plan(TARGETS, server.page(body))
    assert listed() == (2, None)
    error = capsys.readouterr().err
    assert error.startswith(f"fetch_validation: error: {server.url}")
    assert error.endswith(f": {reason}\n")
    assert error.count("\n") == 1


def test_what_is_no_id_is_left_out_and_said(listed, server, capsys):
    rows = [target("7ocj", "G", "2022-10-22"), target("7ocj", "", "2022-10-22")]
    answer(server, TARGETS, {"aaData": rows})
    assert ids(listed()[1]) == ["7ocj_G"]
    assert capsys.readouterr().err == "skipped, because they are not ids of chains: 7ocj_\n"


def test_more_than_a_year_is_an_error(listed, server, capsys):
    assert listed("--from", "2021-01-01", "--to", "2022-10-31") == (2, None)
    assert "CAMEO's longest period is a year, this is 668 days" in capsys.readouterr().err
    assert not server.requests


def test_an_overloaded_server_is_asked_again_and_a_missing_page_is_not(listed, server, capsys):
    good = json.dumps({"aaData": [target("7ocj", "G", "2022-10-22")]}).encode()
    server.plan(TARGETS, server.status(503), server.page(good))
    assert ids(listed()[1]) == ["7ocj_G"]
    assert len(server.requests) == 2
    server.plan(TARGETS, server.status(404))
    assert listed()[0] == 2
    assert capsys.readouterr().err == (
        f"fetch_validation: error: {server.url}{TARGETS}: HTTP 404 Not Found\n"
    )


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (["--from", "2022-08-32", "--to", "2022-10-31"], "is no date such as 2022-08-01"),
        (["--from", "2022-08-02", "--to", "2022-08-01"], "is after --to 2022-08-01"),
    ],
)
def test_wrong_dates_are_one_line(listed, capsys, wrong, reason):
    with pytest.raises(SystemExit, match="2"):
        listed(*wrong)
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


# RCSB

QUERY, GRAPHQL = "/rcsbsearch/v2/query", "/graphql"
RCSB = [*MONTHS, "--source", "rcsb"]


def entity(id: str, *chains: str) -> dict[str, object]:
    names = {"auth_asym_ids": list(chains)}
    return {"rcsb_id": id, "rcsb_polymer_entity_container_identifiers": names}


def test_new_chains_have_the_authors_names(listed, server):
    hits = [{"identifier": id, "score": 1.0} for id in ("7Y3K_1", "7OCJ_2")]
    answer(server, QUERY, {"total_count": 2, "result_set": hits})
    entities = [entity("7Y3K_1", "A", "B"), entity("7OCJ_2", "G")]
    answer(server, GRAPHQL, {"data": {"polymer_entities": entities}})
    code, text = listed(*RCSB, "--identity", "30")
    assert (code, ids(text)) == (0, ["7ocj_G", "7y3k_A"])
    search, names = (json.loads(request.body) for request in server.requests)
    assert search["return_type"] == "polymer_entity"
    assert search["request_options"]["group_by"]["similarity_cutoff"] == 30
    dates = search["query"]["nodes"][0]["parameters"]
    assert dates["value"] == {
        "from": "2022-08-01",
        "to": "2022-10-31",
        "include_lower": True,
        "include_upper": True,
    }
    assert names["variables"] == {"ids": ["7Y3K_1", "7OCJ_2"]}


def test_many_chains_are_named_in_batches(listed, server):
    hits = [{"identifier": f"7{n:03}_1"} for n in range(250)]
    answer(server, QUERY, {"result_set": hits})
    batches = [hits[:100], hits[100:200], hits[200:]]
    answers = ([entity(hit["identifier"], "A") for hit in batch] for batch in batches)
    answer(server, GRAPHQL, *({"data": {"polymer_entities": batch}} for batch in answers))
    assert ids(listed(*RCSB)[1]) == [f"7{n:03}_A" for n in range(250)]
    assert len(server.asked(GRAPHQL)) == 3


def test_no_hits_are_an_error(listed, server, capsys):
    server.plan(QUERY, lambda handler: handler.reply(204))
    assert listed(*RCSB) == (2, None)
    assert capsys.readouterr().err == (
        f"fetch_validation: error: {server.url}: no chains from 2022-08-01 to 2022-10-31\n"
    )


@pytest.mark.parametrize("wrong", [{"errors": ["?"]}, {"data": {"polymer_entities": [None]}}])
def test_names_that_do_not_come_are_an_error(listed, server, capsys, wrong):
    answer(server, QUERY, {"result_set": [{"identifier": "7Y3K_1"}]})
    answer(server, GRAPHQL, wrong)
    assert listed(*RCSB) == (2, None)
    assert "/graphql: no '" in capsys.readouterr().err
