"""Laws of the language model: tokens, padding, precision, recomputing."""

import pytest
import torch

from esmfold_peft.adapters.base import SIZES, AttentionShape
from esmfold_peft.errors import UserError
from esmfold_peft.model.language_model import ALPHABET, LanguageModel
from esmfold_peft.protein.residues import RESIDUES_X, encode

SHAPE = AttentionShape(layers=3, width=40, heads=4)


@pytest.fixture
def lm():
    return LanguageModel.random(SHAPE)


def chains(*lengths, seed=1):
    """Random residues padded with X, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    aatype = torch.randint(0, 21, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return aatype.masked_fill(~mask, 20), mask


def residues(*sequences):
    return torch.stack([torch.from_numpy(encode(sequence)) for sequence in sequences])


def relative_error(x, reference):
    return ((x.float() - reference).norm() / reference.norm()).item()


def test_each_chain_ends_with_eos_where_it_ends(lm):
    aatype = residues("MKXW", "AVXX")
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    tokens = [[ALPHABET.get_tok(int(t)) for t in row] for row in lm.tokenize(aatype, mask)]
    assert tokens == [
        ["<cls>", "M", "K", "X", "W", "<eos>"],
        ["<cls>", "A", "V", "<eos>", "<pad>", "<pad>"],
    ]


def test_level_zero_is_the_embedding_scaled_for_token_dropout(lm):
    aatype = residues(RESIDUES_X)
    hidden = lm(aatype, torch.ones_like(aatype, dtype=torch.bool))
    tokens = torch.tensor([ALPHABET.get_idx(letter) for letter in RESIDUES_X])
    torch.testing.assert_close(hidden[0, :, 0], 0.88 * lm.embed_tokens.weight[tokens])


def test_a_chain_alone_equals_the_same_chain_padded(lm):
    aatype, mask = chains(11, 7, 1)
    together = lm(aatype, mask)
    for i, length in enumerate((11, 7, 1)):
        alone = lm(aatype[i : i + 1, :length], mask[i : i + 1, :length])
        torch.testing.assert_close(together[i : i + 1, :length], alone, rtol=1e-5, atol=1e-5)


def test_residues_in_the_padding_are_not_seen(lm):
    aatype, mask = chains(9, 5)
    other = torch.where(mask, aatype, 3)
    assert torch.equal(lm(aatype, mask)[mask], lm(other, mask)[mask])


def test_order_of_residues_is_seen(lm):
    aatype = residues("AAWAA", "WAAAA")
    hidden = lm(aatype, torch.ones_like(aatype, dtype=torch.bool))
    assert not torch.allclose(hidden[0, 2, -1], hidden[1, 0, -1], atol=1e-2)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two, other = (LanguageModel.random(SHAPE, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(p, q)
    assert not torch.equal(one.embed_tokens.weight, other.embed_tokens.weight)


def test_every_parameter_has_a_gradient(lm):
    aatype, mask = chains(11, 7)
    hidden = lm(aatype, mask)
    (hidden * torch.randn_like(hidden)).mean().backward()
    without = [name for name, p in lm.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_recomputing_changes_no_gradient_and_keeps_less(lm):
    again, kept = LanguageModel.random(SHAPE, recompute=True), []
    aatype, mask = chains(11, 7)
    for model in (lm, again):
        numbers: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, numbers=numbers: numbers.append(x.numel()) or x, lambda x: x
        ):
            found = model(aatype, mask)[mask]
        kept.append(sum(numbers))
        found.square().mean().backward()
    assert kept[1] < kept[0] / 4
    for (name, p), q in zip(lm.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_training_after_inference_mode(lm):
    aatype, mask = chains(11, 7)
    with torch.inference_mode():
        expected = lm(aatype, mask).clone()
    hidden = lm(aatype, mask)
    hidden.square().mean().backward()
    assert torch.equal(hidden.detach(), expected)
    assert lm.layers[0].self_attn.in_proj.weight.grad.any()


def test_training_and_evaluation_are_the_same(lm):
    aatype, mask = chains(11, 7)
    assert torch.equal(lm.train()(aatype, mask), lm.eval()(aatype, mask))


def test_bfloat16_autocast_is_close(lm):
    aatype, mask = chains(60, 41)
    reference = lm(aatype, mask)[mask]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = lm(aatype, mask)[mask]
    assert 0 < relative_error(hidden, reference) < 2e-2


def sharpened():
    """A model whose attention is far from uniform, so that positions matter."""
    lm = LanguageModel.random(SHAPE)
    with torch.no_grad():
        for layer in range(SHAPE.layers):
            lm.weight(layer, "query").mul_(4)
            lm.weight(layer, "key").mul_(4)
    return lm


def test_bfloat16_weights_keep_positions_apart():
    # bfloat16 counts 256, 256, 258, ...: tables made from positions rounded to it give 0.37 here.
    aatype, mask = chains(600)
    with torch.no_grad():
        reference = sharpened()(aatype, mask)
        hidden = sharpened().bfloat16()(aatype, mask)
    assert hidden.dtype == torch.bfloat16
    assert relative_error(hidden[:, 300:, 1:], reference[:, 300:, 1:]) < 4e-2


def test_a_cast_of_the_model_leaves_rotary_frequencies_alone():
    lm = LanguageModel.random(SHAPE)
    before = lm.rotary_frequencies.clone()
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert torch.equal(lm.to(dtype).rotary_frequencies, before)


def test_sizes_are_those_of_the_names():
    for name, shape in SIZES.items():
        assert name.startswith(f"esm2_t{shape.layers}_")
        assert shape.head_width * shape.heads == shape.width


def test_parameters_of_the_35m_model():
    with torch.device("meta"):
        lm = LanguageModel.random("esm2_t12_35M_UR50D")
    d = 480
    layer = 4 * (d * d + d) + 2 * 4 * d * d + 4 * d + d + 4 * d
    assert sum(p.numel() for p in lm.parameters()) == 33 * d + 12 * layer + 2 * d


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LanguageModel.random("esm2_t12"), '"esm2_t12" is unknown'),
        (lambda: AttentionShape(2, 42, 4), "multiple of twice the heads"),
        (lambda: AttentionShape(0, 40, 4), "must be positive"),
    ],
)
def test_wrong_sizes_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
