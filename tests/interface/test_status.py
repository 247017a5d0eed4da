"""`make status` says everything that is not well, and nothing else; what nobody could tell is never said to be well."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from interface.roles import ROOT, module

status = module("roles/status/action_plugins/status.py")
machine = module("roles/status/library/status_machine.py")

KINDS = {"node1": ["kafka", "postgres", "producer"], "node2": ["kafka", "consumer", "vehicle"]}


class World:
    """Two right machines, to be made wrong."""

    def __init__(self) -> None:
        self.looks: dict[str, dict[str, Any]] = {
            node: {
                "instance": "i",
                "containers": [{"name": f"i-{kind}-{node}", "kind": kind, "node": node} for kind in kinds],
            }
            for node, kinds in KINDS.items()
        }
        partitions = [{"number": number, "leader": 1, "replicas": 2, "in_sync": 2} for number in range(4)]
        topic = {"topic": "telemetry", "partitions": partitions}
        running = {
            "state": "running", "exit_code": None, "out_of_memory": False, "health": "healthy", "restarts": 0,
            "image": "r:1/t/x:abc", "since": "2026-01-01T00:00:00Z",
        }  # fmt: skip
        self.answers: dict[str, Any] = {
            node: {
                "engine": "26.1",
                "why": "",
                "topic": copy.deepcopy(topic),
                "containers": {f"i-{kind}-{node}": dict(running) | {"kind": kind} for kind in kinds},
            }
            for node, kinds in KINDS.items()
        }
        for kind, node in (("producer", "node1"), ("consumer", "node2"), ("vehicle", "node2")):
            self.one(kind, node).update(ready=True, reasons=[], degraded=[])
        for node in KINDS:
            self.one("kafka", node)["disk"] = {"bytes": 100 * 2**30, "used": 79 * 2**30}
        self.one("consumer", "node2")["lag"] = {"0": 1, "1": 2, "2": 0, "3": 0}
        self.wanted = [each["name"] for look in self.looks.values() for each in look["containers"]]

    def one(self, kind: str, node: str) -> dict[str, Any]:
        found: dict[str, Any] = self.answers[node]["containers"][f"i-{kind}-{node}"]
        return found

    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = status.report(self.looks, self.answers, self.wanted, 4, 100, 80)
        return found


def test_what_is_right_is_well() -> None:
    report = World().report()
    assert report["reasons"] == []
    assert report["well"]
    assert report["lag"]["records"] == 3
    assert report["kafka"]["under_replicated"] == []
    text = status.text(report)
    assert text.splitlines()[1].split() == ["node1", "kafka", "running", "healthy", "-", "0", "abc", "2026-01-01T00:00:00Z"]
    assert "Consumer lag      3 Kafka records\n" in text
    assert "Under-replicated  0 of 4 partitions\n" in text
    assert "Brokers' disks    node1 79 % of 100 GiB, node2 79 % of 100 GiB\n" in text
    assert [each["percent"] for each in report["disks"]] == [79, 79]
    assert text.endswith("All is well.\n")


WRONG: list[tuple[Callable[[World], object], str]] = [
    (
        lambda w: w.answers.update(node2={"unreachable": True, "msg": "Failed to connect\nto the host"}),
        "node2: cannot be asked: Failed to connect to the host",
    ),
    (lambda w: w.answers["node2"].update(why="no daemon", containers={}), "node2: its engine does not answer: no daemon"),
    (
        lambda w: w.answers["node1"]["containers"].pop("i-kafka-node1"),
        "i-kafka-node1 on node1: is missing. To make it: ansible-playbook site.yml",
    ),
    (
        lambda w: w.answers["node2"]["containers"].pop("i-vehicle-node2"),
        "i-vehicle-node2 on node2: is missing. To make it: ansible-playbook fleet.yml",
    ),
    (
        lambda w: w.one("kafka", "node1").update(state="exited", exit_code=137, out_of_memory=True),
        "i-kafka-node1 on node1: is exited with status 137, out of memory since 2026-01-01T00:00:00Z",
    ),
    (lambda w: w.one("kafka", "node1").update(state="created", since=""), "i-kafka-node1 on node1: is created"),
    (lambda w: w.one("kafka", "node1").update(health="unhealthy"), "i-kafka-node1 on node1: its health is unhealthy"),
    (lambda w: w.one("kafka", "node1").update(health="starting"), "i-kafka-node1 on node1: its health is starting"),
    (
        lambda w: w.one("producer", "node1").update(ready=False, reasons=["Kafka is away", "so it is"]),
        "i-producer-node1 on node1: is not ready: Kafka is away; so it is",
    ),
    (
        lambda w: w.one("vehicle", "node2").update(degraded=["a spool is full"]),
        "i-vehicle-node2 on node2: works in part only: a spool is full",
    ),
    (
        lambda w: w.one("kafka", "node1").update(
            unit={"LoadState": "loaded", "ActiveState": "failed", "SubState": "dead", "UnitFileState": "disabled", "NRestarts": "3"}
        ),
        "i-kafka-node1 on node1: its unit is failed (dead)",
    ),
    (
        lambda w: w.one("kafka", "node1").update(unit={"LoadState": "not-found", "NRestarts": "0"}),
        "i-kafka-node1 on node1: its unit is not-found. To write it: ansible-playbook site.yml",
    ),
    (
        lambda w: w.answers["node1"]["topic"]["partitions"][2].update(in_sync=1),
        "partitions of telemetry with too few replicas in sync: 2",
    ),
    (lambda w: w.answers["node2"]["topic"]["partitions"][3].update(leader=-1), "partitions of telemetry without a leader: 3"),
    (
        lambda w: [w.answers[node].update(topic={"error": "no broker"}) for node in KINDS],
        "under-replicated partitions are not known: no broker",
    ),
    (
        lambda w: [w.answers[node].update(topic={}) for node in KINDS],
        "under-replicated partitions are not known: no producer or consumer runs that could ask",
    ),
    (
        lambda w: w.one("consumer", "node2")["lag"].pop("1"),
        "consumer lag is not known of partitions 1: no ready consumer reads them",
    ),
    (
        lambda w: w.one("consumer", "node2").update(ready=False, reasons=["Postgres is away"]),
        "consumer lag is not known of partitions 0, 1, 2, 3: no ready consumer reads them",
    ),
    (
        lambda w: w.one("consumer", "node2")["lag"].update({"0": 99}),
        "consumers are 101 Kafka records behind, more than 100 (status_lag)",
    ),
    (
        lambda w: w.one("kafka", "node2")["disk"].update(used=79 * 2**30 + 1),
        "i-kafka-node2 on node2: its disk is 80 % full, at least 80 (status_disk). "
        "Give it room, or lower kafka_topic_retention_hours",
    ),
    (
        lambda w: w.one("kafka", "node1").update(disk={"error": "/x: No such file or directory"}),
        "i-kafka-node1 on node1: its disk is not known: /x: No such file or directory",
    ),
    (
        lambda w: w.answers["node1"]["containers"].update({"i-nginx-node9": w.one("kafka", "node1")}),
        "i-nginx-node9 on node1: is left over, the inventory does not know it. To remove it: docker rm --force i-nginx-node9",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "reason"), WRONG, ids=[reason for _, reason in WRONG])
def test_every_fault_is_a_reason_and_in_the_table(spoil: Callable[[World], object], reason: str) -> None:
    world = World()
    spoil(world)
    report = world.report()
    assert reason in report["reasons"]
    assert not report["well"]
    assert f"- {reason}" in status.text(report).splitlines()


def test_what_nobody_could_tell_is_unknown() -> None:
    world = World()
    world.answers = {node: {"unreachable": True, "msg": "no route"} for node in KINDS}
    report = world.report()
    assert report["kafka"]["under_replicated"] is None
    assert report["lag"]["records"] is None
    # Missing would mean that somebody looked
    assert report["missing"] == []
    text = status.text(report)
    assert "Under-replicated  unknown: no producer or consumer runs that could ask\n" in text
    assert "Consumer lag      unknown\n" in text
    assert "Brokers' disks    unknown\n" in text
    assert [line.split()[:4] for line in text.splitlines()[1:3]] == [[node, "-", "no", "answer"] for node in KINDS]


def test_the_worst_that_a_machine_was_told_of_kafka_counts() -> None:
    world = World()
    world.answers["node2"]["topic"]["partitions"][0]["in_sync"] = 1
    assert world.report()["kafka"]["under_replicated"] == [0]
    world.answers["node1"]["topic"] = {"error": "no broker"}
    assert world.report()["kafka"]["under_replicated"] == [0]


def test_a_limited_run_neither_misses_nor_blames_what_it_did_not_look_at() -> None:
    world = World()
    del world.looks["node2"]
    world.answers["node1"]["containers"]["i-kafka-node2"] = world.one("kafka", "node2")
    report = world.report()
    assert report["reasons"] == []
    assert report["leftovers"] == []
    assert status.text(report).endswith("What was looked at is well.\n")


def test_an_inventory_without_our_groups_is_not_well() -> None:
    report = status.report({}, {}, [], 4, 100, 80)
    assert report["reasons"] == ["no container is looked for: the inventory has no host in any of our groups"]


def test_restarts_are_those_of_the_supervisor() -> None:
    world = World()
    unit = {"LoadState": "loaded", "ActiveState": "active", "SubState": "running", "UnitFileState": "enabled", "NRestarts": "7"}
    world.one("kafka", "node1").update(unit=unit, restarts=1)
    world.one("postgres", "node1").update(restarts=2)
    restarts = {each["kind"]: each["restarts"] for each in world.report()["services"] if each["host"] == "node1"}
    assert restarts == {"kafka": 7, "postgres": 2, "producer": 0}


ANSWERS = {
    "/readyz": (503, b'{"ready": false, "reasons": ["Postgres is away"], "degraded": []}'),
    "/version": (200, b'{"service": "consumer", "name": "n", "version": "1.2.3", "live": {}}'),
    "/metrics": (200, b'# HELP telemetry_lag x\ntelemetry_lag{partition="0"} 12.0\ntelemetry_lag{partition="10"} 0.0\nother 3\n'),
}


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """Where a service answers, as the parameter says."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, body = request.param[self.path]
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {"address": "127.0.0.1", "port": server.server_port}
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("place", [ANSWERS], indirect=True)
def test_a_service_is_asked_for_its_reasons_its_version_and_its_lag(place: dict[str, Any]) -> None:
    assert machine.ask_service({"kind": "consumer", "places": [place]}) == {
        "ready": False,
        "reasons": ["Postgres is away"],
        "degraded": [],
        "service_version": "1.2.3",
        "lag": {"0": 12, "10": 0},
    }


