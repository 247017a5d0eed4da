"""A stopped partition goes on by exactly one way, which is told; a dead letter goes back into the topic once."""

from __future__ import annotations

import json
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from system.deployment import BOOTSTRAP, CONSUMERS, Database, all_ready, container, docker, play, ready, wait_for
from system.sender import new_vin, post, upload

TOPIC = "telemetry"


def send(vin: str, value: bytes) -> tuple[int, int]:
    """Write bytes straight to the topic; their partition and offset."""
    producer = KafkaProducer(bootstrap_servers=BOOTSTRAP, acks="all", enable_idempotence=False)
    with closing(producer):
        sent = producer.send(TOPIC, value=value, key=vin.encode(), headers=[("v", b"1")]).get(timeout=20)
        return sent.partition, sent.offset


def test_a_dead_letter_is_repaired_and_goes_back_once(database: Database, tmp_path: Path) -> None:
    vin = new_vin()
    assert post(upload(vin, [1])).status_code == 200
    broken = upload(vin, [2, 3])
    broken["records"][0]["speed"] = "fast"
    partition, offset = send(vin, json.dumps(broken).encode())
    assert post(upload(vin, [4])).status_code == 200
    wait_for("the gap", lambda: database.rows(f"SELECT reason FROM gap WHERE vin = '{vin}'") == [["dead_letter"]])
    place = f"redrive={partition}:{offset}"
    assert f"offset: {offset}" in play("letters", "redrive.yml").log
    with pytest.raises(AssertionError, match="dead letter again"):
        play("redrive-broken", "redrive.yml", "-e", place)
    repaired = tmp_path / "repaired.json"
    repaired.write_text(json.dumps(upload(vin, [2, 3])))
    assert play("redrive", "redrive.yml", "-e", place, "-e", f"redrive_file={repaired}").changed == 1
    rows = f"SELECT seq FROM diag WHERE vin = '{vin}' ORDER BY seq"
    wait_for("the rows", lambda: database.rows(rows) == [[1], [2], [3], [4]])
    assert database.rows(f"SELECT from_seq, to_seq, state FROM gap WHERE vin = '{vin}'") == [[2, 3, "filled"]]
    with pytest.raises(AssertionError, match="was put back at"):
        play("redrive-again", "redrive.yml", "-e", place, "-e", f"redrive_file={repaired}")


def stopped() -> str:
    """Why some consumer's partition is stopped."""
    reasons: list[Any] = [reason for url in CONSUMERS for reason in ready(url)["reasons"]]
    return next((reason for reason in reasons if "accept_loss.yml" in reason), "")


def test_records_deleted_before_they_were_stored_stop_their_partition_until_the_loss_is_accepted(database: Database) -> None:
    vin = new_vin()
    names = [container("consumer", node) for node in ("node2", "node3")]
    docker("stop", *names)
    try:
        for seq in range(1, 6):
            assert post(upload(vin, [seq])).status_code == 200
        partition, offset = send(vin, json.dumps(upload(vin, [6])).encode())
        with closing(KafkaAdminClient(bootstrap_servers=BOOTSTRAP)) as admin:
            admin.delete_records({TopicPartition(TOPIC, partition): offset}, timeout_ms=20_000)
    finally:
        docker("start", *names)
    reason = wait_for("a partition that is stopped", stopped, 90)
    found = re.search(r"-e (accept_loss=(\d+):(\d+)-(\d+))", reason)
    assert found, reason
    assert (int(found[2]), int(found[4])) == (partition, offset - 1)
    assert f"accept_loss.yml -e {found[1]}" in play("stopped", "accept_loss.yml").log
    with pytest.raises(AssertionError, match="are not what is lost"):
        play("accept-wrong", "accept_loss.yml", "-e", f"accept_loss={partition}:{found[3]}-{offset}")
    assert database.value(f"SELECT count(*) FROM diag WHERE vin = '{vin}'") == 0
    assert play("accept", "accept_loss.yml", "-e", found[1]).changed == 1
    wait_for("the record that is left", lambda: database.rows(f"SELECT seq FROM diag WHERE vin = '{vin}'") == [[6]], 90)
    assert database.rows(f"SELECT from_seq, to_seq, state FROM gap WHERE vin = '{vin}'") == [[1, 5, "undeclared"]]
    lost = f"SELECT partition, from_offset, to_offset FROM lost_range WHERE topic = '{TOPIC}'"
    assert database.rows(lost) == [[partition, int(found[3]), offset - 1]]
    wait_for("all ready", all_ready, 90)
    assert "All partitions go on" in play("going", "accept_loss.yml").log
