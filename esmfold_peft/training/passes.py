"""The passes of a training step on some of its chains, as functions of tensors alone."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from esmfold_peft.config import TrainConfig
from esmfold_peft.datasets.batch import Batch
from esmfold_peft.datasets.streams import DROPOUT, random_seed
from esmfold_peft.datasets.truth import GroundTruth
from esmfold_peft.losses.total import LossTerms, fold_loss, heads_to_compute
from esmfold_peft.model.compiling import compiled_for_training
from esmfold_peft.model.dropout import PassDropout
from esmfold_peft.model.folding import FoldingModel, PassInputs
from esmfold_peft.model.trunk import Recycled
from esmfold_peft.training.cuda_graphs import Captured, fresh_leaves
from esmfold_peft.training.gradients import GradientSum

_CLAMP = 10.0  # Å (AF2 Suppl. Alg. 28)
_CA = 1

_BEFORE_TRUNK = ("language_model.", "trunk.sequence_embedding.")
"""Parameters that run once a step, on all chains."""


@dataclass(frozen=True, eq=False)
class Chains:
    """Some of a device's chains in a step.

    Attributes:
        batch: the chains.
        truth: their true structures.
        m: their sequence track, from `FoldingModel.read`, detached.
        first: number of the device's first chain among all samples of the run.
        fixed: keep the padded length, for which code is compiled.
        begin: place of the first of them among the device's chains.
    """

    batch: Batch
    truth: GroundTruth
    m: Float[Tensor, "b n c_m"]
    first: int
    fixed: bool = False
    begin: int = 0

    @property
    def place(self) -> slice:
        """Their places among the device's chains in the step."""
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
        """Their rows of what was recycled for a group that contains them."""
        if recycled is None:
            return None
        start, n = self.begin - group.begin, self.m.shape[1]
        part = slice(start, start + len(self.m))
        m, z, cb = recycled
        return Recycled(m[part, :n], z[part, :n, :n], cb[part, :n])


class Prediction(NamedTuple):
    """The results of chains after their last pass, without graph: losses, and Cα in Å."""

    terms: LossTerms
    ca: Float[Tensor, "b n 3"]


