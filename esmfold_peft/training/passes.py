"""The passes of a training step on some of its chains: functions of tensors alone."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from esmfold_peft.config import TrainConfig
from esmfold_peft.datasets.batch import Batch
from esmfold_peft.datasets.streams import DROPOUT, random_seed
from esmfold_peft.datasets.truth import GroundTruth
from esmfold_peft.losses.total import LossTerms, fold_loss, heads_to_compute
from esmfold_peft.model.compiling import compiled_for_training
from esmfold_peft.model.dropout import PassDropout
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.trunk import Recycled
from esmfold_peft.training.cuda_graphs import Captured, fresh_leaves
from esmfold_peft.training.gradients import GradientSum

_CLAMP = 10.0  # Å (AF2 Suppl. Alg. 28)
_CA = 1

_BEFORE_TRUNK = ("language_model.", "trunk.sequence_embedding.")
"""Parameters that run once a step, on all chains."""


@dataclass(frozen=True, eq=False)
class Chains:
    """Some of the chains of a step.

    Attributes:
        batch: the chains.
        truth: their true structures.
        m: their sequence track, from `FoldingModel.read`, detached.
        first: number of the device's first chain among all samples of the run.
        fixed: keep the padded length, for which code is compiled.
        begin: place of their first chain among the device's chains of the step.
    """

    batch: Batch
    truth: GroundTruth
    m: Float[Tensor, "b n c_m"]
    first: int
    fixed: bool = False
    begin: int = 0

    @property
    def place(self) -> slice:
        """Where they stand among the device's chains of the step."""
        return slice(self.begin, self.begin + len(self.m))

    @property
    def clamp(self) -> Float[Tensor, "b"]:
        """Where the backbone error of each chain is cut, in Å."""
        return torch.where(self.batch.clamped, _CLAMP, torch.inf)

    def split(self, size: int) -> Iterator["Chains"]:
        """These chains, at most `size` at a time, without padding that they do not need."""
        chains, padded = self.m.shape[:2]
        for start in range(0, chains, size):
            part = slice(start, min(start + size, chains))
            n = padded if self.fixed else max(self.batch.lengths[part])
            yield replace(
                self,
                batch=self.batch.rows(part, n),
                truth=self.truth.rows(part, n),
                m=self.m[part, :n],
                begin=self.begin + start,
            )

    def rows_of(self, group: "Chains", recycled: Recycled | None) -> Recycled | None:
        """Their own part of what was recycled for a group that they are in."""
        if recycled is None:
            return None
        start, n = self.begin - group.begin, self.m.shape[1]
        part = slice(start, start + len(self.m))
        m, z, cb = recycled
        return Recycled(m[part, :n], z[part, :n, :n], cb[part, :n])


class Inputs(NamedTuple):
    """What a pass reads of chains; see `FoldingModel.recycle`."""

    m: Float[Tensor, "b n c_m"]
    aatype: Int[Tensor, "b n"]
    residue_index: Int[Tensor, "b n"]
    mask: Bool[Tensor, "b n"]
    previous: Recycled | None
    weights: Any
    dropout: PassDropout | None


class Prediction(NamedTuple):
    """What is known of chains after their last pass, without graph.

    Attributes:
        terms: their losses.
        ca: predicted Cα in Å.
    """

    terms: LossTerms
    ca: Float[Tensor, "b n 3"]


