"""The loaders that Lightning asks for."""

from functools import partial

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from esmfold_peft.config import TrainConfig
from esmfold_peft.datasets.batch import Batch
from esmfold_peft.datasets.chains import ChainDataset, CroppedChains
from esmfold_peft.datasets.collate import collate
from esmfold_peft.datasets.features import Features
from esmfold_peft.datasets.sampler import MicroBatches


class ChainDataModule(pl.LightningDataModule):
    """Training crops and whole validation chains, shared out to the processes.

    Args:
        config: the run's settings.

    Raises:
        UserError: a manifest is missing or broken.
    """

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.config = config
        self.train = ChainDataset(config.data.train)
        validation = config.data.validation
        self.validation = None if validation is None else ChainDataset(validation)

    def train_dataloader(self) -> DataLoader:
        """Endless micro-batches of crops."""
        config = self.config
        samples = CroppedChains(
            self.train, config.data.crop, config.loss.clamp_probability, config.seed
        )
        sampler = MicroBatches(
            len(self.train), config.engine.micro_batch, self._rank, self._world, config.seed
        )
        # Compiled code is made for one shape.
        length = config.data.crop if config.engine.compile else None
        pad = partial(_collate_samples, length=length)
        return self._loader(samples, batch_sampler=sampler, collate_fn=pad)

    def val_dataloader(self) -> DataLoader:
        """This process's share of the validation chains, one at a time and whole.

        The list is filled up with repetitions until all processes have equally many, because an
        engine that shards parameters must enter every forward pass with all of them; who gathers
        drops the repetitions.
        """
        assert self.validation is not None, "without validation chains the trainer asks for none"
        chains, world = len(self.validation), self._world
        share = [k % chains for k in range(self._rank, -(-chains // world) * world, world)]
        return self._loader(self.validation, sampler=share, collate_fn=_collate_whole)

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Moves a batch without changing dtypes."""
        return batch.to(device, non_blocking=True)

    def _loader(self, dataset, **arguments) -> DataLoader:
        return DataLoader(
            dataset,
            num_workers=self.config.data.workers,
            persistent_workers=self.config.data.workers > 0,
            pin_memory=torch.cuda.is_available() and self.config.engine.accelerator != "cpu",
            **arguments,
        )

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _world(self) -> int:
        return self.trainer.world_size if self.trainer else 1


def _collate_samples(samples: list[tuple[Features, bool]], length: int | None) -> Batch:
    chains, clamped = zip(*samples, strict=True)
    return collate(list(chains), list(clamped), length)


def _collate_whole(chains: list[Features]) -> Batch:
    return collate(chains, [False] * len(chains))
