"""CUDA graphs: the work of a function on the GPU, recorded once and replayed as a whole.

A recorded function relies on these facts:

* All graphs share one pool of memory and one stream. A replay may overwrite what another graph left
  there, so arguments are copied in and results are copied out; both cost far less than a pass.
* Backward passes run on the stream of their forward pass, even in another thread: a capture of mode
  "thread_local" records them, and calls of the loader's threads do not spoil it. A parameter's node
  of the autograd graph remembers the stream it was first used on, and DDP and DeepSpeed keep these
  nodes; therefore gradients are taken of `fresh_leaves`.
* Compiled functions, the self-check of the attention kernels, tables and workspaces of libraries
  are made in the runs before the capture. Autocast's casts of weights are dropped before and after:
  a replay must not read a cast that eager code made, nor eager code one of a graph.
* Adam, the moving average and ZeRO 1 and 2 change parameters in place. Validation under the moving
  average swaps their addresses and restores them exactly; nothing may be replayed inside.
"""

import gc
import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

P = ParamSpec("P")
T = TypeVar("T")

MOST_GRAPHS = 8
"""Sets of shapes that are recorded: those of passes on whole and partial batches, and some more."""

WARM_UPS = 3
"""Runs before the capture: compilers and autotuners work in the first two."""

_LOG = logging.getLogger(__name__)


class Captured(Generic[P, T]):
    """A function of tensors that a GPU records at the first call with some shapes, and replays.

    The function takes and returns any nesting of tuples, lists and dicts of tensors and None. Other
    tensors that it reads must stay at their addresses. It draws no random numbers, does not wait
    for the GPU, changes nothing but its result, and takes gradients inside if at all. If it cannot
    be recorded, a warning says why, and it runs unrecorded from then on.

    All its tensors are on `device`; `name` is that of the function in the warning.

    Attributes:
        fault: why no more is recorded; None while nothing has failed.
    """

    def __init__(self, function: Callable[P, T], device: torch.device, name: str) -> None:
        self.function = function
        self.device = device
        self.name = name
        self.fault: str | None = None
        self._recordings: dict[Hashable, Callable[[list[Any]], T]] = {}
        self._broken: list[object] = []

    def __call__(self, *arguments: P.args, **named: P.kwargs) -> T:
        """The function's result in new tensors; a TypeError for an argument no graph can read."""
        leaves, structure = tree_flatten((arguments, named))
        key = tuple(_kind(leaf, self.device) for leaf in leaves)
        if key not in self._recordings and self.fault is None:
            self._try_to_record(key, leaves, structure)
        replay = self._recordings.get(key)
        return replay(leaves) if replay else self.function(*arguments, **named)

    def _try_to_record(self, key: Hashable, leaves: list[Any], structure: TreeSpec) -> None:
        try:
            if len(self._recordings) == MOST_GRAPHS:
                raise RuntimeError(f"there are {MOST_GRAPHS} graphs, and these shapes are new")
            self._recordings[key] = self._record(leaves, structure)
        # Drivers and libraries raise errors of many kinds; the function works without a graph.
        except Exception as error:
            self.fault = " ".join(str(error).split())[:300] or type(error).__name__
            _LOG.warning(f"CUDA graphs: {self.name} is not recorded: {self.fault}. It is slower.")

    def _record(self, leaves: list[Any], structure: TreeSpec) -> Callable[[list[Any]], T]:
        inputs = [_copy(leaf) for leaf in leaves]
        arguments, named = tree_unflatten(inputs, structure)
        run = partial(self.function, *arguments, **named)
        stream = _shared(self.device)[1]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                run()
            gc.collect()  # destructors of what the runs left may not call the driver later
            torch.clear_autocast_cache()
            try:
                launch, result = self._capture(run)
            finally:
                torch.clear_autocast_cache()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        outputs, form = tree_flatten(result)

        def replay(leaves: list[Any]) -> T:
            # Grouped, because one launch copies many tensors of one type that are contiguous.
            groups: dict[Hashable, tuple[list[Tensor], list[Tensor]]] = {}
            for own, new in zip(inputs, leaves, strict=True):
                if isinstance(own, Tensor):
                    into, source = groups.setdefault((own.dtype, new.is_contiguous()), ([], []))
                    into.append(own)
                    source.append(new.detach())
            for into, source in groups.values():
                torch._foreach_copy_(into, source)  # pyright: ignore[reportPrivateImportUsage]
            launch()
            return tree_unflatten([_copy(output) for output in outputs], form)

        return replay

    def _capture(self, run: Callable[[], T]) -> tuple[Callable[[], None], T]:
        graph, (pool, stream), fault = torch.cuda.CUDAGraph(), _shared(self.device), None
        try:
            with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
                try:
                    return graph.replay, run()
                except Exception as error:
                    fault = error
                    raise
        except Exception as error:
            self._forget(graph, pool)
            # The error at the end of a capture says only that something failed before.
            raise fault or error from None

    def _forget(self, graph: object, pool: Any) -> None:
        """Closes what a failed capture leaves open: PyTorch itself does not."""
        self._broken.append(graph)  # the allocator may still ask it
        with suppress(Exception):
            torch._C._cuda_endAllocateToPool(self.device.index or 0, pool)  # pyright: ignore


@contextmanager
def fresh_leaves(model: nn.Module, names: Sequence[str]) -> Iterator[list[nn.Parameter]]:
    """Inside, the parameters of these names are new leaves of the autograd graph.

    They have the memory of the old ones. Yields them in the order of their names; gradients are
    taken of these.
    """
    places = [name.rpartition(".") for name in names]
    owners = [(model.get_submodule(path)._parameters, name) for path, _, name in places]
    originals = [owner[name] for owner, name in owners]
    leaves = [nn.Parameter(p.detach(), p.requires_grad) for p in originals if p is not None]
    try:
        for (owner, name), leaf in zip(owners, leaves, strict=True):
            owner[name] = leaf
        yield leaves
    finally:
        for (owner, name), original in zip(owners, originals, strict=True):
            owner[name] = original


def _kind(leaf: object, device: torch.device) -> Hashable:
    """What a recording depends on; a number or a tensor elsewhere would stay in it for good."""
    if leaf is None:
        return None
    if not isinstance(leaf, Tensor):
        raise TypeError(f"a {type(leaf).__name__} cannot be an argument of a CUDA graph")
    if leaf.device.type != device.type:
        raise TypeError(f"a tensor on {leaf.device} cannot be an argument of a graph of {device}")
    return leaf.shape, leaf.dtype


def _copy(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


@cache
def _shared(device: torch.device) -> tuple[Any, Any]:
    """The pool of memory and the stream of all graphs of a device."""
    return torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)
