"""What the checks ran on, and how fast the card itself copies and multiplies."""

import subprocess
from collections.abc import Iterator
from importlib.util import find_spec

import torch
from measuring import circumstances, milliseconds

from esmfold_peft.model.trunks.tiling import card
from esmfold_peft.runs.versions import installed_versions
from gpu_checks.flops import peaks_of
from gpu_checks.report import Row, measured
from gpu_checks.running import Context

PACKAGES = (
    *("esmfold-peft", "torch", "numpy", "openfold3", "pytorch-lightning", "deepspeed", "fair-esm"),
    *("triton", "cuequivariance-torch", "cuequivariance-ops-torch-cu12"),
    *("cuequivariance-ops-torch-cu13", "peft", "transformers"),
)


def environment(device: torch.device) -> dict[str, object]:
    """Machine, driver, versions and commit, as JSON takes them.

    Args:
        device: under check.
    """
    found: dict[str, object] = dict(circumstances(device))
    found["packages"] = installed_versions(PACKAGES)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "driver": driver(),
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        }
    return found


def driver() -> str | None:
    """Version of NVIDIA's driver; None where its program cannot say."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.partition("\n")[0].strip()


def environment_rows(context: Context) -> Iterator[Row]:
    """Device and versions."""
    found = environment(context.device)
    if context.device.type == "cuda":
        detail = (
            f"capability {found['capability']}, {int(str(found['memory_bytes'])) / 2**30:.0f} GiB,"
            f" driver {found['driver']}, CUDA {found['cuda']}"
        )
    else:
        detail = f"{found['threads']} thread(s)"
    yield measured("device", str(found["device"]), detail=detail)
    packages = installed_versions(PACKAGES)
    present = ", ".join(f"{name} {text}" for name, text in packages.items() if text)
    yield measured("packages", f"torch {torch.__version__}", detail=present)
    modules = ("triton", "cuequivariance_torch", "cuequivariance_ops_torch")
    there = [name for name in modules if has_module(name)]
    yield measured("kernel modules", str(len(there)), detail=", ".join(there) or "none")
    own = str(context.tiles) if context.tiles.exists() else "the package's"
    yield measured("tiles of kernels", own)
    yield measured("commit", str(found["git_commit"] or "unknown (no clone)"))


def card_speed(context: Context) -> Iterator[Row]:
    """A copy of a large tensor, and a product of square matrices in bfloat16."""
    device, rounds = context.device, 3 * context.sizes.rounds
    flops, memory = peaks_of(card(device))
    source = torch.ones(context.sizes.copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    taken = 1e-3 * milliseconds(lambda: target.copy_(source), rounds, device)
    speed = 2 * source.numel() / taken
    detail = _share(speed, memory, f"copy of {source.numel() / 2**20:.0f} MiB, read and written")
    yield measured("card: memory", speed / 1e9, "GB/s", detail=detail)
    n = context.sizes.matrix
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    product = torch.empty_like(a)
    taken = 1e-3 * milliseconds(lambda: torch.mm(a, a, out=product), rounds, device)
    speed = 2 * n**3 / taken
    detail = _share(speed, flops, f"{n} x {n}, bf16")
    yield measured("card: matrix product", speed / 1e12, "TFLOPS", detail=detail)


def _share(speed: float, peak: float | None, what: str) -> str:
    """What was measured, and its share of the datasheet's peak."""
    share = "no peak is known" if peak is None else f"{speed / peak:.0%} of the datasheet's peak"
    return f"{what}; {share}"


def has_module(name: str) -> bool:
    """Whether a module can be found, its parents included; these are imported."""
    try:
        return find_spec(name) is not None
    except ImportError:
        return False