class Passes(nn.Module):
    """Runs the model on chains of a training step.

    Args:
        model: in training.
        config: the run's settings, of which `engine.compile` and `engine.cuda_graphs` are decided.
        chains: of a device in a step, over which the loss is averaged.
        device: of the model.
    """

    def __init__(
        self, model: FoldingModel, config: TrainConfig, chains: int, device: torch.device
    ) -> None:
        super().__init__()
        self._models = (model,)  # not a part of this module: it would be there twice
        self._config = config
        self._chains = chains
        self._heads = heads_to_compute(config.loss.weights)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        # Kept, because looking one up makes ZeRO stage 3 gather it.
        self._later = {n: p for n, p in trained.items() if not n.startswith(_BEFORE_TRUNK)}
        self._reads = any(name.startswith(_BEFORE_TRUNK) for name in trained)
        self._packs = any(p.requires_grad for p in model.trunk.stack.parameters())
        compiled, self._graphs = config.engine.compile is True, config.engine.cuda_graphs is True
        self._losses = compiled_for_training(fold_loss) if compiled else None
        self._run_recycling, self._run_last = self._recycling_pass, self._last_pass
        if self._graphs:
            self._run_recycling = Captured(self._recycling_pass, device, "the recycling pass")
            self._run_last = Captured(self._last_pass, device, "the last pass")

    @property
    def _model(self) -> FoldingModel:
        return self._models[0]

    def shared_tensors(self, weights: Any) -> list[Tensor]:
        """The tensors, after the sequence track, whose gradients `learn` gives."""
        return [*(_tensors(weights) if self._packs else ()), *self._later.values()]

    def recycle(self, chains: Chains, weights: Any, recycles: int) -> Recycled | None:
        """Runs the passes without gradient.

        Args:
            chains: on which.
            weights: from `FoldingModel.pack`.
            recycles: how many passes.

        Returns:
            What the last pass reads of them; None without recycling passes.
        """
        previous = None
        for number in range(recycles):
            dropout = self._draw_dropout(chains, number)
            previous = self._run_recycling(_inputs(chains, previous, weights, dropout))
        return previous

    def differentiate(
        self,
        chains: Chains,
        previous: Recycled | None,
        weights: Any,
        recycles: int,
        gradients: GradientSum,
    ) -> Prediction:
        """Runs the last pass, its losses and the backward pass.

        Args:
            chains: on which.
            previous: from `recycle`, of these chains.
            weights: from `FoldingModel.pack`.
            recycles: passes before.
            gradients: takes the gradients of the sequence track and of `shared_tensors`.
        """
        dropout = self._draw_dropout(chains, recycles)
        inputs = _inputs(chains, previous, weights, dropout)
        (of_track, *shared), prediction = self._run_last(inputs, chains.truth, chains.clamp)
        gradients.add(chains.place, of_track, shared)
        return prediction

    def loss(
        self, chains: Chains, previous: Recycled | None, weights: Any, recycles: int
    ) -> tuple[Tensor, Prediction]:
        """Runs the last pass and the losses; see `differentiate`.

        Returns:
            The chains' share of the step's mean loss, with its graph, and what was predicted. The
            gradient of a loss that is not finite is NaN.
        """
        dropout = self._draw_dropout(chains, recycles)
        inputs = _inputs(chains, previous, weights, dropout)
        return self._predict(inputs, chains.truth, chains.clamp)

    def _recycling_pass(self, inputs: Inputs) -> Recycled:
        return self._model.recycle(*inputs)

    def _last_pass(
        self, inputs: Inputs, truth: GroundTruth, clamp: Float[Tensor, "b"]
    ) -> tuple[list[Tensor | None], Prediction]:
        m = inputs.m.detach().requires_grad_(self._reads)
        weights = tree_map_only(
            Tensor, lambda t: t.detach().requires_grad_(self._packs), inputs.weights
        )
        inputs = inputs._replace(m=m, weights=weights)
        found: list[Prediction] = []

        def run() -> Tensor:
            loss, prediction = self._predict(inputs, truth, clamp)
            found.append(prediction)
            return loss

        # A graph must not meet nodes of the autograd graph that engines keep (`cuda_graphs`).
        fresh = fresh_leaves(self._model, [*self._later]) if self._graphs else nullcontext()
        with fresh as leaves:
            loss = self(run)
            later = self._later.values() if leaves is None else leaves
            packed = _tensors(weights) if self._packs else []
            wanted = [*([m] if self._reads else []), *packed, *later]
            gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
        return [*([] if self._reads else [None]), *gradients], found[0]

    def forward(self, run: Callable[[], Tensor]) -> Tensor:
        """Calls a function that gives a loss.

        ZeRO stage 3 expects the call of a module around all others in each backward pass.
        """
        return run()

    def _predict(
        self, inputs: Inputs, truth: GroundTruth, clamp: Float[Tensor, "b"]
    ) -> tuple[Tensor, Prediction]:
        loss = self._config.loss
        output = self._model.last_pass(*inputs, heads=self._heads)
        terms = (self._losses or fold_loss)(
            output,
            truth,
            loss.weights,
            clamp=clamp,
            resolution_range=loss.resolution,
        )
        share = terms.total.sum() / self._chains
        # A loss that is not finite may have a finite gradient, which must not be learnt from: it
        # becomes NaN, in every process that the gradient is shared with.
        poison = torch.where(share.isfinite(), 0.0, torch.nan)
        known = LossTerms(terms.total.detach(), {n: t.detach() for n, t in terms.terms.items()})
        ca = output.positions[:, :, _CA].detach()
        return share + poison * output.positions.sum(), Prediction(known, ca)

    def _draw_dropout(self, chains: Chains, number: int) -> PassDropout | None:
        """Each chain's own, whatever other chains it is computed with and however it is padded.

        openfold3's own blocks (`model.kernels`) draw for all chains of a micro-batch together.
        """
        first, device = chains.first, chains.m.device
        seeds = [
            random_seed(self._config.seed, DROPOUT, first + place, number)
            for place in range(chains.place.start, chains.place.stop)
        ]
        if self._config.model.kernels == "openfold":
            torch.manual_seed(seeds[0])
        generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        drawn = self._model.draw_dropout(len(seeds), self._config.data.crop, generators)
        return drawn and drawn.rows(slice(None), chains.m.shape[1])


def _inputs(
    chains: Chains, previous: Recycled | None, weights: Any, dropout: PassDropout | None
) -> Inputs:
    batch = chains.batch
    return Inputs(
        chains.m, batch.aatype, batch.residue_index, batch.mask, previous, weights, dropout
    )


def _tensors(nested: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(nested) if isinstance(leaf, Tensor)]
