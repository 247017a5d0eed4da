"""The live topic: what it is, and whether it keeps the promise.

Somebody may weaken a topic by hand, or make it again. A producer therefore asks before it is ready and every minute after.
`python -m telemetry topic`, inside a producer's or consumer's container, prints what it is as one line of JSON.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import ConfigResource
from kafka.errors import KafkaError
from kafka.partitioner.default import murmur2

from telemetry.clients import client_errors, connect_admin, error_text
from telemetry.metrics import ConsumerMetrics
from telemetry.record import MAX_BODY
from telemetry.settings import KafkaSettings

log = logging.getLogger(__name__)

MIN_MESSAGE_BYTES = 4 * MAX_BODY
ASK_TIMEOUT = 3.0
"""Seconds that a broker may take to answer the tool: people wait, and other brokers may be away."""
CLOCK_AHEAD = 86_400.0
"""Seconds that an append time may be ahead of our clock before the record counts as stamped far ahead."""
SURVEY_INTERVAL = 60.0


@dataclass(frozen=True)
class Partition:
    """A partition as the controller sees it; leader is -1 where there is none."""

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


def missing(name: str) -> str:
    """Why a topic that is not there is a fault, and what to do."""
    return f"topic {name} is not there: run site.yml"


def wrong_partition_count(name: str, live: int, wanted: int) -> str:
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
        return [missing(name)]
    found: list[str] = []
    if len(topic.partitions) != partitions:
        found.append(wrong_partition_count(name, len(topic.partitions), partitions))
    found += weaknesses(topic, name, replication_factor, min_insync_replicas, retention_ms)
    # What somebody else writes in a codec that consumers lack would keep them from reading on
    if topic.config.get("compression.type") != "uncompressed":
        found.append(_changed(topic, name, "compression.type", "uncompressed"))
    if int(topic.config.get("max.message.bytes", "0")) < MIN_MESSAGE_BYTES:
        found.append(_changed(topic, name, "max.message.bytes", f"{MIN_MESSAGE_BYTES} or more"))
    return found


@dataclass(frozen=True)
class Stamps:
    """Append times that the log of a partition holds, in ms since 1970."""

    first: int | None
    """Of the first record; None if there is none."""
    ahead: tuple[int, int] | None
    """Offset and time of the first record that is more than a day ahead; Kafka keeps it, and all after it, until then."""


def stamps(admin: KafkaAdminClient, name: str, topic: Topic, now: float) -> dict[int, Stamps]:
    """By partition, of those that have a leader. now is in seconds since 1970. Raises KafkaError."""
    places = [TopicPartition(name, each.number) for each in topic.partitions if each.leader >= 0]
    firsts = admin.list_partition_offsets(dict.fromkeys(places, 0))
    aheads = admin.list_partition_offsets(dict.fromkeys(places, int((now + CLOCK_AHEAD) * 1000)))

    def of(place: TopicPartition) -> Stamps:
        first, ahead = firsts[place], aheads[place]
        return Stamps(
            int(first.timestamp) if first.offset >= 0 else None,
            (int(ahead.offset), int(ahead.timestamp)) if ahead.offset >= 0 else None,
        )

    return {place.partition: of(place) for place in places}


def disks(admin: KafkaAdminClient, name: str) -> dict[int, float]:
    """By broker that runs, the used part of its data's disk, from 0 to 1; of several disks the fullest. Raises KafkaError."""
    found = {}
    for answer in admin.describe_log_dirs([name]):
        used = [1 - each["usable_bytes"] / each["total_bytes"] for each in answer["log_dirs"] if each["total_bytes"] > 0]
        if used:
            found[int(answer["broker"])] = max(used)
    return found


def survey(admin: KafkaAdminClient, name: str, metrics: ConsumerMetrics, now: float) -> None:
    """Tell what the logs and the brokers' disks hold; now is in seconds since 1970. Raises KafkaError, and then tells nothing."""
    topic, used = describe(admin, name, {}), disks(admin, name)
    held = stamps(admin, name, topic, now) if topic else {}
    untell(metrics)
    for broker, part in used.items():
        metrics.broker_disk.labels(str(broker)).set(part)
    for number, each in held.items():
        metrics.log_ahead.labels(str(number)).set(each.ahead[1] / 1000 - now if each.ahead else 0)
        if each.first is not None:
            metrics.log_start_age.labels(str(number)).set(now - each.first / 1000)


def untell(metrics: ConsumerMetrics) -> None:
    """Forget what the last survey told."""
    for gauge in (metrics.log_ahead, metrics.log_start_age, metrics.broker_disk):
        gauge.clear()


def look_at_brokers(settings: KafkaSettings, metrics: ConsumerMetrics) -> None:
    """One survey, by a client of its own; while no broker answers, what it would tell is not known."""
    try:
        with client_errors(), closing(connect_admin(settings, f"survey-{settings.name}")) as admin:
            survey(admin, settings.topic, metrics, time.time())
    except (KafkaError, OSError) as error:
        untell(metrics)
        log.warning("logs and disks of the brokers are not known: %s", error_text(error))


def run(settings: KafkaSettings, arguments: Sequence[str]) -> int:
    """Print the topic as one line of JSON; 0 when a broker told it, 1 otherwise."""
    try:
        with client_errors(), closing(connect_admin(settings, f"topic-{settings.name}", ASK_TIMEOUT)) as admin:
            found = describe(admin, settings.topic)
    except (KafkaError, OSError) as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        return 1
    if found is None:
        print(json.dumps({"error": missing(settings.topic)}))
        return 1
    print(json.dumps({"topic": settings.topic, **asdict(found), "topic_id": str(found.topic_id)}))
    return 0
