"""`adapters merge`: fair-esm and transformers compute with the merged files what we compute."""

import json
from argparse import Namespace

import esm
import pytest
import torch
from esm.model.esm2 import ESM2
from safetensors.torch import load_file
from transformers import AutoTokenizer, EsmForMaskedLM, EsmModel

from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.adapters.insert import insert_adapter
from esmfold_peft.adapters.io import load_adapter, save_adapter
from esmfold_peft.cli import main
from esmfold_peft.commands import adapters as command
from esmfold_peft.config import (
    AdapterConfig,
    DataConfig,
    LanguageModelConfig,
    MergeConfig,
    ModelConfig,
    TrainConfig,
)
from esmfold_peft.config.parsing import config_text
from esmfold_peft.errors import UserError
from esmfold_peft.model.language_model import LanguageModel
from esmfold_peft.runs.build import build_language_model
from esmfold_peft.weights.esm2_weights import load_esm2, weights_hash
from tests.published import esm_config, roughen

SHAPE = AttentionShape(layers=2, width=40, heads=4)
FREQUENCIES = "layers.0.self_attn.rot_emb.inv_freq"


def fair_esm():
    torch.manual_seed(0)
    return roughen(ESM2(SHAPE.layers, SHAPE.width, SHAPE.heads))


def hugging_face():
    torch.manual_seed(0)
    config = esm_config(SHAPE.layers, SHAPE.width, SHAPE.heads)
    return roughen(EsmForMaskedLM(config))


def save_official(folder, *, regression=True, **changed):
    """An official checkpoint of fair-esm's model, with the head for contacts beside it."""
    cfg = Namespace(
        arch="esm2",
        encoder_layers=SHAPE.layers,
        encoder_embed_dim=SHAPE.width,
        encoder_attention_heads=SHAPE.heads,
        token_dropout=True,
    )
    model, contacts = {}, {}
    for name, value in (fair_esm().state_dict() | changed).items():
        if name.startswith("contact_head."):
            contacts[name] = value
        else:
            prefix = "encoder." if name.startswith("lm_head.") else "encoder.sentence_encoder."
            model[prefix + name] = value
    path = folder / "esm2_tiny.pt"
    torch.save({"cfg": {"model": cfg}, "model": model}, path)
    if regression:
        torch.save({"model": contacts}, folder / "esm2_tiny-contact-regression.pt")
    return path


def save_hugging_face(folder, model=None):
    path = folder / "hugging_face"
    (model or hugging_face()).save_pretrained(path)
    return path


SOURCES = pytest.mark.parametrize("save", [save_official, save_hugging_face])


def language_model(weights):
    sizes = {"layers": SHAPE.layers, "width": SHAPE.width, "heads": SHAPE.heads}
    return LanguageModelConfig(name="custom", weights=str(weights), **sizes)


def save_trained(folder, weights, kind="lorta", size=0.3, **settings):
    """Saves an adapter all of whose factors have moved off their start."""
    lm = build_language_model(language_model(weights), seed=0)
    torch.manual_seed(4)
    adapter = insert_adapter(lm, AdapterConfig(kind=kind, **settings))
    with torch.no_grad():
        for factor in adapter.parameters():
            factor.add_(size * torch.randn_like(factor))
    save_adapter(adapter, folder / "adapter", weights_hash(lm))
    return folder / "adapter"


def adapted(weights, adapter):
    lm = build_language_model(language_model(weights), seed=0)
    load_adapter(lm, adapter, weights_hash(lm))
    return lm


def merge(tmp_path, weights, adapter, **settings):
    output = tmp_path / "out"
    config = MergeConfig(
        output=output, adapter=adapter, language_model=language_model(weights), **settings
    )
    assert command.merge(config) == 0
    return output


def load_fair_esm(output, stem="esm2_custom_merged"):
    with torch.serialization.safe_globals([Namespace]):
        return esm.pretrained.load_model_and_alphabet_local(output / f"{stem}.pt")[0].eval()


def load_transformers(output, kind=EsmForMaskedLM):
    model, found = kind.from_pretrained(output / "transformers", output_loading_info=True)
    assert not any(found.values()), found
    return model.eval()


def fair_esm_levels(model, tokens):
    output = model(tokens, repr_layers=range(SHAPE.layers + 1))
    levels = [output["representations"][i] for i in range(SHAPE.layers + 1)]
    return torch.stack(levels, dim=2)[:, 1:-1], output["logits"][:, 1:-1]


def transformers_levels(model, tokens):
    mask = (tokens != 1).long()
    output = model(tokens, attention_mask=mask, output_hidden_states=True)
    return torch.stack(output.hidden_states, dim=2)[:, 1:-1], output.logits[:, 1:-1]


def assert_close(ours, theirs, mask):
    ours, theirs = ours[mask], theirs[mask]
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


