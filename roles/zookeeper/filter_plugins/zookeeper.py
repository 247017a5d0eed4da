"""Filters about the ensemble's members: who they are, and how it comes from those it has to those of the inventory. No I/O."""

from __future__ import annotations

import base64
import hashlib
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "settings/module_utils"))
from tachograph_settings import container_name


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


def zookeeper_seats(seen: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Ids of who has a vote in the last membership (`voters`), which of them lost their data (`lost`), and who has it (`whole`).

    seen: id to what preflight saw of it, which are its state, and the last membership that it knows. A member that this run leaves
    out is not in it, and may have its data.
    """
    whole = {number: each for number, each in seen.items() if each["state"] == "whole"}
    known: list[str] = max((each["members"] for each in whole.values()), key=version, default=[])
    voters = [number for number, line in sorted(members(known).items()) if ":observer;" not in line] or sorted(seen)
    return {
        "voters": voters,
        "lost": [number for number in voters if number in seen and number not in whole],
        "whole": sorted(whole),
    }


def version(lines: Iterable[str]) -> tuple[bool, int]:
    """How late a membership is: what an operator set by hand is later than any other."""
    lines = list(lines)
    number = next((line.partition("=")[2] for line in lines if line.startswith("version=")), "0")
    return "alone" in lines, int(number, 16)


def zookeeper_refusal(seen: Mapping[str, Mapping[str, Any]], clusters: Collection[str]) -> str:
    """Why members without data may not begin: what is lost, where, and the ways on. Empty where they may.

    clusters: ids of Kafka clusters that brokers hold.
    """
    seats = zookeeper_seats(seen)
    lost, whole = ([f"{seen[number]['host']} ({seen[number]['place']})" for number in seats[each]] for each in ("lost", "whole"))
    if not whole:
        return nothing_left(lost, clusters) if clusters else ""
    if 2 * len(seats["lost"]) < len(seats["voters"]):
        return ""
    first = seen[seats["whole"][0]]
    return (
        f"ZooKeeper lost the data of {', '.join(lost)}, and {', '.join(whole)} alone cannot decide for an ensemble of "
        f"{len(seats['voters'])}. No member was started without data.\n"
        "If a disk is only away (not mounted, a volume of another name), bring it back and run this again. That loses nothing.\n"
        "If it is lost for good, one member that has data becomes the seed of the ensemble"
        f"{'; choose one and remove the data of the others' if len(whole) > 1 else ''}. Make the file seed-alone in its folder, "
        f"as root on {first['host']}:\n"
        f"  touch {first['place']}/seed-alone\n"
        f"If it runs, restart it (docker restart {first['name']}). Then run this again. What only the lost members knew is lost."
    )


def nothing_left(lost: Iterable[str], clusters: Collection[str]) -> str:
    """The refusal where no member has data, and brokers do."""
    return (
        f"No ZooKeeper has data, but brokers hold the Kafka cluster {', '.join(sorted(clusters))}. A ZooKeeper that begins without "
        "data does not know that cluster, and its brokers would end again and again. Nothing was started.\n"
        f"Bring back the data of {', '.join(lost)}: mount the disk, or put back the volume. Then run this again.\n"
        "If it is lost for good, nobody knows any more which broker holds which records. Remove the data of the brokers too, and "
        "run this again. Records that were acknowledged and are not in Postgres yet are then lost."
    )


def zookeeper_seen(hosts: Iterable[str], hostvars: Mapping[str, Any], data: Mapping[str, Any], instance: str) -> dict[str, Any]:
    """Id to what preflight saw of the member of each host, with the host's name and that of the container."""
    names = {host: container_name("zookeeper", instance, host) for host in hosts}
    return {
        str(hostvars[host]["zookeeper_id"]): {**data[name], "host": host, "name": name}
        for host, name in names.items()
        if name in data
    }


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Name to function."""
        return {
            "zookeeper_digest": zookeeper_digest,
            "zookeeper_steps": zookeeper_steps,
            "zookeeper_joins": zookeeper_joins,
            "zookeeper_lost": zookeeper_lost,
            "zookeeper_seen": zookeeper_seen,
            "zookeeper_refusal": zookeeper_refusal,
        }
