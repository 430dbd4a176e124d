"""The chains of stores, folded by the model of a run."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from esmfold_peft.config import EvaluateConfig
from esmfold_peft.datasets.features import Features
from esmfold_peft.datasets.store import Store
from esmfold_peft.devices import choose_device, make_current
from esmfold_peft.errors import UserError
from esmfold_peft.evaluation.pairs import FoldedChain, Pair
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.inference import Failed, Folded, Query, fold
from esmfold_peft.runs.run_directory import load_model, run_config

_CHAINS_AT_A_TIME = 1024
"""Chains that are in memory; neighbours in length, so that batches are as full as with all."""


@dataclass(frozen=True, eq=False)
class Folder:
    """A model that is ready to fold.

    Attributes:
        run: folder of its run.
        model: on its device.
        recycles: passes after the first.
        max_tokens: residues in a batch.
    """

    run: Path
    model: FoldingModel
    recycles: int
    max_tokens: int


def open_stores(config: EvaluateConfig) -> dict[str, Store]:
    """The stores to score, by the name that their rows have: split of the run, or path.

    Raises:
        UserError: the run has no such chains, or a store is missing.
    """
    assert config.run is not None
    if config.store:
        return {str(path): Store(path) for path in config.store}
    data, stores = run_config(config.run).data, {}
    for split in config.splits or ("validation",):
        path = data.train if split == "train" else data.validation
        if path is None:
            raise UserError(f"{config.run}: the run has no {split} chains; name a store by --store")
        stores[split] = Store(path)
    return stores


def open_model(config: EvaluateConfig) -> Folder:
    """The model of a run, on the device to use.

    Raises:
        UserError: the run has no such model, or the device cannot be used.
    """
    assert config.run is not None
    device = choose_device(config.device)
    make_current(device)
    model, trained = load_model(
        config.run,
        checkpoint=config.checkpoint,
        raw=config.raw_weights,
        chunk=config.chunk_size,
    )
    if config.precision is not None:
        model.bf16 = config.precision == "bf16"
    model.to(device)
    recycles = trained.model.max_recycles if config.num_recycles is None else config.num_recycles
    return Folder(config.run, model, recycles, config.max_tokens_per_batch)


def folded_pairs(folder: Folder, stores: dict[str, Store]) -> Iterator[Pair]:
    """Folds every chain of the stores, uncropped; those of a store by length, shortest first."""
    for split, store in stores.items():
        order = np.argsort(store.manifest.length, kind="stable")
        for start in range(0, len(order), _CHAINS_AT_A_TIME):
            chains = [store[int(k)] for k in order[start : start + _CHAINS_AT_A_TIME]]
            yield from _fold(folder, split, store, chains)


def _fold(folder: Folder, split: str, store: Store, chains: list[Features]) -> Iterator[Pair]:
    queries = [Query(chain) for chain in chains]
    results = fold(folder.model, queries, recycles=folder.recycles, max_tokens=folder.max_tokens)
    for result in results:
        chain = chains[result.index]
        failed = isinstance(result, Failed)
        yield Pair(
            id=chain.id,
            split=split,
            prediction=None if failed else _chain(result),
            reference=chain,
            prediction_place=str(folder.run),
            reference_place=f"{store.path}/{chain.id}",
            fault=f"not folded: {result.reason}" if failed else "",
        )


def _chain(folded: Folded) -> FoldedChain:
    positions = folded.positions.numpy()
    return FoldedChain(
        positions=positions,
        atom_mask=np.ones(positions.shape[:2], dtype=bool),
        plddt=100 * folded.plddt.numpy().astype(np.float64),
    )
