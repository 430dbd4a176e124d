"""TT-LoRA's cores as its authors' programs save them (see `tt_lora` for the order of the modes).

All name a core `...encoder.layer.0.attention.self.query.tt_cores.0`, or `ttlora_cores`, shape
(ρ, k, ρ'), of a RoBERTa or another model of transformers, an `EsmModel` among them. The library
keeps alpha and the modes beside them in adapter_config.json; the programs before it save the cores
alone, so that the user must give alpha and the order of the modes.

Modes here are those of `mode_sizes`. Cores with these modes in the order of the contraction are
used unchanged. Others are converted exactly, by a TT-SVD of their ΔW that cuts nothing; their
bonds can then be wider here than there.
"""

import re
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from esmfold_peft.adapters.base import TARGETS, Adapter, AttentionShape, Group
from esmfold_peft.adapters.insert import empty_adapter
from esmfold_peft.adapters.io import fill
from esmfold_peft.adapters.peft_files import MODULES
from esmfold_peft.adapters.tensor_train import bonds, contract
from esmfold_peft.adapters.tt_lora import train_modes, train_of
from esmfold_peft.config import AdapterConfig, Target
from esmfold_peft.console import report
from esmfold_peft.errors import UserError

CORES_FILE = "adapter_model.bin"

Order = Literal["contraction", "reconstruction"]
Train = list[Tensor]
Trains = dict[tuple[int, Target], Train]

_TARGETS: dict[str, Target] = {name: target for target, name in MODULES.items()}
_CORE = re.compile(
    rf"((?:.+\.)?encoder\.layer\.(\d+)\.({'|'.join(map(re.escape, _TARGETS))}))"
    r"\.(?:tt|ttlora)_cores\.(\d+)"
)


