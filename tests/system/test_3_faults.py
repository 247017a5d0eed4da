"""Whatever single part dies, what was acknowledged is there: once, in order; and no hand is needed."""

from __future__ import annotations

import http.client
import itertools
import json
import math
import os
import signal
import threading
import time
from collections import Counter
from functools import partial
from typing import Any

import pytest
import requests
from system.deployment import (
    BOOTSTRAP,
    CONSUMERS,
    NGINX,
    NODES,
    PRODUCERS,
    Database,
    all_healthy,
    all_ready,
    container,
    docker,
    main_process,
    memory,
    ready,
    wait_for,
)
from system.sender import Sender, check, driving, new_vin, post, upload


def wait_until_acknowledged_again(senders: list[Sender], seconds: float = 60) -> None:
    """Every sender gets further than it is now."""
    before = [sender.acknowledged for sender in senders]
    wait_for(
        "uploads acknowledged again",
        lambda: all(sender.acknowledged > was for sender, was in zip(senders, before, strict=True)),
        seconds,
    )


KINDS = [
    ("zookeeper", "node1"),
    ("kafka", "node2"),
    ("postgres", "node1"),
    ("nginx", "node1"),
    ("producer", "node2"),
    ("consumer", "node3"),
    ("vehicle", "node2"),
]


def runs_again(name: str, process: int) -> bool:
    """Whether the container has another main process."""
    return main_process(name) not in (0, process)


def test_kill_9_of_any_main_process_loses_nothing_and_needs_no_hand(database: Database) -> None:
    with driving() as senders:
        for kind, node in KINDS:
            name = container(kind, node)
            process = wait_for(f"{name} to run", partial(main_process, name))
            os.kill(process, signal.SIGKILL)
            wait_for(f"{name} to run again", partial(runs_again, name, process))
            wait_until_acknowledged_again(senders)
            wait_for("all healthy", all_healthy, 120)
    check(database, senders)
    wait_for("all ready", all_ready, 120)


@pytest.mark.parametrize(("kind", "node"), KINDS)
def test_docker_restart_loses_nothing_and_needs_no_hand(database: Database, kind: str, node: str) -> None:
    with driving() as senders:
        docker("restart", container(kind, node))
        wait_until_acknowledged_again(senders)
    check(database, senders)
    wait_for("all healthy and ready", lambda: all_healthy() and all_ready(), 120)


def test_without_postgres_uploads_are_acknowledged_and_stored_later(database: Database) -> None:
    vin = new_vin()
    docker("pause", container("postgres", "node1"))
    try:
        assert post(upload(vin, range(1, 4))).status_code == 200
        body = wait_for("a consumer that says so", not_ready, 40)
        assert "ostgres" in str(body["reasons"])
    finally:
        docker("unpause", container("postgres", "node1"))
    wait_for("the rows", lambda: database.value(f"SELECT count(*) FROM diag WHERE vin = '{vin}'") == 3, 90)
    wait_for("all ready", all_ready, 90)


def not_ready() -> dict[str, Any] | None:
    """The first consumer that is not ready."""
    post(upload(new_vin(), [1]))
    return next((body for body in map(ready, CONSUMERS) if not body["ready"]), None)


def test_below_the_minimum_in_sync_nothing_is_acknowledged_and_then_all_is(database: Database) -> None:
    vin = new_vin()
    assert post(upload(vin, [1])).status_code == 200
    brokers = [container("kafka", "node1"), container("kafka", "node3")]
    docker("pause", *brokers)
    try:
        begun = time.monotonic()
        [answer] = wait_for("a refusal", lambda: refused(vin), 60)
        assert answer.json()["error"]
        assert int(answer.headers.get("Retry-After", "1")) >= 1
        wait_for("producers that say so", lambda: not any(ready(url)["ready"] for url in PRODUCERS), 60)
        assert time.monotonic() - begun < 120
    finally:
        docker("unpause", *brokers)
    wait_for("an acknowledgement", lambda: post(upload(vin, [2])).status_code == 200, 90)
    wait_for(
        "the rows", lambda: [row[0] for row in database.rows(f"SELECT seq FROM diag WHERE vin = '{vin}' ORDER BY id")] == [1, 2], 90
    )
    wait_for("all ready", all_ready, 90)


