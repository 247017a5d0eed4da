"""The live topic: what it is, and whether it keeps the promise.

Somebody may weaken a topic by hand, or make it again. A producer therefore asks before it is ready and every minute after.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource
from kafka.partitioner.default import murmur2

from telemetry.record import MAX_BODY

MIN_MESSAGE_BYTES = 4 * MAX_BODY


@dataclass(frozen=True)
class Partition:
    """A partition as the controller sees it; leader -1 is none."""

    number: int
    leader: int
    replicas: int
    in_sync: int


@dataclass(frozen=True)
class Topic:
    """A topic and those of its settings that the promise rests on."""

    topic_id: uuid.UUID
    partitions: tuple[Partition, ...]
    config: Mapping[str, str]

    def unwritable(self) -> list[int]:
        """Partitions that refuse acks=all now: without a leader, or with too few replicas in sync."""
        least = int(self.config.get("min.insync.replicas", "1"))
        return [each.number for each in self.partitions if each.leader < 0 or each.in_sync < least]


def partition_of(key: bytes, count: int) -> int:
    """The partition of a key among so many: Kafka's own rule."""
    return int((murmur2(key) & 0x7FFFFFFF) % count)


def describe(admin: KafkaAdminClient, name: str, config: Mapping[str, str] | None = None) -> Topic | None:
    """The topic; None if there is none. Its settings are asked for unless they are given."""
    found = admin.describe_topics([name])
    if not found or found[0].get("error_code") or not found[0].get("partitions"):
        return None
    if config is None:
        answer = admin.describe_configs([ConfigResource("TOPIC", name)], config_filter="all")
        config = {key: str(value["value"]) for key, value in answer["topic"][name].items()}
    partitions = tuple(
        Partition(each["partition_index"], each["leader_id"], len(each["replica_nodes"]), len(each["isr_nodes"]))
        for each in sorted(found[0]["partitions"], key=lambda each: int(each["partition_index"]))
    )
    return Topic(uuid.UUID(str(found[0]["topic_id"])), partitions, config)


def added(name: str, live: int, wanted: int) -> str:
    """Why another number of partitions than the one set is a fault, and what to do."""
    return (
        f"topic {name} has {live} partitions, kafka_topic_partitions is {wanted}: the number is fixed, because a vehicle's records "
        f"stay in one partition, and only {min(live, wanted)} of them are used. "
        f"Set kafka_topic_partitions to {live}, and run site.yml"
    )


def faults(topic: Topic | None, name: str, partitions: int, replication_factor: int, min_insync_replicas: int) -> list[str]:
    """What about the topic breaks the promise, each with its remedy."""
    if topic is None:
        return [f"topic {name} is not there: run site.yml"]
    found: list[str] = []
    if len(topic.partitions) != partitions:
        found.append(added(name, len(topic.partitions), partitions))
    factor = min(each.replicas for each in topic.partitions)
    if factor < replication_factor:
        found.append(f"topic {name} has factor {factor}, not {replication_factor}: move its replicas")

    def setting(key: str, good: bool, wanted: Any) -> None:
        if not good:
            found.append(f"topic {name} has {key}={topic.config.get(key)}, not {wanted}: run site.yml")

    least = int(topic.config.get("min.insync.replicas", "1"))
    setting("min.insync.replicas", least >= min_insync_replicas, min_insync_replicas)
    setting("unclean.leader.election.enable", topic.config.get("unclean.leader.election.enable") == "false", "false")
    setting("cleanup.policy", topic.config.get("cleanup.policy") == "delete", "delete")
    setting("message.timestamp.type", topic.config.get("message.timestamp.type") == "LogAppendTime", "LogAppendTime")
    setting("retention.bytes", topic.config.get("retention.bytes") == "-1", "-1")
    largest = int(topic.config.get("max.message.bytes", "0"))
    setting("max.message.bytes", largest >= MIN_MESSAGE_BYTES, f"{MIN_MESSAGE_BYTES} or more")
    return found
