"""Two processes of one training, as torchrun starts them."""

import socket

from tests.nursery import Nursery, Started


def free_port() -> int:
    """A port of this machine that nobody uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_two(
    nursery: Nursery, *arguments: object, before: str = "", **environment: str
) -> list[Started]:
    """Starts both."""
    port = free_port()
    return [
        nursery.start(*arguments, before=before, environment=_variables(rank, port) | environment)
        for rank in range(2)
    ]


def run_two(nursery: Nursery, *arguments: object, before: str = "", **environment: str) -> None:
    """Runs both, which must succeed."""
    for process in start_two(nursery, *arguments, before=before, **environment):
        assert process.wait() == 0, process.printed()


def _variables(rank: int, port: int) -> dict[str, str]:
    return {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"},
        **{"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"},
        **{"TORCHELASTIC_RUN_ID": "tests", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
    }
