import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from esmfold_peft.model.trunks import attention, packing, triangles
from esmfold_peft.model.trunks.esmfold_v1 import EsmfoldBlock
from tests.model.trunks.one_block import OneBlock

ROOT = Path(__file__).parents[3]
B, N, C_S, C_Z = 2, 13, 24, 16
LENGTHS = (N, N - 5)


def randomize(module: nn.Module) -> None:
    """Gives every parameter a value, the zeros of the initialisation included."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5)


def block(dropout: float = 0.0, *, random: bool = True) -> OneBlock:
    torch.manual_seed(0)
    result = OneBlock(C_S, C_Z, 3, 4, dropout)
    if random:
        randomize(result)
    return result


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    mask = torch.arange(N) < torch.tensor(LENGTHS)[:, None]
    return torch.randn(B, N, C_S), torch.randn(B, N, N, C_Z), mask


def assert_same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for x, y in zip(actual, expected, strict=True):
        assert (x - y).norm() <= 1e-6 * y.norm()


@pytest.fixture(params=[False, True], ids=["inference", "autograd"])
def autograd(request):
    """Runs the test on both paths: updates in place, and updates that autograd follows."""
    with torch.set_grad_enabled(request.param):
        yield request.param


def test_changes_nothing_at_initialisation(autograd):
    s, z, mask = inputs()
    new_s, new_z = block(random=False)(s, z, mask)
    assert torch.equal(new_s, s)
    assert torch.equal(new_z, z)


def test_initialisation():
    fresh = block(random=False)
    for name in ("tri_mul_out.linear_g", "tri_att_end.mha.linear_g", "seq_attention.g_proj"):
        layer = fresh.get_submodule(name)
        assert torch.equal(layer.weight, torch.zeros_like(layer.weight))
        assert torch.equal(layer.bias, torch.ones_like(layer.bias))
    without_bias = {n for n, m in fresh.named_modules() if getattr(m, "bias", 0) is None}
    projections = {f"tri_att_{end}.mha.linear_{x}" for end in ("start", "end") for x in "qkv"}
    rest = {"pair_to_sequence.linear", "seq_attention.proj", "tri_att_start.linear"}
    assert without_bias == projections | rest | {"tri_att_end.linear"}


@pytest.mark.parametrize("chunk", [None, 5])
def test_inputs_stay_as_they_are(autograd, chunk):
    s, z, mask = inputs()
    kept = s.clone(), z.clone(), mask.clone()
    block()(s, z, mask, chunk=chunk)
    assert all(map(torch.equal, (s, z, mask), kept))


@pytest.mark.parametrize("chunk", [1, 5, N, 100])
def test_chunks_agree(autograd, chunk):
    module, (s, z, mask) = block(), inputs()
    assert_same(module(s, z, mask, chunk=chunk), module(s, z, mask))


@pytest.mark.parametrize("limit", [1, 2**12])
def test_automatic_chunks_agree(autograd, limit, monkeypatch):
    module, (s, z, mask) = block(), inputs()
    expected = module(s, z, mask)
    monkeypatch.setattr(triangles, "CACHED_ELEMENTS", limit)
    monkeypatch.setattr(triangles, "NUMBERS_AT_ONCE", limit)
    assert_same(module(s, z, mask), expected)


def test_chunked_gradients_agree(monkeypatch):
    module, (s, z, mask) = block(), inputs()
    results = []
    for chunk, cached in ((None, 2**20), (5, 2**20), (None, 1)):
        monkeypatch.setattr(attention, "CACHED_ELEMENTS", cached)
        given = s.clone().requires_grad_(), z.clone().requires_grad_(), *module.parameters()
        new_s, new_z = module(*given[:2], mask, chunk=chunk)
        results.append(torch.autograd.grad(new_s.square().sum() + new_z.square().sum(), given))
    unseen = 2 + list(dict(module.named_parameters())).index("pair_to_sequence.layernorm.bias")
    for gradients in results[1:]:
        for index, (actual, expected) in enumerate(zip(gradients, results[0], strict=True)):
            if index != unseen:  # its gradient is rounding errors: softmax ignores a constant
                assert (actual - expected).norm() <= 2e-6 * expected.norm()


def test_attention_gradients_by_differences():
    layer = EsmfoldBlock(4, 4, 2, 2).tri_att_start.double()
    randomize(layer)
    z = torch.randn(2, 3, 3, 4, dtype=torch.double, requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, True, False]])

    def attend(z: Tensor, *_: Tensor) -> Tensor:
        weights = packing.attention(layer.layer_norm, layer.linear, layer.mha, torch.double)
        return triangles.attend_triangles(weights, z, mask, None, None)

    assert torch.autograd.gradcheck(attend, (z, *layer.parameters()))


@pytest.mark.parametrize("chunk", [None, 3])
def test_padding_does_not_reach_residues(autograd, chunk):
    module, (s, z, mask) = block(), inputs()
    padded_s, padded_z = module(s, z, mask, chunk=chunk)
    assert padded_s.isfinite().all()
    assert padded_z.isfinite().all()
    for chain, n in enumerate(LENGTHS):
        alone = module(s[chain, None, :n], z[chain, None, :n, :n], mask[chain, None, :n])
        assert_same((padded_s[chain, None, :n], padded_z[chain, None, :n, :n]), alone)
    other = torch.where(mask[..., None], s, 7), torch.where(pairs(mask), z, -5)
    changed_s, changed_z = module(*other, mask, chunk=chunk)
    assert torch.equal(changed_s[mask], padded_s[mask])
    assert torch.equal(changed_z[pairs(mask)[..., 0]], padded_z[pairs(mask)[..., 0]])


def pairs(mask: Tensor) -> Tensor:
    return (mask[:, :, None] & mask[:, None, :])[..., None]


def test_chain_of_padding_alone(autograd):
    module, (s, z, mask) = block(), inputs()
    mask[1] = False
    assert all(x.isfinite().all() for x in module(s, z, mask))


def test_single_residue(autograd):
    new_s, new_z = block()(
        torch.randn(1, 1, C_S), torch.randn(1, 1, 1, C_Z), torch.tensor([[True]])
    )
    assert new_s.isfinite().all()
    assert new_z.isfinite().all()


@pytest.mark.parametrize("chunk", [None, 5])
def test_nan_stays_in_its_chain(autograd, chunk):
    module, (s, z, mask) = block(), inputs()
    expected = module(s, z, mask, chunk=chunk)
    s[1], z[1, 2] = torch.nan, torch.nan
    actual = module(s, z, mask, chunk=chunk)
    assert actual[1][1].isnan().any()
    assert all(torch.equal(x[0], y[0]) for x, y in zip(actual, expected, strict=True))


P = 0.2
DROPPED = {
    "seq_attention.o_proj": (P, None),
    "mlp_seq.mlp.3": (P, None),
    "tri_mul_out.linear_z": (2 * P, 2),
    "tri_mul_in.linear_z": (2 * P, 1),
    "tri_att_start.mha.linear_o": (2 * P, 2),
    "tri_att_end.mha.linear_o": (2 * P, 1),
    "mlp_pair.mlp.3": (P, None),
}
"""Last layer of each branch, with its probability and the dimension that shares the decision."""


@pytest.mark.parametrize("chunk", [None, 5])
@pytest.mark.parametrize("name", DROPPED)
def test_dropout(autograd, name, chunk):
    rate, shared = DROPPED[name]
    module = block(P, random=False)
    with torch.no_grad():  # all branches are 0 but this one, which is 1 (times a gate) everywhere
        module.get_submodule(name).bias.fill_(1)
    n = 40
    s, z = torch.zeros(1, n, C_S), torch.zeros(1, n, n, C_Z)
    mask = torch.ones(1, n, dtype=torch.bool)
    track = 0 if name.startswith(("seq", "mlp_seq")) else 1
    full = module.eval()(s, z, mask, chunk=chunk)[track]
    assert full.unique().numel() == 1  # off in evaluation
    dropped = module.train()(s, z, mask, chunk=chunk)[track] / full
    assert set(dropped.unique().mul(1000).round().tolist()) == {0, round(1000 / (1 - rate))}
    if shared is not None:
        assert torch.equal(dropped, dropped.narrow(shared, 0, 1).expand_as(dropped))
        dropped = dropped.narrow(shared, 0, 1)
    zeros = (dropped == 0).double()
    assert zeros.mean() == pytest.approx(rate, abs=0.06)
    for dim in range(1, zeros.ndim):  # drawn again along every other dimension
        if dim != shared:
            assert (zeros.diff(dim=dim) != 0).double().mean() > rate * (1 - rate)


@pytest.mark.parametrize("chunk", [None, 5])
def test_bfloat16_autocast(autograd, chunk):
    module, (s, z, mask) = block(0.1), inputs()
    expected = module.eval()(s, z, mask)
    with torch.autocast("cpu", torch.bfloat16):
        actual = module(s, z, mask, chunk=chunk)
    for x, y in zip(actual, expected, strict=True):
        assert x.dtype == torch.float32
        assert (x - y).norm() < 0.02 * y.norm()
    if autograd:
        with torch.autocast("cpu", torch.bfloat16):
            new_s, new_z = module.train()(s, z, mask, chunk=chunk)
        (new_s.sum() + new_z.square().sum()).backward()
        assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


def run_alone(program: str, *arguments: str) -> str:
    """Runs a program in a process of its own, without shape checks."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