class Passes(nn.Module):
    """Runs the model on chains of a training step.

    Args:
        model: in training.
        config: the run's settings, with `engine.compile` and `engine.cuda_graphs` decided.
        chains: of a device in a step; the loss is their mean.
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
        self._run_recycling, self._run_last = model.recycle, self._last_pass
        if self._graphs:
            self._run_recycling = Captured(model.recycle, device, "the recycling pass")
            self._run_last = Captured(self._last_pass, device, "the last pass")

    @property
    def _model(self) -> FoldingModel:
        return self._models[0]

    def shared_tensors(self, weights: Any) -> list[Tensor]:
        """The tensors besides the sequence track at which `differentiate` takes gradients."""
        return [*(_tensors(weights) if self._packs else ()), *self._later.values()]

    def learn(
        self,
        groups: Iterable[Chains],
        micro_batch: int,
        weights: Any,
        recycles: int,
        gradients: GradientSum,
    ) -> list[Prediction]:
        """Runs all passes, their losses and the backward pass.

        Args:
            groups: chains that are recycled together.
            micro_batch: chains of a group that are differentiated together.
            weights: from `FoldingModel.pack`.
            recycles: passes before the last one.
            gradients: takes the gradients of the sequence track and of `shared_tensors`.
        """
        predictions: list[Prediction] = []
        for group in groups:
            recycled = self.recycle(group, weights, recycles)
            for part in group.split(micro_batch):
                previous = part.rows_of(group, recycled)
                predictions.append(self.differentiate(part, previous, weights, recycles, gradients))
            recycled = previous = None  # the next group needs the memory
        return predictions

    def recycle(self, chains: Chains, weights: Any, recycles: int) -> Recycled | None:
        """Runs the passes without gradient, and returns what the last pass reads of them."""
        previous = None
        for number in range(recycles):
            previous = self._run_recycling(self._inputs(chains, previous, weights, number))
        return previous

    def differentiate(
        self,
        chains: Chains,
        previous: Recycled | None,
        weights: Any,
        recycles: int,
        gradients: GradientSum,
    ) -> Prediction:
        """Runs the last pass, its losses and the backward pass, as `learn` does."""
        inputs = self._inputs(chains, previous, weights, recycles)
        (of_track, *shared), prediction = self._run_last(inputs, chains.truth, chains.clamp)
        gradients.add(chains.place, of_track, shared)
        return prediction

    def loss(
        self, chains: Chains, previous: Recycled | None, weights: Any, recycles: int
    ) -> tuple[Tensor, Prediction]:
        """The chains' share of the step's mean loss, with its graph, and the prediction.

        The gradient of a loss that is not finite is NaN. `previous` is from `recycle`.
        """
        inputs = self._inputs(chains, previous, weights, recycles)
        return self._predict(inputs, chains.truth, chains.clamp)

    def _inputs(
        self, chains: Chains, previous: Recycled | None, packed: Any, number: int
    ) -> PassInputs:
        batch, dropout = chains.batch, self._draw_dropout(chains, number)
        return PassInputs(
            chains.m, batch.aatype, batch.residue_index, batch.mask, previous, packed, dropout
        )

    def _last_pass(
        self, inputs: PassInputs, truth: GroundTruth, clamp: Float[Tensor, "b"]
    ) -> tuple[list[Tensor | None], Prediction]:
        m = inputs.m.detach().requires_grad_(self._reads)
        weights = tree_map_only(
            Tensor, lambda t: t.detach().requires_grad_(self._packs), inputs.packed
        )
        inputs = inputs._replace(m=m, packed=weights)
        found: list[Prediction] = []

        def run() -> Tensor:
            loss, prediction = self._predict(inputs, truth, clamp)
            found.append(prediction)
            return loss

        # A graph must not meet nodes of the autograd graph that engines keep (`cuda_graphs`).
        own = nullcontext([*self._later.values()])
        with fresh_leaves(self._model, [*self._later]) if self._graphs else own as later:
            loss = self(run)
            packed = _tensors(weights) if self._packs else []
            wanted = [*([m] if self._reads else []), *packed, *later]
            gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
        return [*([] if self._reads else [None]), *gradients], found[0]

    def forward(self, run: Callable[[], Tensor]) -> Tensor:
        """Calls a function that returns a loss: ZeRO stage 3 expects a module around all others."""
        return run()

    def _predict(
        self, inputs: PassInputs, truth: GroundTruth, clamp: Float[Tensor, "b"]
    ) -> tuple[Tensor, Prediction]:
        loss = self._config.loss
        output = self._model.last_pass(inputs, heads=self._heads)
        terms = (self._losses or fold_loss)(
            output, truth, loss.weights, clamp=clamp, resolution_range=loss.resolution
        )
        share = terms.total.sum() / self._chains
        # A loss that is not finite may have a finite gradient, which no process may learn from: it
        # becomes NaN in all that share it.
        poison = torch.where(share.isfinite(), 0.0, torch.nan)
        known = LossTerms(terms.total.detach(), {n: t.detach() for n, t in terms.terms.items()})
        ca = output.positions[:, :, _CA].detach()
        return share + poison * output.positions.sum(), Prediction(known, ca)

    def _draw_dropout(self, chains: Chains, number: int) -> PassDropout | None:
        """Dropout that depends neither on a chain's padding nor on the chains beside it.

        openfold3's own blocks (`model.kernels`) draw for all chains of a micro-batch together.
        """
        places, device = range(chains.place.start, chains.place.stop), chains.m.device
        seeds = [random_seed(self._config.seed, DROPOUT, chains.first + p, number) for p in places]
        if self._config.model.kernels == "openfold":
            torch.manual_seed(seeds[0])
        generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        drawn = self._model.draw_dropout(len(seeds), self._config.data.crop, generators)
        return drawn and drawn.rows(slice(None), chains.m.shape[1])


def _tensors(nested: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(nested) if isinstance(leaf, Tensor)]
