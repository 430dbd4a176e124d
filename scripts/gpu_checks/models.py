"""Models and batches that the checks use: random weights, real chains."""

import torch
from torch import nn
from training_step import end_to_end

from esmfold_peft.config import TrainConfig
from esmfold_peft.datasets.batch import Batch
from esmfold_peft.datasets.collate import collate
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.runs.build import build_model

SHAKE = 0.3
"""Of the noise of a matrix, times the root of its inputs: half of the Evoformer's matrices start at
zero, behind which gradients are zero and errors hidden."""

SHAKE_VECTORS = 0.05

CLAMP = 10.0  # Å


def shaken_model(config: TrainConfig) -> FoldingModel:
    """The model of a run on the CPU, whose trained layers all have weight.

    Args:
        config: see `sizes.settings`.
    """
    model, _ = build_model(config)
    shake(model, seed=1)
    return model.train()


@torch.no_grad()
def shake(model: nn.Module, seed: int) -> None:
    """Adds noise to every trained parameter.

    Args:
        model: on the CPU.
        seed: of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim > 1
            size = SHAKE * parameter.shape[-1] ** -0.5 if matrix else SHAKE_VECTORS
            parameter += size * torch.randn(parameter.shape, generator=generator)


def real_batch(length: int, chains: int, *, padding: int = 0) -> Batch:
    """Crops of real full-atom chains put end to end.

    Args:
        length: residues of each.
        chains: how many, each another stretch.
        padding: residues that the last one lacks.
    """
    stride = 37  # crops overlap, and none is another's
    whole = end_to_end(length + stride * (chains - 1))
    crops = [whole.crop(stride * k, length - padding * (k == chains - 1)) for k in range(chains)]
    return collate(crops, [True] * chains)
