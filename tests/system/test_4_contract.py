"""Ansible as a contract: a dry run predicts exactly, limits and tags narrow, a killed run is completed by the next."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import requests
from system.deployment import (
    BUILD,
    INSTANCE,
    NODES,
    ROOT,
    VEHICLES,
    Database,
    all_healthy,
    all_ready,
    begin,
    container,
    containers,
    docker,
    play,
    set_for_all_runs,
    started,
    wait_for,
)
from system.test_2_fleet import grows, undeclared, vehicles, whole

CONFIGURATION = Path("/etc/tachograph") / INSTANCE
JSON = "ansible.posix.json"
TASK = re.compile(r"^TASK \[(.*)\]", re.MULTILINE)


SECRETS = ROOT / "secrets" / INSTANCE


def topic(program: str, *arguments: str) -> str:
    """Run one of Kafka's tools on the topic, as somebody would by hand."""
    tool = f"java -Dlog4j.configuration=file:/etc/tachograph/log4j-tools.properties -cp '/opt/kafka/libs/*' {program}"
    command = f"{tool} --bootstrap-server {NODES['node1']}:9092 {' '.join(arguments)}"
    return docker("exec", container("kafka", "node1"), "bash", "-c", command)


def test_a_dry_run_predicts_exactly_what_a_run_changes(database: Database) -> None:
    """Seven are not as they should be: a setting, a limit, a container, a file, the topic, a password and a row of the schema."""
    set_for_all_runs(
        kafka_config="{{ {'log.cleaner.threads': 2} if inventory_hostname == 'node3' else {} }}",
        consumer_memory="{{ '260m' if inventory_hostname == 'node2' else '256m' }}",
    )
    docker("rm", "--force", container("producer", "node1"))
    file = CONFIGURATION / "nginx-node2" / "nginx.conf"
    file.write_text(file.read_text() + "# by hand\n")
    change = ("--entity-type", "topics", "--entity-name", "telemetry", "--alter", "--add-config", "min.insync.replicas=1")
    topic("kafka.admin.ConfigCommand", *change)
    database.run("ALTER ROLE telemetry_reader PASSWORD 'by hand'; UPDATE retention SET days = 7")
    before = started()

    predicted = play("predicted", "site.yml", "--check", "--diff", callback=JSON).changes()
    assert started() == before
    real = play("real", "site.yml", callback=JSON).changes()
    assert {*predicted} == {*real}

    hosts = {task: {host for host, each in predicted if each == task} for _, task in predicted}
    assert hosts.pop("container : Stop the container by Docker") == {"node2", "node3"}
    assert hosts.pop(f"container : Make {INSTANCE}-producer") == {"node1"}
    assert hosts.pop(f"container : Write the files of {INSTANCE}-nginx") == {"node2"}
    assert hosts.pop("postgres : Make the database and its tables") == {"node1"}
    assert hosts.pop("postgres : Set the passwords that do not log in") == {"node1"}
    assert [task for task in hosts if "topic" in task]
    shown = str(list(predicted.values()))
    assert "log.cleaner.threads=2" in shown
    assert "# by hand" in shown
    said = (BUILD / "predicted.log").read_text() + (BUILD / "real.log").read_text()
    assert not [file for file in SECRETS.iterdir() if file.read_text().strip() in said]

    assert "min.insync.replicas=2" in topic("org.apache.kafka.tools.TopicCommand", "--topic", "telemetry", "--describe")
    assert database.value("SELECT days FROM retention") == 30
    assert docker("inspect", "--format", "{{.HostConfig.Memory}}", container("consumer", "node2")).strip() == str(260 << 20)
    password = (SECRETS / "postgres_reader").read_text().strip()
    psycopg2.connect(host=NODES["node1"], dbname="av_telemetry", user="telemetry_reader", password=password).close()
    wait_for("all services ready", all_ready, 120)


