"""From a run, or the released ESMFold, to a model that is ready to fold."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar, get_args

import torch

from esmfold_peft.adapters.bank import AdapterChoice
from esmfold_peft.config import ModelConfig, Precision, TrainConfig
from esmfold_peft.config.parsing import config_of
from esmfold_peft.devices import choose_device, make_current
from esmfold_peft.disk.files import read_json
from esmfold_peft.errors import UserError
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.inference import Failed, Folded, Query, fold
from esmfold_peft.runs.build import build_language_model, build_model
from esmfold_peft.runs.checkpoint import checkpoint_folder, find_step, read_weights
from esmfold_peft.runs.run_directory import (
    PROVENANCE,
    WEIGHTS,
    fill_model,
    kept_tensors,
    read_tensors,
    require_base,
    require_run,
    run_config,
)
from esmfold_peft.weights.contents import contents_of, nested
from esmfold_peft.weights.esm2_weights import hash_of, weights_hash
from esmfold_peft.weights.esmfold_weights import find_esmfold, folding_hash, load_esmfold

Kind = TypeVar("Kind", bound="ReadyModel")


@dataclass(frozen=True, eq=False)
class ReadyModel:
    """A model on its device, ready to fold.

    Attributes:
        model: in evaluation mode.
        recycles: passes after the first, unless a call says otherwise.
        predicts_pae: whether the head of aligned errors was trained.
        decisive: gives what decides a prediction: hashes of all weights, and sizes.
    """

    model: FoldingModel
    recycles: int
    predicts_pae: bool
    decisive: Callable[[], Sequence[str]]

    @classmethod
    def load(
        cls: type[Kind],
        run: Path | str | None = None,
        *,
        esmfold: str | None = None,
        language_model: str | None = None,
        checkpoint: str | None = None,
        raw_weights: bool = False,
        device: str = "auto",
        local_rank: int = 0,
        precision: Precision | None = None,
        chunk_size: int | None = None,
    ) -> Kind:
        """Loads the model of a training run, or the released ESMFold.

        Args:
            run: folder of a run, or a copy of its config.yaml, provenance.json and
                model.safetensors.
            esmfold: instead of a run the released weights: pretrained, the official file, or a
                Hugging Face folder.
            language_model: weights of ESM-2 for an official file of ESMFold, which has none; None
                takes the official ones.
            checkpoint: of the run: last, best or a step; None takes model.safetensors, which is the
                last one's.
            raw_weights: take the trained weights themselves, not their moving average.
            device: cpu, gpu, cuda:N, or auto (a GPU if there is one).
            local_rank: number of this process on its machine, if several share its GPUs.
            precision: float32 or bf16; None takes that of the training, float32 for ESMFold.
            chunk_size: rows of the pair track at a time; None chooses.

        Raises:
            UserError: neither or both are given, the files cannot be read or do not fit together,
                or the device is not there.
        """
        if (run is None) == (esmfold is None):
            raise UserError("give either run or esmfold")
        if precision not in (None, *get_args(Precision)):
            raise UserError(f"precision: {precision} is none of {', '.join(get_args(Precision))}")
        place = choose_device(device, local_rank)
        make_current(place)
        if run is not None:
            run = Path(run)
            model, config = load_model(
                run, checkpoint=checkpoint, raw=raw_weights, chunk=chunk_size
            )
            sizes, predicts_pae = config.model, _has_pae_head(model, config)
            decisive = partial(_decisive_of_run, model, config, read_json(run / PROVENANCE))
        else:
            assert esmfold is not None
            model, sizes = _released(esmfold, language_model, chunk_size)
            predicts_pae, decisive = True, partial(_decisive_of_released, model)
        if precision is not None:
            model.bf16 = precision == "bf16"
        return cls(model.to(place), sizes.max_recycles, predicts_pae, decisive)

    @cached_property
    def identity(self) -> str:
        """SHA-256 of all weights and sizes that decide a prediction."""
        return hashlib.sha256(json.dumps([*self.decisive()]).encode()).hexdigest()

    def fold_all(
        self,
        queries: Sequence[Query],
        *,
        recycles: int | None = None,
        max_tokens: int = 1,
        choice: AdapterChoice | None = None,
        pae: bool | None = None,
    ) -> Iterator[Folded | Failed]:
        """Folds sequences as `model.inference.fold` does.

        Without `recycles`, the model's own number; without `pae`, aligned errors if it can.
        """
        return fold(
            self.model,
            queries,
            recycles=self.recycles if recycles is None else recycles,
            max_tokens=max_tokens,
            choice=choice,
            pae=self.predicts_pae if pae is None else pae,
        )


def load_model(
    run: Path, *, checkpoint: str | None = None, raw: bool = False, chunk: int | None = None
) -> tuple[FoldingModel, TrainConfig]:
    """Rebuilds the model of a run, in evaluation mode on the CPU; see `ReadyModel.load`.

    The settings that it returns are the run's, without those that only made its training fast.
    """
    require_run(run)
    if checkpoint is None and not raw:
        place = run / WEIGHTS
        tensors = read_tensors(place)
    else:
        step = find_step(run, checkpoint or "last")
        place = checkpoint_folder(run, step)
        tensors = read_weights(run, step, raw=raw)
    config = run_config(run)
    # What made the training fast may not work on this machine; the results are the same.
    track = "float32" if config.model.kernels == "openfold" else config.model.pair_track
    config = replace(
        config,
        model=replace(config.model, chunk=chunk, kernels="fused", pair_track=track),
        engine=replace(config.engine, compile=False, cuda_graphs=False),
    )
    return rebuild_model(run, config, tensors, place).eval(), config


def rebuild_model(
    run: Path, config: TrainConfig, tensors: dict[str, torch.Tensor], place: Path
) -> FoldingModel:
    """Builds the model of a run and fills it with stored tensors; see `fill_model`."""
    model, base_hash = build_model(config)
    require_base(run, model, base_hash)
    fill_model(model, tensors, place)
    return model


def _released(
    weights: str, language_model: str | None, chunk: int | None
) -> tuple[FoldingModel, ModelConfig]:
    """The released ESMFold in the sizes that its file has."""
    path = find_esmfold(weights)
    contents = contents_of(path)
    if "ESMFold" not in contents.kind:
        raise UserError(f"esmfold: {path} is {contents.kind}, not ESMFold")
    config = config_of(nested(contents.settings)["model"], ModelConfig, path)
    own = config.language_model
    if language_model is not None:
        own = replace(own, weights=language_model)
    config = replace(config, language_model=own, chunk=chunk)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the one head that ESMFold does not have
        model = FoldingModel(build_language_model(own, seed=0), config, bf16=False)
    load_esmfold(model, path)
    model.published = True
    return model.eval(), config


def _has_pae_head(model: FoldingModel, config: TrainConfig) -> bool:
    """Whether the head of aligned errors was published, or trained by the run or an earlier one.

    The earlier runs are those that it started from, one after the other.
    """
    if model.published and "pae" not in config.model.section.missing_heads:
        return True
    while config.loss.weights.pae == 0:
        if config.start_from is None or not config.start_from.is_dir():
            return False
        config = run_config(config.start_from)
    return True


def _decisive_of_run(
    model: FoldingModel, config: TrainConfig, provenance: dict[str, object]
) -> list[str]:
    base = [str(provenance.get(f"{part}_sha256")) for part in ("language_model", "esmfold")]
    kept = hash_of((name, tensor.detach()) for name, tensor in kept_tensors(model).items())
    section = config.model.section
    trunk = replace(section, weights="") if section.published else section
    # The former name of the setting: predictions of earlier versions stay valid.
    sizes = repr((config.model.structure, trunk)).replace("recompute=", "checkpoint=")
    return [*base, kept, sizes, repr(config.adapter)]


def _decisive_of_released(model: FoldingModel) -> list[str]:
    return [weights_hash(model.language_model), folding_hash(model)]
