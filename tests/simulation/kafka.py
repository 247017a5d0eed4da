"""Kafka in memory: one topic, brokers that crash or lose touch, and the clients that the producer and the consumer use.

Every partition has a replica on each broker. A leader appends and the others fetch; the high watermark is what all in-sync replicas
have, and only what is below it can be read or is confirmed with acks=all. A broker that was cut off goes on as leader of
what it led until it learns otherwise, and then loses what nobody else has. What a client's arguments say is what it gets.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kafka import TopicPartition
from kafka.errors import (
    KafkaConnectionError,
    KafkaTimeoutError,
    NotEnoughReplicasError,
    NotLeaderForPartitionError,
    OffsetOutOfRangeError,
)
from telemetry import topic as topics

from simulation.kernel import START, Process, Scheduler

TOPIC = "telemetry"
TOPIC_ID = uuid.UUID(int=7)
MIN_IN_SYNC = 2
CONFIG = {
    "min.insync.replicas": str(MIN_IN_SYNC),
    "unclean.leader.election.enable": "false",
    "cleanup.policy": "delete",
    "message.timestamp.type": "LogAppendTime",
    "retention.ms": "604800000",
    "retention.bytes": "-1",
    "compression.type": "uncompressed",
    "max.message.bytes": str(topics.MIN_MESSAGE_BYTES),
}
BROKER_SESSION = 9.0
"""Seconds after which the controller gives up a broker that it does not hear of, and a leader a replica that does not fetch."""


class Entry(NamedTuple):
    """A record in a log. name: no two entries share it."""

    name: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


class Message(NamedTuple):
    """A record as a client gets it."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


@dataclass
class Replica:
    """A partition on one broker."""

    log: list[Entry] = field(default_factory=list)
    high: int = 0
    epoch: int = -1
    """Of the leader that it last fetched from, or is."""
    leads: bool = False
    """What the broker believes; one that is cut off may be wrong."""
    fetching: bool = False
    begun_at: int = 0
    """Where the log ended when it became leader: it tells no offsets before its high watermark is there (KIP-207)."""


@dataclass
class Waiting:
    """A produce request that waits for the in-sync replicas."""

    broker: int
    end: int
    answer: Answer


@dataclass
class Partition:
    """A partition as the controller sees it; leader -1 is none."""

    number: int
    replicas: dict[int, Replica]
    leader: int
    in_sync: set[int]
    epoch: int = 0
    waiting: list[Waiting] = field(default_factory=list)
    readable: int = 0
    """The highest high watermark that ever was: a new leader may not know of it yet."""


