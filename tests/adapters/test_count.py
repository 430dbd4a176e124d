"""Parameter counts: the table of the methods on ESM-2, and the LoRTA paper's Table 1."""

import csv
import io
import json

import pytest

from esmfold_peft.adapters.base import SIZES
from esmfold_peft.adapters.insert import ADAPTERS, count
from esmfold_peft.adapters.table1 import shortened, table1
from esmfold_peft.cli import main
from esmfold_peft.config import AdapterConfig
from esmfold_peft.config.adapter import WITHOUT_RANK

NAMES = ("35M", "150M", "650M", "3B")
SHAPES = {name.split("_")[2]: shape for name, shape in SIZES.items()}
QKVP = ("query", "key", "value", "output")
ALL = (*QKVP, "fc1", "fc2")
RANKS = (1, 8, 64)


def trainable(name, kind, targets=QKVP, **settings):
    return count(SHAPES[name], AdapterConfig(kind=kind, targets=targets, **settings)).trainable


# For each model of NAMES the counts at RANKS, with query, key, value and output adapted.
BY_RANK = {
    "lorta": (
        (540, 4_320, 34_560),
        (726, 5_808, 46_464),
        (1_401, 11_208, 89_664),
        (2_704, 21_632, 173_056),
    ),
    "lora": (
        (46_080, 368_640, 2_949_120),
        (153_600, 1_228_800, 9_830_400),
        (337_920, 2_703_360, 21_626_880),
        (737_280, 5_898_240, 47_185_920),
    ),
    "lora_fa": (
        (23_040, 184_320, 1_474_560),
        (76_800, 614_400, 4_915_200),
        (168_960, 1_351_680, 10_813_440),
        (368_640, 2_949_120, 23_592_960),
    ),
    "lotr": (
        (1_008, 10_752, 258_048),
        (1_400, 17_920, 573_440),
        (2_692, 28_928, 704_512),
        (5_264, 50_176, 917_504),
    ),
    "fact_tt": (
        (1_008, 10_752, 258_048),
        (1_400, 17_920, 573_440),
        (2_692, 28_928, 704_512),
        (5_264, 50_176, 917_504),
    ),
    "fact_tk": (
        (1_009, 8_576, 326_656),
        (1_401, 11_712, 351_744),
        (2_693, 22_048, 434_432),
        (5_265, 42_624, 599_040),
    ),
    "loretta_rep": (
        (26_880, 42_240, 69_120),
        (69_600, 117_600, 184_800),
        (97_680, 150_480, 224_400),
        (152_640, 221_760, 302_400),
    ),
    "tt_lora": (
        (2_304, 93_696, 2_860_416),
        (6_240, 264_960, 9_117_120),
        (8_976, 337_920, 11_421_696),
        (12_096, 516_096, 16_588_800),
    ),
    "vera": (
        (23_088, 23_424, 26_112),
        (76_920, 77_760, 84_480),
        (169_092, 170_016, 177_408),
        (368_784, 369_792, 377_856),
    ),
}


@pytest.mark.parametrize("kind", BY_RANK)
def test_every_number_of_the_table(kind):
    found = tuple(tuple(trainable(n, kind, rank=r) for r in RANKS) for n in NAMES)
    assert found == BY_RANK[kind]


def test_loretta_adp_behind_attention_and_feed_forward():
    found = tuple(
        tuple(trainable(n, "loretta_adp", ("output", "fc2"), rank=r) for r in RANKS) for n in NAMES
    )
    assert found == (
        (24_984, 32_832, 47_616),
        (73_260, 97_680, 134_640),
        (133_386, 160_248, 200_904),
        (260_712, 295_776, 340_128),
    )


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("tt_lora", {"rank": 5}, (38_400, 108_000, 139_920, 210_240)),
        ("vera", {"rank": 256}, (35_328, 107_520, 202_752, 405_504)),
        ("nola", {"bases": 1}, (96, 240, 264, 288)),
        ("nola", {"bases": 8}, (768, 1_920, 2_112, 2_304)),
        ("nola", {"bases": 64}, (6_144, 15_360, 16_896, 18_432)),
        ("nola", {"bases": 1024}, (98_304, 245_760, 270_336, 294_912)),
        ("nola", {"bases": 64, "rank": 8}, (6_144, 15_360, 16_896, 18_432)),
        ("ia3", {}, (23_040, 76_800, 168_960, 368_640)),
        ("ia3", {"targets": ("key", "value", "fc2")}, (34_560, 115_200, 253_440, 552_960)),
        ("bitfit", {}, (23_040, 76_800, 168_960, 368_640)),
        ("bitfit", {"targets": ALL, "norms": True}, (63_360, 211_200, 464_640, 1_013_760)),
    ],
)
def test_numbers_of_special_settings(kind, settings, expected):
    assert tuple(trainable(name, kind, **settings) for name in NAMES) == expected


def test_frozen_numbers_are_those_kept_with_the_adapter():
    def frozen(kind, **settings):
        return count(SHAPES["35M"], AdapterConfig(kind=kind, targets=QKVP, **settings)).frozen

    assert frozen("vera", rank=256) == 2 * 480 * 256
    assert frozen("nola", rank=8, bases=64) == 480 * 8 + 2 * 64 * 480 * 8
    assert frozen("lora_fa", rank=8) == 12 * 4 * 480 * 8
    others = [kind for kind in ADAPTERS if kind not in ("vera", "nola", "lora_fa")]
    assert [frozen(kind, rank=2) for kind in others] == [0] * len(others)


