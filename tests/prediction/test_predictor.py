"""The Python interface, and the law that nothing but the sequence decides a prediction."""

import io
import json
from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch

import esmfold_peft
from esmfold_peft.config import LossConfig
from esmfold_peft.errors import UserError
from esmfold_peft.model.inference import Failed, Folded
from esmfold_peft.prediction.complexes import GAP, LINKER, query, read_sequence
from esmfold_peft.prediction.pages import write_page
from esmfold_peft.prediction.predictor import Predictor
from esmfold_peft.prediction.result import Prediction
from tests.prediction.conftest import TINY, make_run

SEQUENCES = ("MKTAYIAKQRQISFVK", "GW", "ACDEFGHIKLMNPQRSTVWY", "MKTAYIAKQRQISFVKSHFSRQLEERLGLIE")


@pytest.fixture(scope="module")
def model(run: Path) -> Predictor:
    return esmfold_peft.load(run, device="cpu")


def folded(model: Predictor, queries: list, max_tokens: int) -> dict[int, Folded]:
    found = {item.index: item for item in model.fold_all(queries, max_tokens=max_tokens)}
    assert not any(isinstance(item, Failed) for item in found.values())
    return found


def test_batch_order_and_padding_do_not_change_a_prediction(model: Predictor):
    queries = [query("x", [s]) for s in SEQUENCES] + [query("y", ["MKTAY", "WW", "GAVLK"])]
    alone = folded(model, queries, 1)
    for order in (list(range(5)), [4, 2, 0, 3, 1]):
        together = folded(model, [queries[place] for place in order], 1000)
        for place, original in enumerate(order):
            one, other = alone[original], together[place]
            assert (one.positions - other.positions).norm(dim=-1).max() < 1e-4
            assert (one.plddt - other.plddt).abs().max() < 1e-5
            assert (one.pae - other.pae).abs().max() < 1e-3
            assert one.ptm == pytest.approx(other.ptm, abs=1e-5)


def test_a_linker_is_folded_and_not_kept(model: Predictor):
    chains = ["MKTAY", "WW", "GAVLK"]
    asked = query("y", chains)
    assert len(asked) == 12 + 2 * len(LINKER)
    numbers = asked.features.residue_index[asked.kept]
    # 25 glycines and 512 numbers between neighbours, as in ESMFold.
    assert numbers.tolist() == [*range(5), *range(542, 544), *range(1081, 1086)]
    assert set(np.diff(numbers)) == {1, 1 + 25 + GAP}
    prediction = model.fold(":".join(chains))
    assert prediction.chains == tuple(chains)
    assert prediction.plddt.shape == (12,)
    assert prediction.pae.shape == (12, 12)
    assert [len(s) for s in prediction.structures()] == [5, 2, 5]


def test_the_gap_moves_the_other_chain_and_the_linker_alone_does_not(model: Predictor):
    """A complex is no single chain with glycines in it."""
    chain = "MKTAYIAKQR"
    complexed = model.fold(f"{chain}:{chain}")
    single = model.fold(chain + LINKER + chain)
    kept = [*range(10), *range(35, 45)]
    assert np.abs(complexed.plddt - single.plddt[kept]).max() > 0.01


def test_a_prediction_says_what_its_files_say(model: Predictor, tmp_path: Path):
    prediction = model.fold("mktayBakqr:GSHMW", name="one")
    assert prediction.chains == ("MKTAYXAKQR", "GSHMW")
    files = prediction.save(tmp_path / "new")
    assert {p.name for p in files} == {"one.pdb", "one.cif", "one.pae.npz", "one.pae.json"}
    for path in files[:2]:
        structure = gemmi.read_structure(str(path))
        assert [chain.name for chain in structure[0]] == ["A", "B"]
        assert [[r.seqid.num for r in chain] for chain in structure[0]] == [
            [*range(1, 11)],
            [*range(1, 6)],
        ]
        b_factors = [r["CA"][0].b_iso for chain in structure[0] for r in chain]
        np.testing.assert_allclose(b_factors, prediction.plddt, atol=0.006)
        places = [r["CA"][0].pos.tolist() for chain in structure[0] for r in chain]
        np.testing.assert_allclose(places, prediction.positions[:, 1], atol=6e-4)
    arrays = np.load(io.BytesIO((tmp_path / "new" / "one.pae.npz").read_bytes()))
    np.testing.assert_array_equal(arrays["pae"], prediction.pae)
    assert arrays["chain_lengths"].tolist() == [10, 5]
    assert float(arrays["ptm"]) == pytest.approx(prediction.ptm)
    (content,) = json.loads((tmp_path / "new" / "one.pae.json").read_text())
    rounded = np.array(content["predicted_aligned_error"])
    assert np.abs(rounded - prediction.pae).max() <= 0.5
    assert content["max_predicted_aligned_error"] == 31.75
    assert prediction.pae.max() <= 31.75
    assert 0 <= prediction.ptm <= 1
    assert ((prediction.plddt >= 0) & (prediction.plddt <= 100)).all()


