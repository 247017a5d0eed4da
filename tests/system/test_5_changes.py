"""Hosts come, go and are lost while the proof's own fleet drives, and its verdict is clean. An instance of its own."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
import yaml
from interface.roles import module
from system.deployment import BUILD, INVENTORY, ROOT, docker, have_engine, play, wait_for

pytestmark = pytest.mark.long

NAME = "tachograph-changes"
kafka = module("roles/kafka/filter_plugins/kafka.py")
RATE = 100
"""Records a second that the proof's fleet makes."""


PROOF = [sys.executable, "-W", "ignore", "-m", "proof"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "services")}


def proof(command: str, *arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """One command of the proof's package, as verify.yml runs it."""
    return subprocess.run(
        [*PROOF, command, *map(str, arguments)], env=ENVIRONMENT, input=stdin, capture_output=True, text=True, check=False
    )


def ask(folder: Path, ended: threading.Event) -> None:
    """The fleet ends when nobody asks for it."""
    while not ended.wait(30):
        (folder / "heartbeat").touch()


class Cluster:
    """The inventory, which changes, and what stands of it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "inventory.yml"
        self.inventory = copy.deepcopy(yaml.safe_load(INVENTORY.read_text()))["all"]
        self.inventory["vars"] |= {"instance": NAME, "self_check_summary_file": str(folder / "summary.json")}
        for number in (1, 2, 3):
            self.inventory["hosts"][f"node{number}"]["node_address"] = f"127.0.1.3{number}"
        self.inventory["children"]["nginx"]["hosts"] = {"node1": None, "node2": None}

    def add(self, node: str, number: int, **groups: dict[str, int] | None) -> None:
        """Put a host into some groups."""
        self.inventory["hosts"][node] = {"node_address": f"127.0.1.3{number}"}
        for group, values in groups.items():
            self.inventory["children"][group]["hosts"][node] = values

    def remove(self, node: str) -> None:
        """Take a host out of the inventory."""
        del self.inventory["hosts"][node]
        for group in self.inventory["children"].values():
            group["hosts"].pop(node, None)

    def play(self, name: str, *arguments: str) -> str:
        """Run playbooks with the inventory as it is now."""
        self.file.write_text(yaml.safe_dump({"all": self.inventory}))
        return play(f"changes-{name}", *arguments, inventory=self.file).log

    @contextmanager
    def proved(self, name: str) -> Iterator[None]:
        """Let the proof's fleet drive meanwhile, as before the change: all that it made has to be stored, and the verdict clean."""
        folder, report = self.file.parent / name, BUILD / f"changes-{name}.json"
        hosts, groups = self.inventory["hosts"], self.inventory["children"]

        def urls(group: str, port: int) -> list[str]:
            return [f"http://{hosts[node]['node_address']}:{port}" for node in groups[group]["hosts"]]

        config = {
            # It makes records at its rate until it is told to finish, and one at least
            "instance": NAME, "seed": name, "records": 1, "rate": RATE, "vehicles": 20, "forms": 2, "topic": "telemetry",
            # Services come and go
            "urls": urls("nginx", 8080), "services": [], "consumers": [],
            "postgres": {"host": "127.0.1.31", "port": 5432, "dbname": "av_telemetry", "user": "telemetry_reader"},
            "password_file": str(ROOT / "secrets" / NAME / "postgres_reader"),
        }  # fmt: skip
        proof("start", folder, stdin=json.dumps(config))
        driving = subprocess.Popen([*PROOF, "drive", str(folder)], env=ENVIRONMENT)
        ended = threading.Event()
        asking = threading.Thread(target=ask, args=(folder, ended), daemon=True)
        asking.start()
        try:
            assert proof("wait", folder, "--seconds", "120").returncode == 0
            yield
            assert proof("finish", folder, "--seconds", "600").returncode == 0
            judged = proof("judge", folder, "--report", str(report), stdin='{"lines": [], "secrets": [], "traces": []}')
            assert judged.returncode == 0, judged.stdout
            print(judged.stdout)
        finally:
            ended.set()
            (folder / "stop").touch()
            driving.wait(60)

    def containers(self) -> set[str]:
        """Kind and node of each container."""
        out = docker("ps", "--all", "--filter", f"label=tachograph.instance={NAME}", "--format", "{{.Names}}")
        return {name.removeprefix(f"{NAME}-") for name in out.split()}

    def held(self) -> tuple[Counter[int], Counter[int]]:
        """How many replicas each broker holds in sync, and how many partitions it leads."""
        tool = ["java", "-Xmx96m", "-Dlog4j.configuration=file:/etc/tachograph/log4j-tools.properties", "-cp", "/opt/kafka/libs/*"]
        said = docker(
            "exec", f"{NAME}-kafka-node1", *tool, "org.apache.kafka.tools.TopicCommand", "--bootstrap-server", "127.0.1.31:9092",
            "--describe",
        )  # fmt: skip
        partitions = [each for topic in kafka.kafka_topics(said).values() for each in topic["partitions"].values()]
        assert all(sorted(each["isr"]) == sorted(each["replicas"]) and len(each["isr"]) == 3 for each in partitions)
        assert "throttled" not in said
        return Counter(broker for each in partitions for broker in each["isr"]), Counter(each["leader"] for each in partitions)

    def members(self) -> dict[str, str]:
        """Mode of each member that the leader knows, by its id."""
        ask = 'exec 3<>/dev/tcp/$0/2181 && echo "$1" >&3 && cat <&3'
        said = docker("exec", f"{NAME}-zookeeper-node1", "bash", "-c", ask, "127.0.1.31", "conf")
        found = re.findall(r"^server\.(\d+)=.*;([\d.]+):2181$", said, re.MULTILINE)
        modes = {each: docker("exec", f"{NAME}-zookeeper-node1", "bash", "-c", ask, where, "srvr") for each, where in found}
        return {each: mode_of[1] for each, mode in modes.items() if (mode_of := re.search(r"^Mode: (\w+)$", mode, re.MULTILINE))}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes with a fleet of six vehicles."""
    made = Cluster(tmp_path_factory.mktemp("changes"))
    have_engine()
    made.play("clean", "teardown.yml", "-e", "teardown_data=true")
    made.play("up", "site.yml", "fleet.yml", "playbooks/self_check.yml", "-e", "num_vehicles=6")
    yield made
    made.play("down", "teardown.yml", "-e", "teardown_data=true")


def even(counts: Counter[int], brokers: list[int]) -> bool:
    return set(counts) == set(brokers) and max(counts.values()) - min(counts.values()) <= 1


def test_hosts_join(cluster: Cluster) -> None:
    with cluster.proved("join"):
        cluster.add(
            "node4", 4, zookeeper={"zookeeper_id": 4}, kafka={"kafka_broker_id": 4}, producers=None, consumers=None, nginx=None,
            vehicles=None,
        )  # fmt: skip
        cluster.add("node5", 5, zookeeper={"zookeeper_id": 5})
        cluster.play("join", "site.yml", "fleet.yml")
    held, led = cluster.held()
    assert even(held, [1, 2, 3, 4])
    assert even(led, [1, 2, 3, 4])
    assert sorted(cluster.members()) == ["1", "2", "3", "4", "5"]
    assert sorted(cluster.members().values()) == ["follower"] * 4 + ["leader"]
    assert requests.get("http://127.0.1.34:5003/fleet", timeout=5).json()["here"]
    assert " changed=0 " in cluster.play("join-again", "site.yml", "fleet.yml")


def test_hosts_leave(cluster: Cluster) -> None:
    with cluster.proved("leave"):
        cluster.remove("node5")
        # Still a host, so its vehicles can be asked whether they have delivered everything
        for group in cluster.inventory["children"].values():
            group["hosts"].pop("node4", None)
        cluster.play("leave", "site.yml", "fleet.yml")
    held, led = cluster.held()
    assert even(held, [1, 2, 3])
    assert even(led, [1, 2, 3])
    assert sorted(cluster.members()) == ["1", "2", "3"]
    assert not {name for name in cluster.containers() if name.endswith(("node4", "node5"))}
    assert f"{NAME}-kafka-node4-data" in docker("volume", "ls", "--format", "{{.Name}}")
    assert f"{NAME}-vehicle-node4-spool" in docker("volume", "ls", "--format", "{{.Name}}")


def test_a_host_lost_for_good_is_rebuilt_from_its_peers(cluster: Cluster) -> None:
    with cluster.proved("lost"):
        lost = [f"{NAME}-{name}" for name in cluster.containers() if name.endswith("-node3")]
        docker("rm", "--force", *lost)
        volumes = docker("volume", "ls", "--format", "{{.Name}}", "--filter", f"label=tachograph.instance={NAME}").split()
        docker("volume", "rm", *(name for name in volumes if "-node3-" in name))
        cluster.remove("node3")
        cluster.add(
            "node6", 6, zookeeper={"zookeeper_id": 3}, kafka={"kafka_broker_id": 3}, producers=None, consumers=None, vehicles=None
        )
        cluster.play("lost", "site.yml", "fleet.yml")
    wait_for("all replicas in sync", lambda: even(cluster.held()[0], [1, 2, 3]), 120)
    assert sorted(cluster.members()) == ["1", "2", "3"]
    assert {"zookeeper-node6", "kafka-node6", "producer-node6", "consumer-node6", "vehicle-node6"} <= cluster.containers()


def test_a_database_is_not_left_behind(cluster: Cluster) -> None:
    moved = copy.deepcopy(cluster.inventory)
    moved["children"]["postgres"]["hosts"] = {"node2": None}
    file = cluster.file.with_name("moved.yml")
    file.write_text(yaml.safe_dump({"all": moved}))
    log = play("changes-refused", "site.yml", inventory=file, refused=True).log
    assert f"{NAME}-postgres-node1 holds the database" in log
    assert "nothing was touched" in log