class Cluster:
    """The brokers, the controller and the group's coordinator."""

    def __init__(self, scheduler: Scheduler, brokers: int, partitions: int) -> None:
        self.scheduler, self.rng = scheduler, scheduler.rng
        self.up = dict.fromkeys(range(1, brokers + 1), True)
        self.cut = dict.fromkeys(self.up, False)
        self.partitions: list[Partition] = []
        for number in range(partitions):
            leader = 1 + number % brokers
            replicas = {broker: Replica(epoch=0, leads=broker == leader) for broker in self.up}
            self.partitions.append(Partition(number, replicas, leader, set(self.up)))
        self.group = Group(self)
        self.loss, self.latency = 0.0, 0.01
        """Of messages between clients and brokers: how many are lost, and how long they take, in s."""
        self.readers: list[Callable[[], None]] = []
        """Who waits for something to read, or for the group."""
        self.break_poll = False
        """The next poll ends in an error of the client."""
        self.poison: set[int] = set()
        """Names of the records that are no uploads."""
        self._names = 0
        self._noticed: dict[int, int] = dict.fromkeys(self.up, 0)

    def delay(self) -> float:
        """How long a message takes: nearly always little."""
        return self.rng.random() * self.latency * (50 if self.rng.random() < 0.02 else 1)

    def lost(self) -> bool:
        """Whether a message is lost."""
        return self.loss > 0 and self.rng.random() < self.loss

    def wake(self) -> None:
        """Let those look who wait."""
        waiting, self.readers = self.readers, []
        for wake in waiting:
            wake()

    def whole(self) -> bool:
        """Whether every replica of every partition is in sync."""
        return all(self.up.values()) and all(len(each.in_sync) == len(self.up) for each in self.partitions)

    def describe(self) -> topics.Topic:
        """The topic as the controller sees it."""
        partitions = tuple(topics.Partition(each.number, each.leader, len(self.up), len(each.in_sync)) for each in self.partitions)
        return topics.Topic(TOPIC_ID, partitions, CONFIG)

    def poisoned(self) -> set[tuple[int, int]]:
        """Partitions and offsets of what is no upload and can be read."""
        # In-sync replicas alone: a broker that is away may hold what was never acknowledged and is given up when it comes back
        return {
            (partition.number, place)
            for partition in self.partitions
            for broker in partition.in_sync
            for place, each in enumerate(partition.replicas[broker].log[: partition.readable])
            if each.name in self.poison
        }

    # Logs

    def append(self, number: int, broker: int, content: Content, acks: Any, answer: Answer) -> None:
        """A produce request has reached a broker."""
        partition = self.partitions[number]
        replica = partition.replicas[broker]
        if not self.up[broker]:
            answer(KafkaConnectionError("connection refused"))
            return
        if not replica.leads:
            answer(NotLeaderForPartitionError())
            return
        if acks == "all" and len(partition.in_sync) < MIN_IN_SYNC:
            answer(NotEnoughReplicasError())
            return
        self._names += 1
        replica.log.append(Entry(self._names, int((START + self.scheduler.now) * 1000), *content))
        self.scheduler.tell("broker %d appends offset %d of partition %d", broker, len(replica.log) - 1, number)
        if acks == "all":
            partition.waiting.append(Waiting(broker, len(replica.log), answer))
        else:
            answer(None)
        self._spread(partition)

    def _spread(self, partition: Partition) -> None:
        """Let the followers fetch, each in its time."""
        for broker, replica in partition.replicas.items():
            if broker != partition.leader and not replica.fetching:
                replica.fetching = True
                self.scheduler.after(self.delay(), self._fetch, partition, broker)

    def _fetch(self, partition: Partition, broker: int) -> None:
        """A follower takes what the leader has, after it gave up what the leader has not."""
        replica = partition.replicas[broker]
        replica.fetching = False
        leader = partition.leader
        if leader in (-1, broker) or not (self.up[broker] and self.up[leader]) or self.cut[broker] or self.cut[leader]:
            return
        source = partition.replicas[leader]
        if replica.epoch != partition.epoch:
            same = min(len(replica.log), len(source.log))
            while same and replica.log[same - 1].name != source.log[same - 1].name:
                same -= 1
            del replica.log[same:]
            replica.high = min(replica.high, same)
            replica.epoch = partition.epoch
        replica.log += source.log[len(replica.log) :]
        replica.high = min(source.high, len(replica.log))
        partition.in_sync.add(broker)
        self._advance(partition)

    def _advance(self, partition: Partition) -> None:
        """Raise the high watermark to what all in-sync replicas have, and answer who waited for it."""
        if partition.leader == -1 or any(partition.replicas[each].epoch != partition.epoch for each in partition.in_sync):
            return
        leader = partition.replicas[partition.leader]
        high = min(len(partition.replicas[each].log) for each in partition.in_sync)
        if high <= leader.high:
            return
        leader.high = high
        partition.readable = max(partition.readable, high)
        waiting, partition.waiting = partition.waiting, []
        for each in waiting:
            if each.broker == partition.leader and each.end <= high:
                each.answer(None if len(partition.in_sync) >= MIN_IN_SYNC else NotEnoughReplicasError())
            else:
                partition.waiting.append(each)
        self.wake()

    # Brokers

    def _dismiss(self, partition: Partition, broker: int, error: Exception) -> None:
        """A broker leads no more: who waits there is told."""
        partition.replicas[broker].leads = False
        waiting, partition.waiting = partition.waiting, []
        for each in waiting:
            if each.broker == broker:
                each.answer(error)
            else:
                partition.waiting.append(each)

    def crash(self, broker: int, power: bool) -> None:
        """A broker dies; with its host's power also what its kernel had not written."""
        self.scheduler.tell("broker %d dies%s", broker, " with its host" if power else "")
        self.up[broker] = False
        for partition in self.partitions:
            self._dismiss(partition, broker, KafkaConnectionError("connection lost"))
            replica = partition.replicas[broker]
            if power:
                del replica.log[self.rng.randint(max(0, len(replica.log) - 3), len(replica.log)) :]
                replica.high = min(replica.high, len(replica.log))
            replica.epoch = -1
        self._notice(broker, self.rng.uniform(0.05, BROKER_SESSION))

    def restart(self, broker: int) -> None:
        """It comes back, as a follower of what others lead meanwhile."""
        self.scheduler.tell("broker %d is back", broker)
        self._give_up(broker, self._noticed[broker])
        self.up[broker] = True
        self._return(broker)

    def cut_off(self, broker: int) -> None:
        """The other brokers and the controller do not hear of a broker any more; clients do."""
        self.scheduler.tell("broker %d is cut off", broker)
        self.cut[broker] = True
        self._notice(broker, BROKER_SESSION)

    def heal(self, broker: int) -> None:
        """They hear of it again."""
        self.scheduler.tell("broker %d is heard again", broker)
        self.cut[broker] = False
        self._noticed[broker] += 1
        self._return(broker)

    def _notice(self, broker: int, delay: float) -> None:
        self._noticed[broker] += 1
        self.scheduler.after(delay, self._give_up, broker, self._noticed[broker])

    def _give_up(self, broker: int, notice: int) -> None:
        """The controller takes a broker for dead: another in-sync replica leads, if there is one."""
        if notice != self._noticed[broker]:
            return
        self._noticed[broker] += 1
        for partition in self.partitions:
            if len(partition.in_sync) > 1:
                partition.in_sync.discard(broker)
            if partition.leader == broker:
                self._elect(partition)
            self._advance(partition)

    def _elect(self, partition: Partition) -> None:
        able = [each for each in sorted(partition.in_sync) if self.up[each] and not self.cut[each]]
        partition.leader = self.rng.choice(able) if able else -1
        partition.epoch += 1
        self.scheduler.tell("broker %d leads partition %d", partition.leader, partition.number)
        if able:
            replica = partition.replicas[partition.leader]
            replica.leads, replica.epoch, replica.begun_at = True, partition.epoch, len(replica.log)
            self._spread(partition)

    def _return(self, broker: int) -> None:
        for partition in self.partitions:
            if partition.leader != broker:
                self._dismiss(partition, broker, NotLeaderForPartitionError())
            if partition.leader == -1 and broker in partition.in_sync:
                self._elect(partition)
            self._spread(partition)
            self._advance(partition)


