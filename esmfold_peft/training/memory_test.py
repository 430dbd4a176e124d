"""A step on made-up chains, to see whether a plan fits into memory."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from esmfold_peft.datasets.batch import collate
from esmfold_peft.datasets.truth import ground_truth
from esmfold_peft.model.inference import sequence_features
from esmfold_peft.model.trunks.triangles import nothing_in_place
from esmfold_peft.training.engines.zero import adam
from esmfold_peft.training.gradients import GradientSum
from esmfold_peft.training.passes import Chains, Passes
from esmfold_peft.training.plan import Plan
from esmfold_peft.training.step import FoldingModule

_MOMENTS = 8
"""Bytes that Adam keeps of a trained number in float32."""

_COPIES = 4
"""Copies of a group's pair track and of the weights that the graphs of all passes have."""


def bytes_of_moments(module: FoldingModule) -> int:
    """Bytes that Adam's moments will take on this process's device."""
    trainer = module.trainer
    stepped = [p for group in adam(trainer).param_groups for p in group["params"]]
    device = trainer.strategy.root_device
    return sum(_MOMENTS * p.numel() for p in stepped if p.device == device)


def attempt(module: FoldingModule, plan: Plan) -> None:
    """Runs what takes most memory in a step by a plan; raises PyTorch's error if it does not fit.

    It runs outside the engine and changes no parameter. It compiles nothing, because that takes
    minutes for each size.
    """
    model, config, device = module.model, module.config, module.trainer.strategy.root_device
    size = config.engine.batch_size // module.trainer.world_size
    plain = replace(config, engine=replace(config.engine, compile=False, cuda_graphs=False))
    passes = Passes(model, plain, size, device)
    chain = sequence_features("", "A" * config.data.crop)
    batch = collate([chain] * size, [True] * size).to(device)
    truth = ground_truth(batch, fixed=True)
    recycles = min(2, config.model.max_recycles)  # the second reads the results of the first
    model.trunk.stack.recompute = plan.recompute
    compiled = config.engine.compile is True
    with (
        torch.compiler.set_stance("force_eager"),
        nothing_in_place() if compiled else nullcontext(),
    ):
        m, weights = model.read(batch.aatype, batch.mask), model.pack()
        gradients = GradientSum(m, passes.shared_tensors(weights))
        group = next(Chains(batch, truth, m.detach(), 0, fixed=True).split(plan.recycling))
        kept = _kept_by_graphs(module, group, weights)
        passes.learn([group], plan.micro_batch, weights, recycles, gradients)
        trained = [p for p in model.parameters() if p.requires_grad]
        torch.autograd.grad(gradients.as_loss(), trained, allow_unused=True)
    del kept


def _kept_by_graphs(module: FoldingModule, group: Chains, weights: Any) -> Tensor | None:
    """As much memory as CUDA graphs keep for good, besides that of their passes."""
    if module.config.engine.cuda_graphs is not True:
        return None
    pairs = group.batch.mask.numel() * group.batch.mask.shape[1]
    track = pairs * module.config.model.section.widths[1] * module.model.trunk.pair_type.itemsize
    packed = [t for t in tree_leaves(weights) if isinstance(t, Tensor)]
    size = _COPIES * (track + sum(tensor.nbytes for tensor in packed))
    return torch.empty(size, dtype=torch.uint8, device=group.m.device)
