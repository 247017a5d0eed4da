"""Services change one at a time while senders drive, and not while the cluster is not well or the first cannot do its work."""

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
from system.deployment import (
    CONSUMERS,
    INVENTORY,
    PRODUCERS,
    ROOT,
    Database,
    all_ready,
    container,
    docker,
    main_process,
    play,
    ready,
    started,
    wait_for,
)
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


BAD = [
    # Kind, where it listens, a setting that lets it start and never be ready, and a word of the reason
    ("producer", PRODUCERS, {"kafka_client": {"security_protocol": "SSL"}}, "Kafka"),
    ("consumer", CONSUMERS, {"postgres_client": {"sslmode": "require"}}, "SSL"),
]


@pytest.mark.parametrize(("kind", "urls", "setting", "word"), BAD, ids=[each[0] for each in BAD])
def test_a_setting_that_keeps_services_from_their_work_stops_at_the_first(
    before: dict[str, str], database: Database, kind: str, urls: list[str], setting: dict[str, Any], word: str
) -> None:
    wait_for("all services ready", all_ready)
    arguments = ("site.yml", "--tags", f"{kind}s", "-e", "container_ready_timeout=20")
    with driving() as senders:
        log = play(f"bad-{kind}", *arguments, "-e", json.dumps(setting), refused=True).log
        broken = {name for name, state in started().items() if state != before[name]}
        # The same again goes no further: what is broken already is no reason to break others
        again = play(f"bad-{kind}-again", *arguments, "-e", json.dumps(setting), refused=True).log
        assert {name for name, state in started().items() if state != before[name]} == broken
    check(database, senders)
    assert len(broken) == 1
    [name] = broken
    for said in (log, again):
        words = " ".join(said.split())
        assert re.search(rf"{name} on \w+ runs, but cannot do its work after 20 s \(container_ready_timeout\): .*{word}", words), (
            words[-3000:]
        )
    assert sum(ready(url)["ready"] for url in urls) == len(urls) - 1
    # The repair begins with the one that is broken, and leaves the others alone
    play(f"good-{kind}", *arguments)
    assert {name for name, state in started().items() if state != before[name]} == broken
    wait_for("all services ready", all_ready)


def test_postgres_is_left_alone_by_what_it_cannot_start_with(before: dict[str, str]) -> None:
    # Its first line would restart it; both are tried before it is stopped
    setting = {"postgres_config": {"max_files_per_process": 900, "work_mem": "'3 apples'"}}
    log = play("postgres-bad", "site.yml", "--tags", "postgres", "-e", json.dumps(setting), refused=True).log
    assert re.search(r'cannot work: .*invalid value for parameter "work_mem": "3 apples"', " ".join(log.split()))
    assert started() == before


def test_postgres_and_nginx_take_by_a_reload_what_they_can(before: dict[str, str], database: Database) -> None:
    setting = {
        "postgres_config": {"work_mem": "'5MB'"},
        "postgres_reader_networks": ["192.0.2.0/24"],
        "nginx_server_name": "fleet.example",
    }
    arguments = ("site.yml", "--tags", "postgres,nginx", "-e", json.dumps(setting))
    assert play("reload", *arguments).changed == 3
    assert play("reload-again", *arguments).changed == 0
    assert started() == before
    assert database.value("SELECT setting FROM pg_settings WHERE name = 'work_mem'") == "5120"
    assert database.value("SELECT count(*) FROM pg_hba_file_rules WHERE address = '192.0.2.0'") == 1
    assert "server_name fleet.example;" in docker(
        "exec", container("nginx", "node2"), "nginx", "-T", "-c", "/etc/tachograph/live/nginx.conf"
    )
    play("reload-back", "site.yml", "--tags", "postgres,nginx")
    assert started() == before
    assert database.value("SELECT count(*) FROM pg_hba_file_rules WHERE address = '192.0.2.0'") == 0


def test_what_restarts_postgres_is_what_it_reads_at_its_start_alone(database: Database) -> None:
    variables = yaml.safe_load((ROOT / "roles/postgres/vars/main.yml").read_text())
    known = {
        each for [each] in database.rows("SELECT name FROM pg_settings WHERE context = 'postmaster' AND name <> 'config_file'")
    }
    assert known == set(variables["__postgres_at_start"])


def test_a_setting_of_the_topic_that_nobody_wants_any_more_is_taken_back(before: dict[str, str]) -> None:
    def overrides() -> str:
        return describe("--topics-with-overrides") + describe("--topic", "telemetry")

    play("flush", "site.yml", "--tags", "kafka", "-e", "kafka_flush_every_record=true")
    assert "flush.messages=1" in overrides()
    assert play("flush-dry", "site.yml", "--tags", "kafka", "--check").changed == 1
    assert play("flush-back", "site.yml", "--tags", "kafka").changed == 1
    assert "flush.messages" not in overrides()
    assert play("flush-again", "site.yml", "--tags", "kafka").changed == 0
    assert started() == before
