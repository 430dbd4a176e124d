"""The Triton kernels of gated attention: their values, and the registers they need.

None needs a GPU: values come from Triton's interpreter, resources from its compiler.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="needs Triton, which `make test-all` installs")

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from esmfold_peft.model.trunks import tiling, triton_attention
from esmfold_peft.model.trunks.triton_attention import KERNELS

TILES = tiling.tiles_on(torch.device("cpu"))

INTERPRETED = """
import math, sys
from dataclasses import replace
from pathlib import Path

import torch
import triton.language as tl
from esmfold_peft.model.trunks import tiling, triton_attention as kernels

# The interpreter multiplies bfloat16 matrices wrongly.
kernels.dot_type = lambda dtype: tl.float32
tiling.FOLDER = Path(sys.argv[1])  # with a file for the interpreter's device
FILE = kernels.tiles_on(torch.device("cpu"))

def definition(qkvg, bias):
    q, k, v, gate = (x.unflatten(-1, (bias.shape[1], -1)) for x in qkvg.chunk(4, -1))
    logits = torch.einsum("brihd,brjhd->brhij", q, k) / math.sqrt(q.shape[-1]) + bias[:, None]
    mixed = torch.einsum("brhij,brjhd->brihd", logits.softmax(-1), v)
    return (mixed * gate.sigmoid()).flatten(-2)

def check(dtype, b, r, n, width, tile, block, *, padding=False, heads=1):
    kernels.LONGEST_WHOLE = n if block is None else 16
    if tile:
        tiles = {k: replace(t, tile=tile, block=block) for k, t in FILE.items()}
        kernels.tiles_on = lambda device: tiles
    torch.manual_seed(0)
    qkvg = torch.randn(b, r, n, 4 * heads * width + 16).to(dtype)[..., 16:]  # a view
    bias = torch.randn(b, heads, n, n)
    bias[..., -3:] = -1e9
    if padding:
        bias[1:] = -1e9
    bias, grad = bias.to(dtype), torch.randn(b, r, n, heads * width).to(dtype)
    out, lse = kernels.forward(qkvg, bias)
    grad_qkvg, grad_bias = kernels.backward(grad, qkvg, bias, out, lse)
    assert all(x.isfinite().all() for x in (out, lse, grad_qkvg, grad_bias))
    x, y = qkvg.float().requires_grad_(), bias.float().requires_grad_()
    expected = definition(x, y)
    expected.backward(grad.float())
    found = (out, *grad_qkvg.chunk(4, -1), grad_bias)
    real = slice(0, 1 if padding else None)
    for a, c in zip(found, (expected.detach(), *x.grad.chunk(4, -1), y.grad), strict=True):
        assert a.dtype == dtype
        error = (a.float() - c)[real].norm() / c[real].norm()
        assert error < (2e-6 if dtype == torch.float32 else 0.01), (r, n, width, block, error)

class Noted:
    launched = []

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        def launch(*given, **constants):
            self.launched.append((grid[0], constants["TILE"], constants["BLOCK"]))
            self.kernel[grid](*given, **constants)
        return launch

kernels.KERNELS |= {"key": Noted(kernels.key_kernel)}
check(torch.float32, 1, 2, 40, 16, None, 64)  # by the file's tiles
assert Noted.launched == [(3, 16, 64)], Noted.launched
check(torch.float32, 2, 2, 24, 16, 16, None, heads=2)
check(torch.float32, 1, 3, 40, 32, 32, None)
check(torch.float32, 1, 2, 40, 16, 32, 16)
check(torch.float32, 1, 2, 33, 32, 16, 32)
check(torch.float32, 1, 1, 17, 16, 16, 16)
check(torch.bfloat16, 1, 2, 24, 32, 16, None)
check(torch.bfloat16, 1, 2, 33, 16, 32, 16)
check(torch.float32, 2, 2, 17, 16, 16, None, padding=True)
kernels.PROGRAMS = 1  # one group has all rows
check(torch.float32, 1, 3, 24, 16, 32, None)
check(torch.bfloat16, 1, 3, 24, 16, 32, 32)
kernels.PROGRAMS = 2  # groups of two rows, the last with one
check(torch.float32, 1, 3, 24, 16, 32, None)
print("done")
"""

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes that a program can have, by compute capability."""


@pytest.mark.slow
def test_values_and_gradients_are_those_of_the_definition(tmp_path: Path) -> None:
    default = tiling.read_tiles(tiling.FOLDER / "default.json", None)
    tiling.write_tiles(tmp_path / "default.json", default, {})
    key = ("key", torch.float32, False)
    tiling.write_tiles(tmp_path / "cpu.json", {key: tiling.Tiles(16, 4, 1, 64)}, {})
    result = subprocess.run(
        [sys.executable, "-c", INTERPRETED, str(tmp_path)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert result.stdout == "done\n", result.stderr


@pytest.mark.proof
@pytest.mark.parametrize("width", [16, 32])
@pytest.mark.parametrize("capability", SHARED_MEMORY)
@pytest.mark.parametrize(
    ("name", "dtype", "whole"), TILES, ids=lambda x: str(x).removeprefix("torch.")
)
def test_compiles_without_spilling_registers(
    name: str, dtype: torch.dtype, whole: bool, capability: int, width: int
) -> None:
    tiles = TILES[name, dtype, whole]
    compiled = triton.compile(
        source(name, dtype, whole, width),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": tiles.warps, "num_stages": tiles.stages},
    )
    assert compiled.metadata.shared <= SHARED_MEMORY[capability]
    used = resources(compiled.asm["cubin"])
    assert used["STACK"] == used["LOCAL"] == 0  # bytes of registers that spilled to memory


def source(name: str, dtype: torch.dtype, whole: bool, width: int) -> ASTSource:
    """A kernel as for a crop of 256 residues, or for 1,024, whose sizes divide by 16."""
    kernel, tiles = KERNELS[name], TILES[name, dtype, whole]
    constants = {
        "HEADS": 4,
        "WIDTH": width,
        "TILE": tiles.tile,
        "BLOCK": tiles.block or triton_attention.LONGEST_WHOLE,
        "DOT": triton_attention.dot_type(dtype),
        "WHOLE": whole,
    }
    constants = {k: v for k, v in constants.items() if k in kernel.arg_names}
    kinds = dict.fromkeys(("rows", "n", "group", "stride_b", "stride_r", "stride_n"), "i32")
    kinds |= dict.fromkeys(("lse", "delta", "grad_bias"), "*fp32") | {"scale": "fp32"}
    given = "*bf16" if dtype == torch.bfloat16 else "*fp32"
    signature = {
        x: "constexpr" if x in constants else kinds.get(x, given) for x in kernel.arg_names
    }
    divisible = {
        (i,): [["tt.divisibility", 16]]
        for i, x in enumerate(kernel.arg_names)
        if x not in constants and x not in ("scale", "rows", "group")
    }
    return ASTSource(kernel, signature, constants, divisible)


def resources(cubin: bytes) -> dict[str, int]:
    """What the compiler reports that a kernel uses."""
    (tool,) = Path(triton.__file__).parent.glob("backends/nvidia/bin/cuobjdump*")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {kind: int(number) for kind, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", report)}
