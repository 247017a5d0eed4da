"""`python -m proof plan|start|drive|wait|watch|finish|note|judge DIR`, on the controller; DIR holds config.json and ledgers."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg2
from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from proof.config import Config
from proof.drive import drive
from proof.plan import PlanError, as_data, plan
from proof.report import judge, table

KEEP = 3
"""Ledgers of earlier rounds that are kept, and checked again."""


class DriveError(Exception):
    """The proof's own fleet ended before its time; the text says why."""


def print_plan() -> int:
    """Print the faults of a round as JSON; stdin has faults, groups, seed and rounds."""
    wish = json.load(sys.stdin)
    print(json.dumps(as_data(plan(wish["faults"], wish["groups"], wish["seed"], wish["rounds"]))))
    return 0


def start(folder: Path) -> int:
    """Forget what an earlier run left, and keep the newest ledgers only; stdin is the new config.json.

    Raises DriveError where the database cannot be read: its rows are what is proved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("finish", "stop", "status.json", "failed", "faults.jsonl"):
        (folder / name).unlink(missing_ok=True)
    for path in sorted(folder.glob("[0-9]*.json"))[:-KEEP]:
        path.unlink()
    config = json.load(sys.stdin)
    try:
        Config(**config).connect().close()
    except psycopg2.OperationalError as error:
        raise DriveError(
            f"The proof cannot read the database from here: {str(error).strip()}\n"
            "If it does not let in this machine's address, put that into postgres_reader_networks and run site.yml."
        ) from error
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "heartbeat").touch()
    return 0


def run_drive(folder: Path) -> int:
    """Drive one round; what ends it before its time is left in DIR/failed, for those who wait."""
    try:
        drive(folder)
    except Exception as error:
        (folder / "failed").write_text(f"The fleet of the proof failed: {type(error).__name__}: {error}")
        raise
    return 0


def read_status(folder: Path) -> dict[str, Any] | None:
    """How the fleet is doing, None before its first word; raises DriveError if it has ended."""
    if (folder / "failed").exists():
        raise DriveError((folder / "failed").read_text())
    path = folder / "status.json"
    status: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return status


def missing(folder: Path, since: float, kafka: dict[str, Any] | None) -> list[str]:
    """What is not as it was before a fault that was healed at `since`."""
    status = read_status(folder)
    if status is None:
        return ["the first upload"]
    found = []
    if status["accepted_since"] <= since:
        found.append("an acknowledgement of every vehicle")
    if status["stored_since"] <= since:
        found.append(f"rows ({status['acknowledged'] - status['stored']} behind)")
    found += status["unready"]
    if kafka and not found:
        found += not_in_sync(kafka)
    return found


def not_in_sync(kafka: dict[str, Any]) -> list[str]:
    """Partitions, of all topics, that lack an in-sync replica."""
    try:
        admin = KafkaAdminClient(**kafka, client_id="verify", request_timeout_ms=5000, bootstrap_timeout_ms=5000)
        try:
            topics = admin.describe_topics()
        finally:
            admin.close()
    except (KafkaError, OSError) as error:
        return [f"Kafka ({error})"]
    behind = [
        f"{topic['name']}-{each['partition_index']}"
        for topic in topics
        for each in topic["partitions"]
        if len(each["isr_nodes"]) < len(each["replica_nodes"])
    ]
    return [f"in-sync replicas of {len(behind)} partitions"] if behind else []


def wait(folder: Path, since: float, seconds: float, kafka: dict[str, Any] | None) -> int:
    """Wait until all is as before a fault that was healed at `since`; print when, or what is missing."""
    deadline = time.monotonic() + seconds
    while True:
        (folder / "heartbeat").touch()
        found = missing(folder, since, kafka)
        if not found:
            print(time.time())
            return 0
        if time.monotonic() > deadline:
            print(f"waiting for {', '.join(found)}")
            return 1
        time.sleep(0.2)


def watch(folder: Path, seconds: float) -> int:
    """Let the fleet drive; print how far it is."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        (folder / "heartbeat").touch()
        read_status(folder)
        time.sleep(min(left, 1.0))
    print(progress(read_status(folder)))
    return 0


def progress(status: dict[str, Any] | None) -> str:
    """How far the fleet is."""
    known = status or {"made": 0, "waiting": 0, "stored": 0}
    return f"{known['made']} records made, {known['waiting']} unsent, {known['stored']} seqs stored"


def wait_finished(folder: Path, seconds: float) -> int:
    """Tell the fleet that the faults are over, and wait until it has delivered everything; print how far it is."""
    (folder / "finish").touch()
    deadline = time.monotonic() + seconds
    while True:
        (folder / "heartbeat").touch()
        status = read_status(folder)
        finished = status is not None and status["finished"]
        if finished or time.monotonic() > deadline:
            print(progress(status))
            return 0 if finished else 1
        time.sleep(0.2)


def note(folder: Path) -> int:
    """Add a fault, which stdin describes, to DIR/faults.jsonl."""
    with (folder / "faults.jsonl").open("a") as file:
        file.write(json.dumps(json.load(sys.stdin)) + "\n")
    return 0


def print_verdict(folder: Path, report: Path) -> int:
    """Judge, write the report and print the table; stdin has what was found in logs, and the secrets."""
    given = json.load(sys.stdin)
    verdict = judge(folder, given["lines"], given["secrets"], given["traces"])
    report.write_text(json.dumps(verdict, indent=2) + "\n")
    print(table(verdict))
    return 0 if verdict["verdict"] == "clean" else 3


def parse() -> argparse.Namespace:
    """The command line; `run` is what it asks for."""
    parser = argparse.ArgumentParser(prog="proof")
    commands = parser.add_subparsers(required=True)
    commands.add_parser("plan").set_defaults(run=lambda given: print_plan())

    def add(name: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        command = commands.add_parser(name)
        command.add_argument("folder", type=Path)
        command.set_defaults(run=run)
        return command

    add("start", lambda given: start(given.folder))
    add("drive", lambda given: run_drive(given.folder))
    add("note", lambda given: note(given.folder))
    waiting = add("wait", lambda given: wait(given.folder, given.since, given.seconds, given.kafka))
    waiting.add_argument("--since", type=float, default=0)
    waiting.add_argument("--kafka", type=json.loads)
    watching = add("watch", lambda given: watch(given.folder, given.seconds))
    finishing = add("finish", lambda given: wait_finished(given.folder, given.seconds))
    for command in (waiting, watching, finishing):
        command.add_argument("--seconds", type=float, default=8)
    add("judge", lambda given: print_verdict(given.folder, given.report)).add_argument("--report", type=Path, required=True)
    return parser.parse_args()


def main() -> int:
    """The exit status: 0 well, 1 not yet, 2 a wrong wish or nothing to ask, 3 a verdict that is not clean."""
    given = parse()
    try:
        return int(given.run(given))
    except (PlanError, DriveError, psycopg2.Error, FileNotFoundError) as error:
        print(str(error).strip(), file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
