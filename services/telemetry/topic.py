"""The live topic: what it is, and whether it keeps the promise.

Somebody may weaken a topic by hand, or make it again. A producer therefore asks before it is ready and every minute after.
`python -m telemetry topic`, inside a producer's or consumer's container, prints what it is as one line of JSON.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource
from kafka.errors import KafkaError
from kafka.partitioner.default import murmur2

from telemetry.clients import client_errors, connect_admin
from telemetry.record import MAX_BODY
from telemetry.settings import KafkaSettings

MIN_MESSAGE_BYTES = 4 * MAX_BODY
ASK_TIMEOUT = 3.0
"""Seconds that a broker may take to answer the tool: people wait, and other brokers may be away."""


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


def describer(settings: KafkaSettings, client_id: str) -> Callable[[], Topic | None]:
    """A function that describes the topic, by a client of its own that is made again after any error."""
    admin: list[Any] = []

    def describe_topic() -> Topic | None:
        if not admin:
            admin.append(connect_admin(settings, client_id))
        try:
            return describe(admin[0], settings.topic, {})
        except Exception:
            admin.pop().close()
            raise

    return describe_topic


def added(name: str, live: int, wanted: int) -> str:
    """Why another number of partitions than the one set is a fault, and what to do."""
    return (
        f"topic {name} has {live} partitions, kafka_topic_partitions is {wanted}: the number is fixed, because a vehicle's records "
        f"stay in one partition, and only {min(live, wanted)} of them are used. "
        f"Set kafka_topic_partitions to {live}, and run site.yml"
    )


def weaknesses(topic: Topic, name: str, replication_factor: int, min_insync_replicas: int, retention_ms: int) -> list[str]:
    """What about the topic lets go of records that were acknowledged, each with its remedy."""
    found: list[str] = []
    factor = min(each.replicas for each in topic.partitions)
    if factor < replication_factor:
        found.append(f"topic {name} has factor {factor}, not {replication_factor}: move its replicas")
    config = topic.config
    least, retained = int(config.get("min.insync.replicas", "1")), int(config.get("retention.ms", "0"))
    for key, good, wanted in (
        ("min.insync.replicas", least >= min_insync_replicas, str(min_insync_replicas)),
        ("unclean.leader.election.enable", config.get("unclean.leader.election.enable") == "false", "false"),
        ("cleanup.policy", config.get("cleanup.policy") == "delete", "delete"),
        ("message.timestamp.type", config.get("message.timestamp.type") == "LogAppendTime", "LogAppendTime"),
        ("retention.ms", retained >= retention_ms or retained == -1, f"{retention_ms} or more"),
        ("retention.bytes", config.get("retention.bytes") == "-1", "-1"),
    ):
        if not good:
            found.append(_changed(topic, name, key, wanted))
    return found


def _changed(topic: Topic, name: str, key: str, wanted: str) -> str:
    return f"topic {name} has {key}={topic.config.get(key)}, not {wanted}: run site.yml"


def faults(
    topic: Topic | None, name: str, partitions: int, replication_factor: int, min_insync_replicas: int, retention_ms: int
) -> list[str]:
    """What about the topic breaks the promise, each with its remedy."""
    if topic is None:
        return [f"topic {name} is not there: run site.yml"]
    found: list[str] = []
    if len(topic.partitions) != partitions:
        found.append(added(name, len(topic.partitions), partitions))
    found += weaknesses(topic, name, replication_factor, min_insync_replicas, retention_ms)
    # What somebody else writes in a codec that consumers lack would keep them from reading on
    if topic.config.get("compression.type") != "uncompressed":
        found.append(_changed(topic, name, "compression.type", "uncompressed"))
    if int(topic.config.get("max.message.bytes", "0")) < MIN_MESSAGE_BYTES:
        found.append(_changed(topic, name, "max.message.bytes", f"{MIN_MESSAGE_BYTES} or more"))
    return found


def run(settings: KafkaSettings, arguments: Sequence[str]) -> int:
    """Print the topic as one line of JSON; 0 when a broker told it, 1 otherwise."""
    try:
        with client_errors(), closing(connect_admin(settings, f"topic-{settings.name}", ASK_TIMEOUT)) as admin:
            found = describe(admin, settings.topic)
    except (KafkaError, OSError) as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        return 1
    if found is None:
        print(json.dumps({"error": f"topic {settings.topic} is not there: run site.yml"}))
        return 1
    print(json.dumps({"topic": settings.topic, **asdict(found), "topic_id": str(found.topic_id)}))
    return 0
