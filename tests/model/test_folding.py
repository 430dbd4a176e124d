"""The folding model as a whole: laws that hold for any weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from esmfold_peft.config import AdapterConfig, LossWeights, ModelConfig, TrainConfig
from esmfold_peft.datasets.batch import Batch, collate
from esmfold_peft.datasets.features import features
from esmfold_peft.datasets.truth import ground_truth
from esmfold_peft.losses.total import LossTerms, fold_loss
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.heads import PLDDTHead
from esmfold_peft.model.inference import sequence_features
from esmfold_peft.protein.read import read_structure
from esmfold_peft.runs.build import build_model
from tests.tiny import TINY

CHAINS = ("1ubq_A", "1hf9_A")
WEIGHTS = LossWeights(fape=1.0, chi=1.0, distogram=0.3, plddt=0.01)


@pytest.fixture(scope="module")
def chains(example: Path) -> list:
    """Crops of two full-atom chains, 32 and 21 residues."""
    files = {p.name.split(".")[0]: p for p in example.glob("*/*.cif.gz")}
    lengths = (32, 21)
    return [
        features(read_structure(files[name])).crop(4, n)
        for name, n in zip(CHAINS, lengths, strict=True)
    ]


@pytest.fixture(scope="module")
def batch(chains: list) -> Batch:
    """Both crops, the second padded, the first one clamped."""
    return collate(chains, [True, False])


def shaken(config: TrainConfig = TINY) -> FoldingModel:
    """A model in which no weight is zero, so that every branch takes part, in evaluation mode."""
    model, _ = build_model(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def loss_of(model: FoldingModel, batch: Batch, recycles: int = 1) -> LossTerms:
    """The training loss, every term of it."""
    output = model(batch.aatype, batch.residue_index, batch.mask, recycles)
    clamp = torch.where(batch.clamped, 10.0, torch.inf)
    return fold_loss(output, ground_truth(batch), WEIGHTS, clamp=clamp, resolution_range=None)


def test_a_batch_of_two_equals_two_batches_of_one(chains: list, batch: Batch):
    model = shaken()
    with torch.no_grad():
        together = model(batch.aatype, batch.residue_index, batch.mask, 2)
        losses = loss_of(model, batch, 2)
        for row, (chain, clamped) in enumerate(zip(chains, (True, False), strict=True)):
            one = collate([chain], [clamped])
            alone = model(one.aatype, one.residue_index, one.mask, 2)
            n = len(chain)
            torch.testing.assert_close(
                together.positions[row, :n], alone.positions[0], atol=1e-4, rtol=0
            )
            torch.testing.assert_close(together.plddt[row, :n], alone.plddt[0], atol=1e-5, rtol=0)
            single = loss_of(model, one, 2)
            torch.testing.assert_close(losses.total[row], single.total[0], atol=1e-4, rtol=1e-5)
            for name, term in losses.terms.items():
                torch.testing.assert_close(term[row], single.terms[name][0], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", ["lorta", "lora"])
def test_a_fresh_adapter_changes_no_bit_of_the_output(kind: str, batch: Batch):
    outputs = []
    for chosen in ("none", kind):
        adapter = replace(TINY.adapter, kind=chosen)
        model = build_model(replace(TINY, adapter=adapter))[0].eval()
        # Branches start at zero and would hide the language model: give the trunk's some weight.
        generator = torch.Generator().manual_seed(2)
        for name, parameter in model.named_parameters():
            if not name.startswith("language_model."):
                noise = 0.05 * torch.randn(parameter.shape, generator=generator)
                parameter.data += noise
        with torch.no_grad():
            outputs.append(model(batch.aatype, batch.residue_index, batch.mask, 1))
    assert torch.equal(outputs[0].positions, outputs[1].positions)
    assert torch.equal(outputs[0].distogram_logits, outputs[1].distogram_logits)
    assert torch.equal(outputs[0].plddt_logits, outputs[1].plddt_logits)
    assert outputs[0].positions.std() > 0.1


@pytest.mark.parametrize(
    ("kind", "init"), [("lorta", "unit"), ("lorta", "paper"), ("lora", "unit")]
)
def test_every_adapter_parameter_learns_from_the_folding_loss(kind: str, init: str, batch: Batch):
    targets = ("query", "key", "value", "output")
    adapter = AdapterConfig(kind=kind, rank=2, alpha=2.0, targets=targets, init=init)
    model, _ = build_model(replace(TINY, adapter=adapter))
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    seen = {n: torch.zeros(p.shape, dtype=torch.bool) for n, p in named_adapter(model)}
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model, batch, 0).total.mean().backward()
        for name, parameter in named_adapter(model):
            seen[name] |= parameter.grad != 0
        optimizer.step()
    assert len(seen) > 1
    for name, had_gradient in seen.items():
        assert had_gradient.all(), name
    for name, parameter in model.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), name
            assert parameter.grad is None


def named_adapter(model: FoldingModel) -> list:
    """Parameters of the language model's adapter."""
    assert model.language_model.adapter is not None
    return list(model.language_model.adapter.named_parameters())