def library_alpha(header: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> float:
    """Alpha from the library's adapter_config.json, which has one for each group of matrices.

    Raises:
        UserError: a matrix has no alpha, or two have different ones.
    """
    modules = sorted({match[1] for key in tensors if (match := _CORE.fullmatch(key))})
    try:
        found = {
            module: {
                float(own["alpha"])
                for own in header["targets"]
                if re.search(own["module_name_pattern"], module)
            }
            for module in modules
        }
    except (KeyError, TypeError, ValueError, re.error) as error:
        raise UserError(f"{path}: targets: no settings of TT-LoRA ({error!r})") from error
    unmatched = [module for module in modules if not found[module]]
    if unmatched or not modules:
        what = "a core" if unmatched == modules else unmatched[0]
        raise UserError(f"{path}: targets: no pattern matches {what} of {CORES_FILE}")
    alphas = set().union(*found.values())
    if len(alphas) != 1:
        raise UserError(f"{path}: targets: alpha is {sorted(alphas)}, where an adapter has one")
    return alphas.pop()


def read_cores(
    tensors: dict[str, Tensor], shape: AttentionShape, alpha: float, order: Order, path: Path
) -> Adapter:
    """The adapter of published cores: its ΔW is that program's.

    Args:
        tensors: the cores by their names, one at least.
        shape: sizes of the language model that they were trained on.
        alpha: the factor on ΔW.
        order: what the program makes of its cores. "contraction": the library, in both of its
            variants, and TT-LoRA MoE; "reconstruction": the program of the first paper.
        path: of the cores, for messages.

    Raises:
        UserError: a core is missing, unexpected or a duplicate, or has other than finite real
            numbers; or the cores of a matrix do not fit it.
    """
    found = _trains(tensors, shape, path)
    trains: Trains = {}
    for (layer, target), cores in found.items():
        train = _converted(cores, shape.fan_in(target), shape.fan_out(target), order)
        if train is None:
            raise UserError(f"{path}: the cores of {target} in layer {layer} do not fit the matrix")
        trains[layer, target] = train
    published, rank = _widest(found), _widest(trains)
    if rank > published:
        report(
            f"{path}: its modes are not those here, or in another order; to keep ΔW exactly, bonds"
            f" of {published} became {rank}"
        )
    config = AdapterConfig(
        kind="tt_lora",
        rank=rank,
        alpha=alpha,
        scaling="constant",
        targets=tuple(target for target in TARGETS if (0, target) in trains),
    )
    adapter = empty_adapter(shape, config)
    fill(adapter, _padded(trains, adapter.state_dict()), path)
    return adapter


def _trains(tensors: dict[str, Tensor], shape: AttentionShape, path: Path) -> Trains:
    """The cores of every layer and adapted matrix, in their order and in float64."""
    found: dict[tuple[int, Target], dict[int, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _CORE.fullmatch(key)
        if match is None or int(match[2]) >= shape.layers:
            raise UserError(f'{path}: tensor "{key}" is no core of a matrix of the language model')
        layer, target, n = int(match[2]), _TARGETS[match[3]], int(match[4])
        cores = found.setdefault((layer, target), {})
        if n in cores:
            raise UserError(
                f'{path}: tensor "{key}": a second core {n} of {target} in layer {layer}'
            )
        _require_numbers(tensor, f'{path}: tensor "{key}"')
        cores[n] = tensor.detach().double()
    trains: Trains = {}
    adapted: Group = tuple(t for t in TARGETS if any(own == t for _, own in found))
    for target in adapted:
        for layer in range(shape.layers):
            cores = found.get((layer, target), {})
            if not cores or max(cores) >= len(cores):
                raise UserError(f"{path}: a core of {target} in layer {layer} is missing")
            trains[layer, target] = [cores[i] for i in range(len(cores))]
    return trains


def _require_numbers(tensor: Tensor, place: str) -> None:
    """Refuses what no adapter can hold: it is saved in float32."""
    if not tensor.is_floating_point() or tensor.layout is not torch.strided or tensor.is_meta:
        raise UserError(
            f"{place} is of type {tensor.dtype} ({tensor.layout}, {tensor.device}),"
            " not plain floating-point numbers"
        )
    if not tensor.float().isfinite().all():
        raise UserError(f"{place} has a number that is not finite in float32")


def _converted(cores: Train, fan_in: int, fan_out: int, order: Order) -> Train | None:
    """The train of the same ΔW with the modes that `TTLoRA` has; None if it is no ΔW."""
    if any(core.ndim != 3 for core in cores):
        return None
    # Every bond is as wide on both sides, and 1 at the ends.
    starts, ends = [core.shape[0] for core in cores], [core.shape[2] for core in cores]
    linked = starts == [1, *ends[:-1]] and ends[-1] == 1
    sizes = tuple(core.shape[1] for core in cores)
    if not linked or prod(sizes) != fan_in * fan_out:
        return None
    if order == "reconstruction":  # the cores are the digits of ΔW's entries, row by row
        return train_of(contract([core[None] for core in cores]).reshape(fan_out, -1), rank=None)
    cut = next((n for n in range(1, len(cores)) if prod(sizes[:n]) == fan_in), None)
    if cut is None:
        return None
    modes = train_modes(fan_in, fan_out)
    if sizes == modes and ends == list(bonds(modes, max(ends))[1:]):
        return cores
    return train_of(_contracted(cores, cut), rank=None)


def _contracted(cores: Train, cut: int) -> Float[Tensor, "o i"]:
    """ΔW / alpha of a train whose first `cut` cores are the inputs', the fastest digit first."""
    stacks = [core[None] for core in cores]
    a, g = contract(stacks[:cut], fastest_first=True), contract(stacks[cut:])
    return (a[0, 0] @ g[0, :, :, 0]).T


def _widest(trains: Trains) -> int:
    return max(core.shape[2] for cores in trains.values() for core in cores)


def _padded(trains: Trains, slots: dict[str, Tensor]) -> dict[str, Tensor]:
    """The cores with bonds as wide as the adapter's.

    An added channel is a column of zeros that meets a row of random numbers, as large as init
    "direct" has them: ΔW stays. If both were zero, no gradient would ever reach them.
    """
    # A generator of its own, so that a file is always imported to the same numbers.
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(slot.shape, generator=generator) / slot[0].numel() ** 0.5
        for name, slot in slots.items()
    }
    for (layer, target), train in trains.items():
        for i, core in enumerate(train, start=1):
            left, _, right = core.shape
            whole = state[f"g{i}_{target}"][layer]
            whole[..., right:] = 0
            whole[:left, :, :right] = core
    return state
