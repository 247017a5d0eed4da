"""What the clients of the cluster in memory do where the real ones surprise."""

from __future__ import annotations

from typing import Any

import pytest
from kafka import TopicPartition
from kafka.errors import CorruptRecordError, KafkaTimeoutError, LogTruncationError, OffsetOutOfRangeError

from simulation.clients import Bench, ConsumerClient, ProducerClient
from simulation.kafka import TOPIC

PRODUCER = {
    "acks": "all", "enable_idempotence": False, "request_timeout_ms": 4000, "delivery_timeout_ms": 8000, "retry_backoff_ms": 100,
    "max_request_size": 1000,
}  # fmt: skip
CONSUMER = {
    "client_id": "c", "auto_offset_reset": "none", "enable_auto_commit": False, "request_timeout_ms": 5000, "max_poll_records": 100,
}  # fmt: skip
PLACES = [TopicPartition(TOPIC, number) for number in range(3)]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def send(bench: Bench, *partitions: int) -> list[int]:
    """One record into each; returns their offsets."""

    def call() -> list[int]:
        client = ProducerClient(bench.cluster, **PRODUCER)
        sent = [client.send(TOPIC, value=b"{}", key=b"k", headers=[("v", b"1")], partition=number) for number in partitions]
        return [each.get(timeout=10).offset for each in sent]

    return bench.run(call)


def reader(bench: Bench, *partitions: int, at: int = 0) -> Any:
    """A client that reads some partitions from an offset on."""
    client = bench.run(lambda: ConsumerClient(bench.cluster, **CONSUMER))
    client.assign([PLACES[number] for number in partitions])
    for number in partitions:
        client.seek(PLACES[number], at)
    return client


def polled(bench: Bench, client: Any, **named: Any) -> dict[int, list[int]]:
    """Offsets by partition."""
    found = bench.run(lambda: client.poll(timeout_ms=2000, **named))
    return {place.partition: [each.offset for each in messages] for place, messages in found.items()}


def test_a_poll_brings_at_most_so_many_records_of_all_partitions_together(bench: Bench) -> None:
    assert sorted(send(bench, 0, 0, 0, 1, 1, 1)) == [0, 0, 1, 1, 2, 2]
    client = reader(bench, 0, 1)
    read: dict[int, list[int]] = {0: [], 1: []}
    while any(len(offsets) < 3 for offsets in read.values()):
        found = polled(bench, client, max_records=2)
        assert 1 <= sum(map(len, found.values())) <= 2
        for number, offsets in found.items():
            read[number] += offsets
    assert read == {0: [0, 1, 2], 1: [0, 1, 2]}


def test_a_leader_that_does_not_answer_takes_the_offsets_of_all_with_it_and_no_record(bench: Bench) -> None:
    send(bench, 0, 1)
    client = reader(bench, 0, 1)
    bench.cluster.hung.add(bench.cluster.partitions[0].leader)
    begun = bench.scheduler.now
    with pytest.raises(KafkaTimeoutError):
        bench.run(lambda: client.end_offsets(PLACES[:2], timeout_ms=3000))
    assert 3 <= bench.scheduler.now - begun < 4
    assert bench.run(lambda: client.end_offsets([PLACES[1]], timeout_ms=3000)) == {PLACES[1]: 1}
    assert polled(bench, client) == {1: [0]}


def test_a_leader_that_does_not_answer_confirms_nothing_and_the_others_do(bench: Bench) -> None:
    bench.cluster.walls.add((bench.process.name, bench.cluster.partitions[0].leader))
    assert send(bench, 1) == [0]
    with pytest.raises(KafkaTimeoutError):
        send(bench, 0)


def test_a_record_with_a_wrong_checksum_is_named_after_those_before_it_were_read(bench: Bench) -> None:
    send(bench, 0)
    bench.cluster.damaging = True
    send(bench, 0)
    client = reader(bench, 0)
    assert polled(bench, client) == {0: [0]}
    with pytest.raises(CorruptRecordError, match=r"partition=0\) at offset 1"):
        polled(bench, client)
    with pytest.raises(TimeoutError):
        polled(bench, client)


def test_a_log_that_was_cut_short_is_told_to_who_read_further(bench: Bench) -> None:
    send(bench, 0, 0)
    client = reader(bench, 0, at=2)
    # Clients without a group are not told: the brokers answer them when they ask
    bench.cluster.cut_short(0, 1, 1.0, lambda number: 0)
    with pytest.raises((LogTruncationError, OffsetOutOfRangeError)):
        polled(bench, client)
    bench.cluster.delete_records(0, 1)
    client = reader(bench, 0, at=0)
    with pytest.raises(OffsetOutOfRangeError):
        polled(bench, client)