@SOURCES
@torch.no_grad()
def test_both_programs_compute_what_the_adapted_model_does(save, tmp_path, chains):
    weights = save(tmp_path)
    targets = ("query", "key", "value", "output")
    adapter = save_trained(tmp_path, weights, rank=2, alpha=4.0, targets=targets)
    lm = adapted(weights, adapter)
    ours, tokens, mask = lm(*chains), lm.tokenize(*chains), chains[1]
    lm.adapter = None
    assert (ours - lm(*chains))[mask].norm() > 0.05 * ours[mask].norm()
    # The heads are those of the source.
    head = fair_esm().lm_head if save is save_official else hugging_face().lm_head
    output = merge(tmp_path, weights, adapter)
    for hidden, logits in (
        fair_esm_levels(load_fair_esm(output), tokens),
        transformers_levels(load_transformers(output), tokens),
    ):
        for level in range(SHAPE.layers + 1):
            assert_close(hidden[:, :, level], ours[:, :, level], mask)
        assert_close(logits, head(ours[:, :, -1]), mask)


@pytest.mark.parametrize("kind", ["dora", "ia3", "bitfit"])
@torch.no_grad()
def test_methods_that_change_rows_or_biases_merge_too(kind, tmp_path, chains):
    weights = save_official(tmp_path)
    targets = ("key", "value", "fc1", "fc2")
    adapter = save_trained(tmp_path, weights, kind, targets=targets)
    lm = adapted(weights, adapter)
    output = merge(tmp_path, weights, adapter, formats=("fair-esm",))
    assert not (output / "transformers").exists()
    hidden, _ = fair_esm_levels(load_fair_esm(output), lm.tokenize(*chains))
    assert_close(hidden, lm(*chains), chains[1])


@SOURCES
def test_all_but_the_adapted_matrices_is_the_source(save, tmp_path):
    weights = save(tmp_path)
    adapter = save_trained(tmp_path, weights, targets=("value",))
    output = merge(tmp_path, weights, adapter)
    base = fair_esm() if save is save_official else None
    theirs = load_fair_esm(output).state_dict()
    if base is not None:
        changed = {n for n, t in base.state_dict().items() if not torch.equal(t, theirs[n])}
        assert changed == {f"layers.{i}.self_attn.v_proj.weight" for i in range(SHAPE.layers)}
    source, merged = hugging_face(), load_transformers(output)
    if save is save_hugging_face:
        before, after = source.state_dict(), merged.state_dict()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        layers = range(SHAPE.layers)
        assert changed == {f"esm.encoder.layer.{i}.attention.self.value.weight" for i in layers}
    # The head for contacts goes from either format into both.
    for name, tensor in merged.esm.contact_head.state_dict().items():
        assert torch.equal(theirs[f"contact_head.{name}"], tensor)


def test_merged_files_are_sources_again(tmp_path):
    weights = save_official(tmp_path)
    output = merge(tmp_path, weights, save_trained(tmp_path, weights))
    hashes = set()
    for path in (output / "esm2_custom_merged.pt", output / "transformers"):
        lm = LanguageModel.random(SHAPE, seed=7)
        load_esm2(lm, path)
        hashes.add(weights_hash(lm))
    assert len(hashes) == 1


def test_rotary_frequencies_of_the_source_stay_in_every_type(tmp_path):
    # Those of the published files are rounded to float16.
    rounded = fair_esm().state_dict()[FREQUENCIES].half().float()
    changed = {f"layers.{i}.self_attn.rot_emb.inv_freq": rounded for i in range(SHAPE.layers)}
    weights = save_official(tmp_path, **changed)
    output = merge(tmp_path, weights, save_trained(tmp_path, weights), dtype="bfloat16")
    assert torch.equal(load_fair_esm(output).state_dict()[FREQUENCIES], rounded)
    tensors = load_file(output / "transformers" / "model.safetensors")
    kept = {n for n, t in tensors.items() if t.dtype != torch.bfloat16}
    layers = range(SHAPE.layers)
    assert kept == {
        f"esm.encoder.layer.{i}.attention.self.rotary_embeddings.inv_freq" for i in layers
    }
    assert all(torch.equal(tensors[name], rounded) for name in kept)


def test_transformers_reads_type_and_tokens(tmp_path):
    weights = save_official(tmp_path)
    output = merge(tmp_path, weights, save_trained(tmp_path, weights), dtype="bfloat16")
    assert load_transformers(output).dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(output / "transformers")
    alphabet = esm.Alphabet.from_architecture("ESM-1b")
    letters = "MKTAYIARNDCQEGHLFPSWVX"
    assert tokenizer(letters)["input_ids"] == [0, *alphabet.encode(letters), 2]


def test_half_precision_sources_are_merged_in_float32(tmp_path):
    halves = {n: t.half() for n, t in fair_esm().state_dict().items()}
    weights = save_official(tmp_path, **halves)
    merge(tmp_path, weights, save_trained(tmp_path, weights))
    model = torch.load(tmp_path / "out" / "esm2_custom_merged.pt", weights_only=False)["model"]
    assert {tensor.dtype for tensor in model.values()} == {torch.float32}


