"""Folding many sequences without gradients, in batches that fit into memory."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from esmfold_peft.adapters.bank import AdapterChoice
from esmfold_peft.datasets.batch import collate
from esmfold_peft.datasets.features import Features
from esmfold_peft.datasets.samples import length_buckets
from esmfold_peft.devices import compile_obstacle, is_out_of_memory
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.heads import Head
from esmfold_peft.model.trunks.attention import NUMBERS_AT_ONCE
from esmfold_peft.protein.residues import ATOM37_INDEX, encode

_PAYS_FROM = 2**29
"""Pairs of residues, times passes, from which compiling saves a GPU more time than it takes: 2,048
chains of 256 residues with 3 recycles. An estimate: by counts a compiled block moves 1.45 GB less a
chain, so 12 blocks in 4 passes 70 GB, which take 23 ms at 3 TB/s; compiling takes about a minute.
"""

_ALIGNED = 16
"""On a GPU batches are padded to a multiple. Matrices with aligned rows have faster kernels, and
memory of a size that was used before is used again."""

_CHUNKS = (64, 16, 4, 1)
"""Rows of the pair track at a time, tried one after the other if one sequence does not fit."""


@dataclass(frozen=True, eq=False)
class Query:
    """A sequence to fold.

    Attributes:
        features: its residues and their numbers; coordinates are not read.
        kept: residues that the prediction keeps; None: all. A linker between chains is not kept.
        masked: residues that the language model reads as <mask>; None: it reads all.
    """

    features: Features
    kept: Bool[np.ndarray, "n"] | None = None
    masked: Bool[np.ndarray, "n"] | None = None

    def __len__(self) -> int:
        """Number of residues that are folded."""
        return len(self.features)


@dataclass(frozen=True, eq=False)
class Folded:
    """The prediction of one sequence, without padding and residues that are not kept.

    Attributes:
        index: place of the sequence in the given list.
        positions: atom14 coordinates in Å.
        atom_plddt: expected lDDT of each atom, 0 to 1.
        pae: expected error in Å of residue j seen from residue i; None if not asked for.
        largest_pae: largest error in Å that the model can predict; None like `pae`.
        ptm: predicted TM-score, 0 to 1; None like `pae`.
        seconds: its share of the time of its batch.
    """

    index: int
    positions: Float32[Tensor, "n 14 3"]
    atom_plddt: Float32[Tensor, "n 37"]
    pae: Float32[Tensor, "n n"] | None = None
    largest_pae: float | None = None
    ptm: float | None = None
    seconds: float = 0.0

    @property
    def plddt(self) -> Float32[Tensor, "n"]:
        """Expected lDDT of each residue's Cα, 0 to 1."""
        return self.atom_plddt[:, ATOM37_INDEX["CA"]]

    def is_finite(self) -> bool:
        """Whether it has no NaN and no infinity."""
        tensors = [self.positions, self.atom_plddt] + ([] if self.pae is None else [self.pae])
        return all(bool(tensor.isfinite().all()) for tensor in tensors)


@dataclass(frozen=True)
class Failed:
    """A sequence that could not be folded, by its place in the given list, and why."""

    index: int
    reason: str


def fold(
    model: FoldingModel,
    queries: Sequence[Query],
    *,
    recycles: int,
    max_tokens: int,
    choice: AdapterChoice | None = None,
    pae: bool = False,
) -> Iterator[Folded | Failed]:
    """Folds sequences in batches of similar length, shortest first.

    A batch that does not fit into memory is halved, and later ones are no larger. If one sequence
    does not fit alone, it and all later ones are folded in chunks of the pair track. A sequence
    that still does not fit, or whose prediction is not finite, is `Failed`.

    On a GPU the model is compiled once it has been asked for so much that compiling saves time.

    Args:
        model: in evaluation mode, on the device to use.
        queries: the sequences.
        recycles: passes after the first.
        max_tokens: residues in a batch, padding included; a longer sequence is folded alone.
        choice: an adapter for each sequence, instead of the model's own for all.
        pae: predict aligned errors and the TM-score too.

    Yields:
        Every sequence once, in the order of their lengths.
    """
    model.pairs_asked += sum(len(query) ** 2 for query in queries) * (recycles + 1)
    if model.pairs_asked >= _PAYS_FROM and compile_obstacle(model.device) is None:
        model.compile_for_inference()
    heads: tuple[Head, ...] = ("plddt", "pae") if pae else ("plddt",)
    batches = _Batches(model, queries, recycles, choice, heads)
    stack = model.trunk.stack
    before = stack.chunk
    try:
        lengths = [batches.padded(len(query)) for query in queries]
        for places in length_buckets(lengths, max_tokens):
            for part in batches.parts(places):
                yield from batches.fold(part)
    finally:
        stack.chunk = before