PEAK = """
import sys, torch
from tests.model.trunks.one_block import OneBlock
def megabytes(key):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024
n, training = 224, sys.argv[1] == "training"
block = OneBlock(32, 64, 2, 4, 0.0)
torch.set_grad_enabled(training)
def run(n):
    s, z, mask = torch.randn(1, n, 32), torch.randn(1, n, n, 64), torch.ones(1, n).bool()
    open("/proc/self/clear_refs", "w").write("5")
    before = megabytes("VmRSS")
    s, z = block(s, z, mask)
    if training:
        (s.sum() + z.sum()).backward()
    return megabytes("VmHWM") - before
run(8)
print(run(n) / (n * n * 64 * 4 / 2**20))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="measures memory on Linux")
@pytest.mark.parametrize(("mode", "tracks"), [("inference", 5), ("training", 70)])
def test_peak_memory(mode, tracks):
    """In units of the pair track. The logits of all rows are 14 here; inference must not hold them.

    Training holds what backward needs, but neither logits nor weights.
    """
    assert float(run_alone(PEAK, mode)) < tracks


@pytest.mark.proof
def test_chunks_agree_on_a_long_chain(monkeypatch):
    torch.manual_seed(0)
    n, module = 1024, OneBlock(8, 8, 1, 1, 0.0)
    randomize(module)
    s, z, mask = torch.randn(1, n, 8), torch.randn(1, n, n, 8), torch.ones(1, n).bool()
    with torch.no_grad():
        chunked = module(s, z, mask, chunk=100)
        monkeypatch.setattr(triangles, "CACHED_ELEMENTS", 2**31)
        assert_same(chunked, module(s, z, mask))


@pytest.mark.proof
def test_very_long_chain():
    n, module = 2048, OneBlock(8, 8, 1, 1, 0.0)
    randomize(module)
    with torch.no_grad():
        mask = torch.ones(1, n).bool()
        s, z = module(torch.randn(1, n, 8), torch.randn(1, n, n, 8), mask, chunk=64)
    assert s.isfinite().all()
    assert z.isfinite().all()
