"""Training chains that leak validation chains."""

import gzip
import shutil
from pathlib import Path

import pytest

from esmfold_peft.cli import main
from esmfold_peft.commands.prepare import run as prepare
from esmfold_peft.config import PrepareConfig
from esmfold_peft.datasets import leaks
from esmfold_peft.datasets.leaks import Leak, chain_list, find_leaks, what_was_compared
from esmfold_peft.datasets.mmseqs import Hit, mmseqs_program
from esmfold_peft.datasets.store import Store
from esmfold_peft.errors import UserError
from esmfold_peft.protein.read import read_structure
from esmfold_peft.protein.write import to_pdb
from esmfold_peft.training import leak_guard
from esmfold_peft.training.leak_guard import LEAK_CHECK, check_leaks, refuse_leaks

ROOT = Path(__file__).parents[2]


@pytest.fixture
def without_mmseqs(monkeypatch: pytest.MonkeyPatch):
    """The guard as it is where the program is not installed."""
    monkeypatch.setattr(leaks, "mmseqs_program", lambda: None)


def store(folder: Path, *files: Path, **settings) -> Store:
    prepare(PrepareConfig(files, folder, **{"workers": 1, "clusters": "none", **settings}))
    return Store(folder)


def guard(
    training: list[Store], validation: Store, *, allow: bool, known: Path | None = None
) -> list[Leak]:
    """As `train` looks for leaks."""
    return refuse_leaks(check_leaks(training, validation, known), training, validation, allow)


