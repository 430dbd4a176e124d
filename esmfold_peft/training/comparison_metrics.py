"""Metrics of a logged step for comparing adapters, besides losses and norms.

How far the adapter has moved the language model from its pretrained weights, and how much of Adam's
step ε leaves to each factor: a rank or α can change both, and the loss does not show it.
"""

from collections.abc import Iterator

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn

from esmfold_peft.adapters.base import Adapter, AttentionShape
from esmfold_peft.adapters.merge import relative_update
from esmfold_peft.config import OptimizerConfig, Target
from esmfold_peft.model.folding import FoldingModel, parameter_groups
from esmfold_peft.model.language_model import LanguageModel
from esmfold_peft.training.engines.zero import adam, places, whole, zero_optimizer
from esmfold_peft.training.metrics_file import RELATIVE_UPDATE
from esmfold_peft.training.optim import epsilon


def comparison_metrics(
    trainer: pl.Trainer, model: FoldingModel, config: OptimizerConfig
) -> dict[str, float]:
    """The size of the adapter's update and the damping of all steps (collective).

    Returns:
        After an optimizer step, the same in every process. `update/relative` is `relative_update`
        of the language model; it is absent where that is None. `damping/<name>` is the mean of
        √v̂ / (√v̂ + ε) over the numbers of an adapter's factor, or of the language model, the trunk
        or the head as a whole: Adam's step is this times m̂ / √v̂. It is absent before the first
        step.
    """
    metrics, lm = _damping(trainer, model, config), model.language_model
    if lm.adapter is None:
        return metrics
    with whole(trainer, lm.adapter.parameters()):
        size = relative_update(_Gathered(trainer, lm))
    if size is None:
        return metrics
    # A mean: processes on different devices may round differently, and must agree.
    return {RELATIVE_UPDATE: float(trainer.strategy.reduce(size))} | metrics


class _Gathered:
    """A language model whose matrices are whole one at a time: stage 3 spreads all of them."""

    def __init__(self, trainer: pl.Trainer, lm: LanguageModel) -> None:
        self.shape: AttentionShape = lm.shape
        self.adapter: Adapter | None = lm.adapter
        self._trainer, self._lm = trainer, lm

    def weight(self, layer: int, target: Target) -> Tensor:
        with whole(self._trainer, [self._lm.parameter_of(layer, target, "weight")]):
            return self._lm.weight(layer, target).clone()

    def bias(self, layer: int, target: Target) -> Tensor:
        with whole(self._trainer, [self._lm.parameter_of(layer, target, "bias")]):
            return self._lm.bias(layer, target).clone()

    def base_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self._lm.base_parameters()


def _damping(trainer: pl.Trainer, model: FoldingModel, config: OptimizerConfig) -> dict[str, float]:
    state, device = adam(trainer).state, trainer.strategy.root_device
    sums: dict[str, Tensor] = {}
    for name, parameters in _factors(model).items():
        eps = epsilon(model, config, name if name in ("trunk", "head") else "adapter")
        numbered = {str(i): parameter for i, parameter in enumerate(parameters)}
        sums[name] = torch.zeros(2, dtype=torch.float64, device=device)
        for place in places(trainer, numbered).values():
            if place.numel and (moments := state.get(place.tensor)):
                squares = moments["exp_avg_sq"].flatten()[place.offset :][: place.numel]
                root = (squares / (1 - config.betas[1] ** moments["step"])).sqrt()
                left = (root / (root + eps)).sum(dtype=torch.float64).to(device)
                sums[name] += torch.stack((left, left.new_tensor(place.numel)))
    added = torch.stack([*sums.values()])
    if zero_optimizer(trainer) is not None:
        dist.all_reduce(added)
    pairs = zip(sums, added.tolist(), strict=True)
    return {f"damping/{name}": left / count for name, (left, count) in pairs if count}


def _factors(model: FoldingModel) -> dict[str, list[nn.Parameter]]:
    """The trained parameters: the adapter by its factors, the rest by its groups."""
    groups = parameter_groups(model)
    own, adapter = groups.pop("adapter"), model.language_model.adapter
    factors = {"language_model": own} if adapter is None else adapter.factor_parameters()
    trained = {n: [p for p in ps if p.requires_grad] for n, ps in (factors | groups).items()}
    return {name: parameters for name, parameters in trained.items() if parameters}
