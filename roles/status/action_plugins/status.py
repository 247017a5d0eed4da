"""Action plugin: puts together what machines answered, and writes it for programs and for people.

`report` and `text` are pure. The action runs on the controller, without a connection and without a module's start.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

HEADS = ["HOST", "SERVICE", "STATE", "HEALTH", "READY", "RESTARTS", "VERSION", "SINCE"]
PLAYBOOK = {"vehicle": "fleet.yml"}
"""What makes a container of a kind; all others come from site.yml."""


def report(
    looks: Mapping[str, Mapping[str, Any]],
    answers: Mapping[str, Any],
    wanted: Iterable[str],
    partitions: int | str,
    lag_limit: int | str,
    disk_limit: int | str,
) -> dict[str, Any]:
    """Everything that is to be known, as data.

    looks: the first host of each machine to what was looked for there; answers: the same to what came back; wanted: names of all
    containers of the inventory, of which a run with --limit looks for some; partitions: of the topic; lag_limit: what is much;
    disk_limit: percent of a broker's disk that are too much.
    """
    wanted = list(wanted)
    hosts, services, leftovers = [], [], []
    for host, look in looks.items():
        answer = answers[host]
        why = no_answer(answer)
        nodes = list(dict.fromkeys([host, *(each["node"] for each in look["containers"])]))
        engine = "" if why else answer["engine"]
        hosts += [{"host": node, "answers": not why, "engine": engine, "why": why} for node in nodes]
        found = {} if why else answer["containers"]
        services += [service(each, found.get(each["name"]), why) for each in look["containers"]]
        leftovers += [
            {"host": host, "name": name, "state": each["state"], "image": each["image"]}
            for name, each in sorted(found.items())
            if name not in wanted
        ]
    order = {host: number for number, host in enumerate(dict.fromkeys(each["host"] for each in services))}
    services.sort(key=lambda each: order[each["host"]])
    whole = {each["name"] for each in services} >= set(wanted)
    topic = kafka([answer["topic"] for answer in answers.values() if not no_answer(answer)])
    behind = lag(services, int(partitions))
    brokers = disks(services)
    unknown = "is left over, the inventory does not know it. To remove it: docker rm --force"
    reasons = [
        *(["no container is looked for: the inventory has no host in any of our groups"] if not services else []),
        *(f"{host['host']}: {host['why']}" for host in hosts if not host["answers"]),
        *(f"{each['name']} on {each['host']}: {reason}" for each in services for reason in each["reasons"]),
        *(kafka_reasons(topic, whole) if services else []),
        *(lag_reasons(behind, int(lag_limit), whole) if services else []),
        *disk_reasons(brokers, int(disk_limit)),
        *(f"{each['name']} on {each['host']}: {unknown} {each['name']}" for each in leftovers),
    ]
    return {
        "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "instance": next((look["instance"] for look in looks.values()), ""),
        "well": not reasons,
        "reasons": reasons,
        "whole": whole,
        "kafka": topic,
        "lag": behind,
        "disks": brokers,
        "missing": [each["name"] for each in services if each["state"] == "missing"],
        "leftovers": leftovers,
        "hosts": hosts,
        "services": services,
    }


def no_answer(answer: Any) -> str:
    """Why a machine's answer is none; empty where it is one."""
    if "containers" not in answer:
        # A module that could not run says in `msg` what its connection said
        said = " ".join(str(answer.get("msg") or "no answer").split())
        return f"cannot be asked: {said} {answer.get('module_stderr', '').strip()[-200:]}".strip()
    return f"its engine does not answer: {answer['why']}" if answer["why"] else ""


def service(wanted: Mapping[str, Any], found: Mapping[str, Any] | None, why: str) -> dict[str, Any]:
    """One container that the inventory wants, and every reason why it is not well; those of its machine are told once."""
    row = {"host": wanted["node"], "kind": wanted["kind"], "name": wanted["name"], "state": "unknown" if why else "missing"}
    row |= {"health": "", "ready": None, "restarts": None, "version": "", "since": "", "unit": None, "lag": None, "disk": None}
    row["reasons"] = []
    if found is None:
        if not why:
            row["reasons"] = [f"is missing. To make it: ansible-playbook {PLAYBOOK.get(wanted['kind'], 'site.yml')}"]
        return row
    unit = found.get("unit")
    row |= {name: found.get(name) for name in ("state", "health", "ready", "since", "unit", "lag", "disk")}
    row |= {"image": found["image"], "version": found["image"].rpartition(":")[2]}
    row |= {"service_version": found.get("service_version", "")}
    restarts = str(unit.get("NRestarts", "")) if unit else ""
    # systemd counts its own, and the engine then has none
    row["restarts"] = int(restarts) if restarts.isdecimal() else found["restarts"]
    row["reasons"] = list(state_reasons(found)) + list(unit_reasons(unit))
    return row