def test_without_the_head_for_contacts_there_is_none(tmp_path):
    weights = save_official(tmp_path, regression=False)
    output = merge(tmp_path, weights, save_trained(tmp_path, weights))
    assert not list(output.glob("*regression*"))
    data = torch.load(output / "esm2_custom_merged.pt", weights_only=False)
    with pytest.warns(UserWarning, match="Regression weights not found"):
        esm.pretrained.load_model_and_alphabet_core("esm2_custom_merged", data, None)


def test_a_source_without_head_is_for_transformers_only(tmp_path, chains):
    weights = save_hugging_face(tmp_path, hugging_face().esm)
    adapter = save_trained(tmp_path, weights)
    with pytest.raises(UserError, match=r"hugging_face: has no head .* --formats transformers"):
        merge(tmp_path, weights, adapter)
    assert not (tmp_path / "out").exists()
    output = merge(tmp_path, weights, adapter, formats=("transformers",))
    model, found = EsmModel.from_pretrained(
        output / "transformers", add_pooling_layer=False, output_loading_info=True
    )
    assert not any(found.values())
    lm = adapted(weights, adapter)
    tokens = lm.tokenize(*chains)
    with torch.no_grad():
        last = model.eval()(tokens, attention_mask=(tokens != 1).long()).last_hidden_state
        assert_close(last[:, 1:-1], lm(*chains)[:, :, -1], chains[1])


def test_a_head_that_is_not_the_embedding_stays_for_transformers(tmp_path):
    head = torch.randn(33, SHAPE.width)
    weights = save_official(tmp_path, **{"lm_head.weight": head})
    with pytest.raises(UserError, match="head whose matrix is not the embedding"):
        merge(tmp_path, weights, save_trained(tmp_path, weights))
    output = merge(tmp_path, weights, tmp_path / "adapter", formats=("transformers",))
    model = load_transformers(output)
    assert torch.equal(model.lm_head.decoder.weight, head)
    assert not torch.equal(model.get_input_embeddings().weight, head)


def test_updates_that_bfloat16_cannot_see_are_refused(tmp_path, capsys):
    weights = save_official(tmp_path)
    adapter = save_trained(tmp_path, weights, alpha=1e-3)
    with pytest.raises(UserError, match=r"into bfloat16 weights rounds them by"):
        merge(tmp_path, weights, adapter, dtype="bfloat16")
    assert not (tmp_path / "out").exists()
    merge(tmp_path, weights, adapter)
    assert "rounding to float32 lost at most" in capsys.readouterr().err


def test_what_is_not_linear_is_refused(tmp_path):
    weights = save_official(tmp_path)
    adapter = save_trained(tmp_path, weights, "loretta_adp", targets=("output", "fc2"))
    with pytest.raises(UserError, match="loretta_adp cannot be merged: it is not linear"):
        merge(tmp_path, weights, adapter)
    assert not (tmp_path / "out").exists()


def test_another_base_is_refused(tmp_path):
    adapter = save_trained(tmp_path, save_official(tmp_path))
    other = save_hugging_face(tmp_path)
    with pytest.raises(UserError, match="base_sha256"):
        merge(tmp_path, other, adapter)


def test_random_weights_have_no_file(tmp_path):
    with pytest.raises(UserError, match="weights: random has no file"):
        merge(tmp_path, "random", tmp_path)


def test_an_output_in_use_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(UserError, match="out exists already"):
        merge(tmp_path, tmp_path, tmp_path)


def make_run(tmp_path, weights, kind):
    config = TrainConfig(
        run=tmp_path / "run",
        data=DataConfig(train=tmp_path),
        model=ModelConfig(language_model=language_model(weights)),
        adapter=AdapterConfig(kind=kind),
    )
    config.run.mkdir()
    (config.run / "config.yaml").write_text(config_text(config))
    return config.run


def test_a_run_names_its_language_model_and_adapter(tmp_path):
    weights = save_official(tmp_path)
    folder = make_run(tmp_path, weights, "lorta")
    save_trained(folder, weights)
    output = tmp_path / "out"
    flags = ["--run", str(folder), "--output", str(output), "--formats", "transformers"]
    assert main(["adapters", "merge", *flags]) == 0
    assert sorted(path.name for path in output.rglob("*")) == [
        "config.json",
        "model.safetensors",
        "transformers",
        "vocab.txt",
    ]
    config = json.loads((output / "transformers" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["dtype"]) == (SHAPE.layers, "float32")


def test_a_run_without_adapter_is_refused(tmp_path):
    weights = save_official(tmp_path)
    config = MergeConfig(output=tmp_path / "out", run=make_run(tmp_path, weights, "full"))
    with pytest.raises(UserError, match=r"adapter\.kind is full, there is none to merge"):
        command.merge(config)
    with pytest.raises(UserError, match="not the folder of a training run"):
        command.merge(MergeConfig(output=tmp_path / "out", run=tmp_path))


def test_fair_esm_recognises_the_name():
    assert command.merged_stem("esm2_t6_8M_UR50D") == "esm2_t6_8M_UR50D_merged"
    assert command.merged_stem("custom") == "esm2_custom_merged"