def test_the_first_layers_adapter_learns(batch: Batch):
    model = shaken(replace(TINY, adapter=AdapterConfig(kind="lora", rank=1)))
    loss_of(model, batch).total.mean().backward()
    assert model.language_model.adapter is not None
    first_layer = [parameter.grad[0] for parameter in model.language_model.adapter.parameters()]
    assert all(gradient.abs().max() > 1e-8 for gradient in first_layer)


def test_every_trained_parameter_of_the_model_has_a_gradient(batch: Batch):
    model = shaken()
    loss_of(model, batch, 0).total.mean().backward()
    without = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert without == set()


def test_with_full_the_language_model_learns(batch: Batch):
    model = shaken(replace(TINY, adapter=AdapterConfig(kind="full")))
    loss_of(model, batch).total.mean().backward()
    for name, parameter in model.language_model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_heads_read_the_tracks_that_alphafold2_gives_them(batch: Batch):
    model = shaken()
    tracks, structures = [], []
    model.trunk.register_forward_hook(lambda _module, _inputs, result: tracks.append(result))
    model.structure_module.register_forward_hook(lambda _m, _i, result: structures.append(result))
    with torch.no_grad():
        output = model(batch.aatype, batch.residue_index, batch.mask, 1)
        assert torch.equal(output.resolved_logits, model.resolved_head(tracks[-1].s))
        assert torch.equal(output.pae_logits, model.pae_head(tracks[-1].z))
        assert torch.equal(output.plddt_logits, model.plddt_head(structures[-1].s))
        alone = model(batch.aatype, batch.residue_index, batch.mask, 1, heads=("plddt",))
    assert torch.equal(alone.plddt_logits, output.plddt_logits)
    assert alone.pae_logits is alone.resolved_logits is alone.distogram_logits is None


def test_recycling_passes_no_gradient_but_changes_the_structure(batch: Batch):
    model = shaken()
    with torch.no_grad():
        outputs = [
            model(batch.aatype, batch.residue_index, batch.mask, recycles).positions
            for recycles in (0, 1, 2)
        ]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-2
    assert (outputs[1] - outputs[2]).abs().max() > 1e-3


def test_recomputed_activations_give_the_same_gradients(batch: Batch):
    trunk = replace(TINY.model.evoformer, dropout_msa=0.0, dropout_pair=0.0)
    language_model = replace(TINY.model.language_model, recompute=True)
    structure = replace(TINY.model.structure, dropout=0.0)
    plain = replace(TINY, model=replace(TINY.model, evoformer=trunk, structure=structure))
    saved = replace(
        plain,
        model=replace(
            plain.model,
            evoformer=replace(trunk, recompute=True),
            language_model=language_model,
        ),
    )
    gradients = []
    for config in (plain, saved):
        model = shaken(config).train()
        loss_of(model, batch).total.mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5)


def test_bf16_is_close_and_leaves_coordinates_in_float32(batch: Batch):
    bf16 = replace(TINY, engine=replace(TINY.engine, precision="bf16"))
    with torch.no_grad():
        exact = shaken()(batch.aatype, batch.residue_index, batch.mask, 0)
        rough = shaken(bf16)(batch.aatype, batch.residue_index, batch.mask, 0)
    for name in ("positions", "torsions", "distogram_logits", "plddt_logits"):
        assert getattr(rough, name).dtype == torch.float32, name
    real = batch.mask
    difference = (rough.positions - exact.positions)[real].norm() / exact.positions[real].norm()
    assert 0 < difference < 0.05


def test_the_seed_decides_the_weights_and_leaves_the_generators_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, base = build_model(TINY)
    assert torch.equal(torch.rand(1), expected)
    second, same_base = build_model(TINY)
    other, other_base = build_model(replace(TINY, seed=1))
    assert base == same_base != other_base
    pairs = zip(first.named_parameters(), second.parameters(), strict=True)
    assert all(torch.equal(p, q) for (_, p), q in pairs)
    name = "trunk.stack.blocks.0.msa_att_row.mha.linear_q.weight"
    assert not torch.equal(first.get_parameter(name), other.get_parameter(name))


