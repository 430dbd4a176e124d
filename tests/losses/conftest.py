"""Chains of ideal geometry with predictions of them, made from random torsions."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from esmfold_peft.datasets.batch import Batch, map_tensors
from esmfold_peft.geometry.frames import atom14_from_frames, frames_from_torsions
from esmfold_peft.geometry.rigid import Rigid, rotation_from_quaternion
from esmfold_peft.model.output import FoldOutput
from esmfold_peft.protein.residues import ATOM14_MASK, UNKNOWN, encode

LAYERS = 3


def random_frames(generator: torch.Generator, *shape: int, angle: float = 10.0) -> Rigid:
    quaternion = torch.cat(
        (torch.ones(*shape, 1), angle * torch.randn(*shape, 3, generator=generator)), -1
    )
    return Rigid(rotation_from_quaternion(quaternion), torch.zeros(*shape, 3))


def pad(tensor: Tensor, length: int, value: float = 0) -> Tensor:
    return torch.cat((tensor, tensor.new_full((length - len(tensor), *tensor.shape[1:]), value)), 0)


def make_chain(sequence: str, length: int, seed: int) -> tuple[Tensor, Rigid, Tensor]:
    """aatype, backbone frames of a compact random walk, and torsions of one chain, padded."""
    generator = torch.Generator().manual_seed(seed)
    n = len(sequence)
    step = F.normalize(torch.randn(n, 3, generator=generator), dim=-1)
    origin = pad((3.0 * step).cumsum(0), length)
    rotation = random_frames(generator, n).rotation
    rotation = torch.cat((rotation, torch.eye(3).expand(length - n, 3, 3)), 0)
    torsions = pad(F.normalize(torch.randn(n, 7, 2, generator=generator), dim=-1), length)
    torsions[n:, :, 1] = 1
    return pad(torch.tensor(encode(sequence)), length, UNKNOWN), Rigid(rotation, origin), torsions


def make_case(
    *sequences: str, length: int | None = None, seed: int = 0
) -> tuple[Batch, FoldOutput]:
    """Full-atom chains and the perfect prediction of them; logits are random."""
    length = length or max(map(len, sequences))
    chains = [make_chain(sequence, length, seed + i) for i, sequence in enumerate(sequences)]
    aatype = torch.stack([chain[0] for chain in chains])
    frames = Rigid.stack([chain[1] for chain in chains])
    torsions = torch.stack([chain[2] for chain in chains])
    mask = torch.arange(length) < torch.tensor([[len(sequence)] for sequence in sequences])
    groups = frames_from_torsions(frames, torsions, aatype)
    positions = atom14_from_frames(groups, aatype)
    atom_mask = torch.tensor(ATOM14_MASK)[aatype] & (mask & (aatype != UNKNOWN))[..., None]
    batch = Batch(
        ids=tuple(f"chain_{i}" for i in range(len(sequences))),
        lengths=tuple(map(len, sequences)),
        aatype=aatype,
        residue_index=torch.where(mask, torch.arange(length), 0),
        mask=mask,
        positions=torch.where(atom_mask[..., None], positions, 0.0),
        atom_mask=atom_mask,
        resolution=torch.full((len(sequences),), 2.0),
        clamped=torch.zeros(len(sequences), dtype=torch.bool),
    )
    generator = torch.Generator().manual_seed(seed + 99)
    logits = torch.randn(len(sequences), 40, 40, 64, generator=generator)[:, :length, :length]
    output = FoldOutput(
        frames=Rigid.stack([frames] * LAYERS),
        torsions=torch.stack([torsions] * LAYERS),
        unnormalized_torsions=torch.stack([torsions] * LAYERS),
        sidechain_frames=groups,
        positions=positions,
        distogram_logits=logits,
        plddt_logits=logits[:, :, 0, :50],
        resolved_logits=logits[:, :, 0, 20:57],
        pae_logits=logits.transpose(1, 2).contiguous(),
    )
    return batch, output


def perturb(output: FoldOutput, size: float, seed: int = 0) -> FoldOutput:
    """A worse prediction: every coordinate off by `size` Å, every frame and torsion turned."""
    generator = torch.Generator().manual_seed(seed)

    def noisy(tensor: Tensor) -> Tensor:
        return tensor + size * torch.randn(tensor.shape, generator=generator)

    def turned(frames: Rigid) -> Rigid:
        turn = random_frames(generator, *frames.shape, angle=0.2 * size)
        return Rigid(frames.rotation @ turn.rotation, noisy(frames.translation))

    unnormalized = noisy(output.unnormalized_torsions)
    return replace(
        output,
        frames=turned(output.frames),
        torsions=F.normalize(unnormalized, dim=-1),
        unnormalized_torsions=unnormalized,
        sidechain_frames=turned(output.sidechain_frames),
        positions=noisy(output.positions),
    )


def map_output(output: FoldOutput, change: Callable[[Tensor], Tensor]) -> FoldOutput:
    """Applies `change` to every tensor."""
    return map_tensors(output, change)


def one_chain(batch: Batch, output: FoldOutput, index: int) -> tuple[Batch, FoldOutput]:
    """One chain of a batch and its prediction, without padding."""
    n, rows = batch.lengths[index], slice(index, index + 1)
    return batch.rows(rows, n), FoldOutput(
        frames=output.frames[:, rows, :n],
        torsions=output.torsions[:, rows, :n],
        unnormalized_torsions=output.unnormalized_torsions[:, rows, :n],
        sidechain_frames=output.sidechain_frames[rows, :n],
        positions=output.positions[rows, :n],
        distogram_logits=output.distogram_logits[rows, :n, :n],
        plddt_logits=output.plddt_logits[rows, :n],
        resolved_logits=output.resolved_logits[rows, :n],
        pae_logits=output.pae_logits[rows, :n, :n],
    )


def backbone_only(batch: Batch) -> Batch:
    """The same chains with N, CA, C and O alone."""
    atom_mask = batch.atom_mask & (torch.arange(14) < 4)
    positions = torch.where(atom_mask[..., None], batch.positions, 0.0)
    return replace(batch, positions=positions, atom_mask=atom_mask)


class Cases:
    """The builders above, since test modules cannot import one another."""

    make = staticmethod(make_case)
    perturb = staticmethod(perturb)
    map_output = staticmethod(map_output)
    one_chain = staticmethod(one_chain)
    backbone_only = staticmethod(backbone_only)
    random_frames = staticmethod(random_frames)


@pytest.fixture(scope="session")
def cases() -> type[Cases]:
    return Cases