Content = tuple["bytes | None", "bytes | None", "list[tuple[str, bytes]]"]
"""Key, value and headers."""
Answer = Callable[["Exception | None"], None]


class Group:
    """The consumer group's coordinator: it hands out partitions when all members that live have asked."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._members: dict[ConsumerClient, bool] = {}
        """Whether each has asked since the last change."""
        self._shares: dict[ConsumerClient, list[int]] = {}
        self.generation = 0
        self.settled = True

    def knows(self, client: ConsumerClient) -> bool:
        """Whether a client is a member."""
        return client in self._members

    def must_ask(self, client: ConsumerClient) -> bool:
        """Whether a member has to ask again."""
        return not self._members[client]

    def ask(self, client: ConsumerClient) -> None:
        """A client asks for partitions; a new member makes all ask again."""
        if client not in self._members:
            self._unsettle()
        self._members[client] = True
        if all(self._members.values()):
            self.generation += 1
            self._shares = {each: [] for each in self._members}
            members = list(self._members)
            for partition in self._cluster.partitions:
                self._shares[members[(partition.number + self.generation) % len(members)]].append(partition.number)
            self.settled = True
            self._cluster.wake()

    def share(self, client: ConsumerClient) -> list[int]:
        """A member's partitions."""
        return self._shares[client]

    def leave(self, client: ConsumerClient) -> None:
        """A member left."""
        if self._members.pop(client, None) is not None:
            self._unsettle()

    def expire(self, process: Process) -> None:
        """A process was not heard of for a session's time."""
        for client in [each for each in self._members if each.process is process]:
            self.leave(client)

    def _unsettle(self) -> None:
        self.settled = False
        self._members = dict.fromkeys(self._members, False)
        self._cluster.wake()


