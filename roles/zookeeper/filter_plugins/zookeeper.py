"""Filters about the ensemble's members: who they are, and how it comes from those it has to those of the inventory. No I/O."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Iterable
from typing import Any


def zookeeper_digest(password: str) -> str:
    """What ZooKeeper compares the superuser's password with."""
    return "super:" + base64.b64encode(hashlib.sha1(f"super:{password}".encode()).digest()).decode()


def members(lines: Iterable[str]) -> dict[str, str]:
    """Id to line, from lines like `server.1=192.0.2.11:2888:3888:participant;192.0.2.11:2181` and whatever else there is."""
    return {line.split("=")[0].removeprefix("server."): line for line in lines if line.startswith("server.")}


def zookeeper_joins(live: Collection[str], fresh: Collection[str]) -> list[str]:
    """The commands that take in members which have just begun."""
    return [f"-add {line}" for number, line in sorted(members(fresh).items()) if members(live).get(number) != line]


def zookeeper_steps(live: Collection[str], wanted: Collection[str]) -> list[str]:
    """The commands `reconfig` that lead from one membership to the other, one member each: who joins comes before who leaves."""
    return zookeeper_joins(live, wanted) + [f"-remove {number}" for number in sorted(members(live).keys() - members(wanted).keys())]


def zookeeper_lost(live: Collection[str], fresh: Collection[int]) -> list[str]:
    """The commands that take out members which begin anew: with no data a vote of theirs could undo what was decided."""
    return [f"-remove {number}" for number in sorted(members(live).keys() & {str(each) for each in fresh})]


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Name to function."""
        return {
            "zookeeper_digest": zookeeper_digest,
            "zookeeper_steps": zookeeper_steps,
            "zookeeper_joins": zookeeper_joins,
            "zookeeper_lost": zookeeper_lost,
        }
