"""Recording and replaying, with a stand-in for the GPU that runs a recorded function again."""

import logging
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from esmfold_peft.config import EsmfoldConfig
from esmfold_peft.datasets.batch import Batch
from esmfold_peft.datasets.truth import ground_truth
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.runs.build import build_model
from esmfold_peft.training import cuda_graphs
from esmfold_peft.training.cuda_graphs import MOST_GRAPHS, WARM_UPS, Captured, fresh_leaves
from esmfold_peft.training.gradients import GradientSum
from esmfold_peft.training.passes import Chains, Passes
from tests.losses.conftest import make_case
from tests.tiny import TINY

CPU = torch.device("cpu")


class Pair(NamedTuple):
    one: Tensor
    two: Tensor | None


class Recorder:
    """Stands in for the graphs of `torch.cuda`: a graph is the call made while it was captured.

    Attributes:
        calls: how often the function ran outside and inside of captures.
        replays: of all graphs.
        active: the graph that is being captured.
    """

    def __init__(self) -> None:
        self.calls, self.replays, self.active = [], 0, None

    def watch(self, function):
        def watched(*arguments, **named):
            self.calls.append("captured" if self.active else "run")
            result = function(*arguments, **named)
            if self.active:
                self.active.call = (function, arguments, named, result)
            return result

        return watched

    def graph(self):
        graph = SimpleNamespace()
        graph.replay = lambda: graph.again()
        return graph

    @contextmanager
    def capture(self, graph, pool, stream, capture_error_mode):
        assert (pool, capture_error_mode) == ("pool", "thread_local")
        self.active = graph
        try:
            yield
        finally:
            self.active = None
        function, arguments, named, result = graph.call

        def replay():
            self.replays += 1
            written = tree_leaves(result)
            for old, new in zip(written, tree_leaves(function(*arguments, **named)), strict=True):
                if old is not None:
                    old.copy_(new)

        graph.again = replay


@pytest.fixture
def gpu(monkeypatch) -> Recorder:
    recorder = Recorder()
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(cuda_graphs, "_shared", lambda device: ("pool", stream))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", recorder.graph)
    monkeypatch.setattr(torch.cuda, "graph", recorder.capture)
    return recorder


def scaled(pair: Pair, *, by: dict[str, Tensor]) -> dict[str, Pair]:
    return {"result": Pair(pair.one * by["factor"], pair.two)}


def test_replays_give_the_result_of_the_arguments_of_each_call(gpu):
    captured = Captured(gpu.watch(scaled), CPU, "scaling")
    x = torch.arange(6.0).view(2, 3)
    for factor in (2.0, 3.0, 5.0):
        # Views that are not contiguous are read too.
        result = captured(Pair(x.T, None), by={"factor": torch.tensor(factor)})
        assert isinstance(result["result"], Pair)
        assert result["result"].two is None
        assert result["result"].one.equal(x.T * factor)
    assert gpu.calls == ["run"] * WARM_UPS + ["captured"]
    assert gpu.replays == 3


def test_a_result_outlives_later_calls_and_is_no_argument(gpu):
    captured = Captured(gpu.watch(lambda x: (x, x + 1)), CPU, "adding")
    x = torch.zeros(2)
    first = captured(x)
    captured(torch.ones(2))
    assert [part.tolist() for part in first] == [[0.0, 0.0], [1.0, 1.0]]
    first[0].fill_(7.0)
    assert x.tolist() == [0.0, 0.0]


def test_tensors_of_a_closure_are_read_anew(gpu):
    weight = torch.ones(())
    captured = Captured(gpu.watch(lambda x: x * weight), CPU, "scaling")
    captured(torch.ones(1))
    weight.fill_(4.0)  # as Adam changes parameters
    assert captured(torch.ones(1)).item() == 4.0


def test_each_set_of_shapes_types_and_absent_tensors_has_a_graph(gpu):
    captured = Captured(gpu.watch(lambda x, y=None: x), CPU, "nothing")
    x = torch.zeros(2)
    for _ in range(2):
        for arguments in ((x,), (x[:1],), (x.int(),), (x, x)):
            captured(*arguments)
    assert gpu.calls.count("captured") == 4
    assert gpu.replays == 8


def test_more_graphs_than_the_limit_are_not_made(gpu, caplog):
    captured = Captured(gpu.watch(lambda x: x + 1), CPU, "adding")
    for n in (*range(MOST_GRAPHS + 2), 0):
        assert captured(torch.zeros(n)).equal(torch.ones(n))
    assert gpu.calls.count("captured") == MOST_GRAPHS
    assert gpu.replays == MOST_GRAPHS + 1
    assert len(caplog.records) == 1


