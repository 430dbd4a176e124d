"""The language model against fair-esm's and Hugging Face's, with the same random weights."""

from argparse import Namespace

import pytest
import torch
from esm.model.esm2 import ESM2
from transformers import EsmConfig, EsmForMaskedLM, EsmModel

from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.model.esm2_weights import load_esm2
from esmfold_peft.model.language_model import ALPHABET, LanguageModel

SHAPE = AttentionShape(layers=3, width=60, heads=5)


@pytest.fixture(scope="module")
def fair_esm():
    torch.manual_seed(0)
    return roughen(ESM2(SHAPE.layers, SHAPE.width, SHAPE.heads).eval())


@pytest.fixture(scope="module")
def hugging_face():
    torch.manual_seed(0)
    config = EsmConfig(
        vocab_size=33,
        mask_token_id=32,
        pad_token_id=1,
        hidden_size=SHAPE.width,
        num_hidden_layers=SHAPE.layers,
        num_attention_heads=SHAPE.heads,
        intermediate_size=4 * SHAPE.width,
        position_embedding_type="rotary",
        emb_layer_norm_before=False,
        token_dropout=True,
        layer_norm_eps=1e-5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return roughen(EsmForMaskedLM(config).eval())


@torch.no_grad()
def roughen(model):
    """Moves every weight, so that no bias is zero and no norm is the identity."""
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return model


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


def test_gradients_equal_fair_esm(lm, fair_esm):
    aatype, mask = chains()
    fair_esm.zero_grad()
    reference = fair_esm_levels(fair_esm, lm.tokenize(aatype, mask))
    weight = torch.randn_like(reference)
    for hidden in (reference, lm(aatype, mask)):
        (hidden * weight)[mask].sum().backward()
    theirs = dict(fair_esm.named_parameters())
    for name, parameter in lm.base_parameters():
        expected = theirs[name].grad
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
        assert torch.equal(loaded.get_submodule(ours).weight, expected)
        assert torch.equal(lm.get_submodule(ours).weight, fair_esm.get_submodule(ours).weight)
