"""Before brokers without data start: what the role asks, elects and refuses, with an engine that a test answers for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from interface.roles import ROOT

DESCRIBED = """\
Topic: telemetry\tTopicId: x\tPartitionCount: 2\tReplicationFactor: 3\tConfigs: min.insync.replicas=2
\tTopic: telemetry\tPartition: 0\tLeader: none\tReplicas: 3,1,2\tIsr: 3\tElr: N/A\tLastKnownElr: N/A
\tTopic: telemetry\tPartition: 1\tLeader: 2\tReplicas: 1,2,3\tIsr: 2,1\tElr: N/A\tLastKnownElr: N/A
"""
# Stands in for the module that runs a command in a container: it keeps what it was asked, and answers by what the command is
EXEC = """\
import json, os
from ansible.module_utils.basic import AnsibleModule
module = AnsibleModule({"container": {}, "argv": {"type": "list"}, "stdin": {}}, supports_check_mode=True)
asked = {"container": module.params["container"], "argv": module.params["argv"], "stdin": module.params["stdin"] or ""}
with open(os.environ["ASKED"], "a") as stream:
    stream.write(json.dumps(asked) + "\\n")
text = " ".join(asked["argv"]) + asked["stdin"]
answers = json.loads(os.environ["ANSWERS"])
answer = next((said for word, said in answers.items() if word in text), "")
answer = answer if isinstance(answer, str) else answer[asked["container"]]
module.exit_json(changed=True, rc=0, stdout=answer, stderr="")
"""


class Run:
    """One run of the role's gate for three brokers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.groups = {"kafka_running": ["node1", "node2"], "kafka_new": ["node3"]}
        self.data = {"t-kafka-node3": {"state": "none"}}
        self.answers: dict[str, Any] = {
            "TopicCommand": DESCRIBED,
            "DumpLogSegments": {"t-kafka-node1": "telemetry-0 7 100\n", "t-kafka-node2": "telemetry-0 8 90\n"},
        }

    def __call__(self, *arguments: str) -> str:
        """All that Ansible says."""
        hosts = {f"node{n}": {"kafka_broker_id": n, "zookeeper_id": n, "node_address": f"192.0.2.{n}"} for n in (1, 2, 3)}
        common = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "ansible_become": False,
            "instance": "t",
        }
        groups = {"kafka": list(hosts), "zookeeper": list(hosts), **self.groups}
        inventory = {
            "hosts": hosts, "vars": common | {"kafka_topic_partitions": 2, "kafka_in_sync_timeout": 4, "preflight_data": self.data},
            "children": {name: {"hosts": dict.fromkeys(members)} for name, members in groups.items()},
        }  # fmt: skip
        (self.folder / "inventory.yml").write_text(yaml.safe_dump({"all": inventory}))
        include = {"ansible.builtin.include_role": {"name": "kafka", "tasks_from": "lead"}}
        (self.folder / "play.yml").write_text(yaml.safe_dump([{"hosts": "kafka", "gather_facts": False, "tasks": [include]}]))
        module = self.folder / "collections/ansible_collections/community/docker/plugins/modules/docker_container_exec.py"
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(EXEC)
        playbook = Path(sys.executable).parent / "ansible-playbook"
        done = subprocess.run(
            [playbook, "-i", self.folder / "inventory.yml", self.folder / "play.yml", *arguments],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=os.environ | {
                "ANSIBLE_COLLECTIONS_PATH": str(self.folder / "collections"), "ASKED": str(self.folder / "asked"),
                "ANSWERS": json.dumps(self.answers), "LC_ALL": "C.UTF-8",
            },
        )  # fmt: skip
        self.succeeded = done.returncode == 0
        return " ".join(done.stdout.split())

    def asked(self, word: str) -> list[dict[str, Any]]:
        """What was run in containers with that word in it."""
        lines = [json.loads(line) for line in (self.folder / "asked").read_text().splitlines()]
        return [line for line in lines if word in line["stdin"] + " ".join(line["argv"])]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    assert shutil.which("bash")
    return Run(tmp_path)


def test_the_survivor_that_is_ahead_is_elected(run: Run) -> None:
    said = run()
    assert run.succeeded, said
    assert "Elect the brokers that are ahead: telemetry:0:2" in said
    [elected] = run.asked("Lead.java")
    assert elected["argv"][-1] == "telemetry:0:2"
    assert "class Lead" in elected["stdin"]
    assert "192.0.2.1:9092,192.0.2.2:9092,192.0.2.3:9092 telemetry:0:2" in elected["stdin"]
    # Only partitions without a leader, on every survivor
    looked = run.asked("DumpLogSegments")
    assert {each["container"] for each in looked} == {"t-kafka-node1", "t-kafka-node2"}
    assert {each["argv"][-1] for each in looked} == {"telemetry-0"}


def test_nothing_is_elected_where_brokers_with_data_lead(run: Run) -> None:
    run.answers["TopicCommand"] = DESCRIBED.replace("none", "1").replace("Isr: 3", "Isr: 1,2")
    said = run()
    assert run.succeeded, said
    assert not run.asked("Lead.java")
    assert not run.asked("DumpLogSegments")


def test_a_loss_is_refused_with_partitions_and_the_way_on_and_can_be_accepted(run: Run) -> None:
    run.groups = {"kafka_running": ["node1"], "kafka_new": ["node2", "node3"]}
    run.answers["TopicCommand"] = DESCRIBED.replace("Leader: 2", "Leader: 1").replace("Isr: 2,1", "Isr: 1")
    said = run()
    assert not run.succeeded
    assert "Acknowledged records may be lost in 1 partition (telemetry-0): node2, node3 lost the data" in said
    assert "-e kafka_accept_loss=telemetry-0" in said
    assert not run.asked("Lead.java")
    said = run("-e", "kafka_accept_loss=telemetry-0")
    assert run.succeeded, said
    assert run.asked("Lead.java")[0]["argv"][-1] == "telemetry:0:1"


def test_a_broker_without_data_that_still_counts_as_in_sync_is_waited_for(run: Run) -> None:
    run.answers["TopicCommand"] = DESCRIBED.replace("Leader: none", "Leader: 1")
    said = run()
    assert not run.succeeded
    assert "broker 3, which has no data, still counts as in sync in telemetry-0" in said


def test_brokers_that_a_limit_leaves_out_are_not_judged(run: Run) -> None:
    run.groups = {"kafka_new": ["node3"]}
    said = run("--limit", "node3")
    assert not run.succeeded
    assert "node3 of group kafka would begin without data" in said
    assert "Run this again without --limit." in said


def test_all_data_gone_is_refused_where_zookeeper_knows_topics(run: Run) -> None:
    run.groups = {"kafka_new": ["node1", "node2", "node3"], "zookeeper_running": ["node2"]}
    run.data = {f"t-kafka-node{n}": {"state": "none"} for n in (1, 2, 3)}
    run.answers = {"ls /t/brokers/topics": "Connecting\n[__consumer_offsets, telemetry]\n"}
    said = run()
    assert not run.succeeded
    assert "ZooKeeper knows topics: __consumer_offsets, telemetry. No broker was started." in said
    assert run.asked("ls /t/brokers/topics")[0]["container"] == "t-zookeeper-node2"
    said = run("-e", "kafka_accept_loss=all")
    assert run.succeeded, said
    # The first start
    run.answers = {"ls /t/brokers/topics": "Connecting\nNode does not exist: /t/brokers/topics\n"}
    said = run()
    assert run.succeeded, said
