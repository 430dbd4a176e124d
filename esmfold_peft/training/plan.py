"""How many chains a device computes at a time, and what it keeps of them.

The language model and the optimizer see all chains of a device at once; trunk, structure module and
losses go through them in micro-batches. A test of the device's memory finds how many fit. The run
keeps the plan in plan.json, and takes it from there when it is resumed on the same kind of device
with the same number of processes, chains and residues and the same settings.
"""

import gc
import json
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from esmfold_peft.config import TrainConfig
from esmfold_peft.console import report
from esmfold_peft.devices import is_out_of_memory
from esmfold_peft.disk.files import read_json, write_atomically
from esmfold_peft.errors import UserError
from esmfold_peft.runs.versions import installed_versions
from esmfold_peft.training.engines.launch import chains_of_device
from esmfold_peft.training.failures import nothing_fits

PLAN = "plan.json"

_USED = 0.9
"""Share of the free memory that a test may take. The rest is for other libraries, gaps between
tensors, and a validation."""


@dataclass(frozen=True)
class Plan:
    """What a device computes at a time in training.

    Attributes:
        micro_batch: chains in the last pass, with gradients.
        recycling: chains in a recycling pass, without gradients.
        recompute: whether the trunk recomputes its activations in the backward pass.
    """

    micro_batch: int
    recycling: int
    recompute: bool


def find_plan(
    config: TrainConfig, device: torch.device, attempt: Callable[[Plan], None], *, later: int = 0
) -> Plan:
    """The plan of a training: from its settings, from its run's plan.json, or found by a test.

    All processes call it together and get the same plan. The first one writes it and prints a line.

    Args:
        config: from `choices.decided`; without an auto in it nothing is tested.
        device: of this process.
        attempt: computes a step by a plan and changes nothing; raises PyTorch's error if memory
            does not suffice. It must not wait for another process, which may have failed.
        later: bytes that the training takes after the test, such as Adam's moments.

    Raises:
        UserError: not even one chain fits, or the batch does not divide by the devices.
    """
    chains = chains_of_device(config.engine)
    micro_batch, recompute = config.engine.micro_batch, config.model.section.recompute
    if micro_batch != "auto":
        micro_batch = min(micro_batch, chains)
        if recompute != "auto":
            return Plan(micro_batch, micro_batch, recompute)
    path, conditions = config.run / PLAN, _conditions(config, chains, device)
    plan, tried = _kept_plan(path, conditions, chains), []
    if not _all_agree(plan is not None, device):
        plan = largest_plan(
            chains,
            partial(_fits, attempt=attempt, device=device, later=later, tried=tried),
            micro_batch=None if micro_batch == "auto" else micro_batch,
            recompute=None if recompute == "auto" else recompute,
            recycles=config.model.max_recycles > 0,
        )
        if plan is None:
            raise nothing_fits(config)
    assert plan is not None
    if not dist.is_initialized() or dist.get_rank() == 0:
        if tried:
            content = {**asdict(plan), "for": conditions, "tried": tried}
            write_atomically(path, json.dumps(content, indent=2) + "\n")
        activations = "recomputed" if plan.recompute else "kept"
        how = f"{len(tried)} attempts" if tried else "as before"
        report(
            f"engine.micro_batch: {plan.micro_batch} of {chains} chains at a time,"
            f" {plan.recycling} in recycling passes, activations {activations} ({how}; {PLAN})"
        )
    return plan


