"""Training chains that leak validation chains: by date, by sequence, or by cluster."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
from jaxtyping import Shaped

from esmfold_peft.datasets.mmseqs import mmseqs_program, similar
from esmfold_peft.datasets.store import Store


@dataclass(frozen=True, eq=False)
class ChainList:
    """The facts about chains that decide whether they leak.

    Attributes:
        ids: names of the chains.
        release_date: days; NaT if unknown.
        cluster: name of the cluster of each.
        sequence_hash: equal for equal sequences.
        sequence: gives the sequence of a chain by its place.
    """

    ids: list[str]
    release_date: Shaped[np.ndarray, "chains"]
    cluster: list[str]
    sequence_hash: list[str]
    sequence: Callable[[int], str]


@dataclass(frozen=True)
class Leak:
    """A training chain in a store that leaks a validation chain, which the reason names."""

    store: str
    chain: str
    reason: str


def chain_list(store: Store) -> ChainList:
    """The facts that a store has about its chains."""
    m = store.manifest
    return ChainList(m.ids, m.release_date, m.cluster, m.sequence_hash, store.sequence)


def find_leaks(training: ChainList, validation: ChainList, *, threads: int) -> dict[int, str]:
    """Training chains that leak, by place, with the reason.

    A chain leaks if it was released on the day of the first validation chain or later (where dates
    are known), if it has the sequence or the cluster of a validation chain, or if the two would be
    in one cluster: 40 % identity over 90 % of both, which needs the program mmseqs.

    Raises:
        UserError: mmseqs fails.
    """
    leaks: dict[int, str] = {}
    rules = [
        _late(training, validation),
        _same_sequence(training, validation),
        _same_cluster(training, validation),
    ]
    if compares_similar():
        rules.append(_similar(training, validation, threads))
    for place, reason in chain.from_iterable(rules):
        leaks.setdefault(place, reason)
    return dict(sorted(leaks.items()))


def compares_similar() -> bool:
    """Whether `find_leaks` compares similar sequences too, for which it needs mmseqs."""
    return mmseqs_program() is not None


def what_was_compared(*lists: ChainList) -> str:
    """Describes the leaks that the search among these chains can and cannot find."""
    undated = sum(int(np.isnat(chains.release_date).sum()) for chains in lists)
    dates = f"{undated:,} chains state no release date; " if undated else ""
    if compares_similar():
        return f"{dates}sequences compared by mmseqs at 40 % identity"
    return (
        f"{dates}mmseqs is not installed (Debian package mmseqs2): of similar sequences, only equal"
        " ones and those with a common cluster in the stores were found"
    )


def _late(training: ChainList, validation: ChainList) -> Iterator[tuple[int, str]]:
    known = validation.release_date[~np.isnat(validation.release_date)]
    if not len(known):
        return
    first = known.min()
    # A comparison with NaT is false: an unknown date is no reason.
    for place in np.flatnonzero(training.release_date >= first).tolist():
        yield place, f"released on {training.release_date[place]}, validation begins on {first}"


def _same_sequence(training: ChainList, validation: ChainList) -> Iterator[tuple[int, str]]:
    owners = dict(zip(reversed(validation.sequence_hash), reversed(validation.ids), strict=True))
    for place, value in enumerate(training.sequence_hash):
        if value in owners:
            yield place, f"has the sequence of {owners[value]}"


def _same_cluster(training: ChainList, validation: ChainList) -> Iterator[tuple[int, str]]:
    owners = dict(zip(reversed(validation.cluster), reversed(validation.ids), strict=True))
    cluster_of = dict(zip(validation.ids, validation.cluster, strict=True))
    for place, cluster in enumerate(training.cluster):
        # Chains in no cluster have their own names there; two files may have one name by chance.
        by_chance = cluster == training.ids[place] == cluster_of.get(cluster)
        if cluster in owners and not by_chance:
            yield place, f"is in the cluster of {owners[cluster]}"


def _similar(training: ChainList, validation: ChainList, threads: int) -> Iterator[tuple[int, str]]:
    places: dict[str, list[int]] = {}
    for place, value in enumerate(training.sequence_hash):
        places.setdefault(value, []).append(place)
    targets = {key: training.sequence(found[0]) for key, found in places.items()}
    queries = {name: validation.sequence(place) for place, name in enumerate(validation.ids)}
    for hit in similar(queries, targets, threads=threads):
        for place in places[hit.target]:
            yield place, f"{hit.identity:.0%} identical to {hit.query}"
