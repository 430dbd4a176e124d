"""The check of the Evoformer's fused kernels before a run relies on them."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from esmfold_peft.config import ModelConfig
from esmfold_peft.errors import UserError
from esmfold_peft.model.trunks.openfold import Evoformer

LARGEST_ERROR = 0.02
"""Kernels round to half precision inside; a wrong one is off by the size of what it computes."""

CHECKED_LENGTH = 128
"""Residues in the check where the run has chains of all lengths."""

_GRADIENT = "the gradient of "


@dataclass(frozen=True, eq=False)
class _Probe:
    """Inputs of one block: two chains, the second padded."""

    m: Tensor
    z: Tensor
    mask: Tensor


def check_kernels(config: ModelConfig, device: torch.device, *, length: int, bf16: bool) -> None:
    """Compares one Evoformer block with the kernels asked for against the plain path in float32.

    Outputs with and without gradients, and gradients, must lie within 2 % of the plain ones, or
    within twice the error that the plain path has in bfloat16.

    Args:
        config: the model's settings; without kernels nothing is done.
        device: where the run will be.
        length: residues, as the run will have.
        bf16: whether the run is under bfloat16 autocast.

    Raises:
        UserError: the kernels cannot run here, or disagree.
    """
    name = config.kernels
    if name == "none":
        return
    one_block = replace(
        config.evoformer, blocks=1, dropout_msa=0.0, dropout_pair=0.0, checkpoint=False
    )
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        plain = _shaken(Evoformer(one_block)).to(device)
        fused = Evoformer(one_block, kernels=name).to(device)
        probe = _probe(config, length, device)
    fused.load_state_dict(plain.state_dict())
    expected = _results(plain, probe, bf16=False)
    # Some kernels round to bfloat16 whatever the run's precision.
    usual = _results(plain, probe, bf16=True)
    try:
        found = _results(fused, probe, bf16=bf16)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"model.kernels: {name} cannot run on {device} ({reason})") from error
    for what in expected.keys() - found.keys():
        raise UserError(f"model.kernels: {name} does not give {what} on {device}")
    for what, value in found.items():
        # Some gradients are zero in theory (of a bias that softmax ignores) and noise in practice.
        floor = 1e-3 * max(t.float().norm() for n, t in expected.items() if _same_kind(n, what))
        size = max(expected[what].float().norm(), floor)
        error = float((value.float() - expected[what].float()).norm() / size)
        usual_error = float((usual[what].float() - expected[what].float()).norm() / size)
        limit = max(LARGEST_ERROR, 2 * usual_error)
        if not error <= limit:
            raise UserError(
                f"model.kernels: {name} disagrees with the plain path on {device}: {what} is off by"
                f" {error:.1%}, at most {limit:.1%} is allowed"
            )


def _probe(config: ModelConfig, length: int, device: torch.device) -> _Probe:
    sizes = config.evoformer
    lengths = torch.tensor([[length], [max(1, length - 3)]])
    mask = torch.arange(length) < lengths
    m, z = torch.randn(2, length, sizes.c_m), torch.randn(2, length, length, sizes.c_z)
    return _Probe(m.to(device), z.to(device), mask.to(device))


def _shaken(evoformer: Evoformer) -> Evoformer:
    """Gives weight to the layers that start at zero and would hide what is before them."""
    with torch.no_grad():
        for parameter in evoformer.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return evoformer


def _results(evoformer: Evoformer, probe: _Probe, *, bf16: bool) -> dict[str, Tensor]:
    """Tracks and gradients of the real residues by what they are."""
    with torch.autocast(probe.m.device.type, dtype=torch.bfloat16, enabled=bf16):
        with torch.no_grad():
            folded = evoformer.eval()(probe.m.clone(), probe.z.clone(), probe.mask)
            evoformer.chunk = max(1, probe.mask.shape[1] // 2)
            chunked = evoformer(probe.m[:1].clone(), probe.z[:1].clone(), probe.mask[:1])
            evoformer.chunk = None
        m, z = probe.m.clone().requires_grad_(), probe.z.clone().requires_grad_()
        trained = evoformer.train()(m, z, probe.mask)
    pairs = (probe.mask[:, :, None] & probe.mask[:, None])[..., None]
    rows = probe.mask[..., None]
    (
        (trained.s.float() * rows).square().sum() + (trained.z.float() * pairs).square().sum()
    ).backward()
    gradients = {"the MSA track": m.grad, "the pair track": z.grad} | {
        name: p.grad for name, p in evoformer.named_parameters()
    }
    evoformer.zero_grad()
    return {
        "the pair track without gradients": folded.z * pairs,
        "the single track without gradients": folded.s * rows,
        "the pair track in chunks": chunked.z,
        "the pair track": trained.z.detach() * pairs,
        "the single track": trained.s.detach() * rows,
        **{f"{_GRADIENT}{name}": g for name, g in gradients.items() if g is not None},
    }


def _same_kind(name: str, other: str) -> bool:
    return name.startswith(_GRADIENT) == other.startswith(_GRADIENT)