@pytest.mark.parametrize("moment", ["run", "captured"])
@pytest.mark.parametrize("kind", [RuntimeError, torch.OutOfMemoryError])
def test_what_cannot_be_recorded_runs_as_it_is_with_one_line(gpu, caplog, kind, moment):
    def stubborn(x: Tensor) -> Tensor:
        if gpu.calls[-1] == moment:
            raise kind("operation not permitted\nwhen stream is capturing")
        return x + 1

    def once_more(x: Tensor) -> Tensor:
        return x + 1 if captured.fault else watched(x)

    watched = gpu.watch(stubborn)
    captured = Captured(once_more, CPU, "the last pass")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert captured(torch.zeros(1)).item() == 1.0
    assert captured.fault == "operation not permitted when stream is capturing"
    assert [record.getMessage() for record in caplog.records] == [
        f"CUDA graphs: the last pass is not recorded: {captured.fault}. It is slower."
    ]
    assert gpu.replays == 0


def test_too_little_memory_for_the_function_itself_is_raised(gpu):
    def greedy(x: Tensor) -> Tensor:
        if len(x) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x

    captured = Captured(gpu.watch(greedy), CPU, "a pass")
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            captured(torch.zeros(2))
    assert captured(torch.zeros(1)).item() == 0.0
    assert gpu.replays == 0


@pytest.mark.parametrize("argument", [1.5, "name", torch.zeros(1, device="meta")])
def test_what_a_graph_would_not_read_anew_is_refused(gpu, argument):
    with pytest.raises(TypeError, match="cannot be an argument"):
        Captured(lambda x: x, CPU, "nothing")(argument)


def test_gradients_are_taken_inside(gpu):
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    names = ["0.weight", "2.bias"]

    def gradients(x: Tensor) -> tuple[Tensor, ...]:
        with fresh_leaves(model, names) as leaves:
            return torch.autograd.grad(model(x).square().sum(), leaves)

    captured = Captured(gpu.watch(gradients), CPU, "gradients")
    for seed in range(2):
        x = torch.randn(4, 2, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            model[0].weight.add_(0.1)
        expected = torch.autograd.grad(
            model(x).square().sum(), [model.get_parameter(name) for name in names]
        )
        for one, two in zip(captured(x), expected, strict=True):
            torch.testing.assert_close(one, two)
    assert gpu.replays == 2


def test_fresh_leaves_share_memory_and_are_gone_afterwards():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    before = dict(model.named_parameters())
    before["1.bias"].requires_grad_(False)
    with fresh_leaves(model, list(before)) as leaves:
        for leaf, parameter in zip(leaves, before.values(), strict=True):
            assert leaf is not parameter
            leaf.detach().fill_(0.25)
            assert bool((parameter == 0.25).all())  # one memory
            assert leaf.requires_grad == parameter.requires_grad
        assert [*model.parameters()] == [*leaves]
        model(torch.ones(1, 2)).sum().backward()
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    assert all(parameter.grad is None for parameter in before.values())


def results(passes: Passes, model: FoldingModel, batch: Batch, first: int) -> list[Any]:
    """Recycled tracks, gradients, and losses with positions, of two recycling passes and a last."""
    m, weights = model.read(batch.aatype, batch.mask), model.pack()
    chains = Chains(batch, ground_truth(batch, fixed=True), m.detach(), first, fixed=True)
    recycled = passes.recycle(chains, weights, 2)
    total = GradientSum(m, passes.shared_tensors(weights))
    prediction = passes.differentiate(chains, recycled, weights, 2, total)
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(total.as_loss(), trained, allow_unused=True)
    return [tree_leaves(part) for part in (recycled, gradients, prediction)]


@pytest.mark.slow
@pytest.mark.parametrize(("trunk", "freeze"), [("evoformer", ()), ("esmfold_v1", ("trunk",))])
def test_a_replayed_step_has_the_plain_gradients_losses_and_tracks(gpu, monkeypatch, trunk, freeze):
    def watched(function, device: torch.device, name: str) -> Captured:
        return Captured(gpu.watch(function), device, name)

    monkeypatch.setattr("esmfold_peft.training.passes.Captured", watched)
    released = EsmfoldConfig(
        weights="random", blocks=2, c_s=32, c_z=16, c_structure=24, heads=4, heads_pair=2
    )
    config = replace(TINY, model=replace(TINY.model, trunk=trunk, esmfold=released, freeze=freeze))
    model = build_model(config)[0].train()
    plain, fast = (
        Passes(model, replace(config, engine=replace(config.engine, cuda_graphs=on)), 2, CPU)
        for on in (False, True)
    )
    for number, sequences in enumerate((("ARNDCQEGHI", "GGWDE"), ("LKMFPSTW", "CCFYDEWWYV"))):
        batch, _ = make_case(*sequences, length=12, seed=number)
        with torch.no_grad():  # as Adam changes parameters; those of the start have zeros
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)
        for found, expected in zip(
            *(results(passes, model, batch, first=2 * number) for passes in (fast, plain)),
            strict=True,
        ):
            assert len(found) == len(expected)
            for one, two in zip(found, expected, strict=True):
                assert (one is None) == (two is None)
                if two is not None:
                    assert two.norm() > 0
                    assert (one - two).norm() <= 1e-6 * two.norm()
        # The first recycling pass, the second one, the last pass.
        assert gpu.calls.count("captured") == 3
        assert gpu.replays == 3 * (number + 1)