class ConsumerClient:
    """As much of a KafkaConsumer as the consumer uses."""

    def __init__(self, cluster: Cluster) -> None:
        process = cluster.scheduler.current
        assert process is not None
        self.process: Process = process
        self._cluster = cluster
        self._positions: dict[int, int] = {}
        self._paused: set[int] = set()
        self._generation = 0
        self._listener: Any = None
        process.step()
        if not any(cluster.up.values()):
            raise KafkaConnectionError("no broker answers")
        process.sleep(cluster.delay())

    def subscribe(self, names: list[str], listener: Any) -> None:
        """See KafkaConsumer."""
        self._listener = listener

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """See KafkaConsumer."""
        assert partition.partition in self._positions
        self._positions[partition.partition] = offset

    def pause(self, partition: TopicPartition) -> None:
        """See KafkaConsumer."""
        assert partition.partition in self._positions
        self._paused.add(partition.partition)

    def resume(self, partition: TopicPartition) -> None:
        """See KafkaConsumer."""
        self._paused.discard(partition.partition)

    def position(self, partition: TopicPartition, timeout_ms: int) -> int:
        """See KafkaConsumer."""
        return self._positions[partition.partition]

    def highwater(self, partition: TopicPartition) -> int:
        """See KafkaConsumer."""
        return max(int(replica.high) for replica in self._cluster.partitions[partition.partition].replicas.values())

    def beginning_offsets(self, partitions: list[TopicPartition], timeout_ms: int) -> dict[TopicPartition, int]:
        """See KafkaConsumer."""
        self.process.sleep(self._cluster.delay())
        return dict.fromkeys(partitions, 0)

    def end_offsets(self, partitions: list[TopicPartition], timeout_ms: int) -> dict[TopicPartition, int]:
        """See KafkaConsumer."""
        self.process.sleep(self._cluster.delay())
        ends = {}
        for each in partitions:
            replica = self._leader(each.partition)
            if replica is None or replica.high < replica.begun_at:
                self.process.sleep(timeout_ms / 1000)
                raise KafkaTimeoutError("no leader tells its end")
            ends[each] = replica.high
        return ends

    def poll(self, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Message]]:
        """See KafkaConsumer."""
        cluster, process = self._cluster, self.process
        process.step()
        if cluster.break_poll:
            cluster.break_poll = False
            raise KafkaConnectionError("the client broke")
        end = cluster.scheduler.now + timeout_ms / 1000
        while True:
            self._meet()
            if self._readable():
                process.sleep(cluster.delay())
                if found := self._take(max_records):
                    return found
            # Even a poll that does not wait takes time
            if not process.wait(cluster.readers, max(1e-4, end - cluster.scheduler.now)) or cluster.scheduler.now >= end:
                return {}

    def close(self, autocommit: bool, timeout_ms: int) -> None:
        """See KafkaConsumer."""
        assert not autocommit
        self.process.step()
        self._cluster.group.leave(self)

    def _meet(self) -> None:
        """Do what the group asks for."""
        group = self._cluster.group
        if not any(self._cluster.up.values()):
            return
        if not group.knows(self):
            if self._generation:
                gone, self._positions = self._parts(self._positions), {}
                self._listener.on_partitions_lost(gone)
            group.ask(self)
        elif group.must_ask(self):
            self._listener.on_partitions_revoked(self._parts(self._positions))
            self._positions = {}
            group.ask(self)
        if group.settled and self._generation != group.generation:
            self._generation = group.generation
            self._positions = dict.fromkeys(group.share(self), 0)
            self._paused.clear()
            self._listener.on_partitions_assigned(self._parts(self._positions))

    def _parts(self, numbers: Iterable[int]) -> list[TopicPartition]:
        return [TopicPartition(TOPIC, number) for number in numbers]

    def _leader(self, number: int) -> Replica | None:
        partition = self._cluster.partitions[number]
        return next((each for broker, each in partition.replicas.items() if each.leads and self._cluster.up[broker]), None)

    def _readable(self) -> list[tuple[int, Replica]]:
        found = []
        for number, position in self._positions.items():
            if number not in self._paused and (replica := self._leader(number)) is not None:
                if position > len(replica.log):
                    raise OffsetOutOfRangeError(f"offset {position} of partition {number}")
                if position < replica.high:
                    found.append((number, replica))
        return found

    def _take(self, most: int) -> dict[TopicPartition, list[Message]]:
        found: dict[TopicPartition, list[Message]] = {}
        rng = self._cluster.rng
        for number, replica in self._readable():
            position = self._positions[number]
            end = min(replica.high, position + (most if rng.random() < 0.5 else rng.randint(1, 3)))
            entries = replica.log[position:end]
            found[TopicPartition(TOPIC, number)] = [Message(position + index, *each[1:]) for index, each in enumerate(entries)]
            self._positions[number] = end
        return found