@pytest.fixture
def held_out(example: Path, tmp_path: Path) -> Store:
    """4i6p_A of 2013-07-17, 3u8v_A of 2011-11-09, and 3dxs_A, which has no date."""
    files = [example / "held_out" / f"{name}.cif.gz" for name in ("3dxs_A", "3u8v_A", "4i6p_A")]
    return store(tmp_path / "held_out", *files)


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed since, on one line."""
    return " ".join(capsys.readouterr().err.split())


def file(example: Path, name: str) -> Path:
    (found,) = example.glob(f"*/{name}.cif.gz")
    return found


def renamed(example: Path, name: str, folder: Path) -> Path:
    """A copy of a chain as 9abc_A."""
    code = name[:4]
    text = gzip.decompress(file(example, name).read_bytes()).decode()
    copy = folder / "other_name.cif"
    copy.write_text(text.replace(code.upper(), "9ABC").replace(code, "9abc"))
    return copy


def reasons(training: Store, validation: Store) -> dict[str, str]:
    found = find_leaks(chain_list(training), chain_list(validation), threads=1)
    return {training.manifest.ids[place]: reason for place, reason in found.items()}


def test_chains_of_the_day_of_the_first_validation_chain_leak(
    example: Path, tmp_path: Path, held_out: Store, without_mmseqs
):
    names = ("1ubq_A", "3u8v_A", "4zey_A", "3nir_A")
    training = store(tmp_path / "train", *(file(example, name) for name in names))
    found = reasons(training, held_out)
    assert found.keys() == {"3u8v_A", "4zey_A"}  # 1ubq is older, 3nir has no date here
    assert found["4zey_A"] == "released on 2015-05-06, validation begins on 2011-11-09"
    assert found["3u8v_A"] == "released on 2011-11-09, validation begins on 2011-11-09"


def test_without_dates_sequences_and_clusters_are_compared(
    example: Path, tmp_path: Path, without_mmseqs
):
    copy = renamed(example, "3dxs_A", tmp_path)
    clusters = tmp_path / "clusters.txt"
    clusters.write_text("3f2e_A 3nir_A 3byb_B\n")
    validation = store(
        tmp_path / "held_out", *(file(example, n) for n in ("3dxs_A", "3byb_B")),
        clusters=str(clusters),
    )  # fmt: skip
    training = store(
        tmp_path / "train", copy, *(file(example, n) for n in ("3nir_A", "3k2t_A")),
        clusters=str(clusters),
    )  # fmt: skip
    assert reasons(training, validation) == {
        "9abc_A": "has the sequence of 3dxs_A",
        "3nir_A": "is in the cluster of 3byb_B",
    }


def test_two_files_may_have_one_name_by_chance(example: Path, tmp_path: Path, without_mmseqs):
    stores = []
    for name in ("3dxs_A", "3nir_A"):
        folder = tmp_path / name
        folder.mkdir()
        pdb = to_pdb(read_structure(file(example, name)))
        (folder / "model_1.pdb").write_text(pdb)
        stores.append(store(tmp_path / f"store_{name}", folder))
    assert stores[0].manifest.ids == stores[1].manifest.ids == ["model_1"]
    assert reasons(*stores) == {}


def test_every_copy_of_a_similar_sequence_leaks(
    example: Path, tmp_path: Path, held_out: Store, monkeypatch: pytest.MonkeyPatch
):
    copy = renamed(example, "3nir_A", tmp_path)
    training = store(tmp_path / "train", copy, *(file(example, n) for n in ("3nir_A", "3k2t_A")))
    asked = {}

    def similar(queries, targets, *, threads):
        asked.update(queries=queries, targets=targets)
        wanted = training.sequence(training.manifest.ids.index("3nir_A"))
        return [Hit("3dxs_A", name, 0.55) for name, text in targets.items() if text == wanted]

    monkeypatch.setattr(leaks, "mmseqs_program", lambda: "mmseqs")
    monkeypatch.setattr(leaks, "similar", similar)
    reason = "55% identical to 3dxs_A"
    assert reasons(training, held_out) == {"3nir_A": reason, "9abc_A": reason}
    assert asked["queries"].keys() == {"3dxs_A", "3u8v_A", "4i6p_A"}
    assert len(asked["targets"]) == 2


def test_the_guard_refuses_and_names_the_chains(
    example: Path, tmp_path: Path, held_out: Store, without_mmseqs, capsys
):
    training = store(tmp_path / "train", *(file(example, n) for n in ("4zey_A", "3k2t_A")))
    with pytest.raises(UserError, match=r"1 chain leaks .*4zey_A.*--held_out .*--allow-leaks"):
        guard([training], held_out, allow=False)
    assert "leak: 4zey_A of" in capsys.readouterr().err
    (found,) = guard([training], held_out, allow=True)
    assert (found.chain, found.store) == ("4zey_A", str(training.path))
    assert "1 chain leaks validation chains; that was allowed" in printed(capsys)


def test_a_check_is_done_once_for_the_same_chains(
    example: Path, tmp_path: Path, held_out: Store, without_mmseqs, monkeypatch, capsys
):
    """A search leaves what it found to its trials; the comparison may take hours."""
    training = store(tmp_path / "train", *(file(example, n) for n in ("4zey_A", "3k2t_A")))
    known = tmp_path / LEAK_CHECK
    known.write_text(check_leaks([training], held_out).text())
    with monkeypatch.context() as never:
        never.setattr(leak_guard, "find_leaks", None)
        moved = Store(shutil.copytree(tmp_path / "train", tmp_path / "moved"))
        (found,) = guard([moved], held_out, allow=True, known=known)
        assert (found.chain, found.store) == ("4zey_A", str(moved.path))
        with pytest.raises(UserError, match="1 chain leaks"):
            guard([moved], held_out, allow=False, known=known)
    other = store(tmp_path / "other", *(file(example, n) for n in ("4zey_A", "3nir_A")))
    capsys.readouterr()
    for stores, text in (
        ([other], known.read_text()),  # other chains
        ([moved, other], known.read_text()),
        ([moved], known.read_text()[:50]),  # damaged
        ([moved], "{}"),
    ):
        known.write_text(text)
        assert guard(stores, held_out, allow=True, known=known)
        assert "looking for training chains" in printed(capsys)


def test_a_check_without_mmseqs_is_done_again_where_there_is_mmseqs(
    example: Path, tmp_path: Path, held_out: Store, without_mmseqs, monkeypatch
):
    training = store(tmp_path / "train", file(example, "3k2t_A"))
    known = tmp_path / LEAK_CHECK
    known.write_text(check_leaks([training], held_out).text())
    monkeypatch.setattr(leaks, "mmseqs_program", lambda: "mmseqs")
    monkeypatch.setattr(leaks, "similar", lambda *_, threads: [Hit("3dxs_A", key, 0.5)])
    key = training.manifest.sequence_hash[0]
    assert guard([training], held_out, allow=True, known=known)


def test_every_store_of_a_mix_is_guarded(
    example: Path, tmp_path: Path, held_out: Store, without_mmseqs, capsys
):
    training = store(tmp_path / "train", *(file(example, n) for n in ("3nir_A", "3k2t_A")))
    files = [file(example, n) for n in ("4zey_A", "3u8v_A", "2pw8_C")]
    mixed = store(tmp_path / "distilled", *files)
    with pytest.raises(
        UserError,
        match=r"^data\.mix: 2 chains leak validation chains; the first is 4zey_A of .*distilled \(",
    ):
        guard([training, mixed], held_out, allow=False)
    printed(capsys)
    assert guard([training, store(tmp_path / "other", files[-1])], held_out, allow=False) == []
    # Two of train, one of the other store, one of the validation store; once, not for each store.
    assert printed(capsys).count("4 chains state no release date") == 1


def test_what_could_not_be_compared_is_reported(
    example: Path, tmp_path: Path, held_out: Store, without_mmseqs, capsys
):
    training = store(tmp_path / "train", file(example, "3k2t_A"))
    assert guard([training], held_out, allow=False) == []
    message = printed(capsys)
    assert "no training chain leaks a validation chain" in message
    assert "2 chains state no release date" in message
    assert "mmseqs is not installed" in message
    assert "mmseqs" in what_was_compared(chain_list(training), chain_list(held_out))


def test_prepare_rejects_chains_that_would_leak(
    example: Path, tmp_path: Path, held_out: Store, without_mmseqs
):
    names = ("1ubq_A", "3u8v_A", "4zey_A", "3nir_A")
    clusters = tmp_path / "clusters.txt"
    clusters.write_text("1ubq_A 4zey_A 3nir_A\n")
    training = store(
        tmp_path / "train", *(file(example, n) for n in names),
        held_out=held_out.path, clusters=str(clusters),
    )  # fmt: skip
    assert sorted(training.manifest.ids) == ["1ubq_A", "3nir_A"]
    assert training.manifest.cluster_size.tolist() == [2, 2]  # without the rejected one
    text = (tmp_path / "train" / "rejected.csv").read_text()
    assert '4zey_A,leak,"released on 2015-05-06' in text
    assert guard([training], held_out, allow=False) == []


def test_training_refuses_before_anything_is_written(
    example: Path, tmp_path: Path, held_out: Store, without_mmseqs, capsys
):
    store(tmp_path / "train", file(example, "4zey_A"))
    words = [
        "train", "--config", str(ROOT / "configs" / "tiny.yaml"), "--run", str(tmp_path / "run"),
        "--data.train", str(tmp_path / "train"), "--data.validation", str(held_out.path),
        "--engine.steps", "0",
    ]  # fmt: skip
    assert main(words) == 2
    assert "--allow-leaks" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "run").exists()
    assert main([*words, "--allow-leaks"]) == 0
    assert "looking for" in printed(capsys)
    assert "4zey_A" in (tmp_path / "run" / "leaks.csv").read_text()
    # A run from its settings does not allow them again by itself.
    assert "allow_leaks: false" in (tmp_path / "run" / "config.yaml").read_text()
    check = check_leaks([Store(tmp_path / "train")], held_out)
    # As a search leaves it beside its trials' runs.
    (tmp_path / LEAK_CHECK).write_text(check.text())
    words[words.index(str(tmp_path / "run"))] = str(tmp_path / "trial")
    capsys.readouterr()
    assert main([*words, "--allow-leaks"]) == 0
    assert "looking for" not in printed(capsys)


@pytest.mark.skipif(mmseqs_program() is None, reason="needs mmseqs (Debian package mmseqs2)")
def test_homologues_are_found_among_real_chains(shared_structures: Path, tmp_path: Path):
    cameo = shared_structures / "cameo2022" / "7rlk_D.cif.gz"
    if not cameo.is_file():
        pytest.skip("needs 7rlk_D of cameo2022")
    ids = tmp_path / "ids.txt"
    ids.write_text("1oo2_A 1o1z_A\n")
    validation = store(tmp_path / "held_out", cameo)
    tars = sorted((shared_structures / "backbone_chains").glob("*.tar"))
    training = store(tmp_path / "train", *tars, ids)
    found = reasons(training, validation)
    assert found == {"1oo2_A": "56% identical to 7rlk_D"}
