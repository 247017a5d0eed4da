"""Kafka in memory: one topic, brokers that crash or lose touch, and the group's coordinator.

Every partition has a replica on each broker. A leader appends and the others fetch; the high watermark is what all in-sync replicas
have, and only what is below it can be read or is confirmed with acks=all. A broker that was cut off goes on as leader of
what it led until it learns otherwise, and then loses what nobody else has.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from kafka.errors import (
    KafkaConnectionError,
    NotEnoughReplicasAfterAppendError,
    NotEnoughReplicasError,
    NotLeaderForPartitionError,
    UnknownTopicOrPartitionError,
)
from telemetry.topic import MIN_MESSAGE_BYTES

from simulation.clocks import Clock
from simulation.kernel import Process, Scheduler

if TYPE_CHECKING:
    from simulation.clients import ConsumerClient

TOPIC = "telemetry"
PARTITIONS = 3
FIRST_TOPIC_ID = 7
MIN_IN_SYNC = 2
CONFIG = {
    "min.insync.replicas": str(MIN_IN_SYNC),
    "unclean.leader.election.enable": "false",
    "cleanup.policy": "delete",
    "message.timestamp.type": "LogAppendTime",
    "retention.ms": "604800000",
    "retention.bytes": "-1",
    "compression.type": "uncompressed",
    "max.message.bytes": str(MIN_MESSAGE_BYTES),
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


class RawName(str):
    """A header's name as the bytes it is, which need not be text."""

    def __new__(cls, raw: bytes) -> RawName:
        """The name of so many bytes."""
        name = super().__new__(cls, raw.decode("latin-1"))
        name.raw = raw
        return name

    raw: bytes

    def encode(self, *_: Any) -> bytes:
        """The bytes."""
        return self.raw


class OffsetAndTimestamp(NamedTuple):
    """What a client is told of a record by its time; see kafka.structs."""

    offset: int
    timestamp: int


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


@dataclass(eq=False)
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
    start: int = 0
    """The first offset that was not deleted."""

    def first_since(self, replica: Replica, timestamp: int) -> OffsetAndTimestamp | None:
        """The first record of a replica that was appended at a time (ms since 1970) or later, if there is one."""
        for offset in range(self.start, replica.high):
            if replica.log[offset].timestamp >= timestamp:
                return OffsetAndTimestamp(offset, replica.log[offset].timestamp)
        return None

    def longest(self) -> list[Entry]:
        """The log as the in-sync replica has it that has most."""
        return max((self.replicas[each].log for each in self.in_sync), key=len)


