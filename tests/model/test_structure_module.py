import pytest
import torch
from torch import Tensor, nn

from esmfold_peft.config import StructureConfig
from esmfold_peft.geometry.rigid import Rigid, rotation_from_quaternion
from esmfold_peft.geometry.tables import _tables
from esmfold_peft.model.dropout import draw_factors
from esmfold_peft.model.invariant_point_attention import InvariantPointAttention
from esmfold_peft.model.structure_module import StructureModule, StructureModuleOutput

B, N, C_S, C_Z = 2, 12, 24, 16


def randomize(module: nn.Module, scale: float = 0.3) -> nn.Module:
    """Gives every parameter a value, the zeros of the initialisation included."""
    with torch.no_grad():
        for parameter in module.parameters():
            width = parameter.shape[-1] if parameter.ndim > 1 else 1
            parameter.copy_(scale * torch.randn_like(parameter) / width**0.5 * 3**0.5)
    return module


@pytest.fixture
def module() -> StructureModule:
    torch.manual_seed(0)
    config = StructureConfig(heads=3, layers=3, c_angle=16)
    return StructureModule(config, c_s=C_S, c_z=C_Z)


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    mask = torch.arange(N) < torch.tensor([[N], [N - 4]])
    return (
        torch.randn(B, N, C_S),
        torch.randn(B, N, N, C_Z),
        torch.randint(0, 21, (B, N)),
        mask,
    )