def test_a_limit_of_one_host_is_about_that_host(database: Database) -> None:
    others = {name: when for name, when in started().items() if not name.endswith("node3")}
    fleet = requests.get(f"{VEHICLES[2]}/fleet", timeout=5).json()
    assert play("limited", "site.yml", "fleet.yml", "--limit", "node2").changed == 0
    play("limited-stop", "teardown.yml", "--limit", "node3")
    assert {*containers()} == {*others}
    assert [folder for folder in CONFIGURATION.iterdir() if folder.name.endswith("node3")] == []
    play("limited-start", "site.yml", "fleet.yml", "--limit", "node3")
    after = started()
    assert {name: when for name, when in after.items() if name in others} == others
    assert len(after) > len(others)
    wait_for("all healthy", all_healthy, 120)
    # Its share of a fleet whose size only the others knew
    again = requests.get(f"{VEHICLES[2]}/fleet", timeout=5).json()
    assert (again["num_vehicles"], again["here"]) == (fleet["num_vehicles"], fleet["here"])


def test_a_limit_never_takes_what_other_hosts_share(summary: dict[str, Any]) -> None:
    would = play("limited-destroy", "teardown.yml", "--limit", "node3", "--check", "-e", "teardown_data=true").log
    assert f"removed volume {container('kafka', 'node3')}-data" in would
    assert not re.search("removed .*(node1|node2|secrets|image)", would)


def test_tags_narrow(summary: dict[str, Any]) -> None:
    run = play("tags", "site.yml", "fleet.yml", "--tags", "kafka", callback=JSON)
    assert run.changes() == {}
    asked = {result["container"]["Name"] for _, _, result in run.results() if result.get("container")}
    assert asked == {f"/{container('kafka', node)}" for node in NODES}


def in_force(name: str, value: int) -> bool:
    """Whether a container, and the configuration that it was made with, has a value."""
    files = CONFIGURATION / name.removeprefix(f"{INSTANCE}-")
    seen = docker("inspect", name) + "".join(file.read_text() for file in files.iterdir() if file.is_file())
    return bool(re.search(rf"[ =]{value}\b", seen))


# Tag, kind, variable, and its value from a number of its own
SETTINGS_OF = [
    ("producers", "producer", "producer_commit_window_ms", "{}"),
    ("consumers", "consumer", "consumer_batch_rows", "{}"),
    ("nginx", "nginx", "nginx_worker_connections", "{}"),
    ("postgres", "postgres", "postgres_config", "{{'vacuum_cost_limit': {}}}"),
    ("zookeeper", "zookeeper", "zookeeper_config", "{{'minSessionTimeout': {}}}"),
    ("kafka", "kafka", "kafka_config", "{{'log.segment.delete.delay.ms': {}}}"),
]


def killed_and_completed(database: Database, seed: int, most: int, setting: tuple[str, str, str, str], *arguments: str) -> None:
    """Change a setting, kill the run at a random task of `most`, which it certainly has, and run again."""
    chance = random.Random(seed)
    lost = undeclared(database)
    _, kind, variable, shape = setting
    value = 501 + seed
    set_for_all_runs(**{variable: "{{ " + shape.format(value) + " }}"})
    tasks = chance.randrange(1, most)
    run = begin("ansible-playbook", "site.yml", *arguments)
    assert run.stdout
    said = ""
    while len(TASK.findall(said)) < tasks and (line := run.stdout.readline()):
        said += line
    # Anywhere within the task
    with contextlib.suppress(subprocess.TimeoutExpired):
        run.wait(chance.random())
    assert run.poll() is None, said
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    (BUILD / f"killed-{seed}.log").write_text(said)
    print(f"killed after {tasks} tasks, in {TASK.findall(said)[-1]}")

    play(f"killed-{seed}-again", "site.yml", *arguments)
    wait_for("all healthy", all_healthy, 120)
    names = [name for name in containers() if name.startswith(f"{INSTANCE}-{kind}-")]
    assert all(in_force(name, value) for name in names)
    assert play(f"killed-{seed}-third", "site.yml", *arguments).changed == 0
    wait_for("all services ready", all_ready, 120)
    vins = vehicles()
    grows(database, vins)
    assert whole(database, vins)
    assert undeclared(database) == lost


@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_was_killed_is_completed_by_the_next(database: Database, seed: int) -> None:
    setting = SETTINGS_OF[seed]
    killed_and_completed(database, seed, 30, setting, "--tags", setting[0])


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 120))
def test_any_run_that_was_killed_is_completed_by_the_next(database: Database, seed: int) -> None:
    killed_and_completed(database, seed, 90, SETTINGS_OF[seed % len(SETTINGS_OF)])