def test_pae_of_few_bins_keeps_to_the_maximum_that_its_file_states(tmp_path: Path):
    run = make_run(tmp_path / "run", replace(TINY, model=replace(TINY.model, pae_bins=8)))
    model = esmfold_peft.load(run, device="cpu")
    with torch.no_grad():
        model.model.pae_head.linear.bias[-1] = 1e3  # the largest error everywhere
    prediction = model.fold("MKTAY", name="far")
    assert prediction.largest_pae == pytest.approx(7.5 * 31 / 6)
    assert prediction.pae == pytest.approx(prediction.largest_pae)
    prediction.save(tmp_path)
    (content,) = json.loads((tmp_path / "far.pae.json").read_text())
    assert content["max_predicted_aligned_error"] == prediction.largest_pae
    assert np.max(content["predicted_aligned_error"]) == 38


def test_seeds_hide_other_residues_and_give_the_same_again(model: Predictor):
    hidden = [query("x", [SEQUENCES[3]], seed).masked for seed in (1, 2, 1)]
    assert hidden[0].sum() == round(0.15 * len(SEQUENCES[3]))
    assert (hidden[0] == hidden[2]).all()
    assert (hidden[0] != hidden[1]).any()
    predictions = [model.fold(SEQUENCES[3], seed=seed) for seed in (0, 1, 2, 1)]
    assert (predictions[1].positions == predictions[3].positions).all()
    for one, other in ((0, 1), (1, 2)):
        assert np.abs(predictions[one].positions - predictions[other].positions).max() > 1e-3
    # A linker, which is no residue of the protein, is never hidden.
    asked = query("y", ["MKTAY", "WW", "GAVLK"] * 4, 1)
    assert asked.masked[asked.kept].sum() == asked.masked.sum() == round(0.15 * 48)


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ("", "no residues"),
        ("MK-TA", "'-'"),
        ("MKTA1", "'1'"),
        ("MKT::A", "chain"),
        (">x\nMK", "'>'"),
    ],
)
def test_what_is_no_sequence_is_refused(sequence: str, message: str, model: Predictor):
    with pytest.raises(UserError, match=message):
        model.fold(sequence)


def test_what_cannot_be_loaded_is_refused(run: Path, tmp_path: Path):
    with pytest.raises(UserError, match="give either run or esmfold"):
        esmfold_peft.load()
    with pytest.raises(UserError, match="not the folder of a training run"):
        esmfold_peft.load(tmp_path)
    for name in ("num_recycles", "seed"):
        with pytest.raises(UserError, match=f"{name}: -1 is less than 0"):
            esmfold_peft.load(run, device="cpu").fold("MKTAY", **{name: -1})
    with pytest.raises(UserError, match="device: 'tpu' is none of"):
        esmfold_peft.load(run, device="tpu")


