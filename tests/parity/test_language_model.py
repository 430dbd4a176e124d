"""The language model against fair-esm's and Hugging Face's, with the same random weights."""

from argparse import Namespace

import pytest
import torch
from esm.model.esm2 import ESM2
from safetensors.torch import load_file, save_file
from transformers import EsmForMaskedLM, EsmModel

from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.model.language_model import ALPHABET, LanguageModel
from esmfold_peft.weights.esm2_weights import load_esm2
from tests.published import esm_config, roughen

SHAPE = AttentionShape(layers=3, width=60, heads=5)


@pytest.fixture(scope="module")
def fair_esm():
    torch.manual_seed(0)
    return roughen(ESM2(SHAPE.layers, SHAPE.width, SHAPE.heads))


@pytest.fixture(scope="module")
def hugging_face():
    torch.manual_seed(0)
    config = esm_config(SHAPE.layers, SHAPE.width, SHAPE.heads)
    return roughen(EsmForMaskedLM(config))


def chains():
    aatype = torch.randint(0, 21, (3, 14), generator=torch.Generator().manual_seed(1))
    return aatype, torch.arange(14) < torch.tensor([14, 9, 1])[:, None]


def save_official(model, path):
    """Writes fair-esm's checkpoint format: a namespace, and prefixed names of all weights."""
    cfg = Namespace(
        arch="transformer_sentence_encoder",
        encoder_layers=SHAPE.layers,
        encoder_embed_dim=SHAPE.width,
        encoder_attention_heads=SHAPE.heads,
        token_dropout=True,
    )
    state = {}
    for name, value in model.state_dict().items():
        if not name.startswith("contact_head."):
            prefix = "encoder." if name.startswith("lm_head.") else "encoder.sentence_encoder."
            state[prefix + name] = value
    torch.save({"cfg": {"model": cfg}, "model": state}, path)


def assert_all_levels_agree(hidden, reference, mask):
    """Compares each level over the real residues, relative to the level's size."""
    for level in range(SHAPE.layers + 1):
        ours, theirs = hidden[:, :, level][mask], reference[:, :, level][mask]
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm(), level


@pytest.fixture
def lm(fair_esm, tmp_path):
    save_official(fair_esm, tmp_path / "esm2_tiny.pt")
    lm = LanguageModel.random(SHAPE, seed=7)
    load_esm2(lm, tmp_path / "esm2_tiny.pt")
    return lm


def fair_esm_levels(model, tokens):
    representations = model(tokens, repr_layers=range(SHAPE.layers + 1))["representations"]
    return torch.stack([representations[i] for i in sorted(representations)], dim=2)[:, 1:-1]


def test_hidden_residues_are_fair_esms_masks(fair_esm, tmp_path):
    """Embeddings of <mask> are zero and the others larger, by what fair-esm calls token dropout."""
    save_official(fair_esm, tmp_path / "esm2_x.pt")
    ours = LanguageModel(SHAPE).eval()
    load_esm2(ours, tmp_path / "esm2_x.pt")
    aatype, mask = chains()
    hidden = torch.rand(3, 14, generator=torch.Generator().manual_seed(2)) < 0.3
    hidden[2] = False
    tokens = ours.tokenize(aatype, mask)
    tokens[:, 1:-1][hidden & mask] = ALPHABET.mask_idx
    with torch.no_grad():
        theirs = fair_esm(tokens, repr_layers=range(SHAPE.layers + 1))["representations"]
        reference = torch.stack([theirs[k][:, 1:-1] for k in range(SHAPE.layers + 1)], dim=2)
        assert_all_levels_agree(ours(aatype, mask, masked=hidden), reference, mask)
        nothing = ours(aatype, mask, masked=torch.zeros_like(hidden))
        assert torch.equal(nothing, ours(aatype, mask))


def test_padded_batch_equals_fair_esm(lm, fair_esm):
    aatype, mask = chains()
    letters = "ARNDCQEGHILKMFPSTWYVX"
    convert = ALPHABET.get_batch_converter()
    sequences = [
        "".join(letters[a] for a in row[keep]) for row, keep in zip(aatype, mask, strict=True)
    ]
    _, _, tokens = convert([(str(i), s) for i, s in enumerate(sequences)])
    assert torch.equal(lm.tokenize(aatype, mask), tokens)
    with torch.no_grad():
        assert_all_levels_agree(lm(aatype, mask), fair_esm_levels(fair_esm, tokens), mask)


def test_single_chain_equals_fair_esm(lm, fair_esm):
    aatype, mask = chains()
    one = aatype[:1], mask[:1]
    with torch.no_grad():
        reference = fair_esm_levels(fair_esm, lm.tokenize(*one))
        assert_all_levels_agree(lm(*one), reference, one[1])