def test_nothing_is_allocated():
    # Eight terabytes of LoRA.
    config = AdapterConfig(kind="lora", rank=1_000_000, targets=QKVP)
    assert count(SHAPES["15B"], config).trainable == 2 * 4 * 48 * 5120 * 1_000_000


def test_table_1_is_reproduced_but_for_one_number():
    rows = {(row.method, row.rank): row for row in table1()}
    assert {key: (row.value, row.printed) for key, row in rows.items()} == {
        ("LoRA", 4): (2_097_152, "2.1M"),
        ("LoRA", 64): (33_554_432, "33M"),
        ("LoReTTA", 4): (30_720, "92k"),
        ("LoReTTA", 64): (50_331_648, "50M"),
        ("LoTR", 4): (33_792, "33k"),
        ("LoTR", 64): (786_432, "786k"),
        ("FacT-TT", 4): (33_792, "33k"),
        ("FacT-TT", 64): (786_432, "786k"),
        ("FacT-TK", 4): (33_088, "33k"),
        ("FacT-TK", 64): (790_528, "790k"),
        ("LoRTA", 4): (17_160, "17k"),
        ("LoRTA", 64): (274_560, "274k"),
    }
    wrong = [key for key, row in rows.items() if not row.verdict.startswith("agrees")]
    assert wrong == [("LoReTTA", 4)]
    verdict = rows["LoReTTA", 4].verdict
    assert "3.0 times" in verdict
    assert "15,625, not dr = 16,384" in verdict


def test_our_adapters_count_what_table_1_says():
    for row in table1():
        assert row.ours == (None if row.method == "LoReTTA" else row.value), row


def test_the_paper_truncates_all_numbers_but_one():
    only = {tuple(ways) for row in table1() if len(ways := shortened(row.value, row.printed)) == 1}
    rounded = [row for row in table1() if shortened(row.value, row.printed) == ["rounded"]]
    assert only == {("rounded",), ("truncated",)}
    assert [(row.method, row.printed) for row in rounded] == [("LoRA", "2.1M")]


@pytest.mark.parametrize(
    ("value", "printed", "ways"),
    [
        (33_792, "33k", ["truncated"]),
        (33_792, "34k", ["rounded"]),
        (33_088, "33k", ["rounded", "truncated"]),
        (33_500, "34k", ["rounded"]),
        (33_499, "34k", []),
        (2_049_999, "2.0M", ["rounded", "truncated"]),
        (2_050_000, "2.1M", ["rounded"]),
        (92_160, "92k", ["rounded", "truncated"]),
    ],
)
def test_a_number_is_compared_at_the_precision_of_the_print(value, printed, ways):
    assert shortened(value, printed) == ways


def output_of(capsys, *flags):
    assert main(["adapters", "count", *flags]) == 0
    return capsys.readouterr().out


def test_the_command_prints_a_table_for_the_eye(capsys):
    text = output_of(capsys, "--kinds", "lorta", "lora", "--ranks", "1", "64", "--targets", *QKVP)
    rows = [line.split("│")[1:-1] for line in text.splitlines() if "esm2" in line]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["esm2_t12_35M_UR50D", "lorta", "1", "540", "0", ""],
        ["esm2_t12_35M_UR50D", "lorta", "64", "34,560", "0", ""],
        ["esm2_t12_35M_UR50D", "lora", "1", "46,080", "0", ""],
        ["esm2_t12_35M_UR50D", "lora", "64", "2,949,120", "0", ""],
    ]


def test_the_command_counts_all_methods_and_models(capsys):
    rows = list(
        csv.DictReader(io.StringIO(output_of(capsys, "--models", "all", "--format", "csv")))
    )
    assert {row["model"] for row in rows} == set(SIZES)
    assert {row["kind"] for row in rows} == set(ADAPTERS)
    ranked = [kind for kind in ADAPTERS if kind not in WITHOUT_RANK]
    assert len(rows) == len(SIZES) * (3 * len(ranked) + len(ADAPTERS) - len(ranked))
    assert [row["rank"] for row in rows if row["kind"] == "ia3"] == [""] * len(SIZES)


def test_what_a_method_cannot_adapt_is_listed_with_the_reason(capsys):
    flags = ["--kinds", "lorta", "bitfit", "lora", "--ranks", "1", "8", "--targets", "query", "fc2"]
    found = json.loads(output_of(capsys, *flags, "--norms", "--format", "json"))
    lorta, bitfit, *lora = found
    assert (lorta["rank"], lorta["trainable"]) == (None, None)
    assert lorta["note"] == "lorta cannot adapt fc2, only query, key, value, output"
    assert bitfit["note"] == "needs all six targets, key is missing"
    assert [row["trainable"] for row in lora] == [12 * (960 + 2400), 12 * (960 + 2400) * 8]


def test_the_methods_own_settings_reach_them_alone(capsys):
    flags = ["--kinds", "nola", "loretta_rep", "lora", "--ranks", "8", "--targets", *QKVP]
    text = output_of(capsys, *flags, "--bases", "8", "--tt_rank", "2", "--format", "json")
    numbers = {row["kind"]: row["trainable"] for row in json.loads(text)}
    core = 10 * 2 + 2 * 8 * 2 + 2 * 6 * 2 + 2 * 8  # a train of modes 10, 8, 6, 8
    assert numbers == {"nola": 768, "loretta_rep": 2 * 48 * core, "lora": 368_640}


def test_the_command_prints_table_1(capsys):
    flags = ["--reference", "llama2-7b", "--format"]
    rows = list(csv.DictReader(io.StringIO(output_of(capsys, *flags, "csv"))))
    assert [int(row["value"]) for row in rows if row["method"] == "LoRTA"] == [17_160, 274_560]
    assert "274,560" in output_of(capsys, *flags, "table")
