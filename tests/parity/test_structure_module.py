"""The structure module against the port of OpenFold in transformers, with the same weights."""

import pytest
import torch
from torch import Tensor, nn
from transformers.models.esm.configuration_esm import StructureModuleConfig
from transformers.models.esm.modeling_esmfold import EsmFoldStructureModule
from transformers.models.esm.openfold_utils.rigid_utils import Rigid as ReferenceRigid
from transformers.models.esm.openfold_utils.rigid_utils import Rotation

from esmfold_peft.config import StructureConfig
from esmfold_peft.geometry.rigid import Rigid, rotation_from_quaternion
from esmfold_peft.model.structure_module import StructureModule

STANDARD = 20
"""Without X, because transformers gives it no atoms."""


def randomize(module: nn.Module) -> None:
    """Random everywhere, zero-initialised layers included; variances as at initialisation."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            else:
                parameter.uniform_(-0.5, 0.5)
        module.layer_norm_s.weight.add_(1)
        module.layer_norm_z.weight.add_(1)


def pair(**sizes: int) -> tuple[StructureModule, EsmFoldStructureModule]:
    torch.manual_seed(0)
    config = StructureModuleConfig(**sizes)
    reference = EsmFoldStructureModule(config).eval()
    randomize(reference)
    ours_config = StructureConfig(
        c_ipa=config.ipa_dim,
        heads=config.num_heads_ipa,
        query_points=config.num_qk_points,
        value_points=config.num_v_points,
        layers=config.num_blocks,
        c_angle=config.resnet_dim,
        angle_blocks=config.num_resnet_blocks,
        dropout=config.dropout_rate,
    )
    ours = StructureModule(
        ours_config,
        c_s=config.sequence_dim,
        c_z=config.pairwise_dim,
        transition_layers=config.num_transition_layers,
        translation_scale=float(config.trans_scale_factor),
    ).eval()
    ours.load_state_dict(reference.state_dict())  # strict: every name and shape is the same
    return ours, reference


def inputs(lengths: tuple[int, ...], c_s: int, c_z: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    b, n = len(lengths), max(lengths)
    mask = torch.arange(n) < torch.tensor(lengths)[:, None]
    aatype = torch.randint(0, STANDARD, (b, n))
    return torch.randn(b, n, c_s), torch.randn(b, n, n, c_z), aatype, mask


SMALL = {
    "sequence_dim": 48,
    "pairwise_dim": 24,
    "ipa_dim": 8,
    "num_heads_ipa": 5,
    "num_qk_points": 3,
    "num_v_points": 6,
    "resnet_dim": 20,
    "num_blocks": 4,
    "num_transition_layers": 2,
    "num_resnet_blocks": 3,
}


@pytest.mark.parametrize("lengths", [(17,), (9, 9), (13, 7, 1)], ids=["one", "batch", "padded"])
@pytest.mark.parametrize("sizes", [{}, SMALL], ids=["as published", "small"])
def test_whole_module(sizes, lengths):
    ours, reference = pair(**sizes)
    s, z, aatype, mask = inputs(
        lengths, reference.config.sequence_dim, reference.config.pairwise_dim
    )
    with torch.no_grad():
        output = ours(s, z, aatype, mask)
        expected = reference({"single": s, "pair": z}, aatype, mask.float())

    def check(name: str, actual: Tensor, target: Tensor, tolerance: float = 1e-4) -> None:
        error = (actual - target).abs().max().item()
        assert error < tolerance, f"{name}: {error:.1e}"

    spread = expected["frames"][:, mask][..., 4:].std().item()
    assert spread > 3  # Å: the residues have left the origin
    quaternions, translations = expected["frames"].split((4, 3), dim=-1)
    frames = output.frames
    check("rotations", frames.rotation[:, mask], rotation_from_quaternion(quaternions)[:, mask])
    check("translations", frames.translation[:, mask], translations[:, mask])
    check("torsions", output.torsions[:, mask], expected["angles"][:, mask])
    check(
        "unnormalised torsions",
        output.unnormalized_torsions[:, mask],
        expected["unnormalized_angles"][:, mask],
    )
    check("positions", output.positions[mask], expected["positions"][-1][mask])
    check("single track", output.s[mask], expected["single"][mask])
    groups = expected["sidechain_frames"][-1][mask]
    exists = torch.linalg.det(groups[..., :3, :3]) > 0.5  # zeros where there is no such χ
    sidechains = output.sidechain_frames[mask]
    check("group rotations", sidechains.rotation[exists], groups[exists][:, :3, :3])
    check("group translations", sidechains.translation[exists], groups[exists][:, :3, 3])


OPTIONS = {
    "ipa_dim": (4, 16),
    "num_heads_ipa": (1, 12),
    "num_qk_points": (1, 8),
    "num_v_points": (1, 9),
    "resnet_dim": (6, 40),
    "num_blocks": (1, 8),
    "num_transition_layers": (1, 3),
    "num_resnet_blocks": (1, 4),
    "trans_scale_factor": (1, 20),
    "dropout_rate": (0.0, 0.5),
}


@pytest.mark.parametrize(
    ("option", "value"), [(name, value) for name, values in OPTIONS.items() for value in values]
)
def test_every_option_turned_down_and_up(option: str, value: float):
    ours, reference = pair(**{**SMALL, option: value})
    reference.load_state_dict(ours.state_dict())  # names and shapes fit in this direction too
    s, z, aatype, mask = inputs((12, 8), 48, 24)
    with torch.no_grad():
        output = ours(s, z, aatype, mask)
        expected = reference({"single": s, "pair": z}, aatype, mask.float())
    assert expected["positions"][-1][mask].std() > 0.5
    for found, target in (
        (output.positions, expected["positions"][-1]),
        (output.s, expected["single"]),
        (output.torsions[-1], expected["angles"][-1]),
    ):
        torch.testing.assert_close(found[mask], target[mask], atol=1e-4, rtol=0)


def test_attention_alone():
    ours, reference = pair(**SMALL)
    s, z, _, mask = inputs((13, 7), 48, 24)
    rotation, translation = rotation_from_quaternion(torch.randn(2, 13, 4)), torch.randn(2, 13, 3)
    with torch.no_grad():
        expected = reference.ipa(
            s, z, ReferenceRigid(Rotation(rot_mats=rotation), translation), mask.float()
        )
        actual = ours.ipa(s, z, ours.ipa.pair_bias(z), Rigid(rotation, translation), mask)
    assert expected[mask].std() > 0.1
    torch.testing.assert_close(actual[mask], expected[mask], atol=1e-5, rtol=0)


def test_gradients():
    ours, reference = pair(**SMALL)
    s, z, aatype, mask = inputs((11,), 48, 24)
    weights = torch.randn(1, 11, 14, 3)
    gradients = []
    for module in (ours, reference):
        single, pairs = s.clone().requires_grad_(), z.clone().requires_grad_()
        if module is ours:
            positions = module(single, pairs, aatype, mask).positions
        else:
            tracks = {"single": single, "pair": pairs}
            positions = module(tracks, aatype, mask.float())["positions"][-1]
        (weights * positions).sum().backward()
        named = {name: p.grad for name, p in module.named_parameters()}
        gradients.append(named | {"s": single.grad, "z": pairs.grad})
    for name, expected in gradients[1].items():
        if name == "ipa.linear_b.bias":  # softmax takes no notice of it: rounding errors alone
            continue
        error = (gradients[0][name] - expected).norm() / expected.norm()
        assert error < 1e-4, name