@pytest.mark.parametrize("place", [{"/readyz": (200, b"<html>")}], indirect=True)
def test_a_stranger_on_the_port_is_no_ready_service(place: dict[str, Any]) -> None:
    answer = machine.ask_service({"kind": "producer", "places": [place]})
    assert not answer["ready"]
    assert "no answer of ours" in answer["reasons"][0]


def test_a_service_that_does_not_answer_is_not_ready() -> None:
    answer = machine.ask_service({"kind": "producer", "places": [{"address": "127.0.0.1", "port": 1}]})
    assert answer == {
        "ready": False,
        "reasons": ["http://127.0.0.1:1/readyz does not answer: [Errno 111] Connection refused"],
        "degraded": [],
    }


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts commands first in the path."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def put(name: str, script: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)

    return put


def test_kafka_is_asked_from_another_container_where_one_cannot(commands: Callable[[str, str], None]) -> None:
    commands("docker", """[ "$2" = b ] || { echo '{"error": "no broker"}'; exit 1; }; echo '{"topic": "t", "partitions": []}'""")
    assert machine.ask_topic(["a"]) == {"error": "no broker"}
    assert machine.ask_topic(["a", "b"]) == {"topic": "t", "partitions": []}
    assert machine.ask_topic([]) == {}


def test_the_disk_of_a_broker_is_that_of_its_volume(tmp_path: Path) -> None:
    found = machine.disk_of({"Mounts": [{"Type": "bind", "Source": "/proc"}, {"Type": "volume", "Source": str(tmp_path)}]})
    assert 0 < found["used"] < found["bytes"] <= os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize
    missing = {"Mounts": [{"Type": "volume", "Source": str(tmp_path / "gone")}]}
    assert machine.disk_of(missing) == {"error": f"{tmp_path}/gone: No such file or directory"}
    assert "error" in machine.disk_of({"Mounts": []})


