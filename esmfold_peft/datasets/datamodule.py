"""The data loaders of training and validation, for Lightning."""

import os
import signal
import threading
from functools import partial

import pytorch_lightning as pl
import torch
from torch.utils.data import ConcatDataset, DataLoader

from esmfold_peft.config import TrainConfig
from esmfold_peft.datasets.batch import Batch, collate
from esmfold_peft.datasets.features import Features
from esmfold_peft.datasets.order import Mixture, StoreOrder, chain_weights
from esmfold_peft.datasets.samples import (
    CroppedChains,
    StepBatches,
    length_buckets,
    share_of,
)
from esmfold_peft.datasets.store import Store
from esmfold_peft.datasets.truth import GroundTruth, ground_truth


class ChainDataModule(pl.LightningDataModule):
    """Training crops and whole validation chains, divided among the processes.

    Args:
        config: of the run.
        step: optimizer steps done before, whose samples are skipped.

    Raises:
        UserError: a store is missing or broken.
    """

    def __init__(self, config: TrainConfig, step: int = 0) -> None:
        super().__init__()
        self.config = config
        self.train = [Store(path) for path, _ in config.data.shares]
        validation = config.data.validation
        self.validation = None if validation is None else Store(validation)
        self._samples = step * config.engine.batch_size

    def train_dataloader(self) -> DataLoader:
        """Endless batches of crops and their true structures, one for each optimizer step."""
        config = self.config
        chains = ConcatDataset(self.train)  # pyright: ignore[reportArgumentType]
        crop, clamped = config.data.crop, config.loss.clamp_probability
        samples = CroppedChains(chains, crop, clamped, config.seed)
        own = config.engine.batch_size // self._world
        sampler = StepBatches(self._mixture(), own, self._rank, self._world, self._samples)
        # Compiled code is made for one shape.
        length = crop if config.engine.compile is True else None
        pad = partial(_collate_samples, length=length)
        return self._loader(samples, batch_sampler=sampler, collate_fn=pad)

    def val_dataloader(self) -> DataLoader:
        """This process's share of the validation chains, whole and by length.

        All processes have equally many batches, because an engine that shards parameters must enter
        every forward pass with all of them. Some are repeated, and repeated results are dropped.
        """
        assert self.validation is not None, "the trainer validates only with a validation store"
        lengths = self.validation.manifest.length.tolist()
        batches = length_buckets(lengths, self.config.engine.validation_tokens)
        share = share_of(batches, self._rank, self._world)
        return self._loader(self.validation, batch_sampler=share, collate_fn=_collate_whole)

    def transfer_batch_to_device(
        self, batch: tuple[Batch, GroundTruth], device: torch.device, dataloader_idx: int
    ) -> tuple[Batch, GroundTruth]:
        """Moves a batch without changing dtypes."""
        chains, truth = batch
        return chains.to(device, non_blocking=True), truth.to(device, non_blocking=True)

    def _mixture(self) -> Mixture:
        data, seed, orders = self.config.data, self.config.seed, []
        for number, store in enumerate(self.train):
            length, size = store.manifest.length, store.manifest.cluster_size
            weights = chain_weights(length, size, data.cluster_weight, data.length_weight)
            orders.append(StoreOrder(weights, seed, number))
        return Mixture(orders, [share for _, share in data.shares], seed)

    def _loader(self, dataset, **arguments) -> DataLoader:
        return DataLoader(
            dataset,
            num_workers=self.config.data.workers,
            persistent_workers=self.config.data.workers > 0,
            worker_init_fn=_deaf,
            pin_memory=torch.cuda.is_available() and self.config.engine.accelerator != "cpu",
            **arguments,
        )

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _world(self) -> int:
        return self.trainer.world_size if self.trainer else 1


def _deaf(worker: int) -> None:
    """Ignores signals that go to all processes: the one that trains finishes its step.

    A worker obeys the SIGTERM by which that process ends its workers.
    """
    for number in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _collate_samples(
    samples: list[tuple[Features, bool]], length: int | None
) -> tuple[Batch, GroundTruth]:
    chains, clamped = zip(*samples, strict=True)
    batch = collate(list(chains), list(clamped), length)
    return batch, ground_truth(batch, fixed=length is not None)


def _collate_whole(chains: list[Features]) -> Batch:
    return collate(chains, [False] * len(chains))
