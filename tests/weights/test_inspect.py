"""`weights inspect` as a user meets it: what a file is, what fits it, what keeps it from that."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from esmfold_peft.cli import main, parse
from esmfold_peft.config import InspectConfig, TrainConfig
from esmfold_peft.config.parsing import config_parser, to_config
from esmfold_peft.model.language_model import LanguageModel
from esmfold_peft.runs.build import build_model
from esmfold_peft.weights.layouts import hugging_face_settings

PARTS = {"trunk", "structure module", "distogram head", "plddt head", "pae head"}


def inspect(path, capsys, code=0):
    """What the command prints as JSON."""
    assert main(["weights", "inspect", str(path), "--format", "json"]) == code
    return json.loads(capsys.readouterr().out)


def fails_with_one_line(path, capsys):
    assert main(["weights", "inspect", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture
def changed(official, tmp_path):
    """Writes an official file with tensors replaced, or left out where the value is None."""

    def write(**tensors):
        content = official()
        content["model"] |= {name.replace("__", "."): t for name, t in tensors.items()}
        content["model"] = {n: t for n, t in content["model"].items() if t is not None}
        torch.save(content, tmp_path / "esmfold_x.pt")
        return tmp_path / "esmfold_x.pt"

    return write


def test_the_file_is_given_without_a_flag():
    parsed = parse(["weights", "inspect", "x.pt"])
    found = to_config(parsed.parser, parsed.values, parsed.settings)
    assert found == InspectConfig(file=Path("x.pt"))


def test_every_layout_of_an_esmfold_fits_and_shows_its_sizes(file, esmfold, capsys):
    found = inspect(file, capsys)
    official = file.suffix == ".pt"
    assert found["kind"] == ("official ESMFold" if official else "Hugging Face ESMFold")
    assert found["fits"]
    assert not any(found["differences"].values())
    parts = {part["part"]: part for part in found["parts"]}
    assert set(parts) == PARTS | (set() if official else {"language model"})
    assert parts["pae head"] == {
        "part": "pae head",
        "tensors": 2,
        "parameters": 64 * 16 + 64,
        "types": "float32",
    }
    if not official:
        assert parts["language model"]["types"] == "float16"
        assert found["settings"]["model.language_model.heads"] == 4
    expected = {
        "model.trunk": "esmfold_v1",
        "model.language_model.name": "custom",
        "model.language_model.layers": 2,
        "model.language_model.width": 40,
        "model.esmfold.blocks": 2,
        "model.esmfold.c_s": 32,
        "model.esmfold.c_z": 16,
        "model.esmfold.c_structure": 24,
        "model.esmfold.heads": 4,
        "model.esmfold.heads_pair": 2,
        "model.structure.layers": 3,
        "model.structure.c_ipa": 4,
        "model.structure.heads": 3,
        "model.structure.query_points": 2,
        "model.structure.value_points": 5,
        "model.structure.c_angle": 12,
        "model.structure.angle_blocks": 2,
        "model.relative_positions": 6,
        "model.distogram_bins": 64,
        "model.plddt_bins": 50,
        "model.pae_bins": 64,
        "model.c_plddt": 20,
    }
    assert expected.items() <= found["settings"].items()


def test_all_tensors_are_in_a_part_or_unused(file, files, published, official, capsys):
    found = inspect(file, capsys)
    tensors = sum(row["tensors"] for row in found["parts"] + found["unused"])
    if file == files["safetensors"]:
        # transformers now has the rotary frequencies once, and no leftovers.
        assert tensors == len(published()) - 1 - 2
    else:
        assert tensors == len(official()["model"] if file.suffix == ".pt" else published())
    unused = {row["why"]: row["tensors"] for row in found["unused"]}
    assert unused["head for masked residues"] == 2
    if file.suffix == ".pt":
        assert unused["leftover of fairseq"] == 1
        assert unused["geometry of the residues, which the program has"] == 4


def test_the_printed_settings_build_a_model_that_the_file_fills(files, tmp_path, capsys):
    assert main(["weights", "inspect", str(files["bin"])]) == 0
    printed = capsys.readouterr().out
    assert "Hugging Face ESMFold" in printed.splitlines()[0]
    start = printed.index("# settings that fit")
    (tmp_path / "c.yaml").write_text(printed[start:])
    parser = config_parser(TrainConfig)
    flags = ["--config", str(tmp_path / "c.yaml"), "--run", "r", "--data.train", "t"]
    model, _ = build_model(to_config(parser, parser.parse_args(flags), TrainConfig))
    assert len(model.trunk.stack.blocks) == 2


def test_a_published_language_model_is_named(changed, capsys):
    path = changed(
        esm_s_combine=torch.zeros(37),
        esm_s_mlp__0__weight=torch.zeros(2560),
        esm_s_mlp__0__bias=torch.zeros(2560),
        esm_s_mlp__1__weight=torch.zeros(32, 2560),
    )
    settings = inspect(path, capsys)["settings"]
    assert settings["model.language_model.name"] == "esm2_t36_3B_UR50D"
    assert "model.language_model.layers" not in settings


def test_what_is_missing_or_left_over_is_listed(changed, capsys):
    path = changed(
        trunk__recycle_z_norm__weight=None,
        trunk__blocks__1__mlp_pair__mlp__3__bias=None,
        esm_z_mlp__0__weight=torch.zeros(4),
    )
    found = inspect(path, capsys, code=1)
    assert not found["fits"]
    assert found["differences"] == {
        "missing": ["trunk.blocks.1.mlp_pair.mlp.3.bias", "trunk.recycle_z_norm.weight"],
        "unexpected": ["esm_z_mlp.0.weight"],
        "wrong": [],
    }
    assert {"part": "unknown", "tensors": 1, "parameters": 4, "types": "float32"} in found["parts"]
    assert main(["weights", "inspect", str(path)]) == 1
    printed = capsys.readouterr().out
    assert "missing: trunk.recycle_z_norm.weight\n" in printed
    assert "unexpected: esm_z_mlp.0.weight\n" in printed


def test_a_tensor_that_contradicts_the_others_is_listed(changed, capsys):
    found = inspect(changed(trunk__blocks__0__mlp_seq__mlp__1__bias=torch.zeros(3)), capsys, code=1)
    assert found["differences"]["wrong"] == [
        'tensor "trunk.blocks.0.mlp_seq.mlp.1.bias" has shape (3,), expected (128,)'
    ]


def test_long_lists_are_cut_in_the_table(changed, capsys):
    path = changed(**{f"more__{i}": torch.zeros(1) for i in range(30)})
    assert main(["weights", "inspect", str(path)]) == 1
    printed = capsys.readouterr().out
    assert printed.count("unexpected: more.") == 20
    assert "unexpected: and 10 more\n" in printed
    assert len(inspect(path, capsys, code=1)["differences"]["unexpected"]) == 30


def test_settings_of_another_architecture_and_a_damaged_language_model_are_listed(
    files, published, tmp_path, capsys
):
    folder = tmp_path / "folder"
    shutil.copytree(files["bin"], folder)
    config = json.loads((folder / "config.json").read_text())
    config["esmfold_config"]["bypass_lm"] = True
    (folder / "config.json").write_text(json.dumps(config))
    tensors = published()
    del tensors["esm.encoder.layer.1.output.dense.bias"]
    torch.save(tensors, folder / "pytorch_model.bin")
    found = inspect(folder, capsys, code=1)["differences"]
    assert found["wrong"] == ["bypass_lm is True, the published ESMFold has False"]
    assert found["missing"] == ["layers.1.fc2.bias"]


def test_an_official_esm2_is_recognised_by_its_published_name(official_esm2, tmp_path, capsys):
    path = tmp_path / "esm2_x.pt"
    lm = LanguageModel.random("esm2_t6_8M_UR50D")
    content = official_esm2(lm)
    content["model"]["encoder.lm_head.bias"] = torch.zeros(33)
    torch.save(content, path)
    found = inspect(path, capsys)
    assert found["kind"] == "official ESM-2"
    name, weights = "esm2_t6_8M_UR50D", str(path)
    assert found["settings"] == {
        "model.language_model.name": name,
        "model.language_model.weights": weights,
    }
    (part,) = found["parts"]
    assert part["parameters"] == sum(p.numel() for p in lm.parameters())
    assert [row["why"] for row in found["unused"]] == ["head for masked residues"]


def test_a_hugging_face_esm2_is_recognised_and_compared(tmp_path, capsys):
    lm = LanguageModel.random("esm2_t6_8M_UR50D")
    (tmp_path / "config.json").write_text(json.dumps(hugging_face_settings(lm.shape)))
    # fair-esm's names pass through the translation unchanged, so they serve for this test.
    tensors = {f"esm.{name}": tensor for name, tensor in lm.official_tensors()}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    found = inspect(tmp_path, capsys)
    assert found["kind"] == "Hugging Face ESM-2"
    del tensors["esm.layers.3.fc1.weight"]
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    found = inspect(tmp_path, capsys, code=1)
    assert found["differences"]["missing"] == ["layers.3.fc1.weight"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.pt", None, "gone.pt: does not exist"),
        ("x.pt", b"", "x.pt: "),
        ("x.pt", b"PK\x03\x04 cut off", "x.pt: "),
        ("x.pt", {"model": {"layers.0.weight": torch.zeros(1)}}, "x.pt: not recognised, neither"),
        ("x.pt", [1, 2], "x.pt: not recognised, neither"),
        ("x.txt", b"text", "x.txt: neither an official .pt file nor a Hugging Face"),
        ("config.json", {"model_type": "bert"}, "not recognised, its model_type is bert"),
        ("config.json", {"model_type": "esm"}, "config.json: num_hidden_layers is None, not a"),
        ("folder", None, "does not exist"),
    ],
)
def test_what_cannot_be_read_is_one_line(name, content, message, tmp_path, capsys):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif name == "config.json":
        path.write_text(json.dumps(content))
        path = tmp_path
    elif content is not None:
        torch.save(content, path)
    line = fails_with_one_line(path, capsys)
    assert line.startswith("esmfold-peft weights inspect: error: ")
    assert message in line


def test_a_truncated_file_is_one_line(files, tmp_path, capsys):
    data = files["official"].read_bytes()
    (tmp_path / "x.pt").write_bytes(data[: len(data) // 2])
    assert "x.pt: " in fails_with_one_line(tmp_path / "x.pt", capsys)


def test_the_yaml_of_the_table_is_yaml(files, capsys):
    assert main(["weights", "inspect", str(files["official"])]) == 0
    printed = capsys.readouterr().out
    settings = yaml.safe_load(printed[printed.index("# settings that fit") :])
    assert settings["model"]["esmfold"]["weights"] == str(files["official"])
    assert settings["model"]["structure"]["value_points"] == 5
