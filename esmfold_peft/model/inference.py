"""Folding many sequences without gradients, whatever fits into memory at a time."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from esmfold_peft.adapters.bank import AdapterChoice
from esmfold_peft.datasets.buckets import length_buckets
from esmfold_peft.datasets.collate import collate
from esmfold_peft.datasets.features import Features
from esmfold_peft.devices import compile_obstacle, is_out_of_memory
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.heads import Head
from esmfold_peft.model.trunks.blocks import NUMBERS_AT_ONCE
from esmfold_peft.protein.residues import ATOM37_INDEX, encode

_PAYS_FROM = 2**29
"""Pairs of residues, times passes, from which compiling saves a GPU more time than it takes: 2,048
chains of 256 residues with 3 recycles. An estimate, not measured: by counts a compiled block moves
1.45 GB less a chain, so 12 blocks in 4 passes 70 GB, which take 23 ms at 3 TB/s; compiling takes
about a minute."""

_ALIGNED = 16
"""On a GPU batches are padded to a multiple: its kernels are slower, and others, where the rows of
a matrix begin anywhere, and memory of a size that was used before is used again."""

_CHUNKS = (64, 16, 4, 1)
"""Rows of the pair track at a time, tried in turn where one sequence alone is too much."""


@dataclass(frozen=True, eq=False)
class Query:
    """A sequence to fold.

    Attributes:
        features: its residues and their numbers; coordinates are not looked at.
        kept: residues that the prediction keeps; None: all. A linker between chains is not kept.
        hidden: residues whose letter the language model does not see; None: it sees all.
    """

    features: Features
    kept: Bool[np.ndarray, "n"] | None = None
    hidden: Bool[np.ndarray, "n"] | None = None

    def __len__(self) -> int:
        """Number of residues that are folded."""
        return len(self.features)


@dataclass(frozen=True, eq=False)
class Folded:
    """The prediction of one sequence, padding and what is not kept removed.

    Attributes:
        index: place of the sequence in the list that was given.
        positions: atom14 coordinates in Å.
        atom_plddt: expected lDDT of each atom, 0 to 1.
        pae: expected error in Å of residue j seen from residue i; None if not asked for.
        largest_pae: Å beyond which the model predicts no aligned error; None like `pae`.
        ptm: predicted TM-score, 0 to 1; None like `pae`.
        seconds: its share of the time that its batch took.
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
        """Whether all of it are numbers."""
        tensors = [self.positions, self.atom_plddt] + ([] if self.pae is None else [self.pae])
        return all(bool(tensor.isfinite().all()) for tensor in tensors)


@dataclass(frozen=True)
class Failed:
    """A sequence that could not be folded.

    Attributes:
        index: place of the sequence in the list that was given.
        reason: why.
    """

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

    A batch that does not fit into memory is halved, and no later one is as large again. A sequence
    that does not fit alone is done in chunks of the pair track, as are those after it; what does
    not fit even so, or comes out as something other than numbers, is `Failed`.

    On a GPU the model is compiled as soon as all that was asked of it makes that worth while.

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
    _compile_if_it_pays(model, sum(len(query) ** 2 for query in queries) * (recycles + 1))
    folder = _Folder(model, queries, recycles, choice, ("plddt", "pae") if pae else ("plddt",))
    stack = model.trunk.stack
    before = stack.chunk
    try:
        lengths = [folder.padded(len(query)) for query in queries]
        for places in length_buckets(lengths, max_tokens):
            for part in folder.parts(places):
                yield from folder.fold(part)
    finally:
        stack.chunk = before


def sequence_features(
    name: str, sequence: str, residue_index: Int64[np.ndarray, "n"] | None = None
) -> Features:
    """Features of a sequence without a structure.

    Args:
        name: of the sequence.
        sequence: n one-letter codes.
        residue_index: numbers of its residues; None: 0 to n - 1.
    """
    n = len(sequence)
    return Features(
        id=name,
        aatype=encode(sequence),
        residue_index=np.arange(n) if residue_index is None else residue_index,
        # Of a million sequences in a file no zeros need lie in memory.
        positions=np.broadcast_to(np.float32(0), (n, 14, 3)),
        atom_mask=np.broadcast_to(np.False_, (n, 14)),
        resolution=float("nan"),
    )


def _compile_if_it_pays(model: FoldingModel, pairs: int) -> None:
    """Compiles a model once it was asked for as much as makes up for it, in one call or in many."""
    model.pairs_asked += pairs
    if model.pairs_asked >= _PAYS_FROM and compile_obstacle(model.device) is None:
        model.compile_for_inference()