def state_reasons(found: Mapping[str, Any]) -> Iterable[str]:
    """Why a container that is there is not well."""
    if found["state"] != "running":
        status = "" if found["exit_code"] is None else f" with status {found['exit_code']}"
        memory = ", out of memory" if found["out_of_memory"] else ""
        yield f"is {found['state']}{status}{memory}" + (f" since {found['since']}" if found["since"] else "")
    elif found["health"] != "healthy":
        yield f"its health is {found['health'] or 'not known'}"
    if found.get("ready") is False:
        yield f"is not ready: {'; '.join(found['reasons'])}"
    if found.get("degraded"):
        yield f"works in part only: {'; '.join(found['degraded'])}"


def unit_reasons(unit: Mapping[str, str] | None) -> Iterable[str]:
    """Why a unit is not well; None is no unit, where the engine itself restarts containers."""
    if unit is None:
        return
    if "error" in unit:
        yield f"its unit cannot be asked for: {unit['error']}"
    elif unit["LoadState"] != "loaded":
        yield f"its unit is {unit['LoadState']}. To write it: ansible-playbook site.yml"
    else:
        if unit["ActiveState"] != "active":
            yield f"its unit is {unit['ActiveState']} ({unit['SubState']})"
        if unit["UnitFileState"] != "enabled":
            yield f"its unit is {unit['UnitFileState'] or 'not enabled'}: it would not start with its host"