def test_rotary_frequencies_are_those_of_the_file(tmp_path):
    # ESM-2 was trained with frequencies in float16: its files hold them rounded. At position 500
    # that turns some channels by 0.1 radians, which a sharp attention sees.
    torch.manual_seed(0)
    fair_esm = roughen(ESM2(SHAPE.layers, SHAPE.width, SHAPE.heads))
    exact = fair_esm.layers[0].self_attn.rot_emb.inv_freq.clone()
    for layer in fair_esm.layers:
        layer.self_attn.rot_emb.inv_freq.copy_(exact.half())
        layer.self_attn.q_proj.weight.data.mul_(2)
        layer.self_attn.k_proj.weight.data.mul_(2)
    save_official(fair_esm, tmp_path / "esm2_tiny.pt")
    lm = LanguageModel.random(SHAPE, seed=7)
    load_esm2(lm, tmp_path / "esm2_tiny.pt")
    assert torch.equal(lm.rotary_frequencies, exact.half().float())
    aatype = torch.randint(0, 20, (1, 500), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(aatype, dtype=torch.bool)
    with torch.no_grad():
        reference = fair_esm_levels(fair_esm, lm.tokenize(aatype, mask))
        assert_all_levels_agree(lm(aatype, mask), reference, mask)
        lm.rotary_frequencies.copy_(exact)
        assert (lm(aatype, mask) - reference).norm() > 3e-4 * reference.norm()


@pytest.mark.parametrize("layout", ["one", "each layer"])
def test_rotary_frequencies_in_hugging_faces_layouts(hugging_face, tmp_path, layout):
    hugging_face.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    (name,) = (name for name in tensors if name.endswith("inv_freq"))
    rounded = tensors.pop(name).half().float()
    layers = [f"esm.encoder.layer.{i}.attention.self.rotary_embeddings.inv_freq" for i in range(3)]
    tensors |= {n: rounded.clone() for n in ([name] if layout == "one" else layers)}
    save_file(tensors, path, metadata={"format": "pt"})
    lm = LanguageModel.random(SHAPE, seed=7)
    load_esm2(lm, tmp_path)
    assert torch.equal(lm.rotary_frequencies, rounded)
    theirs = EsmModel.from_pretrained(tmp_path).eval()
    aatype, mask = chains()
    tokens = lm.tokenize(aatype, mask)
    with torch.no_grad():
        output = theirs(tokens, attention_mask=(tokens != 1).long(), output_hidden_states=True)
        reference = torch.stack(output.hidden_states, dim=2)[:, 1:-1]
        assert_all_levels_agree(lm(aatype, mask), reference, mask)


def test_gradients_equal_fair_esm(lm, fair_esm):
    aatype, mask = chains()
    fair_esm.zero_grad()
    reference = fair_esm_levels(fair_esm, lm.tokenize(aatype, mask))
    weight = torch.randn_like(reference)
    for hidden in (reference, lm(aatype, mask)):
        (hidden * weight)[mask].sum().backward()
    theirs = dict(fair_esm.named_parameters())
    for name, parameter in lm.base_parameters():
        # Query, key and value are one matrix here.
        fused = "in_proj" in name
        parts = [name.replace("in_proj", f"{m}_proj") for m in "qkv"] if fused else [name]
        expected = torch.cat([theirs[part].grad for part in parts])
        assert (parameter.grad - expected).norm() <= 1e-4 * expected.norm(), name


@pytest.mark.parametrize("head", [True, False], ids=["EsmForMaskedLM", "EsmModel"])
def test_hugging_face_layout(hugging_face, tmp_path, head):
    saved = hugging_face if head else hugging_face.esm
    assert isinstance(saved, EsmForMaskedLM if head else EsmModel)
    saved.save_pretrained(tmp_path)
    lm = LanguageModel.random(SHAPE, seed=7)
    load_esm2(lm, tmp_path)
    aatype, mask = chains()
    tokens = lm.tokenize(aatype, mask)
    with torch.no_grad():
        output = hugging_face.esm(
            tokens, attention_mask=(tokens != 1).long(), output_hidden_states=True
        )
        reference = torch.stack(output.hidden_states, dim=2)[:, 1:-1]
        assert_all_levels_agree(lm(aatype, mask), reference, mask)


def test_both_layouts_give_the_same_model(lm, fair_esm, hugging_face, tmp_path):
    names = {
        "embed_tokens": "embeddings.word_embeddings",
        "layers.2.self_attn.k_proj": "encoder.layer.2.attention.self.key",
        "layers.2.self_attn.out_proj": "encoder.layer.2.attention.output.dense",
        "layers.2.self_attn_layer_norm": "encoder.layer.2.attention.LayerNorm",
        "layers.2.fc1": "encoder.layer.2.intermediate.dense",
        "layers.2.fc2": "encoder.layer.2.output.dense",
        "layers.2.final_layer_norm": "encoder.layer.2.LayerNorm",
        "emb_layer_norm_after": "encoder.emb_layer_norm_after",
    }
    hugging_face.save_pretrained(tmp_path)
    loaded = LanguageModel.random(SHAPE, seed=7)
    load_esm2(loaded, tmp_path)
    for ours, theirs in names.items():
        expected = hugging_face.esm.get_submodule(theirs).weight
        assert torch.equal(dict(loaded.official_tensors())[f"{ours}.weight"], expected)
        official = dict(lm.official_tensors())[f"{ours}.weight"]
        assert torch.equal(official, fair_esm.get_submodule(ours).weight)
