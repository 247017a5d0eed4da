"""A topic in memory, as far as the promise rests on it: replicas, in-sync sets, leaders that die, a high watermark, a group."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from kafka import TopicPartition
from kafka.errors import KafkaConnectionError
from telemetry.topic import Partition, Topic

TOPIC = "telemetry"
REPLICAS = 3
MIN_INSYNC = 2


class Message(NamedTuple):
    """What the Kafka client hands out."""

    offset: int
    timestamp: int
    key: bytes
    value: bytes | None
    headers: list[tuple[str, bytes]]


class Log:
    """One partition: the leader's log, how much of it each replica has, and who waits for it."""

    def __init__(self, leader: int) -> None:
        self.messages: list[Message] = []
        self.held = [0] * REPLICAS
        self.leader = leader
        self.in_sync = set(range(REPLICAS))
        self.waiting: list[tuple[int, asyncio.Future[bool]]] = []

    @property
    def high_watermark(self) -> int:
        """What every in-sync replica holds."""
        return min(self.held[number] for number in self.in_sync) if self.leader >= 0 else 0

    def settle(self) -> None:
        """Tell those whose record every in-sync replica holds."""
        reached, still = self.high_watermark if len(self.in_sync) >= MIN_INSYNC else 0, []
        for offset, future in self.waiting:
            if offset < reached and not future.done():
                future.set_result(True)
            elif not future.done():
                still.append((offset, future))
        self.waiting = still


class Cluster:
    """All brokers and the group."""

    def __init__(self, rng: random.Random, now: Callable[[], float], partitions: int = 2, acks: str = "all") -> None:
        self.rng, self.now, self.acks = rng, now, acks
        self.topic_id = uuid.UUID(int=7)
        self.logs = [Log(number % REPLICAS) for number in range(partitions)]
        self.alive = [True] * REPLICAS
        self.members: list[Client] = []

    def describe(self) -> Topic:
        """The topic as an admin sees it."""
        partitions = tuple(Partition(number, log.leader, REPLICAS, len(log.in_sync)) for number, log in enumerate(self.logs))
        return Topic(self.topic_id, partitions, {})

    def append(self, number: int, key: bytes, value: bytes) -> asyncio.Future[bool]:
        """Write a record; the future is True when it may be acknowledged, False when it may not."""
        log = self.logs[number]
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if log.leader < 0 or len(log.in_sync) < MIN_INSYNC:
            future.set_result(False)
            return future
        message = Message(len(log.messages), int(self.now() * 1000), key, value, [("v", b"1")])
        log.messages.append(message)
        log.held[log.leader] = len(log.messages)
        if self.acks == "1":
            future.set_result(True)
        else:
            log.waiting.append((message.offset, future))
        return future

    def replicate(self) -> None:
        """Let each living follower fetch something, or not; one that is behind for good leaves the in-sync set."""
        for log in self.logs:
            if log.leader < 0:
                continue
            for number in range(REPLICAS):
                if self.alive[number] and number != log.leader and self.rng.random() < 0.7:
                    log.held[number] = min(len(log.messages), log.held[number] + self.rng.randrange(1, 6))
                    if log.held[number] == len(log.messages):
                        log.in_sync.add(number)
            log.settle()

    def crash(self, broker: int) -> None:
        """A broker dies. Leaders are chosen among the in-sync; what the new one does not hold is cut off."""
        self.alive[broker] = False
        for log in self.logs:
            if log.leader == broker:
                rest = sorted(log.in_sync - {broker})
                if not rest:
                    # Nobody may lead: the partition waits for its last in-sync replica
                    log.leader = -1
                    continue
                log.in_sync.discard(broker)
                log.leader = self.rng.choice(rest)
                del log.messages[log.held[log.leader] :]
                log.held = [min(held, len(log.messages)) for held in log.held]
                for _, future in log.waiting:
                    if not future.done():
                        future.set_result(False)
                log.waiting = []
            elif len(log.in_sync) > 1:
                log.in_sync.discard(broker)
            log.settle()

    def start(self, broker: int) -> None:
        """A broker is back, with what it held."""
        self.alive[broker] = True
        for log in self.logs:
            if log.leader < 0 and broker in log.in_sync:
                log.leader = broker
                log.in_sync = {broker}
                del log.messages[log.held[broker] :]
                log.held = [min(held, len(log.messages)) for held in log.held]

    def rebalance(self) -> None:
        """Share the partitions among the members that the group knows."""
        for index, member in enumerate(self.members):
            member.told = {number for number in range(len(self.logs)) if number % len(self.members) == index}


class Client:
    """As much of a KafkaConsumer as the product uses."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.listener: Any = None
        self.told: set[int] | None = None
        self.assigned: set[int] = set()
        self.positions: dict[int, int] = {}
        self.paused: set[int] = set()

    def subscribe(self, topics: list[str], listener: Any) -> None:
        """Join the group."""
        self.listener = listener
        self.cluster.members.append(self)
        self.cluster.rebalance()

    def leave(self) -> None:
        """The group knows this member no more: it left, or was not heard for long."""
        if self in self.cluster.members:
            self.cluster.members.remove(self)
            self.cluster.rebalance()

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Read on at an offset."""
        self.positions[partition.partition] = offset

    def pause(self, partition: TopicPartition) -> None:
        """Fetch nothing of a partition."""
        self.paused.add(partition.partition)

    def resume(self, partition: TopicPartition) -> None:
        """Fetch again."""
        self.paused.discard(partition.partition)

    def poll(self, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Message]]:
        """What the group says, and what is new below the high watermark."""
        if self not in self.cluster.members:
            self.cluster.members.append(self)
            self.cluster.rebalance()
        if self.told is not None and self.told != self.assigned:
            self.listener.on_partitions_revoked({TopicPartition(TOPIC, number) for number in self.assigned})
            self.assigned, self.positions, self.paused = set(self.told), {}, set()
            self.listener.on_partitions_assigned({TopicPartition(TOPIC, number) for number in self.assigned})
            return {}
        found = {}
        for number in sorted(self.assigned - self.paused):
            log = self.cluster.logs[number]
            messages = log.messages[self.positions[number] : log.high_watermark][
                : min(max_records, self.cluster.rng.randrange(1, 8))
            ]
            if messages:
                found[TopicPartition(TOPIC, number)] = messages
                self.positions[number] = messages[-1].offset + 1
        return found

    def position(self, partition: TopicPartition, timeout_ms: int) -> int:
        """The next offset that is fetched."""
        return self.positions[partition.partition]

    def beginning_offsets(self, partitions: Iterable[TopicPartition], timeout_ms: int) -> dict[TopicPartition, int]:
        """All logs begin at 0."""
        return dict.fromkeys(partitions, 0)

    def end_offsets(self, partitions: Iterable[TopicPartition], timeout_ms: int) -> dict[TopicPartition, int]:
        """High watermarks."""
        if any(self.cluster.logs[each.partition].leader < 0 for each in partitions):
            raise KafkaConnectionError("no leader")
        return {each: self.cluster.logs[each.partition].high_watermark for each in partitions}

    def highwater(self, partition: TopicPartition) -> int:
        """As end_offsets."""
        return self.cluster.logs[partition.partition].high_watermark

    def close(self, autocommit: bool, timeout_ms: int) -> None:
        """Leave the group."""
        self.leave()
