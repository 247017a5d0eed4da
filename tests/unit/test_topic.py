"""What consumers tell of the logs and of the brokers' disks: never what is not known."""

from __future__ import annotations

import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.errors import KafkaConnectionError
from kafka.structs import OffsetAndTimestamp
from prometheus_client import CollectorRegistry
from telemetry import topic as topics
from telemetry.metrics import ConsumerMetrics

NOW = 1_795_000_000.0
AHEAD = NOW + 86_400 * 365


class Admin:
    """A client that knows the append times of three logs, the last without a leader, and the disks of brokers."""

    def __init__(self, logs: dict[int, list[float]], disks: dict[int, list[tuple[int, int]]]) -> None:
        self.logs, self.disks = logs, disks

    def describe_topics(self, names: list[str]) -> list[dict[str, Any]]:
        partitions = [
            {"partition_index": number, "leader_id": 1 if number in self.logs else -1, "replica_nodes": [1], "isr_nodes": [1]}
            for number in range(3)
        ]
        return [{"error_code": 0, "topic_id": uuid.UUID(int=7), "partitions": partitions}]

    def list_partition_offsets(self, specs: dict[TopicPartition, int]) -> dict[TopicPartition, OffsetAndTimestamp]:
        found = {}
        for place, since in specs.items():
            held = [(offset, when) for offset, when in enumerate(self.logs[place.partition]) if when * 1000 >= since]
            offset, when = held[0] if held else (-1, -0.001)
            found[place] = OffsetAndTimestamp(offset, int(when * 1000), 0)
        return found

    def describe_log_dirs(self, names: list[str]) -> list[dict[str, Any]]:
        return [
            {"broker": broker, "log_dirs": [{"total_bytes": total, "usable_bytes": usable} for total, usable in found]}
            for broker, found in self.disks.items()
        ]

    def close(self) -> None:
        pass


def told(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    names = ("telemetry_log_ahead_seconds", "telemetry_log_start_age_seconds", "telemetry_broker_disk_used_ratio")
    return {
        (sample.name, label): sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name in names
        for label in sample.labels.values()
    }


def test_what_the_logs_and_disks_hold_is_told_and_no_more() -> None:
    registry = CollectorRegistry()
    metrics = ConsumerMetrics(registry)
    admin = Admin({0: [NOW - 60, AHEAD, NOW], 1: []}, {1: [(100, 75), (100, 10)], 2: [(-1, -1)], 3: [(1000, 800)]})
    topics.survey(admin, "telemetry", metrics, NOW)
    assert told(registry) == pytest.approx(
        {
            ("telemetry_log_ahead_seconds", "0"): AHEAD - NOW,
            ("telemetry_log_ahead_seconds", "1"): 0,
            ("telemetry_log_start_age_seconds", "0"): 60,
            ("telemetry_broker_disk_used_ratio", "1"): 0.9,
            ("telemetry_broker_disk_used_ratio", "3"): 0.2,
        }
    )
    topics.survey(Admin({1: [NOW - 86_400]}, {}), "telemetry", metrics, NOW)
    assert told(registry) == {("telemetry_log_ahead_seconds", "1"): 0, ("telemetry_log_start_age_seconds", "1"): 86_400}


def test_a_day_ahead_is_no_alarm() -> None:
    topic = topics.Topic(uuid.UUID(int=7), (topics.Partition(0, 1, 1, 1),), {})
    found = topics.stamps(Admin({0: [NOW + 86_399]}, {}), "telemetry", topic, NOW)
    assert found[0].ahead is None


def test_nothing_is_told_while_kafka_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    metrics = ConsumerMetrics(registry)
    topics.survey(Admin({0: [AHEAD]}, {1: [(10, 5)]}), "telemetry", metrics, NOW)
    assert told(registry)

    def away(*_: Any) -> Any:
        raise KafkaConnectionError("no broker answers")

    monkeypatch.setattr(topics, "connect_admin", away)
    settings: Any = SimpleNamespace(name="node1", topic="telemetry")
    topics.look_at_brokers(settings, metrics)
    assert told(registry) == {}
