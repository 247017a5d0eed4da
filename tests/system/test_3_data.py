"""After a full stop and with disks lost, nothing that was acknowledged is lost: members with data lead, or the run is refused."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from system.deployment import Database, all_ready, container, docker, play, wait_for
from system.sender import check, driving

NODES = ("node1", "node2", "node3")


def folder(kind: str, node: str) -> Path:
    """Where a member's data lies on this machine."""
    return Path(docker("volume", "inspect", "--format", "{{.Mountpoint}}", f"{container(kind, node)}-data").strip())


def empty(place: Path) -> None:
    """Lose what a disk had."""
    for each in place.iterdir():
        shutil.rmtree(each) if each.is_dir() else each.unlink()


def stop(*names: str) -> None:
    """Stop containers, as an operator does."""
    docker("stop", "--time", "120", *names)


def written(name: str) -> str:
    """What a container wrote last, to either stream."""
    done = subprocess.run(
        ["docker", "logs", "--tail", "20", name], check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return done.stdout


def test_lost_disks_after_a_full_stop_lose_nothing_that_was_acknowledged(summary: dict[str, Any], database: Database) -> None:
    stop(*(container("consumer", node) for node in ("node2", "node3")))
    with driving() as senders:
        time.sleep(5)
        # The others go on, so the logs of these three end at different places, and the last one alone counts as in sync
        for node in NODES:
            stop(container("kafka", node))
            time.sleep(3)
        stop(*(container("zookeeper", node) for node in NODES))
        unstored = sum(sender.acknowledged for sender in senders)

        away = {each: each.with_name("away") for each in (folder("zookeeper", node) / "version-2" for node in NODES)}
        for here, there in away.items():
            here.rename(there)
        log = play("data-zookeeper", "site.yml", refused=True).log
        assert "No ZooKeeper has data, but brokers hold the Kafka cluster" in log
        assert "Nothing was started." in log
        for here, there in away.items():
            there.rename(here)

        for kind, node in (("zookeeper", "node2"), ("kafka", "node3")):
            empty(folder(kind, node))
        # As a boot does, which asks no play
        docker("start", container("kafka", "node3"))
        wait_for("the broker's refusal", lambda: "holds no data" in written(container("kafka", "node3")))
        log = play("data-back", "site.yml").log
        assert re.search(r"Elect the brokers that are ahead: .*telemetry:\d:[12]\b", log)
        print(f"{unstored} records were acknowledged and in no table when three brokers stopped and the last one's disk was lost")
    check(database, senders)
    wait_for("all services ready", all_ready, 120)
    for node in NODES:
        assert not (folder("kafka", node) / "new-member").exists()
        assert not (folder("zookeeper", node) / "new-member").exists()
    assert play("data-again", "site.yml").changed == 0