class Cluster:
    """The brokers, the controller and the group's coordinator."""

    def __init__(self, scheduler: Scheduler, clocks: dict[int, Clock], partitions: int) -> None:
        self.scheduler, self.rng = scheduler, scheduler.rng
        self.clocks = clocks
        """By broker; a leader stamps what it appends."""
        self.up = dict.fromkeys(clocks, True)
        self.cut = dict.fromkeys(self.up, False)
        self.hung: set[int] = set()
        """Brokers whose listener for clients takes requests and never answers; brokers and the controller see nothing of it."""
        self.walls: set[tuple[str, int]] = set()
        """Which process does not reach which broker, by the process's name."""
        self._number = partitions
        self.topic_id = uuid.UUID(int=FIRST_TOPIC_ID)
        self.there = True
        self.gone: dict[uuid.UUID, list[list[Entry]]] = {}
        """What could be read of topics that were deleted, by partition."""
        self.cut_away: list[Entry] = []
        """What could be read, and was lost by all brokers."""
        self.partitions = self._made()
        self.group = Group(self)
        self.loss, self.latency = 0.0, 0.01
        """Of messages between clients and brokers: how many are lost, and how long they take, in s."""
        self.readers: list[Callable[[], None]] = []
        """Who waits for something to read, or for the group."""
        self.break_poll = False
        """The next poll ends in an error of the client."""
        self.damaging = False
        """The next record that is appended is damaged on every disk."""
        self.poison: set[int] = set()
        """Names of the records that are no uploads."""
        self.damaged: set[int] = set()
        """Names of the records whose checksum is wrong."""
        self.buried: set[tuple[str, int, int]] = set()
        """Topic ids, partitions and offsets of poison that is held no more."""
        self.unread: set[tuple[str, int, int]] = set()
        """Those of them that were not stored when they were lost. A consumer may have had them in hand."""
        self._names = 0
        self._noticed: dict[int, int] = dict.fromkeys(self.up, 0)

    def _made(self) -> list[Partition]:
        """The partitions of a new topic."""
        made = []
        for number in range(self._number):
            leader = 1 + number % len(self.up)
            replicas = {broker: Replica(epoch=0, leads=broker == leader) for broker in self.up}
            made.append(Partition(number, replicas, leader, set(self.up)))
        return made

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

    def reaches(self, process: Process, broker: int) -> bool:
        """Whether a process's requests to a broker are answered."""
        return self.up[broker] and broker not in self.hung and (not self.walls or (process.name, broker) not in self.walls)

    def silent(self, process: Process, broker: int) -> bool:
        """Whether a broker that runs does not answer a process: one that does not run refuses a connection, which is an answer."""
        return self.up[broker] and not self.reaches(process, broker)

    def answers(self, process: Process) -> bool:
        """Whether any broker answers a process: the topic's description comes from any of them."""
        return any(map(partial(self.reaches, process), self.up))

    def poisoned(self) -> set[tuple[str, int, int]]:
        """Topic ids, partitions and offsets of what is no upload and can be read, or could be read before it was lost."""
        # In-sync replicas alone: a broker that is away may hold what was never acknowledged and is given up when it comes back
        return self.buried | {
            (str(self.topic_id), partition.number, place)
            for partition in self.partitions
            for broker in partition.in_sync
            for place, each in enumerate(partition.replicas[broker].log[: partition.readable])
            if each.name in self.poison
        }

    # Logs

    def append(self, number: int, broker: int, content: Content, acks: Any, answer: Answer) -> None:
        """A produce request has reached a broker."""
        if not self.there:
            answer(UnknownTopicOrPartitionError())
            return
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
        replica.log.append(Entry(self._names, int(self.clocks[broker].time() * 1000), *content))
        if self.damaging:
            self.damaging = False
            self.damaged.add(self._names)
            self.scheduler.happen("a damaged record", "the next record is damaged on every disk")
        self.scheduler.tell("broker %d appends offset %d of partition %d", broker, len(replica.log) - 1, number)
        if acks == "all":
            partition.waiting.append(Waiting(broker, len(replica.log), answer))
        else:
            answer(len(replica.log) - 1)
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
                each.answer(each.end - 1 if len(partition.in_sync) >= MIN_IN_SYNC else NotEnoughReplicasAfterAppendError())
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
        kind = "a broker dies with its host" if power else "a broker dies"
        self.scheduler.happen(kind, "broker %d dies%s", broker, " with its host" if power else "")
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
        self.scheduler.happen("a broker is cut off", "broker %d is cut off", broker)
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
        self.scheduler.happen("an election", "broker %d leads partition %d", partition.leader, partition.number)
        if able:
            replica = partition.replicas[partition.leader]
            replica.leads, replica.epoch, replica.begun_at = True, partition.epoch, len(replica.log)
            self._spread(partition)
            # Fetches that wait for a leader are answered at once
            self.wake()

    def _return(self, broker: int) -> None:
        for partition in self.partitions:
            if partition.leader != broker:
                self._dismiss(partition, broker, NotLeaderForPartitionError())
            if partition.leader == -1 and broker in partition.in_sync:
                self._elect(partition)
            self._spread(partition)
            self._advance(partition)

    # What operators and disks do to a topic

    def delete_topic(self, stored: Callable[[int], int]) -> None:
        """Somebody deletes the topic; `stored` tells the offset up to which a partition was stored."""
        self.scheduler.happen("a topic made again", "the topic is deleted")
        self.gone[self.topic_id] = [partition.longest()[: partition.readable] for partition in self.partitions]
        for partition in self.partitions:
            self._bury(partition, 0, stored(partition.number))
            self._dismiss_all(partition, UnknownTopicOrPartitionError())
            partition.leader = -1
        self.there, self.partitions = False, []
        self.group.unsettle()

    def make_topic(self) -> None:
        """It is made again."""
        self.scheduler.tell("the topic is made again")
        self.topic_id = uuid.UUID(int=self.topic_id.int + 1)
        self.there, self.partitions = True, self._made()
        for partition in self.partitions:
            partition.in_sync = {each for each in self.up if self.up[each] and not self.cut[each]}
            if partition.leader not in partition.in_sync:
                partition.replicas[partition.leader].leads = False
                self._elect(partition)
        self.group.unsettle()

    def cut_short(self, number: int, count: int, seconds: float, stored: Callable[[int], int]) -> None:
        """All brokers lose the end of a log, as in a loss of all power; for so long nobody leads it."""
        partition = self.partitions[number]
        end = max(partition.start, partition.readable - count)
        self.scheduler.happen("a log cut short", "partition %d is cut short to offset %d", number, end)
        self.cut_away += partition.longest()[end : partition.readable]
        self._bury(partition, end, stored(number))
        self._dismiss_all(partition, NotLeaderForPartitionError())
        partition.leader, partition.readable = -1, end
        for replica in partition.replicas.values():
            del replica.log[end:]
            replica.high = min(replica.high, end)
        # A client has a fetch under way that tells where it is, or compares its position's epoch with the new leader's
        self.group.truncated(number, end)
        self.wake()
        self.scheduler.after(seconds, self._led_again, partition)

    def _led_again(self, partition: Partition) -> None:
        if partition in self.partitions and partition.leader == -1:
            self._elect(partition)
            self._advance(partition)
            if partition.leader == -1:
                self.scheduler.after(1.0, self._led_again, partition)

    def delete_records(self, number: int, start: int) -> None:
        """Retention deletes what is before an offset."""
        self.scheduler.happen("deleted by retention", "retention deletes what is before offset %d of partition %d", start, number)
        self.partitions[number].start = start
        self.wake()

    def _bury(self, partition: Partition, start: int, stored: int) -> None:
        """A log loses what it has from an offset on; dead letters of it that were stored before stay."""
        for place, each in enumerate(partition.longest()[start : partition.readable], start):
            if each.name in self.poison:
                self.buried.add((str(self.topic_id), partition.number, place))
                if place >= stored:
                    self.unread.add((str(self.topic_id), partition.number, place))

    def _dismiss_all(self, partition: Partition, error: Exception) -> None:
        for broker in partition.replicas:
            self._dismiss(partition, broker, error)