class Future:
    """What send() returns."""

    def __init__(self) -> None:
        self._callbacks: list[Callable[[Any], None]] = []
        self.result: Any = None
        self.done = False

    def add_both(self, callback: Callable[[Any], None]) -> None:
        """See kafka.future."""
        if self.done:
            callback(self.result)
        else:
            self._callbacks.append(callback)

    def resolve(self, result: Any) -> None:
        """Tell it."""
        if not self.done:
            self.done, self.result = True, result
            for callback in self._callbacks:
                callback(result)


class ProducerClient:
    """As much of a KafkaProducer as the publisher uses. What is not confirmed is sent again until its time is over."""

    def __init__(self, cluster: Cluster, **configuration: Any) -> None:
        process = cluster.scheduler.current
        assert process is not None
        self.process: Process = process
        self._cluster, self._scheduler = cluster, cluster.scheduler
        self._acks = configuration["acks"]
        assert not configuration["enable_idempotence"], "this client has none"
        self._request, self._delivery = configuration["request_timeout_ms"] / 1000, configuration["delivery_timeout_ms"] / 1000
        self._backoff = configuration["retry_backoff_ms"] / 1000
        self._leaders: dict[int, int] = {}
        process.step()
        if not any(cluster.up.values()):
            raise KafkaConnectionError("no broker answers")

    def send(self, topic: str, value: bytes, key: bytes, headers: list[tuple[str, bytes]], partition: int) -> Future:
        """See KafkaProducer."""
        assert topic == TOPIC
        self.process.step()
        future = Future()
        self._scheduler.after(self._delivery, future.resolve, KafkaTimeoutError("not delivered in time"), process=self.process)
        self._try(future, partition, (key, value, headers))
        return future

    def close(self, timeout: float) -> None:
        """See KafkaProducer."""

    def _try(self, future: Future, number: int, content: Content) -> None:
        """Send a request to whom this client takes for the leader, and look what comes of it."""
        if future.done:
            return
        cluster, scheduler = self._cluster, self._scheduler
        broker = self._leaders.setdefault(number, cluster.partitions[number].leader)
        over = False

        def again(error: Exception | None) -> None:
            nonlocal over
            if over:
                return
            over = True
            if error is None:
                future.resolve((number,))
            else:
                self._leaders.pop(number, None)
                scheduler.after(self._backoff, self._try, future, number, content, process=self.process)

        def answer(error: Exception | None) -> None:
            if not cluster.lost():
                scheduler.after(cluster.delay(), again, error, process=self.process)

        if broker == -1:
            again(NotLeaderForPartitionError())
            return
        if not cluster.lost():
            scheduler.after(cluster.delay(), cluster.append, number, broker, content, self._acks, answer)
        scheduler.after(self._request, again, KafkaTimeoutError("no answer"), process=self.process)
