"""What Ray's executor makes of a cluster's answers, by a stand-in for the cluster."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from esmfold_peft.errors import UserError
from esmfold_peft.search.executors.ray import RayExecutor


class LostError(Exception):
    """RayActorError."""


class UnavailableError(LostError):
    """ActorUnavailableError, which is one."""


class LateError(Exception):
    """GetTimeoutError."""


class Cluster:
    """Ray as far as the executor sees it."""

    exceptions = SimpleNamespace(
        RayActorError=LostError, ActorUnavailableError=UnavailableError, GetTimeoutError=LateError
    )

    def __init__(self, *, known: bool = True) -> None:
        self.known, self.answer, self.killed = known, None, 0

    def get_actor(self, name: str, namespace: str):
        if not self.known:
            raise ValueError(f"Failed to look up actor {name}")
        return SimpleNamespace(busy=SimpleNamespace(remote=lambda: None))

    def get(self, asked, timeout: float):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def kill(self, actor) -> None:
        self.killed += 1

    def remote(self, trial):
        return self

    def options(self, **options):
        def remote(folder: str) -> None:
            raise ValueError("The name is taken\nby another actor")

        return SimpleNamespace(remote=remote)


def executor(cluster: Cluster) -> RayExecutor:
    made = RayExecutor.__new__(RayExecutor)
    made._ray, made._resources, made._search = cluster, {}, "search"
    return made


TRIAL = Path("/trials/a/alpha_1")


@pytest.mark.parametrize(
    ("answer", "alive", "killed"),
    [
        (True, True, 0),
        (False, False, 1),  # it has ended, and gives back its GPU
        (LateError(), True, 0),
        (UnavailableError(), True, 0),  # the network is down for a moment
        (LostError(), False, 0),
    ],
)
def test_a_trial_is_lost_only_when_its_actor_is(answer, alive: bool, killed: int):
    cluster = Cluster()
    cluster.answer = answer
    assert executor(cluster).alive(TRIAL) is alive
    assert cluster.killed == killed


def test_an_actor_that_nobody_knows_is_gone():
    assert not executor(Cluster(known=False)).alive(TRIAL)


def test_an_actor_that_is_there_is_not_begun_again():
    assert executor(Cluster()).start([TRIAL]) == [{"actor": "search/a/alpha_1"}]
    with pytest.raises(UserError, match=r"^executor: ray: The name is taken$"):
        executor(Cluster(known=False)).start([TRIAL])