def kafka(answers: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The worst that any machine was told of the topic; values are None where nobody was told anything."""
    told = [each for each in answers if "partitions" in each]
    if not told:
        why = next((each["error"] for each in answers if "error" in each), "no producer or consumer runs that could ask")
        return {"topic": None, "partitions": None, "under_replicated": None, "without_leader": None, "why": why}

    def bad(answer: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        partitions = answer["partitions"]
        return (
            [each["number"] for each in partitions if each["in_sync"] < each["replicas"]],
            [each["number"] for each in partitions if each["leader"] < 0],
        )

    worst = max(told, key=lambda answer: [len(each) for each in bad(answer)])
    under, without = bad(worst)
    return {
        "topic": worst["topic"],
        "partitions": len(worst["partitions"]),
        "under_replicated": under,
        "without_leader": without,
        "why": "",
    }


def kafka_reasons(topic: Mapping[str, Any], whole: bool) -> Iterable[str]:
    """Why the topic is not well; a run that looked at a part only cannot say that it is not known."""
    if topic["partitions"] is None:
        if whole:
            yield f"under-replicated partitions are not known: {topic['why']}"
        return
    if topic["under_replicated"]:
        yield f"partitions of {topic['topic']} with too few replicas in sync: {joined(topic['under_replicated'])}"
    if topic["without_leader"]:
        yield f"partitions of {topic['topic']} without a leader: {joined(topic['without_leader'])}"


def lag(services: list[dict[str, Any]], partitions: int) -> dict[str, Any]:
    """Kafka records behind, by partition. A consumer that is not ready tells what it knew last, which is nothing to go by."""
    behind = {
        int(number): count
        for each in services
        if each["lag"] is not None and each["ready"]
        for number, count in each["lag"].items()
    }
    unknown = sorted(set(range(partitions)) - set(behind))
    return {"records": sum(behind.values()) if behind else None, "partitions": dict(sorted(behind.items())), "unknown": unknown}


def lag_reasons(behind: Mapping[str, Any], limit: int, whole: bool) -> Iterable[str]:
    """Why the consumers are not well."""
    if behind["unknown"] and whole:
        yield f"consumer lag is not known of partitions {joined(behind['unknown'])}: no ready consumer reads them"
    if (behind["records"] or 0) > limit:
        yield f"consumers are {behind['records']} Kafka records behind, more than {limit} (status_lag)"


def disks(services: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The disk of each broker's data: bytes, and how many percent are used. One that could not be looked at says why."""
    found = []
    for each in services:
        if disk := each["disk"]:
            full = math.ceil(100 * disk["used"] / disk["bytes"]) if disk.get("bytes") else None
            found.append({"host": each["host"], "name": each["name"], "percent": full, **disk})
    return found


def disk_reasons(brokers: list[dict[str, Any]], limit: int) -> Iterable[str]:
    """Why the brokers' disks are not well."""
    for each in brokers:
        if each["percent"] is None:
            yield f"{each['name']} on {each['host']}: its disk is not known: {each.get('error', 'it has no size')}"
        elif each["percent"] >= limit:
            yield (
                f"{each['name']} on {each['host']}: its disk is {each['percent']} % full, at least {limit} (status_disk). "
                "Give it room, or lower kafka_topic_retention_hours"
            )


def disks_text(brokers: list[dict[str, Any]]) -> str:
    """The disks in words."""
    shown = (
        f"{each['host']} " + ("unknown" if each["percent"] is None else f"{each['percent']} % of {each['bytes'] / 2**30:.0f} GiB")
        for each in brokers
    )
    return joined(shown) or "unknown"


def joined(values: Iterable[Any]) -> str:
    """Values in one line."""
    return ", ".join(map(str, values))


def text(report: Mapping[str, Any]) -> str:
    """The report for people: the table, the cluster, and the reasons, a line each."""
    rows = [HEADS]
    for host in report["hosts"]:
        mine = [each for each in report["services"] if each["host"] == host["host"]]
        if not host["answers"]:
            rows.append([host["host"], "-", "no answer", "-", "-", "-", "-", "-"])
        rows += [cells(each) for each in mine if host["answers"]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    topic, behind = report["kafka"], report["lag"]
    lines += ["", f"Consumer lag      {lag_text(behind, report['whole'])}"]
    lines += [f"Under-replicated  {kafka_text(topic)}"]
    lines += [f"Brokers' disks    {disks_text(report['disks'])}"]
    lines += [f"Missing           {joined(report['missing']) or 'none'}"]
    lines += [f"Left over         {joined(each['name'] for each in report['leftovers']) or 'none'}", ""]
    if report["well"]:
        lines.append("All is well." if report["whole"] else "What was looked at is well.")
    else:
        lines += ["Not well:", *(f"- {reason}" for reason in report["reasons"])]
    return "\n".join(lines) + "\n"


def cells(row: Mapping[str, Any]) -> list[str]:
    """One line of the table."""
    ready = {None: "-", True: "yes", False: "no"}[row["ready"]]
    restarts = "-" if row["restarts"] is None else str(row["restarts"])
    return [
        row["host"],
        row["kind"],
        row["state"],
        row["health"] or "-",
        ready,
        restarts,
        row["version"] or "-",
        row["since"] or "-",
    ]


def lag_text(behind: Mapping[str, Any], whole: bool) -> str:
    """The lag in words; what is not known is never said to be 0."""
    known, unknown = len(behind["partitions"]), len(behind["unknown"])
    if behind["records"] is None:
        return "unknown"
    of = (
        ""
        if not unknown
        else f", of {known} of {known + unknown} partitions; the rest is {'unknown' if whole else 'not asked for'}"
    )
    return f"{behind['records']} Kafka records{of}"


def kafka_text(topic: Mapping[str, Any]) -> str:
    """The topic in words."""
    if topic["partitions"] is None:
        return f"unknown: {topic['why']}"
    without = f", {len(topic['without_leader'])} without a leader" if topic["without_leader"] else ""
    return f"{len(topic['under_replicated'])} of {topic['partitions']} partitions{without}"


class ActionModule(ActionBase):
    """What Ansible loads. Answers `report` and `text`, and writes them as status.json and status.txt into `dir`, if it is given."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _VALID_ARGS = frozenset(("looks", "wanted", "partitions", "lag", "disk", "dir"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Take what module status_machine left as __status_machine on the first host of each machine."""
        variables, given = task_vars or {}, self._task.args
        result: dict[str, Any] = super().run(tmp, variables)
        answers = {host: variables["hostvars"][host]["__status_machine"] for host in given["looks"]}
        limits = given["lag"], given["disk"]
        result["report"] = report(given["looks"], answers, given["wanted"], given["partitions"], *limits)
        result["text"] = text(result["report"])
        if given.get("dir"):
            folder = Path(given["dir"])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "status.json").write_text(json.dumps(result["report"], indent=2) + "\n")
            (folder / "status.txt").write_text(result["text"])
        return result
