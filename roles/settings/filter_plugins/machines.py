"""Filters that judge what machines say of themselves: their engine, their architecture and their clock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CLOCK_SPREAD = 1.0
"""Seconds that two clocks may differ."""


def engine_refusals(info: Mapping[str, Any], machine: str, enforcing: bool = False) -> list[str]:
    """Why an engine cannot run the containers, each with its remedy; info is its answer to /info, enforcing is SELinux' mode."""
    system, options = str(info.get("OperatingSystem", "")), [str(each) for each in info.get("SecurityOptions") or []]
    names = {option.partition("name=")[2].partition(",")[0] for option in options}
    root = str(info.get("DockerRootDir", ""))
    found = []
    if system == "Docker Desktop":
        found.append("is Docker Desktop, which has no access to the machine's network")
    if "rootless" in names:
        found.append("is rootless and has no access to the machine's network")
    if "userns" in names:
        found.append("maps users (userns-remap), so that no service could read its files")
    # Docker's own answer has no such key
    if "BuildahVersion" in info:
        found.append("is podman, which does not restart containers as Docker does")
    if root.startswith("/var/snap/"):
        found.append("is the snap package, which cannot mount files from /etc")
    remedy = "Install Docker as a package of Debian or Ubuntu, or from Docker, run by root on Linux"
    refusals = [f"The engine of {machine} ({system}) {why}. {remedy}." for why in found]
    if "selinux" in names and enforcing:
        refusals.append(
            f"The engine of {machine} ({system}) labels containers for SELinux, which is enforcing, so no service could read "
            'its files. Set "selinux-enabled": false in /etc/docker/daemon.json and restart the engine.'
        )
    return refusals


def architecture_problems(answers: Mapping[str, Mapping[str, Any]], controller: str) -> list[str]:
    """Machines that could not run the images that the controller builds; with the operator's own images alone one may differ."""
    return [
        f"{host} has architecture {answer['architecture']}, and images are built on the controller, which has {controller}. "
        f"Run this from a controller with {answer['architecture']}, or name images of your own (kafka_image and the like)."
        for host, answer in answers.items()
        if answer.get("builds") and answer["architecture"] != controller
    ]


def clock_problems(answers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Machines whose clocks differ for certain; `clock` has the least and the greatest offset from the controller, in seconds."""
    clocks = {host: answer["clock"] for host, answer in answers.items() if answer.get("clock")}
    if not clocks:
        return []
    first, last = min(clocks, key=lambda host: clocks[host][1]), max(clocks, key=lambda host: clocks[host][0])
    spread = clocks[last][0] - clocks[first][1]
    if spread <= CLOCK_SPREAD:
        return []
    return [
        f"The clock of {last} is ahead of the clock of {first} by {spread:.1f} s at least, more than {CLOCK_SPREAD:g} s. "
        "Records get their time from the brokers' clocks, and retention goes by it. "
        "Set the clocks by NTP (`timedatectl` on each host says whether it is synchronized)."
    ]


def machine_problems(answers: Mapping[str, Mapping[str, Any]], controller: str) -> list[str]:
    """Everything that is wrong with machines, from what module preflight_machine answered there; controller is its architecture."""
    problems: list[str] = []
    asked = {host: answer for host, answer in answers.items() if "problems" in answer}
    for host, answer in answers.items():
        if host in asked:
            problems += answer["problems"] + engine_refusals(answer["engine"], host, answer["enforcing"])
        else:
            why = str(answer.get("msg", "no answer")).strip()
            problems.append(f"{host} cannot be asked: {why}. Correct how it is reached (ansible_host, ansible_user, become).")
    return problems + architecture_problems(asked, controller) + clock_problems(asked)


def leaving(answers: Mapping[str, Mapping[str, Any]], groups: Mapping[str, list[str]], fleet: bool) -> list[str]:
    """Nodes with the containers that a run removes from them: "node4: tachograph-nginx-node4".

    A host that is in no group, or was named as a former node, was taken out on purpose and is left out here.
    """
    grouped = {host for name, hosts in groups.items() if name not in ("all", "ungrouped") for host in hosts}
    nodes: dict[str, list[str]] = {}
    for answer in answers.values():
        for each in answer.get("leavers", []):
            if each["node"] in grouped and (each["kind"] == "vehicle") is fleet:
                nodes.setdefault(each["node"], []).append(each["name"])
    return [f"{node}: {', '.join(names)}" for node, names in sorted(nodes.items())]


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Name to function."""
        return {
            "engine_refusals": engine_refusals,
            "leaving": leaving,
            "machine_problems": machine_problems,
            "clock_problems": clock_problems,
        }