def test_units_are_told_by_their_container(commands: Callable[[str, str], None]) -> None:
    commands("systemctl", "printf 'Id=a.service\\nLoadState=loaded\\nNRestarts=2\\n\\nId=b.service\\nLoadState=not-found\\n'")
    units = machine.ask_units(["a", "b"])
    assert (units["a"]["NRestarts"], units["b"]["LoadState"]) == ("2", "not-found")
    assert machine.ask_units([]) == {}


def test_an_engine_that_hangs_is_an_answer(commands: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "DOCKER_TIMEOUT", 0.1)
    commands("docker", "exec sleep 5")
    with pytest.raises(machine.NoAnswer, match="docker version did not answer"):
        machine.run("docker", "version", timeout=0.1)


def test_the_script_answers_in_json_alone_and_by_its_status(tmp_path: Path) -> None:
    """Against hosts that do not answer: the rest is for the system tests."""
    inventory = tmp_path / "inventory.yml"
    inventory.write_text(
        "{kafka: {hosts: {away: {ansible_host: 127.0.0.1, ansible_port: 1, node_address: 198.51.100.1, kafka_broker_id: 1}}}}"
    )
    done = subprocess.run(["scripts/status.sh", "json", "-i", str(inventory)], cwd=ROOT, capture_output=True, text=True)
    answer = json.loads(done.stdout)
    assert done.returncode == 1
    assert answer["reasons"][0].startswith("away: cannot be asked:")
    inventory.unlink()
    done = subprocess.run(["scripts/status.sh", "json", "-i", str(inventory)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "inventory" in done.stderr