def assert_same(
    first: StructureModuleOutput, second: StructureModuleOutput, tolerance: float
) -> None:
    for name in ("torsions", "unnormalized_torsions", "positions", "s"):
        a, b = getattr(first, name), getattr(second, name)
        torch.testing.assert_close(a, b, atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    for name in ("frames", "sidechain_frames"):
        a, b = getattr(first, name), getattr(second, name)
        torch.testing.assert_close(a.rotation, b.rotation, atol=tolerance, rtol=0)
        torch.testing.assert_close(a.translation, b.translation, atol=tolerance, rtol=0)


def chain(output: StructureModuleOutput, i: int, length: int) -> StructureModuleOutput:
    return StructureModuleOutput(
        frames=output.frames[:, i : i + 1, :length],
        torsions=output.torsions[:, i : i + 1, :length],
        unnormalized_torsions=output.unnormalized_torsions[:, i : i + 1, :length],
        sidechain_frames=output.sidechain_frames[i : i + 1, :length],
        positions=output.positions[i : i + 1, :length],
        s=output.s[i : i + 1, :length],
    )


def test_at_initialisation_every_residue_lies_at_the_origin(module, inputs):
    output = module.eval()(*inputs)
    assert torch.equal(output.frames.translation, torch.zeros(3, B, N, 3))
    torch.testing.assert_close(output.frames.rotation, torch.eye(3).expand(3, B, N, 3, 3))
    assert torch.equal(output.positions[:, :, 1], torch.zeros(B, N, 3))  # CA
    torch.testing.assert_close(output.torsions.norm(dim=-1), torch.ones(3, B, N, 7))
    torch.testing.assert_close(
        nn.functional.softplus(module.ipa.head_weights), torch.ones(3), atol=1e-6, rtol=0
    )


def test_positions_are_those_of_the_last_frames_in_angstrom(module, inputs):
    output = randomize(module).eval()(*inputs)
    torch.testing.assert_close(output.positions[:, :, 1], output.frames.translation[-1])
    carbonyl = torch.linalg.norm(output.positions[:, :, 2] - output.positions[:, :, 3], dim=-1)
    assert ((carbonyl - 1.23).abs() < 0.01).all()
    identity = torch.eye(3).expand(3, B, N, 3, 3)
    rotation = output.frames.rotation
    torch.testing.assert_close(rotation @ rotation.mT, identity, atol=1e-5, rtol=0)


def test_translations_scale_with_the_unit_of_length(inputs):
    outputs = []
    for scale in (10.0, 1.0):
        torch.manual_seed(0)
        config = StructureConfig(layers=2)
        module = StructureModule(config, c_s=C_S, c_z=C_Z, translation_scale=scale)
        outputs.append(randomize(module).eval()(*inputs))
    ten, one = outputs
    assert one.frames.translation.abs().max() > 0.1
    torch.testing.assert_close(ten.frames.translation, 10 * one.frames.translation)
    assert torch.equal(ten.torsions, one.torsions)


def test_a_chain_in_a_padded_batch_folds_as_alone(module, inputs):
    s, z, aatype, mask = inputs
    randomize(module).eval()
    together = module(*inputs)
    assert together.frames.translation.abs().max() > 1
    for i, length in enumerate(mask.sum(1).tolist()):
        alone = module(
            s[i : i + 1, :length],
            z[i : i + 1, :length, :length],
            aatype[i : i + 1, :length],
            mask[i : i + 1, :length],
        )
        assert_same(chain(together, i, length), alone, 1e-4)


def test_what_lies_in_the_padding_does_not_matter(module, inputs):
    s, z, aatype, mask = inputs
    randomize(module).eval()
    pairs = mask[:, :, None] & mask[:, None, :]
    other = module(
        torch.where(mask[..., None], s, 100.0),
        torch.where(pairs[..., None], z, -100.0),
        torch.where(mask, aatype, 20),
        mask,
    )
    expected = module(*inputs)
    for i, length in enumerate(mask.sum(1).tolist()):
        assert_same(chain(other, i, length), chain(expected, i, length), 0.0)


def test_permuted_residues_fold_to_permuted_positions(module, inputs):
    """Order reaches the structure module through the pair track alone."""
    s, z, aatype, _ = inputs
    mask = torch.ones(B, N, dtype=torch.bool)
    randomize(module).eval()
    order = torch.randperm(N)
    permuted = module(s[:, order], z[:, order][:, :, order], aatype[:, order], mask)
    expected = module(s, z, aatype, mask).positions[:, order]
    torch.testing.assert_close(permuted.positions, expected, atol=1e-3, rtol=1e-5)


def test_attention_does_not_see_a_rigid_motion_of_all_frames():
    torch.manual_seed(0)
    config = StructureConfig(c_ipa=8, heads=3, query_points=4, value_points=5)
    ipa = InvariantPointAttention(config, c_s=C_S, c_z=C_Z)
    randomize(ipa, 1.0)
    s, z = torch.randn(B, N, C_S), torch.randn(B, N, N, C_Z)
    mask = torch.ones(B, N, dtype=torch.bool)
    frames = Rigid(rotation_from_quaternion(torch.randn(B, N, 4)), torch.randn(B, N, 3))
    motion = Rigid(rotation_from_quaternion(torch.randn(4)), torch.randn(3))
    bias = ipa.pair_bias(z)
    still = ipa(s, z, bias, frames, mask)
    moved = ipa(s, z, bias, motion.compose(frames), mask)
    torch.testing.assert_close(moved, still, atol=1e-4, rtol=0)
    # one frame moved alone is seen by all
    translation = frames.translation.clone()
    translation[:, 0] += 1
    changed = ipa(s, z, bias, Rigid(frames.rotation, translation), mask)
    assert ((changed - still).abs().amax(-1) > 1e-3).all()


def test_autocast_changes_nothing(module, inputs):
    randomize(module).eval()
    expected = module(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(*inputs)
    assert output.positions.dtype == output.s.dtype == torch.float32
    assert_same(output, expected, 0.0)


def test_bfloat16_tracks_are_taken_as_they_are(module, inputs):
    s, z, aatype, mask = inputs
    randomize(module).eval()
    rounded = module(s.bfloat16(), z.bfloat16(), aatype, mask)
    expected = module(s.bfloat16().float(), z.bfloat16().float(), aatype, mask)
    assert rounded.positions.dtype == torch.float32
    assert_same(rounded, expected, 0.0)


def test_rotations_pass_no_gradient_to_later_layers(module, inputs):
    randomize(module).eval()
    updates = []
    module.bb_update.linear.register_forward_hook(lambda _, __, out: updates.append(out))
    output = module(*inputs)
    last = output.frames.translation[-1].pow(2).sum() + output.frames.rotation[-1].pow(3).sum()
    gradients = torch.autograd.grad(last, updates, retain_graph=True)
    for layer in (0, 1):  # translations do, rotations do not
        assert torch.equal(gradients[layer][..., :3], torch.zeros(B, N, 3))
        assert gradients[layer][..., 3:].abs().max() > 0
    assert gradients[2].abs().amax((0, 1)).min() > 0
    # the loss of a layer's own frames reaches the rotation of that layer
    first = output.frames.rotation[0].pow(3).sum()
    (own,) = torch.autograd.grad(first, updates[:1])
    assert own[..., :3].abs().max() > 0


def test_every_parameter_learns(module, inputs):
    output = randomize(module).train()(*inputs)
    loss = output.positions.pow(2).sum() + output.frames.translation.pow(2).sum()
    loss.backward()
    for name, parameter in module.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        if name != "ipa.linear_b.bias":  # shifts all logits of a head alike: softmax ignores it
            assert parameter.grad.abs().max() > 1e-3, name


def test_gradients_are_finite_at_initialisation_and_with_padding(module, inputs):
    """All residues lie at one point there, so every distance is zero."""
    s, z, aatype, mask = inputs
    s.requires_grad_()
    output = module.train()(s, z, aatype, mask & False)  # a chain of padding alone
    loss = output.positions.sum() + output.torsions.sum() + output.frames.rotation.sum()
    loss.backward()
    assert torch.isfinite(s.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


def test_training_follows_inference_mode(module, inputs):
    """Tables first used under inference mode must not poison the training steps after it."""
    _tables.cache_clear()
    with torch.inference_mode():
        module.eval()(*inputs)
    module.train()(*inputs).positions.sum().backward()
    assert module.angle_resnet.linear_out.weight.grad.abs().max() > 0


def test_dropout_only_in_training(module, inputs):
    chains, residues = inputs[-1].shape
    sites = randomize(module).dropout_sites(residues)
    assert {site.rate for layer in sites for site in layer} == {0.1}
    first, second = (draw_factors(sites, chains, inputs[0].device) for _ in range(2))
    assert not torch.allclose(module(*inputs, first).positions, module(*inputs, second).positions)
    assert torch.allclose(module(*inputs, first).positions, module(*inputs, first).positions)


def test_more_layers_have_no_more_parameters():
    def count(layers: int) -> int:
        module = StructureModule(StructureConfig(layers=layers), c_s=384, c_z=128)
        return sum(parameter.numel() for parameter in module.parameters())

    assert count(1) == count(8) == 2_019_116
