"""Which faults are injected where: a pure function of the inventory, the wish and the seed."""

from __future__ import annotations

import difflib
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

KINDS = {
    "broker": ("kafka", "kafka"),
    "zookeeper": ("zookeeper", "zookeeper"),
    "producer": ("producers", "producer"),
    "consumer": ("consumers", "consumer"),
    "postgres": ("postgres", "postgres"),
    "nginx": ("nginx", "nginx"),
    "vehicle": ("vehicles", "vehicle"),
}
"""Word of a fault to the group of its hosts and the kind of container."""
ACTIONS = ("kill", "pause", "cut")


@dataclass(frozen=True)
class PlannedFault:
    """One fault: what is done to the containers of one kind on some hosts."""

    name: str
    kind: str
    action: str
    hosts: tuple[str, ...]
    leader: bool = False
    """Of the hosts only the one whose member leads is hit."""


class PlanError(Exception):
    """The wish cannot be carried out; the text names each word, why, and the remedy, a line each."""


def names() -> list[str]:
    """Every fault there is."""
    found = []
    for kind in KINDS:
        found += [kind, f"{kind}_pause", f"{kind}_cut"]
    return [*found, "broker_two", "zookeeper_quorum"]


def plan(faults: Sequence[str], groups: Mapping[str, Sequence[str]], seed: str, rounds: int = 1) -> list[PlannedFault]:
    """The faults of all rounds in order, each with its victims. Raises PlanError naming everything that is wrong."""
    problems, known = [], names()
    for name in dict.fromkeys(faults):
        near = difflib.get_close_matches(name, known, 1)
        if name not in known:
            problems.append(
                f"faults: {name!r} is none" + (f"; did you mean {near[0]}?" if near else f". There are: {', '.join(known)}")
            )
        elif len(_hosts(name, groups)) < _count(name, groups):
            group = _group(name)
            problems.append(
                f"faults: {name} needs {_count(name, groups)} hosts in group {group}, which has {len(groups.get(group, ()))}"
            )
    if problems:
        raise PlanError("\n".join(problems))
    rng = random.Random(f"faults {seed}")
    return [_fault(name, groups, rng) for _ in range(rounds) for name in faults]


def _split(name: str) -> tuple[str, str]:
    word, _, more = name.partition("_")
    return word, more


def _group(name: str) -> str:
    return KINDS[_split(name)[0]][0]


def _hosts(name: str, groups: Mapping[str, Sequence[str]]) -> list[str]:
    return sorted(groups.get(_group(name), ()))


def _count(name: str, groups: Mapping[str, Sequence[str]]) -> int:
    more = _split(name)[1]
    if more == "two":
        return 2
    if more == "quorum":
        # As many as leave less than a majority
        return max(2, len(_hosts(name, groups)) // 2 + 1)
    return 1


def _fault(name: str, groups: Mapping[str, Sequence[str]], rng: random.Random) -> PlannedFault:
    word, more = _split(name)
    hosts, kind = _hosts(name, groups), KINDS[word][1]
    action = more if more in ACTIONS else "kill"
    if name == "zookeeper" and len(hosts) > 1:
        return PlannedFault(name, kind, action, tuple(hosts), leader=True)
    return PlannedFault(name, kind, action, tuple(sorted(rng.sample(hosts, _count(name, groups)))))


def as_data(faults: Sequence[PlannedFault]) -> list[dict[str, Any]]:
    """As JSON has it."""
    return [{**asdict(fault), "hosts": list(fault.hosts)} for fault in faults]
