"""A model that folds sequences: of a training run, or the released ESMFold."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch

from esmfold_peft.adapters.bank import AdapterChoice
from esmfold_peft.config import ModelConfig, Precision, TrainConfig
from esmfold_peft.config.parsing import config_of
from esmfold_peft.devices import choose_device, make_current
from esmfold_peft.disk.files import read_json
from esmfold_peft.errors import UserError
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.inference import Failed, Folded, Query, fold
from esmfold_peft.prediction.complexes import query, read_sequence
from esmfold_peft.prediction.result import Prediction
from esmfold_peft.runs.build import build_language_model
from esmfold_peft.runs.run_directory import PROVENANCE, kept_tensors, load_model, run_config
from esmfold_peft.weights.contents import contents_of, nested
from esmfold_peft.weights.esm2_weights import hash_of, weights_hash
from esmfold_peft.weights.esmfold_weights import find_esmfold, folding_hash, load_esmfold


@dataclass(frozen=True, eq=False)
class Predictor:
    """A model on its device, ready to fold.

    Attributes:
        model: in evaluation mode.
        recycles: passes after the first, unless told otherwise.
        identity: SHA-256 of all weights and sizes that decide a prediction.
        predicts_pae: whether the head of aligned errors was trained.
    """

    model: FoldingModel
    recycles: int
    identity: str
    predicts_pae: bool

    def fold(
        self,
        sequence: str,
        *,
        name: str = "prediction",
        num_recycles: int | None = None,
        seed: int = 0,
    ) -> Prediction:
        """Folds one sequence.

        Args:
            sequence: one-letter codes, in either case; ":" between the chains of a complex. B, J,
                O, U and Z are read as X.
            name: of the files that are written of it.
            num_recycles: passes after the first; None takes the model's.
            seed: 0 folds the sequence as it is; each other number hides 15 % of its residues from
                the language model, others for each number.

        Raises:
            UserError: it is no sequence of residues or does not fit into memory, or a number is
                less than 0.
        """
        for name_of, number in (("num_recycles", num_recycles), ("seed", seed)):
            if number is not None and number < 0:
                raise UserError(f"{name_of}: {number} is less than 0")
        chains = read_sequence(sequence)
        found = next(self.fold_all([query(name, chains, seed)], recycles=num_recycles))
        if isinstance(found, Failed):
            raise UserError(f"{name}: {found.reason}")
        return Prediction.from_folded(name, "", chains, found)

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

        Args:
            queries: the sequences.
            recycles: passes after the first; None takes the model's.
            max_tokens: residues in a batch, padding included.
            choice: an adapter for each sequence, instead of the model's own for all.
            pae: predict aligned errors and the TM-score too; None: if the model can.
        """
        return fold(
            self.model,
            queries,
            recycles=self.recycles if recycles is None else recycles,
            max_tokens=max_tokens,
            choice=choice,
            pae=self.predicts_pae if pae is None else pae,
        )


def load(
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
) -> Predictor:
    """Loads the model of a training run, or the released ESMFold.

    Args:
        run: folder of a run, or a copy of its config.yaml, provenance.json and model.safetensors.
        esmfold: instead of a run the released weights: pretrained, the official file, or a Hugging
            Face folder.
        language_model: weights of ESM-2 for an official file of ESMFold, which has none; None
            takes the official ones.
        checkpoint: of the run: last, best or a step; None takes model.safetensors.
        raw_weights: take the weights as they were, not their moving average.
        device: cpu, gpu, cuda:N, or auto (a GPU if there is one).
        local_rank: which GPU of its machine a process takes, where several share them out.
        precision: float32 or bf16; None takes that of the training, float32 for ESMFold.
        chunk_size: rows of the pair track at a time; None chooses.

    Raises:
        UserError: neither or both are given, the files cannot be read or do not fit together, or
            the device is not there.
    """
    if (run is None) == (esmfold is None):
        raise UserError("give either run or esmfold")
    if precision not in (None, *get_args(Precision)):
        raise UserError(f"precision: {precision} is none of {', '.join(get_args(Precision))}")
    place = choose_device(device, local_rank)
    make_current(place)
    if run is not None:
        model, config = load_model(
            Path(run), checkpoint=checkpoint, raw=raw_weights, chunk=chunk_size
        )
        sizes, found = config.model, _of_run(model, config, Path(run))
    else:
        assert esmfold is not None
        model, sizes = _released(esmfold, language_model, chunk_size)
        found = _of_released(model, sizes)
    if precision is not None:
        model.bf16 = precision == "bf16"
    model.to(place)
    return found


def _of_run(model: FoldingModel, config: TrainConfig, run: Path) -> Predictor:
    provenance = read_json(run / PROVENANCE)
    base = [str(provenance.get(f"{part}_sha256")) for part in ("language_model", "esmfold")]
    kept = hash_of((name, tensor.detach()) for name, tensor in kept_tensors(model).items())
    sizes = config.model
    trunk = replace(sizes.section, weights="") if sizes.section.published else sizes.section
    computed = sizes.structure, trunk
    starts_with_pae = model.published and "pae" not in sizes.section.missing_heads
    return Predictor(
        model=model,
        recycles=sizes.max_recycles,
        identity=_identity(*base, kept, repr(computed), repr(config.adapter)),
        predicts_pae=starts_with_pae or _trains_pae(config),
    )


def _trains_pae(config: TrainConfig) -> bool:
    """Whether a run, or one that it went on from, trained the head of aligned errors."""
    while config.loss.weights.pae == 0:
        if config.start_from is None or not config.start_from.is_dir():
            return False
        config = run_config(config.start_from)
    return True


def _of_released(model: FoldingModel, sizes: ModelConfig) -> Predictor:
    weights = weights_hash(model.language_model), folding_hash(model)
    return Predictor(
        model=model,
        recycles=sizes.max_recycles,
        identity=_identity(*weights),
        predicts_pae=True,
    )


def _released(
    weights: str, language_model: str | None, chunk: int | None
) -> tuple[FoldingModel, ModelConfig]:
    """The released ESMFold in the sizes that its file has."""
    path = find_esmfold(weights)
    contents = contents_of(path)
    if "ESMFold" not in contents.kind:
        raise UserError(f"esmfold: {path} is {contents.kind}, no ESMFold")
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


def _identity(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
