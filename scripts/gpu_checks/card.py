"""What the checks ran on, how fast the card copies and multiplies, and what a step asks of it.

Only matrix products are counted, two operations for each term. PyTorch's counter sees them,
convolutions and CUDA's fused attention, and is told about our own attention. Element-wise code,
norms, softmax and distances are bound by memory, not by the card's peak.
"""

import subprocess
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch
from measuring import circumstances, milliseconds
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from training_step import Training

from esmfold_peft.model.trunks.openfold import Evoformer
from esmfold_peft.model.trunks.tiling import card
from esmfold_peft.runs.versions import installed_versions
from gpu_checks.report import Row, measured
from gpu_checks.running import Context

PACKAGES = (
    *("esmfold-peft", "torch", "numpy", "openfold3", "pytorch-lightning", "deepspeed", "fair-esm"),
    *("triton", "cuequivariance-torch", "cuequivariance-ops-torch-cu12"),
    *("cuequivariance-ops-torch-cu13", "peft", "transformers"),
)

PEAKS = (
    (("B200",), 2250.0, 8000.0),
    (("GH200",), 989.0, None),
    (("H200",), 989.0, 4800.0),
    (("H100", "PCIe"), 756.0, 2000.0),
    (("H100", "NVL"), 835.0, 3900.0),
    (("H100",), 989.0, 3350.0),
    (("A100", "80GB", "PCIe"), 312.0, 1935.0),
    (("A100", "80GB"), 312.0, 2039.0),
    (("A100",), 312.0, 1555.0),
    (("L40S",), 362.0, 864.0),
    (("L4",), 121.0, 300.0),
    (("A10G",), 70.0, 600.0),
    (("A10",), 125.0, 600.0),
    (("RTX 4090",), 165.2, 1008.0),
)
"""Dense bfloat16 peaks with float32 sums in TFLOPS, and of the memory in GB/s (None: the name does
not tell which), by the words of a card's name, as NVIDIA states them. The first line whose words
are all in the name counts."""


def environment(device: torch.device) -> dict[str, object]:
    """Machine, driver, versions and commit, as JSON takes them."""
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
    """Version of NVIDIA's driver; None if nvidia-smi cannot tell."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.partition("\n")[0].strip()


def environment_rows(context: Context) -> Generator[Row]:
    """Device, packages, tiles and commit; the JSON file has more."""
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
    own = str(context.tiles) if context.tiles.exists() else "the package's"
    yield measured("tiles of kernels", own)
    yield measured("commit", str(found["git_commit"] or "unknown (no clone)"))


def has_modules(*names: str) -> bool:
    """Whether modules can be found."""
    return all(find_spec(name) is not None for name in names)


def card_speed(context: Context) -> Generator[Row]:
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
    share = "no peak is known" if peak is None else f"{speed / peak:.0%} of the datasheet's peak"
    return f"{what}; {share}"


def peaks_of(device_name: str) -> tuple[float | None, float | None]:
    """Dense bfloat16 operations and bytes a second of a card; None if the table lacks it."""
    words = set(device_name.replace("-", " ").split())
    for wanted, tflops, gigabytes in PEAKS:
        if set(" ".join(wanted).split()) <= words:
            return 1e12 * tflops, gigabytes and 1e9 * gigabytes
    return None, None


@dataclass(frozen=True)
class Flops:
    """Operations for one micro-batch.

    Attributes:
        recycle: of a pass without gradient.
        step: forward and backward pass without recycling, nothing computed twice.
    """

    recycle: float
    step: float

    def with_recycles(self, recycles: float) -> float:
        """Operations of a step with so many passes without gradient, or their mean."""
        return self.step + recycles * self.recycle


def _attention_flops(qkvg: Sequence[int], *others: object, **more: object) -> int:
    """Logits and mixed values."""
    b, r, n, channels = qkvg
    return 4 * b * r * n**2 * channels // 4


def _backward_flops(grad: object, qkvg: Sequence[int], *others: object, **more: object) -> int:
    """Gradients of weights, queries, keys and values; recomputing the logits does not count."""
    return 2 * _attention_flops(qkvg)


OURS = torch.ops.esmfold_peft
ATTENTION = {
    OURS.gated_attention: _attention_flops,
    OURS.gated_attention_backward: _backward_flops,
}
"""The counter does not look into operators that it does not know."""


def counted(step: Callable[[], object]) -> int:
    """Operations of matrix products in a step, as PyTorch counts them."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        step()
    return counter.get_total_flops()


def model_flops(training: Training) -> Flops:
    """Operations of a training step without recycling, counted on one block and on two.

    All blocks are alike, so the rest follows; two without recomputation fit into any memory.
    """
    stack = training.model.trunk.stack
    blocks, _ = len(stack.blocks), training.truth  # which the loader prepares
    one, two = (_flops_of(training, count) for count in (1, 2))
    return Flops(
        recycle=one.recycle + (blocks - 1) * (two.recycle - one.recycle),
        step=one.step + (blocks - 1) * (two.step - one.step),
    )


def _flops_of(training: Training, blocks: int) -> Flops:
    model = training.model

    def step() -> None:
        training.loss(training.fold()).backward()
        model.zero_grad()

    def fold(recycles: int) -> int:
        return counted(replace(training, recycles=recycles).fold)

    with first_blocks(model.trunk.stack, blocks):
        return Flops(recycle=fold(1) - fold(0), step=counted(step))


@contextmanager
def first_blocks(stack: nn.Module, count: int) -> Iterator[None]:
    """Leaves an Evoformer a few of its blocks, without recomputation."""
    assert isinstance(stack, Evoformer)
    kept = stack.blocks, stack.config, stack.recompute
    stack.blocks, stack.config = stack.blocks[:count], replace(stack.config, blocks=count)
    stack.recompute = False
    try:
        yield
    finally:
        stack.blocks, stack.config, stack.recompute = kept
