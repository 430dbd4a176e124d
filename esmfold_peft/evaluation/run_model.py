"""The chains of stores, folded by the model of a run."""

from collections.abc import Iterator

import numpy as np

from esmfold_peft.config import EvaluateConfig
from esmfold_peft.datasets.features import Features
from esmfold_peft.datasets.store import Store
from esmfold_peft.errors import UserError
from esmfold_peft.evaluation.pairing import FoldedChain, Pair
from esmfold_peft.model.inference import Failed, Folded, Query
from esmfold_peft.runs.ready import ReadyModel
from esmfold_peft.runs.run_directory import run_config

_CHAINS_AT_A_TIME = 1024
"""Chains that are in memory; neighbours in length, so that batches are as full as with all."""


def open_stores(config: EvaluateConfig) -> dict[str, Store]:
    """The stores to score, by the name that their rows have: split of the run, or path."""
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


def open_model(config: EvaluateConfig) -> ReadyModel:
    """The model of a run, on the device to use."""
    return ReadyModel.load(
        config.run,
        checkpoint=config.checkpoint,
        raw_weights=config.raw_weights,
        device=config.device,
        precision=config.precision,
        chunk_size=config.chunk_size,
    )


def folded_pairs(
    config: EvaluateConfig, model: ReadyModel, stores: dict[str, Store]
) -> Iterator[Pair]:
    """Folds every chain of the stores, uncropped; those of a store by length, shortest first."""
    for split, store in stores.items():
        order = np.argsort(store.manifest.length, kind="stable")
        for start in range(0, len(order), _CHAINS_AT_A_TIME):
            chains = [store[int(k)] for k in order[start : start + _CHAINS_AT_A_TIME]]
            yield from _folded(config, model, split, store, chains)


def _folded(
    config: EvaluateConfig, model: ReadyModel, split: str, store: Store, chains: list[Features]
) -> Iterator[Pair]:
    for result in model.fold_all(
        [Query(chain) for chain in chains],
        recycles=config.num_recycles,
        max_tokens=config.max_tokens_per_batch,
        pae=False,
    ):
        chain = chains[result.index]
        failed = isinstance(result, Failed)
        yield Pair(
            id=chain.id,
            split=split,
            prediction=None if failed else _chain(result),
            reference=chain,
            prediction_place=str(config.run),
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