def sequence_features(
    name: str, sequence: str, residue_index: Int64[np.ndarray, "n"] | None = None
) -> Features:
    """Features of one-letter codes without a structure, numbered from 0 by default."""
    n = len(sequence)
    return Features(
        id=name,
        aatype=encode(sequence),
        residue_index=np.arange(n) if residue_index is None else residue_index,
        # The zeros of a million sequences take no memory.
        positions=np.broadcast_to(np.float32(0), (n, 14, 3)),
        atom_mask=np.broadcast_to(np.False_, (n, 14)),
        resolution=float("nan"),
    )


@dataclass(eq=False)
class _Batches:
    """Folds batches and learns how much fits into memory.

    Attributes:
        packed: weights for all batches; None: not packed yet.
        fits: most residues of a batch, padding included; None: all batches fitted so far.
    """

    model: FoldingModel
    queries: Sequence[Query]
    recycles: int
    choice: AdapterChoice | None
    heads: tuple[Head, ...]
    packed: Any = None
    fits: int | None = None

    def padded(self, length: int) -> int:
        """Residues to which a sequence is padded at least."""
        multiple = 1 if self.model.device.type == "cpu" else _ALIGNED
        return -(-length // multiple) * multiple

    def _longest(self, places: list[int]) -> int:
        return self.padded(max(len(self.queries[place]) for place in places))

    def parts(self, places: list[int]) -> Iterator[list[int]]:
        """Cuts a batch if one as large did not fit before."""
        most = len(places) if self.fits is None else max(1, self.fits // self._longest(places))
        for start in range(0, len(places), most):
            yield places[start : start + most]

    def fold(self, places: list[int]) -> Iterator[Folded | Failed]:
        """Folds a batch, in halves or chunks if memory does not suffice."""
        results = self._attempt(places)
        if isinstance(results, list):
            yield from results
        elif len(places) > 1:
            half = (len(places) + 1) // 2
            self.fits = half * self._longest(places)
            yield from self.fold(places[:half])
            yield from self.fold(places[half:])
        else:
            yield self._in_chunks(places[0], results)

    def _in_chunks(self, place: int, reason: str) -> Folded | Failed:
        n, stack = len(self.queries[place]), self.model.trunk.stack
        for chunk in _CHUNKS:
            if chunk >= (_usual_chunk(n) if stack.chunk is None else stack.chunk):
                continue
            stack.chunk = chunk
            results = self._attempt([place])
            if isinstance(results, list):
                return results[0]
            reason = results
        return Failed(place, f"not enough memory for {n:,} residues ({reason})")

    def _attempt(self, places: list[int]) -> list[Folded | Failed] | str:
        """The predictions of a batch, or the message that memory does not suffice."""
        started = time.perf_counter()
        try:
            results = self._run(places)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # The error holds the tensors of the attempt: only its message may leave this block.
            reason = " ".join(str(error).split())[:200]
        else:
            seconds = (time.perf_counter() - started) / len(places)
            return [
                replace(result, seconds=seconds)
                if result.is_finite()
                else Failed(result.index, "the prediction is not finite")
                for result in results
            ]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return reason

    @torch.inference_mode()
    def _run(self, places: list[int]) -> list[Folded]:
        queries, device = [self.queries[place] for place in places], self.model.device
        if self.packed is None:
            self.packed = self.model.pack()
        features, length = [q.features for q in queries], self._longest(places)
        batch = collate(features, [False] * len(queries), length)
        mask, choice, masked = batch.mask.to(device), self.choice, [q.masked for q in queries]
        if choice is not None:
            choice = AdapterChoice(choice.bank, choice.which[places].to(device))
        output = self.model(
            batch.aatype.to(device),
            batch.residue_index.to(device),
            mask,
            self.recycles,
            choice,
            masked=None if all(own is None for own in masked) else _stacked(masked, mask),
            heads=self.heads,
            packed=self.packed,
        )
        kept = [np.ones(len(q), dtype=bool) if q.kept is None else q.kept for q in queries]
        # The device computes everything before the host waits for the first result.
        results = [output.positions, output.atom_plddt]
        if "pae" in self.heads:
            results += [output.pae, output.ptm(_stacked(kept, mask))]
        positions, plddt, *errors = (result.cpu() for result in results)
        found = []
        for row, (place, own) in enumerate(zip(places, map(torch.from_numpy, kept), strict=True)):
            n, more = len(own), {}
            if errors:
                pae, ptm = errors[0][row, :n, :n][own][:, own], float(errors[1][row])
                more = {"pae": pae, "largest_pae": output.largest_pae, "ptm": ptm}
            found.append(Folded(place, positions[row, :n][own], plddt[row, :n][own], **more))
        return found


def _usual_chunk(n: int) -> int:
    """About as many rows as a block handles by default: the logits of four heads are largest."""
    return max(2, NUMBERS_AT_ONCE // (4 * n * n))


def _stacked(
    given: Sequence[Bool[np.ndarray, "_"] | None], mask: Bool[Tensor, "b n"]
) -> Bool[Tensor, "b n"]:
    """Masks of residues as one tensor, False in the padding and where there is none."""
    result = torch.zeros(mask.shape, dtype=torch.bool)
    for row, own in enumerate(given):
        if own is not None:
            result[row, : len(own)] = torch.from_numpy(own)
    return result.to(mask.device)
