"""Brokers change one at a time while senders drive, and not at all while the cluster is not well or too few would be left."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from system.deployment import INVENTORY, Database, container, docker, main_process, play, started, wait_for
from system.sender import check, driving

RESTART = "container_restart={} container_restart_kinds=kafka"


def births() -> list[float]:
    """When each broker's container was started, in order."""
    names = [container("kafka", f"node{n}") for n in (1, 2, 3)]
    states = [each["State"] for each in json.loads(docker("inspect", *names))]
    return sorted(time.mktime(time.strptime(state["StartedAt"][:19], "%Y-%m-%dT%H:%M:%S")) for state in states)


@pytest.fixture
def before(summary: dict[str, Any]) -> dict[str, str]:
    """All containers as they are."""
    return started()


def test_a_rolling_restart_of_all_brokers_is_hardly_noticed(before: dict[str, str], database: Database) -> None:
    text = f"test-{time.time()}"
    with driving() as senders:
        play("rolling", "site.yml", "-e", RESTART.format(text))
    check(database, senders)
    after = started()
    assert {name for name in before if after[name] != before[name]} == {container("kafka", f"node{n}") for n in (1, 2, 3)}
    # One at a time: none was started before the one before it had been for a while, in sync again
    first, second, third = births()
    assert min(second - first, third - second) > 3
    seconds = sorted(each for sender in senders for each in sender.seconds)
    tries, uploads = len(seconds), sum(sender.uploads for sender in senders)
    slow = seconds[math.ceil(0.99 * tries) - 1]
    print(f"rolling restart of three brokers: {uploads} uploads, {tries - uploads} repeated, p99 {slow:.2f} s")
    assert slow < 2
    assert tries - uploads <= 0.01 * uploads
    # The same text again asks for nothing
    assert play("rolling-again", "site.yml", "-e", RESTART.format(text)).changed == 0
    assert started() == after


def test_no_broker_is_stopped_while_another_is_behind(before: dict[str, str]) -> None:
    away = wait_for("a broker", lambda: main_process(container("kafka", "node3")))
    os.kill(away, signal.SIGSTOP)
    try:
        wait_for("replicas to be behind", lambda: describe("--under-replicated-partitions"), 120)
        arguments = ["-e", RESTART.format(time.time()), "-e", "kafka_in_sync_timeout=5"]
        log = play("refused-behind", "site.yml", *arguments, refused=True).log
    finally:
        os.kill(away, signal.SIGCONT)
    assert "Kafka is not in sync after 5 s" in log
    assert "broker 3 lacks" in log
    assert started() == before
    wait_for("replicas in sync", lambda: not describe("--under-replicated-partitions"), 90)


def describe(*arguments: str) -> str:
    """What Kafka's own tool says of all topics."""
    # One that hangs is given up soon, and another is asked
    patience = "--command-config <(printf '%s\\n' request.timeout.ms=4000 default.api.timeout.ms=16000)"
    tool = "java -Xmx96m -Dlog4j.configuration=file:/etc/tachograph/log4j-tools.properties -cp '/opt/kafka/libs/*'"
    asked = (
        f"{tool} org.apache.kafka.tools.TopicCommand --bootstrap-server 127.0.1.11:9092 {patience} --describe {' '.join(arguments)}"
    )
    return docker("exec", container("kafka", "node1"), "bash", "-c", asked).strip()


def test_too_few_brokers_for_the_factor_are_refused_before_anything_changes(before: dict[str, str], tmp_path: Path) -> None:
    inventory = yaml.safe_load(INVENTORY.read_text())
    del inventory["all"]["children"]["kafka"]["hosts"]["node3"]
    file = tmp_path / "inventory.yml"
    file.write_text(yaml.safe_dump(inventory))
    log = play("refused-few", "site.yml", inventory=file, refused=True).log
    # Whoever writes in transactions makes a topic of Kafka's own beside these
    assert re.search(
        r"Group kafka has 2 brokers \(node1, node2\), which cannot hold __consumer_offsets .*telemetry \(factor 3\)\.", log
    )
    assert started() == before
