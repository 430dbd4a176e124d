"""A training step of the folding model and its parts, on real chains."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from measuring import Step
from torch import Tensor, nn

from esmfold_peft.config import (
    AdapterConfig,
    DataConfig,
    EngineConfig,
    LossWeights,
    ModelConfig,
    TrainConfig,
)
from esmfold_peft.datasets.batch import Batch
from esmfold_peft.datasets.features import Features, features
from esmfold_peft.datasets.truth import GroundTruth, ground_truth
from esmfold_peft.geometry.rigid import Rigid
from esmfold_peft.losses.total import fold_loss, heads_to_compute
from esmfold_peft.model.dropout import PassDropout
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.output import FoldOutput
from esmfold_peft.protein.read import read_structure

FINETUNING = LossWeights(resolved=0.01, violation=1.0, pae=0.1)
EXAMPLE = Path(__file__).parents[2] / "data" / "example"


def run_of(model: ModelConfig, **engine: object) -> TrainConfig:
    """Settings of a run with LoRTA in float32; reads no file."""
    return TrainConfig(
        run=Path("unused"),
        data=DataConfig(train=Path("unused")),
        model=model,
        adapter=AdapterConfig(kind="lorta", rank=8),
        engine=replace(EngineConfig(precision="float32"), **engine),
    )


@dataclass(frozen=True, eq=False)
class Training:
    """What the parts of a training step share; `clamp` cuts each chain's backbone error, in Å."""

    model: FoldingModel
    batch: Batch
    recycles: int
    clamp: Tensor
    weights: LossWeights = FINETUNING

    def fold(self) -> FoldOutput:
        """The forward pass."""
        b = self.batch
        heads = heads_to_compute(self.weights)
        return self.model(b.aatype, b.residue_index, b.mask, self.recycles, heads=heads)

    def loss(self, output: FoldOutput) -> Tensor:
        """The loss of a prediction."""
        options = {"clamp": self.clamp, "resolution_range": None}
        return fold_loss(output, self.truth, self.weights, **options).total.mean()

    @cached_property
    def truth(self) -> GroundTruth:
        """The true structures, which the loader prepares in a training."""
        return ground_truth(self.batch)


def whole_step(training: Training) -> Step:
    """Forward and backward pass, and Adam."""
    trained = [p for p in training.model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-6)

    def step() -> None:
        training.loss(training.fold()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def parts(training: Training) -> dict[str, Step]:
    """Forward and backward pass of each part alone, on the inputs that it has in a step."""
    model, batch = training.model, training.batch
    with torch.no_grad(), torch.autocast(batch.aatype.device.type, torch.bfloat16, model.bf16):
        m = model.read(batch.aatype, batch.mask)
        blocks, layers = model.draw_dropout(*batch.mask.shape) or PassDropout()
        inputs = (batch.residue_index, batch.mask, None)
        tracks = model.trunk(m, *inputs, model.pack(), blocks).float()
        output = training.fold()

    def language_model() -> tuple[Tensor, ...]:
        with torch.autocast(batch.aatype.device.type, torch.bfloat16, model.bf16):
            return (model.language_model(batch.aatype, batch.mask),)

    def trunk(m: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(batch.aatype.device.type, torch.bfloat16, model.bf16):
            tracks = model.trunk(m, *inputs, model.pack(), blocks)
        return tracks.s, tracks.z

    def structure_module(s: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        made = model.structure_module(s, z, batch.aatype, batch.mask, layers)
        return made.positions, made.torsions, made.frames.translation, made.s

    def losses() -> None:
        training.loss(with_leaves(output)).backward()

    return {
        "language model": partial(forward_backward, model, language_model),
        "trunk": partial(forward_backward, model, trunk, m),
        "structure module": partial(forward_backward, model, structure_module, tracks.s, tracks.z),
        "losses": losses,
    }


def with_leaves(output: FoldOutput) -> FoldOutput:
    """A copy of the prediction whose tensors take gradients."""

    def leaf(value: object) -> object:
        if isinstance(value, Rigid):
            return Rigid(*(part.clone().requires_grad_() for part in vars(value).values()))
        return value.clone().requires_grad_() if isinstance(value, Tensor) else value

    return FoldOutput(**{name: leaf(value) for name, value in vars(output).items()})


def forward_backward(
    model: nn.Module, part: Callable[..., tuple[Tensor, ...]], *inputs: Tensor
) -> None:
    """Runs a part on copies of its inputs, and the gradients of all its outputs."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    outputs = part(*leaves)
    torch.autograd.backward(outputs, [torch.ones_like(tensor) for tensor in outputs])
    model.zero_grad()


def end_to_end(length: int) -> Features:
    """Full-atom chains of the example, one after the other, cut to a length."""
    names = ("3u8v_A", "4zey_A", "1ubq_A", "1hf9_A")
    files = {path.name.split(".")[0]: path for path in EXAMPLE.glob("*/*.cif.gz")}
    chains = [features(read_structure(files[name])) for name in names]
    while sum(map(len, chains)) < length:
        chains += chains
    joined = Features(
        id="+".join(names),
        aatype=torch.cat([torch.from_numpy(c.aatype) for c in chains]).numpy(),
        residue_index=torch.arange(sum(map(len, chains))).numpy(),
        positions=torch.cat([torch.from_numpy(c.positions) for c in chains]).numpy(),
        atom_mask=torch.cat([torch.from_numpy(c.atom_mask) for c in chains]).numpy(),
        resolution=2.0,
    )
    return joined.crop(0, length)
