"""The verdict of a round: everything checked, as data and as a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from proof import check, fleet
from proof.check import EXAMPLES, Findings
from proof.config import Config
from proof.ledger import Ledger

TARGETS = {"broker": 30, "zookeeper": 15, "postgres": 20, "producer": 5, "consumer": 5, "nginx": 5}
"""Seconds after which writes should be accepted again; slower ones are marked, and no fault of the records."""
COUNTS = ("made", "acknowledged", "rows", "missing", "duplicates", "reordered", "altered", "gaps", "refused")


def merge(findings: Sequence[Findings]) -> Findings:
    """All in one."""
    total = Findings()
    for each in findings:
        total.counts += each.counts
        for invariant, what in each.wrong.items():
            total.wrong[invariant] += what
    return total


def describe_fault(ledger: Ledger, connection: Any, fault: dict[str, Any]) -> dict[str, Any]:
    """A fault with what it did: seconds until writes were accepted and stored again, and how fast the backlog went."""
    accepted = check.accepted_again(ledger, fault["healed"])
    known = [seconds for seconds in accepted if seconds is not None]
    until = fault["settled"] or ledger.ended
    ratio = check.drain_ratio(ledger, fault["healed"], until)
    found = {
        **fault,
        "accepted_seconds": None if len(known) < len(accepted) else rounded(check.percentile(known, 0.95)),
        "stored_seconds": rounded(check.stored_again(ledger, fault["healed"])),
        "drain_ratio": rounded(ratio),
        "target_seconds": TARGETS.get(fault["name"]),
    }
    if fault["kind"] == "vehicle":
        seconds, silent = fleet.heard_again(connection, ledger, fault["begun"], fault["healed"])
        found |= {"heard_seconds": rounded(seconds), "silent": silent}
    return found


def rounded(value: float | None) -> float | None:
    """To a tenth."""
    return None if value is None else round(value, 1)


def judge(folder: Path, lines: Sequence[dict[str, str]], secrets: Sequence[str], traces: Sequence[str]) -> dict[str, Any]:
    """Check the newest ledger of DIR with its faults, and the rows of the earlier ones. Raises psycopg2.Error."""
    config = Config(**json.loads((folder / "config.json").read_text()))
    ledgers = sorted(folder.glob("[0-9]*.json"))
    if not ledgers:
        raise FileNotFoundError(f"There is no ledger in {folder}. Run verify.yml with records above 0 first.")
    ledger = Ledger.load(ledgers[-1])
    faults = read_faults(folder, ledger)
    with config.connect() as connection:
        found = merge([
            check.check_stored(ledger, check.read(connection, ledger)),
            check.check_drain(ledger),
            check.check_readiness(
                ledger, faults, set(config.services) - set(config.consumers), set(config.consumers)
            ),
            check.check_words(ledger, lines, secrets, traces),
            fleet.check_fleet(connection, ledger, config.changes),
        ])  # fmt: skip
        described = [describe_fault(ledger, connection, fault) for fault in faults]
        earlier = [check_earlier(connection, path, config) for path in ledgers[:-1]]
    void = [fault["name"] for fault in described if not fault["bit"]]
    silent = sum(fault.get("silent", 0) for fault in described)
    if silent:
        found.wrong["I2"].append(f"{silent} vehicles of the fleet were not heard again")
    wrong = {name: what for name, what in sorted(found.wrong.items()) if what}
    failed = bool(wrong) or any(each["wrong"] for each in earlier)
    times = [answered - posted for posted, answered, _, status in ledger.uploads if status == 200]
    return {
        "verdict": "failed" if failed else "void" if void else "clean",
        "void": void,
        "instance": ledger.instance,
        "seed": ledger.seed,
        "epoch": ledger.epoch,
        "vins": sorted({entry.vin for entry in ledger.entries}),
        **{name: found.counts[name] for name in COUNTS},
        "counts": dict(sorted(found.counts.items())),
        "seconds": round(ledger.ended - ledger.begun, 1),
        "uploads": len(ledger.uploads),
        "post_p99_ms": round(1000 * (check.percentile(times, 0.99) or 0)),
        "wrong": {name: what[:EXAMPLES] for name, what in wrong.items()},
        "faults": described,
        "earlier": earlier,
    }


def read_faults(folder: Path, ledger: Ledger) -> list[dict[str, Any]]:
    """The faults that were injected while the ledger was kept."""
    path = folder / "faults.jsonl"
    faults = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [fault for fault in faults if ledger.begun <= fault["begun"] <= ledger.ended]


def check_earlier(connection: Any, path: Path, config: Config) -> dict[str, Any]:
    """The rows of an earlier round: they have to be there as long as the database knows its topic."""
    ledger = Ledger.load(path)
    with connection.cursor() as cursor:
        cursor.execute("SELECT DISTINCT topic_id::text FROM stream_offset WHERE topic = %s", (config.topic,))
        known = {row[0] for row in cursor.fetchall()}
    if not known & set(ledger.topic_ids):
        return {"epoch": ledger.epoch, "checked": False, "wrong": {}}
    found = check.check_stored(ledger, check.read(connection, ledger))
    wrong = {name: what[:EXAMPLES] for name, what in sorted(found.wrong.items())}
    return {"epoch": ledger.epoch, "checked": True, "rows": found.counts["rows"], "wrong": wrong}


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = ["  ".join(f"{name:>12}" for name in COUNTS), "  ".join(f"{report[name]:>12}" for name in COUNTS), ""]
    if report["faults"]:
        lines.append(f"{'fault':<20}{'hosts':<18}{'accepted':>12}{'stored':>10}{'drain':>8}  it bit")
    for fault in report["faults"]:
        hosts = ",".join(fault["hosts"])
        accepted = shown(fault["accepted_seconds"], " s")
        if fault["target_seconds"] and (fault["accepted_seconds"] or 1e9) > fault["target_seconds"]:
            accepted = f"slow {accepted}"
        proof = fault["proof"] if fault["bit"] else f"NOT: {fault['proof']}"
        stored, drain = shown(fault["stored_seconds"], " s"), shown(fault["drain_ratio"], "x")
        lines.append(f"{fault['name']:<20}{hosts:<18}{accepted:>12}{stored:>10}{drain:>8}  {proof}")
    lines += ["", f"p99 of POST {report['post_p99_ms']} ms, {report['uploads']} uploads in {report['seconds']} s; "
              f"rows of {len(report['vins'])} VINs ({report['vins'][0]} ...) with epoch {report['epoch']} stay"]  # fmt: skip
    for each in report["earlier"]:
        state = f"{each['rows']} rows checked again" if each["checked"] else "of another database, not checked"
        lines.append(f"earlier round {each['epoch']}: {state}")
    for title, wrong in [("", report["wrong"]), *((f"{each['epoch']} ", each["wrong"]) for each in report["earlier"])]:
        for invariant, what in wrong.items():
            lines += [f"{title}{invariant} broken: {example}" for example in what]
    for name in report["void"]:
        lines.append(f"fault {name} did not bite: the round proves nothing about it")
    lines += ["", f"Verdict: {report['verdict']} (seed {report['seed']})"]
    return "\n".join(line.rstrip() for line in lines)


def shown(value: float | None, unit: str) -> str:
    """A number with its unit, or a dash."""
    return "-" if value is None else f"{value:g}{unit}"
