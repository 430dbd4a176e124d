"""What a model computes, and what a card can: matrix products only, two operations for each term.

PyTorch's counter sees matrix products, convolutions and CUDA's fused attention. It does not see
what is element by element, norms, softmax, distances (`cdist`), which memory bounds and not the
card's peak. Our own attention is told to it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from training_step import Training

from esmfold_peft.model.trunks.openfold import Evoformer

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
not tell which), by the words of a card's name, as NVIDIA states them; the first line whose words
are all in the name counts."""


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
        """Operations of a step.

        Args:
            recycles: passes without gradient, or their mean.
        """
        return self.step + recycles * self.recycle


def peaks_of(device_name: str) -> tuple[float | None, float | None]:
    """Dense bfloat16 operations and bytes a second of a card; None where the table has it not.

    Args:
        device_name: as CUDA gives it, such as NVIDIA H100 80GB HBM3.
    """
    words = set(device_name.replace("-", " ").split())
    for wanted, tflops, gigabytes in PEAKS:
        if set(" ".join(wanted).split()) <= words:
            return 1e12 * tflops, gigabytes and 1e9 * gigabytes
    return None, None


def _attention_flops(qkvg: Sequence[int], *others: object, **more: object) -> int:
    """Logits and mixed values."""
    b, r, n, channels = qkvg
    return 4 * b * r * n**2 * channels // 4


def _backward_flops(grad: object, qkvg: Sequence[int], *others: object, **more: object) -> int:
    """Gradients of the weights, queries, keys and values; logits are what is computed again."""
    return 2 * _attention_flops(qkvg)


OURS = torch.ops.esmfold_peft
ATTENTION = {
    OURS.gated_attention: _attention_flops,
    OURS.gated_attention_backward: _backward_flops,
}
"""The counter does not look into operators that it does not know."""


def counted(step: Callable[[], object]) -> int:
    """Operations of matrix products in a step, as PyTorch counts them.

    Args:
        step: forward, or forward and backward.
    """
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        step()
    return counter.get_total_flops()


def model_flops(training: Training) -> Flops:
    """Operations of a training step of all blocks, counted on one and on two.

    The blocks are alike, so that the rest follows; two of them without recomputation fit anywhere.

    Args:
        training: a step without recycling.
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
    """A trunk of a few of its blocks, which keep what they compute for the backward pass.

    Args:
        stack: of an Evoformer.
        count: blocks.
    """
    assert isinstance(stack, Evoformer)
    kept = stack.blocks, stack.config, stack.recompute
    stack.blocks, stack.config = stack.blocks[:count], replace(stack.config, blocks=count)
    stack.recompute = False
    try:
        yield
    finally:
        stack.blocks, stack.config, stack.recompute = kept