def largest_plan(
    chains: int,
    fits: Callable[[Plan], bool],
    *,
    micro_batch: int | None = None,
    recompute: bool | None = None,
    recycles: bool = True,
) -> Plan | None:
    """The plan that computes most chains at a time; None if nothing fits.

    Sizes are all chains, half of them, a quarter and so on, rounded up; those of recycling passes
    are the micro-batch, doubled again and again. Plans that recompute are tried only if not even
    one chain fits otherwise. If a size fits, smaller ones are taken to fit too, so that 32 chains
    need nine attempts at most.

    Args:
        chains: of the device in a step.
        fits: whether a plan fits.
        micro_batch: the only size of the last pass, and of the recycling passes; None tries all.
        recompute: whether plans recompute; None tries both.
        recycles: whether there are recycling passes.
    """
    halves = {-(-chains >> power) for power in range(chains.bit_length() + 1)} - {0}
    sizes = sorted(halves) if micro_batch is None else [micro_batch]
    for again in (False, True) if recompute is None else (recompute,):
        plan = _largest([Plan(size, size, again) for size in sizes], fits)
        if plan is None:
            continue
        if micro_batch is not None or not recycles:
            return plan
        # Whole micro-batches, so that few of them are smaller than the rest.
        size = plan.micro_batch
        doubled = {min(size << power, chains) for power in range(chains.bit_length() + 1)}
        larger = [replace(plan, recycling=each) for each in sorted(doubled - {size})]
        return _largest(larger, fits) or plan
    return None


def _largest(plans: Sequence[Plan], fits: Callable[[Plan], bool]) -> Plan | None:
    """The last of ever larger plans that fits, by bisection."""
    count = bisect_left(plans, True, key=lambda plan: not fits(plan))
    return plans[count - 1] if count else None


def _fits(
    plan: Plan,
    attempt: Callable[[Plan], None],
    device: torch.device,
    later: int,
    tried: list[dict[str, Any]],
) -> bool:
    """Whether a plan fits in all processes."""
    fits = True
    _free(device)
    with limited_memory(device, later):
        try:
            attempt(plan)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            fits = False
    _free(device)  # now that the error, whose traceback holds tensors, is gone
    fits = _all_agree(fits, device)
    tried.append({**asdict(plan), "fits": fits})
    return fits


@contextmanager
def limited_memory(device: torch.device, later: int) -> Iterator[None]:
    """Inside, PyTorch takes at most 90 % of a GPU's free memory, less `later` bytes."""
    if device.type != "cuda":
        yield
        return
    free, total = torch.cuda.mem_get_info(device)
    own = torch.cuda.memory_reserved(device)  # which the driver does not count as free
    share = max(_USED * (free + own) - later, 0.0) / total
    torch.cuda.set_per_process_memory_fraction(share, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _all_agree(answer: bool, device: torch.device) -> bool:
    """Whether all processes say yes."""
    if not dist.is_initialized():
        return answer
    answers = torch.tensor(float(answer), device=device)
    dist.all_reduce(answers, dist.ReduceOp.MIN)
    return bool(answers)


def _conditions(config: TrainConfig, chains: int, device: torch.device) -> dict[str, Any]:
    """What a plan depends on, among the things that may change when a run is resumed."""
    engine, model = config.engine, config.model
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "memory": torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else None,
        "processes": dist.get_world_size() if dist.is_initialized() else 1,
        "chains": chains,
        "crop": config.data.crop,
        "engine.micro_batch": engine.micro_batch,
        "engine.compile": engine.compile,
        "engine.cuda_graphs": engine.cuda_graphs,
        "engine.deepspeed": engine.deepspeed and str(engine.deepspeed),
        # By the settings' former name, so that plans of earlier versions stay valid.
        f"model.{model.section.name}.checkpoint": model.section.recompute,
        "model.language_model.checkpoint": model.language_model.recompute,
        "model.chunk": model.chunk,
        "versions": installed_versions(("esmfold-peft", "torch")),
    }


def _kept_plan(path: Path, conditions: dict[str, Any], chains: int) -> Plan | None:
    """The plan in plan.json, if it is for the same conditions."""
    try:
        content = read_json(path)
        kept = Plan(**{field.name: content[field.name] for field in fields(Plan)})
    except (UserError, KeyError):  # missing or damaged: a test finds another one
        return None
    sizes = kept.micro_batch, kept.recycling
    sound = all(isinstance(n, int) and 0 < n <= chains for n in sizes)
    return kept if sound and content.get("for") == conditions else None
