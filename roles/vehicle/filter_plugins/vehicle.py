"""How many vehicles the fleet has, and whether each of them would drive on one host only. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

FIRST_COUNT = 30
SHOWN = 5


def fleet_plan(
    last: Mapping[str, Mapping[str, Any]],
    told: Sequence[Mapping[str, Any]],
    group: Sequence[str],
    stopped: Collection[str],
    staying: Collection[str],
    num_vehicles: str,
) -> dict[str, Any]:
    """The fleet's count, and why it cannot be carried out, a sentence each.

    last: hosts of this run to the fleet file that each has, empty if it has none; told: the fleet of hosts that are not part of
    this run; group: all hosts of the inventory's group `vehicles`; stopped: hosts outside of the group whose vehicles do not drive
    after this run; staying: those whose vehicles go on; num_vehicles: what the operator asks for, or empty.

    Vehicle n lives on host (n - 1) modulo all hosts of the group. If the group changes, vehicles move, and a host that is not told
    goes on driving those that moved away.
    """
    fleets = [each for each in [*last.values(), *told] if each.get("num_vehicles")]
    before = [list(each["hosts"]) for each in fleets if each.get("hosts")]
    problems = []
    if any(hosts != list(group) for hosts in before):
        problems = moves(before, last, group, stopped, staying)
    count = str(num_vehicles)
    if not count:
        counts = {int(each["num_vehicles"]) for each in fleets}
        others = [host for host in group if host not in last]
        if len(counts) > 1:
            problems.append(
                f"Vehicle hosts have different counts: {different(last, told)}. Some of them missed a change. "
                "Say how many vehicles the fleet has: -e num_vehicles=COUNT."
            )
        elif not counts and others:
            problems.append(
                f"How many vehicles the fleet has is not known here, and {some(others)} did not say. "
                "Say it: -e num_vehicles=COUNT, the same as on the other hosts."
            )
        count = str(max(counts, default=FIRST_COUNT))
    return {"num_vehicles": count, "problems": problems}


def moves(
    before: Sequence[Sequence[str]],
    last: Collection[str],
    group: Sequence[str],
    stopped: Collection[str],
    staying: Collection[str],
) -> list[str]:
    """Why vehicles may not move from the hosts that they had to those of the group."""
    had = list(dict.fromkeys(host for hosts in before for host in hosts))
    silent = [host for host in group if host not in last]
    left = [host for host in had if host not in group]
    unknown = [host for host in left if host not in stopped and host not in staying]
    why = f"Group vehicles has changed ({change(had, group)}), so vehicles move to other hosts"
    problems = []
    if silent:
        problems.append(
            f"{why}, but {some(silent)} would not hear of it, because it does not answer or --limit leaves it out: what moved away "
            "would drive there too, one VIN on two hosts. Run this without --limit when all answer, or undo the change."
        )
    if stays := [host for host in left if host in staying]:
        problems.append(
            f"{why}, but {some(stays)} keeps its vehicles, because of --limit, --tags or a host that does not answer: they would "
            "drive on two hosts. Run this without --limit and --tags when all answer."
        )
    if unknown:
        problems.append(
            f"{why}, but {some(unknown)} is not in the inventory any more, so nobody can stop the vehicles there: they would drive "
            "on two hosts. Put it back below `hosts`, without a group, until this has run. If it is gone for good and will not "
            f"start again with its data: -e vehicle_gone={','.join(unknown)}."
        )
    return problems


def change(had: Sequence[str], group: Sequence[str]) -> str:
    """What is different between two lists of hosts."""
    added, removed = [host for host in group if host not in had], [host for host in had if host not in group]
    words = [f"added: {some(added)}"] if added else []
    words += [f"removed: {some(removed)}"] if removed else []
    return "; ".join(words) or "another order"


def different(last: Mapping[str, Mapping[str, Any]], told: Sequence[Mapping[str, Any]]) -> str:
    """Which hosts have which count."""
    hosts: dict[int, list[str]] = {}
    for host, fleet in [*last.items(), *(("a host outside of this run", each) for each in told)]:
        if fleet.get("num_vehicles"):
            hosts.setdefault(int(fleet["num_vehicles"]), []).append(host)
    return "; ".join(f"{count} on {some(names)}" for count, names in sorted(hosts.items()))


def some(hosts: Sequence[str]) -> str:
    """Names for a sentence, not five hundred."""
    return ", ".join(hosts[:SHOWN]) + (f" and {len(hosts) - SHOWN} more" if len(hosts) > SHOWN else "")


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Name to function."""
        return {"fleet_plan": fleet_plan}
