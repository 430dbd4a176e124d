"""Checkpoints are whole, exact, and cannot do anything but be read."""

import hashlib
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from esmfold_peft.errors import UserError
from esmfold_peft.runs.checkpoint import (
    AdamMoments,
    Best,
    Checkpoint,
    State,
    checkpoint_steps,
    find_step,
    mark_validated,
    prune_checkpoints,
    read_checkpoint,
    read_weights,
    write_checkpoint,
)

STATE = State(
    step=3,
    ema_updates=2,
    skipped_steps=1,
    guard={"best_loss": 0.1 + 0.2, "worst": float("inf")},
    order={"seed": 0},
    validation=None,
    base_sha256="ab",
    esmfold_sha256=None,
    processes=2,
    validated=False,
    score=None,
    best=Best(2, 0.1),
)


def checkpoint(step: int = 3, best: Best | None = None) -> Checkpoint:
    torch.manual_seed(step)
    weights = {"a": torch.randn(3, 2), "b": torch.randn(()), "frozen": torch.randn(2)}
    average = {name: torch.randn(weights[name].shape) for name in "ab"}
    shapes = {name: tensor.shape for name, tensor in average.items()}
    adam = {n: AdamMoments(torch.randn(s), torch.rand(s), 2) for n, s in shapes.items()}
    return Checkpoint(replace(STATE, step=step, best=best), weights, average, adam)


def test_what_is_read_is_what_was_written(tmp_path: Path):
    written = checkpoint(3, Best(2, 0.1))
    write_checkpoint(tmp_path, written)
    found = read_checkpoint(tmp_path, 3)
    assert found.state == written.state
    for part in ("weights", "average"):
        ours, theirs = getattr(found, part), getattr(written, part)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for name, moments in written.adam.items():
        assert torch.equal(found.adam[name].exp_avg, moments.exp_avg)
        assert torch.equal(found.adam[name].exp_avg_sq, moments.exp_avg_sq)
        assert found.adam[name].step == 2


def test_a_model_has_the_average_of_what_was_trained_or_the_weights_themselves(tmp_path: Path):
    written = checkpoint()
    write_checkpoint(tmp_path, written)
    average = read_weights(tmp_path, 3, raw=False)
    assert torch.equal(average["a"], written.average["a"])
    assert torch.equal(average["frozen"], written.weights["frozen"])
    assert torch.equal(read_weights(tmp_path, 3, raw=True)["a"], written.weights["a"])


def test_the_newest_and_the_best_are_kept(tmp_path: Path):
    for step in (2, 4, 6, 8):
        write_checkpoint(tmp_path, checkpoint(step))
    (tmp_path / "checkpoints" / ".step_00000009.tmp").mkdir()
    prune_checkpoints(tmp_path, 2, Best(4, 0.5))
    assert sorted(os.listdir(tmp_path / "checkpoints")) == [
        f"step_0000000{step}" for step in (4, 6, 8)
    ]


def test_checkpoints_have_names(tmp_path: Path):
    with pytest.raises(UserError, match="no checkpoints"):
        find_step(tmp_path, "last")
    for step in (2, 4):
        write_checkpoint(tmp_path, checkpoint(step))
    with pytest.raises(UserError, match="has not been validated"):
        find_step(tmp_path, "best")
    mark_validated(
        tmp_path, replace(STATE, step=4, validated=True, best=Best(2, 0.5), guard={"x": 1})
    )
    assert [find_step(tmp_path, name) for name in ("last", "best", "2")] == [4, 2, 2]
    state = read_checkpoint(tmp_path, 4).state
    assert state.validated
    assert state.guard == {"x": 1}
    with pytest.raises(UserError, match="checkpoint: 3 is not last, best or one of 2, 4"):
        find_step(tmp_path, "3")


@pytest.mark.parametrize("name", ["weights", "ema", "adam"])
@pytest.mark.parametrize("damage", ["cut", "bit", "missing"])
def test_damage_is_found_and_the_file_is_named(name: str, damage: str, tmp_path: Path):
    write_checkpoint(tmp_path, checkpoint())
    path = tmp_path / "checkpoints" / "step_00000003" / f"{name}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content[:-1] if damage == "cut" else content)
    if damage == "missing":
        path.unlink()
    with pytest.raises(UserError, match=rf"{name}\.safetensors: "):
        read_checkpoint(tmp_path, 3)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 2}', '{"format": 1}'])
def test_a_damaged_state_is_one_line(content: str, tmp_path: Path):
    write_checkpoint(tmp_path, checkpoint())
    (tmp_path / "checkpoints" / "step_00000003" / "state.json").write_text(content)
    with pytest.raises(UserError, match=r"state\.json: ") as raised:
        read_checkpoint(tmp_path, 3)
    assert "\n" not in str(raised.value)


class Malice:
    """A pickle that runs a command when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("as_torch", [True, False])
def test_a_file_that_would_run_code_is_refused(as_torch: bool, tmp_path: Path):
    write_checkpoint(tmp_path, checkpoint())
    folder, proof = tmp_path / "checkpoints" / "step_00000003", tmp_path / "was_run"
    path = folder / "weights.safetensors"
    if as_torch:
        torch.save({"a": Malice(proof)}, path)
    else:
        path.write_bytes(pickle.dumps(Malice(proof)))
    # Whoever forges a file forges its hash.
    state = json.loads((folder / "state.json").read_text())
    state["files_sha256"]["weights.safetensors"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match="cannot be read"):
        read_checkpoint(tmp_path, 3)
    assert not proof.exists()


def test_a_full_disk_leaves_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_checkpoint(tmp_path, checkpoint(2))

    def full(*arguments: object, **settings: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("esmfold_peft.runs.checkpoint.save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_checkpoint(tmp_path, checkpoint(4))
    assert checkpoint_steps(tmp_path) == [2]
    assert os.listdir(tmp_path / "checkpoints") == ["step_00000002"]