def test_a_model_folds_as_before_the_blocks_were_fused():
    model, _ = build_model(TINY)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # layers that start at zero would hide what is before them
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    batch = collate([sequence_features("x", "MKTAYIAKQRQISFVKSHFSRQ")], [False])
    with torch.no_grad():
        output = model.eval()(batch.aatype, batch.residue_index, batch.mask, 2)
    # Cα of every seventh residue, in Å, by openfold3's forward pass at commit 7b5fa74. The weights
    # are those that PyTorch's generator gives since then.
    before = [
        [-3.529778, -2.739773, -8.911214],
        [-0.595137, -4.151362, 2.341923],
        [-2.608881, -1.264334, -6.419294],
        [-4.613479, -1.521821, 6.101560],
    ]
    torch.testing.assert_close(
        output.positions[0, ::7, 1], torch.tensor(before), atol=1e-4, rtol=0.0
    )


@pytest.mark.parametrize(
    ("kernels", "pair_track", "precision", "expected"),
    [
        ("fused", "bf16", "bf16", torch.bfloat16),
        ("fused", "float32", "bf16", torch.float32),
        ("fused", "bf16", "float32", torch.float32),
        ("openfold", "bf16", "bf16", torch.float32),
    ],
)
def test_the_settings_of_blocks_and_pair_track_reach_the_model(
    kernels, pair_track, precision, expected
):
    config = replace(
        TINY,
        model=replace(TINY.model, kernels=kernels, pair_track=pair_track),
        engine=replace(TINY.engine, precision=precision),
    )
    stack = (model := build_model(config)[0]).trunk.stack
    seen: list[torch.dtype] = []
    stack.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1].dtype))
    block = stack.blocks[0]
    calls: list[int] = []
    block.register_forward_hook(lambda *_: calls.append(1))
    batch = collate([sequence_features("x", "MKTAYIAK")], [False])
    model.eval()(batch.aatype, batch.residue_index, batch.mask, 0)
    assert seen == [expected]
    assert bool(calls) == (kernels == "openfold")  # openfold3's own forward pass


def test_the_evoformer_has_alphafold2s_biases_and_zeros():
    block = build_model(TINY)[0].trunk.stack.blocks[0]
    gates = [p for n, p in block.named_parameters() if n.endswith("linear_g.bias")]
    outputs = [p for n, p in block.named_parameters() if n.endswith("linear_o.weight")]
    assert len(gates) == 5  # row attention, two triangle multiplications, two triangle attentions
    assert all((gate == 1).all() for gate in gates)
    assert len(outputs) == 3
    assert all((weight == 0).all() for weight in outputs)


def test_plddts_hidden_layers_start_as_alphafold2s_before_a_relu():
    torch.manual_seed(0)
    _, first, _, second, _, last = PLDDTHead(384, 128, 50).layers
    for layer in (first, second):
        std = (2 / layer.in_features) ** 0.5  # He et al. 2015
        assert layer.weight.std().item() == pytest.approx(std, rel=0.02)
        assert layer.weight.mean().abs() < 0.03 * std
        # Cut off at two deviations of the normal distribution, whose own is then 1 / 0.88 of it.
        assert layer.weight.abs().max().item() == pytest.approx(2 * std / 0.8796, rel=0.01)
        assert (layer.bias == 0).all()
    assert (last.weight == 0).all()
    assert (last.bias == 0).all()


@pytest.mark.parametrize("trunk", ["evoformer", "esmfold_v1"])
def test_the_first_pass_has_no_recycled_distances(trunk: str, tiny: ModelConfig, folding_model):
    model = folding_model(TINY.model if trunk == "evoformer" else tiny)
    recycling = model.trunk.recycle_distogram.embedding
    assert (recycling.weight[0] == 0).all()
    assert recycling.weight[1:].std().item() == pytest.approx(1, rel=0.2)
    model.trunk.recycle_z.bias.data.normal_()
    pairs, tracks = [], []
    model.trunk.stack.register_forward_pre_hook(lambda _, inputs: pairs.append(inputs[1].clone()))
    model.trunk.register_forward_hook(lambda _module, _inputs, result: tracks.append(result))
    index, mask = torch.arange(7)[None], torch.ones(1, 7, dtype=torch.bool)
    model(torch.full((1, 7), 3), index, mask, 1)
    positions = model.trunk.relative_position(index, mask)
    assert torch.equal(pairs[0], positions + model.trunk.recycle_z.bias)
    assert (pairs[1] - pairs[0]).abs().max() > 0.1
    tracks[-1].z.square().sum().backward()
    assert (recycling.weight.grad[0] != 0).any()  # it trains