Content = tuple["bytes | None", "bytes | None", "list[tuple[str, bytes]]"]
"""Key, value and headers."""
Answer = Callable[["Exception | int"], None]
"""Takes why a record was not appended, or its offset."""


class Group:
    """The consumer group's coordinator: it hands out partitions when all members that live have asked."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._members: dict[ConsumerClient, bool] = {}
        """Whether each has asked since the last change."""
        self._shares: dict[ConsumerClient, list[int]] = {}
        self.generation = 0
        self.settled = True
        self.rotates = cluster.rng.random() < 0.5
        """Whether shares change hands with every generation; they need not, where members keep their names."""

    def knows(self, client: ConsumerClient) -> bool:
        """Whether a client is a member."""
        return client in self._members

    def members(self) -> list[ConsumerClient]:
        """All members."""
        return list(self._members)

    def assignment(self, client: ConsumerClient) -> dict[str, Any] | None:
        """A member's partitions as the group's description has them; none while the group assigns."""
        if not self.settled:
            return None
        return {"assigned_partitions": [{"topic": TOPIC, "partitions": self._shares[client]}]}

    def must_ask(self, client: ConsumerClient) -> bool:
        """Whether a member has to ask again."""
        return not self._members[client]

    def ask(self, client: ConsumerClient) -> None:
        """A client asks for partitions; a new member makes all ask again."""
        if client not in self._members:
            self.unsettle()
        self._members[client] = True
        if all(self._members.values()):
            self.generation += 1
            self._shares = {each: [] for each in self._members}
            members = sorted(self._members, key=lambda each: each.process.name)
            turn, partitions = self.generation if self.rotates else 0, self._cluster.partitions
            for partition in partitions:
                place = partition.number * len(members) // len(partitions)
                self._shares[members[(place + turn) % len(members)]].append(partition.number)
            self.settled = True
            self._cluster.wake()

    def share(self, client: ConsumerClient) -> list[int]:
        """A member's partitions."""
        return self._shares[client]

    def leave(self, client: ConsumerClient) -> None:
        """A member left."""
        if self._members.pop(client, None) is not None:
            self.unsettle()

    def expire(self, process: Process) -> None:
        """A process was not heard of for a session's time."""
        for client in [each for each in self._members if each.process is process]:
            self.leave(client)

    def truncated(self, number: int, end: int) -> None:
        """A log ends before what members have read: they are told."""
        for client in self._members:
            client.truncated(number, end)

    def unsettle(self) -> None:
        """All members have to ask again."""
        self.settled = False
        self._members = dict.fromkeys(self._members, False)
        self._cluster.wake()