def test_a_copy_of_three_files_is_the_same_model(run: Path, model: Predictor, tmp_path: Path):
    for name in ("config.yaml", "provenance.json", "model.safetensors"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    copy = esmfold_peft.load(str(tmp_path), device="cpu")
    assert copy.identity == model.identity
    assert (copy.fold("MKTAY").positions == model.fold("MKTAY").positions).all()
    other = esmfold_peft.load(make_run(tmp_path / "other", seed=1), device="cpu")
    assert other.identity != model.identity


def test_errors_that_nothing_was_taught_to_predict_are_not_shown(tmp_path: Path):
    config = replace(TINY, loss=LossConfig())
    model = esmfold_peft.load(make_run(tmp_path / "a", config), device="cpu")
    prediction = model.fold("MKTAY")
    assert (prediction.pae, prediction.ptm) == (None, None)
    # Fine-tuned with PAE, then trained on without: the head is a trained one.
    taught = make_run(tmp_path / "b")
    later = make_run(tmp_path / "c", replace(config, start_from=taught))
    assert esmfold_peft.load(later, device="cpu").predicts_pae


def test_precision_can_be_chosen(run: Path, model: Predictor):
    rounded = esmfold_peft.load(run, device="cpu", precision="bf16").fold(SEQUENCES[0])
    exact = model.fold(SEQUENCES[0])
    difference = np.linalg.norm(rounded.positions - exact.positions)
    # 0.04 to 0.08 with weights of four seeds; 1.4 between structures that have nothing in common.
    assert 1e-4 < difference / np.linalg.norm(exact.positions) < 0.15


def test_what_does_not_fit_the_pdb_format_is_in_the_mmcif(model: Predictor, tmp_path: Path):
    prediction = model.fold("MKTAY", name="far")
    far = replace(prediction, positions=prediction.positions - 1234.5, pae=None)
    assert [path.name for path in far.save(tmp_path)] == ["far.cif"]
    outside = replace(far, name="../evil").save(tmp_path / "deep")
    assert [path.parent for path in outside] == [tmp_path / "deep"]
    assert gemmi.read_structure(str(tmp_path / "far.cif"))[0].count_atom_sites() > 30
    assert write_page(tmp_path, far, ["far.cif"], {}) == "far.html"
    assert "far" in far._repr_html_()


@pytest.mark.parametrize(("n", "megabytes"), [(59, 0.6), (1000, 2.6)])
def test_a_page_is_as_large_as_the_readme_says(n: int, megabytes: float, tmp_path: Path):
    generator = np.random.default_rng(0)
    sequence = "".join(generator.choice(list("ACDEFGHIKLMNPQRSTVWY"), n))
    everywhere = generator.uniform(-50, 50, (n, 37, 3)).astype(np.float32)
    folded = Folded(0, torch.from_numpy(everywhere[:, :14]), torch.full((n, 37), 0.8))
    pae = generator.uniform(0, 31, (n, n)).astype(np.float32)
    prediction = Prediction.from_folded("x", "", (sequence,), folded)
    prediction = replace(prediction, pae=pae, largest_pae=31.75, ptm=0.8)
    page = tmp_path / write_page(tmp_path, prediction, [], {})
    assert page.stat().st_size / 1e6 == pytest.approx(megabytes, abs=0.05)


def test_a_notebook_shows_a_prediction(model: Predictor):
    text = model.fold("MKTAY:GG", name="<b>")._repr_html_()
    assert "&lt;b&gt;" in text
    assert "5 + 2" in text


def short_of_memory(model: Predictor, residues: int, kind: type[Exception]) -> list[tuple]:
    """Makes a model fail above so many residues at a time (fewer rows of pairs take less).

    Returns the list that takes chains, length and rows at a time of every try.
    """
    forward, stack, tries = model.model.forward, model.model.trunk.stack, []

    def limited(aatype: torch.Tensor, *rest, **more):
        tries.append((*aatype.shape, stack.chunk))
        if aatype.numel() * (stack.chunk or 64) / 64 > residues:
            raise kind("DefaultCPUAllocator: not enough memory: you tried to allocate")
        return forward(aatype, *rest, **more)

    model.model.forward = limited
    return tries


@pytest.mark.parametrize("kind", [RuntimeError, torch.OutOfMemoryError, MemoryError])
def test_what_does_not_fit_is_halved_then_chunked_then_failed(
    kind: type[Exception], run: Path, model: Predictor
):
    lengths = [8] * 8 + [16] * 4 + [40, 100, 3000]
    queries = [query(str(n), [("MKTAYIAKQRQISFVKSHFS" * 150)[:n]]) for n in lengths]
    own = esmfold_peft.load(run, device="cpu")
    tries = short_of_memory(own, 40, kind)
    found = list(own.fold_all(queries, max_tokens=64))
    assert sorted(item.index for item in found) == list(range(len(lengths)))
    (lost,) = [item for item in found if isinstance(item, Failed)]
    assert (lost.index, lost.reason.startswith("not enough memory for 3,000 residues")) == (
        14,
        True,
    )
    whole = folded(model, queries[:14], 64)
    for item in found[:14]:
        assert (item.positions - whole[item.index].positions).norm(dim=-1).max() < 1e-4
    assert own.model.trunk.stack.chunk is None  # for what comes next
    # 64 residues do not fit, 32 do: no later batch is larger; then one after the other in chunks.
    assert tries[:3] == [(8, 8, None), (4, 8, None), (4, 8, None)]
    assert all(rows * columns <= 32 or columns > 32 for rows, columns, _ in tries[1:])
    assert [seen[1:] for seen in tries[-3:]] == [(3000, 16), (3000, 4), (3000, 1)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "NoneType instead of str"),
        (b"MKTAY", "bytes instead of str"),
        (5, "int instead of str"),
        (["MKTAY", "GG"], "list instead of str"),
        ("", "has no residues"),
        (" \n", "has no residues"),
        (":", "has an empty chain"),
        ("M" * 1_000_001, "has more than 1,000,000 residues"),
    ],
)
def test_what_is_no_sequence_is_one_clear_error(given: object, message: str):
    """`fold` reads its sequence by this; without it None would be an AttributeError."""
    with pytest.raises(UserError, match=f"^sequence: {message}"):
        read_sequence(given)


def test_white_space_in_a_sequence_is_passed_over():
    assert read_sequence(" MKT\r\nAY\t: g g\n") == ("MKTAY", "GG")


def test_an_error_that_is_not_about_memory_is_not_hidden(run: Path):
    own = esmfold_peft.load(run, device="cpu")

    def broken(*_, **__):
        raise RuntimeError("shape mismatch")

    own.model.forward = broken
    with pytest.raises(RuntimeError, match="shape mismatch"):
        own.fold("MKTAY")


@pytest.mark.parametrize("spoilt", ["positions", "plddt_logits", "pae_logits"])
def test_a_prediction_that_is_not_finite_fails_alone(spoilt: str, run: Path):
    own = esmfold_peft.load(run, device="cpu")
    forward = own.model.forward

    def spoiling(*given, **more):
        output = forward(*given, **more)
        getattr(output, spoilt)[0, 0] = torch.nan
        return output

    own.model.forward = spoiling
    found = list(own.fold_all([query("a", ["MKTAY"]), query("b", ["MKTAYI"])], max_tokens=64))
    assert isinstance(found[0], Failed)
    assert "not finite" in found[0].reason
    assert isinstance(found[1], Folded)