def refused(vin: str) -> list[requests.Response]:
    """A 503, or nothing; one that is acknowledged meanwhile is the same record, and harmless."""
    answer = requests.post(f"{NGINX}/events", json=upload(vin, [2]), timeout=30)
    return [answer] if answer.status_code == 503 else []


def test_a_producer_that_is_asked_to_end_answers_what_it_accepted(summary: dict[str, Any]) -> None:
    """Whatever was on its way when it was asked is acknowledged; what comes later is refused, or finds nobody."""
    stop, outcomes, vin = threading.Event(), [], new_vin()

    def send(number: int) -> None:
        seq, client = 1, http.client.HTTPConnection(PRODUCERS[2].removeprefix("http://"), timeout=30)
        while not stop.is_set():
            posted = math.inf
            try:
                body = json.dumps(upload(vin, [seq], epoch=number))
                client.request("POST", "/events", body, {"Content-Type": "application/json"})
                # Not before all of it is with the producer's machine: only then it can have been accepted
                posted = time.monotonic()
                answer = client.getresponse()
                answer.read()
                status = answer.status
            except (OSError, http.client.HTTPException):
                client.close()
                status = 0
            outcomes.append((posted, status))
            seq += status == 200

    threads = [threading.Thread(target=send, args=(number,), daemon=True) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    wait_for("uploads to be answered", lambda: len(outcomes) > 200)
    asked = time.monotonic()
    docker("stop", container("producer", "node3"))
    stop.set()
    try:
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
    finally:
        docker("start", container("producer", "node3"))
    assert {status for posted, status in outcomes if posted < asked} == {200}
    assert {status for posted, status in outcomes} <= {200, 503, 0}
    assert max(posted for posted, status in outcomes if status == 200) > asked - 1
    wait_for("all healthy and ready", lambda: all_healthy() and all_ready(), 120)


def test_a_topic_that_was_weakened_by_hand_makes_producers_not_ready_within_a_minute(summary: dict[str, Any]) -> None:
    def configure(change: str) -> None:
        # As small as the role's own tools: the broker has most of its container's memory
        options = "-Xmx96m -XX:+UseSerialGC -Dlog4j.configuration=file:/etc/tachograph/log4j-tools.properties"
        tool = f"java {options} -cp '/opt/kafka/libs/*' kafka.admin.ConfigCommand"
        docker(
            "exec", container("kafka", "node1"), "bash", "-c",
            f"{tool} --bootstrap-server {BOOTSTRAP[0]} --entity-type topics --entity-name telemetry --alter {change}",
        )  # fmt: skip

    configure("--add-config min.insync.replicas=1")
    try:
        # A minute between two looks, and what a look may take
        wait_for("producers that say so", lambda: not any(ready(url)["ready"] for url in PRODUCERS), 105)
        assert "min.insync.replicas=1" in str(ready(PRODUCERS[0])["reasons"])
    finally:
        configure("--add-config min.insync.replicas=2")
    wait_for("all ready", all_ready, 105)


@pytest.mark.long
def test_ten_minutes_without_brokers_under_load_cost_a_producer_no_more_memory_than_the_first(summary: dict[str, Any]) -> None:
    stop, vin, name = threading.Event(), new_vin(), container("producer", "node1")
    statuses: Counter[int] = Counter()

    def send(number: int) -> None:
        for seq in itertools.count(1):
            if stop.is_set():
                return
            statuses[post(upload(vin, range(seq * 50 + 1, seq * 50 + 51), epoch=number), PRODUCERS[0]).status_code] += 1

    brokers = [container("kafka", node) for node in NODES]
    threads = [threading.Thread(target=send, args=(number,), daemon=True) for number in range(1, 33)]
    docker("stop", *brokers)
    try:
        for thread in threads:
            thread.start()
        used = []
        for _ in range(10):
            time.sleep(60)
            used.append(memory(name) / 2**20)
    finally:
        stop.set()
        docker("start", *brokers)
        for thread in threads:
            thread.join(40)
    print(f"MiB after each minute: {[round(each) for each in used]}; answers {dict(statuses)}")
    assert set(statuses) == {503}
    # The queue is full, if ever, within the first minutes
    assert max(used[2:]) < max(used[:2]) + 32
    wait_for("all healthy and ready", lambda: all_healthy() and all_ready(), 180)