class _Folder:
    """Folds batches, and learns how much fits into memory.

    Attributes:
        fits: residues of a batch, padding included, of which more did not fit; None: not met yet.
    """

    def __init__(
        self,
        model: FoldingModel,
        queries: Sequence[Query],
        recycles: int,
        choice: AdapterChoice | None,
        heads: tuple[Head, ...],
    ) -> None:
        self.model = model
        self.queries = queries
        self.recycles = recycles
        self.choice = choice
        self.heads: tuple[Head, ...] = heads
        self.fits: int | None = None
        self.weights: Any = None  # packed once for all batches
        self.device = model.device

    def padded(self, length: int) -> int:
        """Residues to which a sequence is padded at least."""
        multiple = 1 if self.device.type == "cpu" else _ALIGNED
        return -(-length // multiple) * multiple

    def _longest(self, places: list[int]) -> int:
        return self.padded(max(len(self.queries[place]) for place in places))

    def parts(self, places: list[int]) -> Iterator[list[int]]:
        """A batch, cut into as many as what was too large before demands."""
        most = len(places) if self.fits is None else max(1, self.fits // self._longest(places))
        for start in range(0, len(places), most):
            yield places[start : start + most]

    def fold(self, places: list[int]) -> Iterator[Folded | Failed]:
        """Folds a batch, in halves or chunks where memory does not suffice."""
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
        """The predictions of a batch, or what was said when memory did not suffice."""
        started = time.perf_counter()
        try:
            results = self._run(places)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # The error holds the tensors of the attempt; only its words may leave this block.
            reason = " ".join(str(error).split())[:200]
        else:
            seconds = (time.perf_counter() - started) / len(places)
            return [self._checked(result, seconds) for result in results]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return reason

    def _checked(self, folded: Folded, seconds: float) -> Folded | Failed:
        if not folded.is_finite():
            return Failed(folded.index, "the prediction is not finite")
        return replace(folded, seconds=seconds)

    @torch.inference_mode()
    def _run(self, places: list[int]) -> list[Folded]:
        queries = [self.queries[place] for place in places]
        if self.weights is None:
            self.weights = self.model.pack()
        features, length = [q.features for q in queries], self._longest(places)
        batch = collate(features, [False] * len(queries), length)
        inputs = (batch.aatype, batch.residue_index, batch.mask)
        aatype, residue_index, mask = (tensor.to(self.device) for tensor in inputs)
        output = self.model(
            aatype,
            residue_index,
            mask,
            self.recycles,
            self._choice(places),
            hidden=_padded([q.hidden for q in queries], mask),
            heads=self.heads,
            weights=self.weights,
        )
        kept = [_kept(query) for query in queries]
        # All is computed before the host waits for the first of it.
        results = [output.positions, output.atom_plddt]
        if "pae" in self.heads:
            results += [output.pae, output.ptm(_stacked(kept, mask))]
        positions, plddt, *errors = (result.cpu() for result in results)
        pae, ptm = (errors[0], errors[1].tolist()) if errors else (None, None)
        return [
            Folded(
                index=place,
                positions=positions[row, : len(own)][own],
                atom_plddt=plddt[row, : len(own)][own],
                pae=None if pae is None else pae[row, : len(own), : len(own)][own][:, own],
                largest_pae=None if pae is None else output.largest_pae,
                ptm=None if ptm is None else ptm[row],
            )
            for row, (place, own) in enumerate(zip(places, kept, strict=True))
        ]

    def _choice(self, places: list[int]) -> AdapterChoice | None:
        if self.choice is None:
            return None
        return AdapterChoice(self.choice.bank, self.choice.which[places].to(self.device))


def _usual_chunk(n: int) -> int:
    """About as many rows as a block handles of itself: the logits of four heads are its largest."""
    return max(2, NUMBERS_AT_ONCE // (4 * n * n))


def _kept(query: Query) -> Bool[Tensor, "n"]:
    if query.kept is None:
        return torch.ones(len(query), dtype=torch.bool)
    return torch.from_numpy(query.kept)


def _padded(
    given: Sequence[Bool[np.ndarray, "_"] | None], mask: Bool[Tensor, "b n"]
) -> Bool[Tensor, "b n"] | None:
    """Masks of residues as one tensor, False in the padding; None where no sequence has one."""
    if all(own is None for own in given):
        return None
    masks = [torch.zeros(0).bool() if own is None else torch.tensor(own) for own in given]
    return _stacked(masks, mask)


def _stacked(masks: list[Bool[Tensor, "_"]], mask: Bool[Tensor, "b n"]) -> Bool[Tensor, "b n"]:
    result = torch.zeros(mask.shape, dtype=torch.bool)
    for row, own in enumerate(masks):
        result[row, : len(own)] = own
    return result.to(mask.device)
