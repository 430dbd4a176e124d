"""What a step costs (time, kernels, bytes, memory), and what the benchmarks' commands share."""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich import box
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Step = Callable[[], object]

CPU = torch.device("cpu")

NO_KERNEL = {
    "detach", "alias", "_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty",
    "new_empty_strided", "device",
}  # fmt: skip
"""Operations that are not marked as views, yet compute nothing."""

OVERWRITE = {"copy_", "fill_", "zero_", "bernoulli_"}
"""Operations that do not read their first tensor."""

GATHER = {"embedding", "gather", "index", "index_select"}
"""Operations that read of their first tensor only what they return."""


class KernelCounter(TorchDispatchMode):
    """Counts the operations that compute, and the bytes that they read and write.

    It is the number of kernels on any device, up to operations that launch several. An operation
    counts each of its tensors once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Calls the operation."""
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name not in NO_KERNEL:
            self.count += 1
            self.bytes += _bytes_moved(name, _tensors((args, kwargs)), _tensors(result))
        return result


def kernels(step: Step) -> int:
    """Operations of a step that compute."""
    with KernelCounter() as counter:
        step()
    return counter.count


def launched_kernels(step: Step) -> int:
    """Kernels that a step launches on a CUDA device."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    return sum("LaunchKernel" in event.name() for event in _events(profiler))


def peak_memory(step: Step, device: torch.device) -> int:
    """Bytes of tensors at the peak of a step, above what is held before it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - held
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    changes = [(e.start_ns(), e.nbytes()) for e in _events(profiler) if e.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        held += change
        peak = max(peak, held)
    return peak


def seconds(step: Step, device: torch.device) -> float:
    """Time of a step: on a CPU this process's, so that other processes count little."""
    if device.type != "cuda":
        started = time.process_time()
        step()
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def milliseconds(step: Step, rounds: int, device: torch.device) -> float:
    """Median time of a step after two that warm up; each timing is of several steps in a row."""
    calls = 5 if device.type == "cuda" else 1

    def several() -> None:
        for _ in range(calls):
            step()

    for _ in range(2):
        step()
    times = [seconds(several, device) for _ in range(rounds)]
    return 1e3 * statistics.median(times) / calls


def interleaved(
    steps: dict[str, Step], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of every step in every round; a machine that slows down slows all of them.

    Each round times every step once and begins with another one.
    """
    names = list(steps)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(seconds(steps[name], device))
    return times


def ratio(times: list[float], to: list[float]) -> float:
    """Median over rounds of the ratio of two steps' seconds."""
    return statistics.median(mine / other for mine, other in zip(times, to, strict=True))


def command_line(doc: str, *, device: bool = False) -> argparse.ArgumentParser:
    """A parser with the script's description and --output, and --device if it is asked for."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=doc, formatter_class=raw)
    parser.add_argument("--output", type=Path, help="JSON file for all numbers")
    if device:
        parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser


def chosen_device(name: str) -> torch.device:
    """The device of --device. On a CPU everything runs in one thread."""
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise SystemExit("--device: cuda is not available")
    device = torch.device("cuda" if there and name != "cpu" else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    return device


def quieten() -> None:
    """Hides deprecations in transformers, and logs of the profiler and of DeepSpeed."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed reports that it found no GPU


def write_report(
    args: argparse.Namespace, found: dict[str, object], device: torch.device = CPU
) -> None:
    """Writes settings, circumstances and what was found into the JSON file of --output."""
    if args.output is not None:
        settings = {key: value for key, value in vars(args).items() if key != "output"}
        report = {"settings": settings, "circumstances": circumstances(device)} | found
        args.output.write_text(json.dumps(report, indent=1, default=str) + "\n")


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None, left: int = 1
) -> Table:
    """A table whose first columns are text and the others numbers."""
    made = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        made.add_column(column, justify="left" if place < left else "right")
    for row in rows:
        made.add_row(*row)
    return made


def peak_mib() -> float:
    """Largest resident memory of this process so far; getrusage would count its parent's too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def circumstances(device: torch.device) -> dict[str, object]:
    """Machine, versions, commit and date, for the record of a measurement."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else _processor(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "git_commit": _git_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _bytes_moved(name: str, read: list[Tensor], written: list[Tensor]) -> int:
    if name in OVERWRITE:
        read = read[1:]
    elif name.startswith("new_") or name.endswith("_like"):  # of the argument's shape alone
        read = []
    reads, writes = [_distinct_bytes(t) for t in read], sum(map(_distinct_bytes, written))
    if name in GATHER:
        reads[0] = min(reads[0], writes)
    return sum(reads) + writes


def _distinct_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor, where an expanded dimension counts once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * math.prod(size for size, stride in sizes if stride or not size)


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _events(profiler: profile) -> list:
    # The lists of torch.profiler itself leave out single allocations.
    return profiler.profiler.kineto_results.events()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"CPU: {names[0] if names else platform.machine()}"


def _git_commit() -> str | None:
    """The commit that is checked out, with "-dirty" if files have changed since."""
    # Without the optional lock this never disturbs a git command that runs at the same time.
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
