"""The consumer's loop with a topic and a Postgres in memory, and a clock that nobody waits for."""

from __future__ import annotations

import random
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from kafka import TopicPartition
from kafka.errors import (
    CorruptRecordError,
    FencedInstanceIdError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    LogTruncationError,
    OffsetOutOfRangeError,
)
from simulation.postgres import Database, Offset
from telemetry.consumer import worker
from telemetry.consumer.batch import Fingerprint, Place, Run, TopicRecord, Written, crc
from telemetry.consumer.resume import start_reason
from telemetry.consumer.store import ClockApart, Failed, Fenced, PostgresStore, StoreError, TimedOut, Unavailable
from telemetry.consumer.worker import Worker
from telemetry.health import Health
from telemetry.metrics import ConsumerMetrics
from telemetry.record import Record, Upload, encode
from telemetry.settings import ConsumerSettings
from telemetry.topic import Partition, Topic
from telemetry.wire import Unreadable

TOPIC = "telemetry"
ID = uuid.UUID(int=7)
NOW = 1_700_000_000.0
UNKNOWN = Fingerprint(None, None)
VIN = "1FTEW1E45JFB00001"


class Clock:
    """Time that passes only when somebody sleeps or polls."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Message(NamedTuple):
    """What the Kafka client hands out."""

    offset: int
    timestamp: int
    key: bytes
    value: bytes | None
    headers: list[tuple[str, bytes]]


class Log:
    """The topic on the broker."""

    def __init__(self, partitions: int = 2) -> None:
        self.messages: dict[int, list[Message]] = {number: [] for number in range(partitions)}
        self.starts: dict[int, int] = defaultdict(int)
        self.ends: dict[int, int] = defaultdict(int)
        self.topic_id = ID
        self.leaderless: set[int] = set()
        self.leaders: dict[int, int] = defaultdict(lambda: 1)
        self.silent: set[int] = set()
        """Brokers that do not answer."""
        self.unparsable: dict[int, int] = {}
        """Offsets at which a poll raises an error that names no place."""
        self.misread: dict[int, int] = {}
        """Offsets of records that the client takes for the next one's."""

    def add(self, number: int, value: bytes, skip: int = 0) -> None:
        """Append; skip offsets as a transaction's marker does."""
        offset = self.ends[number] + skip
        self.messages[number].append(Message(offset, int(NOW * 1000), b"key", value, [("v", b"1")]))
        self.ends[number] = offset + 1

    def describe(self) -> Topic | None:
        partitions = tuple(Partition(each, -1 if each in self.leaderless else self.leaders[each], 3, 3) for each in self.messages)
        return Topic(self.topic_id, partitions, {})


class Client:
    """As much of a KafkaConsumer as is used, over a Log."""

    def __init__(self, log: Log, clock: Clock) -> None:
        self.log, self.clock = log, clock
        self.assigned: set[int] | None = None
        self.positions: dict[int, int] = {}
        self.paused: set[int] = set()
        self.errors: list[Exception] = []
        self.closed = False
        self.join_seconds = 0.0
        """How long the group takes."""
        self.joins: list[float] = []
        """When each join ends; as with the real client, one that ends while nobody polls is lost, and another begins."""
        self.polls: list[int] = []
        self.listener: Any = None
        self.broken = self.settled = False
        self.swallow: dict[int, list[int]] = {}
        """Offsets that a reading passes over, once."""

    def subscribe(self, topics: list[str], listener: Any) -> None:
        assert topics == [TOPIC]
        self.listener = listener

    def assign(self, numbers: Iterable[int]) -> None:
        """What the group decides."""
        if self.assigned is not None:
            self.listener.on_partitions_revoked({TopicPartition(TOPIC, number) for number in self.assigned})
        self.assigned = set(numbers)
        self.positions = {}
        self.listener.on_partitions_assigned({TopicPartition(TOPIC, number) for number in self.assigned})

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.positions[partition.partition] = offset

    def pause(self, partition: TopicPartition) -> None:
        assert partition.partition in self.positions
        self.paused.add(partition.partition)

    def resume(self, partition: TopicPartition) -> None:
        self.paused.discard(partition.partition)

    def poll(self, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Message]]:
        self.polls.append(timeout_ms)
        if self.errors:
            raise self.errors.pop(0)
        if self.assigned is None:
            if not self.joins or self.joins[-1] < self.clock.now:
                self.joins.append(self.clock.now + self.join_seconds)
            if self.joins[-1] > self.clock.now + timeout_ms / 1000:
                self.clock.now += timeout_ms / 1000
                return {}
            self.clock.now = self.joins[-1]
            # The first assignment is empty, until the topic is known
            self.assign([])
            return {}
        if not self.settled:
            self.settled = True
            self.assign(self.log.messages)
            return {}
        assert not self.broken, "after a record that it cannot parse, the client's poll never returns"
        found = {}
        for number in sorted(self.assigned - self.paused):
            if self.log.leaders[number] in self.log.silent:
                continue
            if len(messages := self._read(number, max_records)):
                found[TopicPartition(TOPIC, number)] = messages
                max_records -= len(messages)
            if max_records <= 0:
                break
        if not found:
            self.clock.now += timeout_ms / 1000
        return found

    def _read(self, number: int, most: int) -> list[Message]:
        messages = [each for each in self.log.messages[number] if each.offset >= self.positions[number]]
        poison = self.log.unparsable.get(number)
        if messages and messages[0].offset == poison:
            self.broken = True
            raise CorruptRecordError("Found invalid record structure: ValueError()")
        # What comes before it is handed out first
        before = [each for each in messages if poison is None or messages[0].offset > poison or each.offset < poison]
        messages = before[:most]
        passed_over = self.swallow.pop(number, [])
        messages = [each for each in messages if each.offset not in passed_over]
        if messages:
            self.positions[number] = messages[-1].offset + 1
        else:
            self.positions[number] = max(self.positions[number], self.log.ends[number])
        return [each._replace(offset=each.offset + (each.offset == self.log.misread.get(number))) for each in messages]

    def position(self, partition: TopicPartition, timeout_ms: int) -> int:
        return self.positions[partition.partition]

    def beginning_offsets(self, partitions: list[TopicPartition], timeout_ms: int) -> dict[TopicPartition, int]:
        self._await_leaders(partitions, timeout_ms)
        return {each: self.log.starts[each.partition] for each in partitions}

    def end_offsets(self, partitions: list[TopicPartition], timeout_ms: int) -> dict[TopicPartition, int]:
        self._await_leaders(partitions, timeout_ms)
        return {each: self.log.ends[each.partition] for each in partitions}

    def _await_leaders(self, partitions: list[TopicPartition], timeout_ms: int) -> None:
        """As with the real client, the silence of one leader fails the whole call, after its whole timeout."""
        assert not {each.partition for each in partitions} & self.log.leaderless, "would wait for a leader"
        if {self.log.leaders[each.partition] for each in partitions} & self.log.silent:
            self.clock.now += timeout_ms / 1000
            raise KafkaTimeoutError(f"Failed to get offsets by timestamps in {timeout_ms} ms")

    def highwater(self, partition: TopicPartition) -> int:
        return self.log.ends[partition.partition]

    def close(self, autocommit: bool, timeout_ms: int) -> None:
        assert not autocommit
        self.closed = True
        if self.assigned:
            self.listener.on_partitions_revoked({TopicPartition(TOPIC, number) for number in self.assigned})


class Watched(Health):
    """Health that remembers each change of readiness."""

    def __init__(self) -> None:
        super().__init__("consumer", "c1", "0")
        self.changes: list[bool] = []

    def _note(self) -> None:
        ready = bool(self.readiness()["ready"])
        if self.changes[-1:] != [ready]:
            self.changes.append(ready)

    def set_reason(self, key: str, text: str) -> None:
        super().set_reason(key, text)
        self._note()

    def clear(self, key: str) -> None:
        super().clear(key)
        self._note()


class Recording(PostgresStore):
    """The store on a Postgres in memory, which remembers batches and fails on demand."""

    def __init__(self, database: Database) -> None:
        self.database = database
        super().__init__(lambda: {}, 7 * 86_400_000, now=database.clock, connect=database.connect)
        self.batches: list[list[Run]] = []
        self.refuse: Callable[[list[Run]], None] = lambda runs: None
        self.probing: Callable[[], None] = lambda: None
        self.checking: Callable[[], None] = lambda: None
        self.away = False

    def places(self, topic: str) -> dict[int, list[Place]]:
        if self.away:
            raise Unavailable("Postgres: gone")
        return super().places(topic)

    def check_clock(self) -> None:
        if self.away:
            raise Unavailable("Postgres: gone")
        self.checking()
        super().check_clock()

    def probe(self) -> None:
        if self.away:
            raise Unavailable("Postgres: gone")
        self.probing()
        super().probe()

    def write(self, topic_id: uuid.UUID, topic: str, runs: Any) -> Written:
        if self.away:
            raise Unavailable("Postgres: gone")
        self.refuse(list(runs))
        written = super().write(topic_id, topic, runs)
        self.batches.append(list(runs))
        return written


@dataclass
class World:
    """A consumer and all that it sees."""

    log: Log
    clock: Clock
    store: Recording
    health: Watched
    clients: list[Client]
    consumer: Worker
    reachable: bool = True

    def steps(self, count: int = 6) -> None:
        for _ in range(count):
            self.consumer.step()

    def run(self, seconds: float) -> None:
        """Steps for some time."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.consumer.step()

    def reasons(self) -> str:
        return "; ".join(self.health.readiness()["reasons"])

    def stored(self) -> list[int]:
        return [row.seq for row in self.store.database.tables.rows]


@pytest.fixture
def world() -> World:
    log, clock, store, health = (
        Log(),
        Clock(),
        Recording(Database(lambda: datetime.fromtimestamp(NOW, UTC))),
        Watched(),
    )
    clients: list[Client] = []

    def connect() -> Client:
        if not found.reachable:
            raise KafkaConnectionError("nobody there")
        clients.append(Client(log, clock))
        return clients[-1]

    consumer = Worker(
        settings(), store, connect, log.describe, health, ConsumerMetrics(health.registry),
        clock=clock, wall=lambda: NOW, sleep=clock.sleep, rng=random.Random(1),
    )  # fmt: skip
    health.clear("start")
    found = World(log, clock, store, health, clients, consumer)
    return found


def settings() -> ConsumerSettings:
    return ConsumerSettings.load(
        {
            "TELEMETRY_NAME": "c1", "TELEMETRY_LISTEN": "127.0.0.1:1", "POSTGRES_HOST": "127.0.0.1",
            "POSTGRES_PASSWORD_FILE": "/nowhere", "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1", "KAFKA_TOPIC": TOPIC,
            "KAFKA_TOPIC_PARTITIONS": "2", "KAFKA_TOPIC_REPLICATION_FACTOR": "1", "KAFKA_TOPIC_MIN_INSYNC_REPLICAS": "1",
            "KAFKA_TOPIC_RETENTION_MS": "604800000",
        }
    )  # fmt: skip


def upload(first: int, last: int, epoch: int = 1) -> bytes:
    records = tuple(
        Record(seq=seq, timestamp=1, position_x=0, position_y=0, position_z=0, speed=0) for seq in range(first, last + 1)
    )
    return encode(Upload(vin=VIN, epoch=epoch, make="Ford", model="Edge", records=records))


def test_what_is_in_the_topic_is_stored_and_the_consumer_is_ready(world: World) -> None:
    world.log.add(0, upload(1, 3))
    world.steps()
    assert world.stored() == [1, 2, 3]
    assert world.health.readiness() == {"ready": True, "reasons": [], "degraded": []}


def test_it_is_not_ready_before_the_partitions_were_checked(world: World) -> None:
    world.store.away = True
    world.steps(1)
    assert "waiting for the group" in world.reasons()
    world.steps(2)
    assert "Postgres: gone" in world.reasons()


def test_when_idle_a_record_is_written_in_the_step_that_reads_it(world: World) -> None:
    world.steps()
    world.log.add(0, upload(1, 1))
    before = world.clock.now
    world.steps(1)
    assert world.stored() == [1]
    assert world.clock.now == before


def test_under_load_records_wait_for_company_but_not_for_long(world: World) -> None:
    world.steps()
    world.log.add(0, upload(1, 10))
    world.steps(1)
    for first in (11, 21, 31):
        world.log.add(0, upload(first, first + 9))
        world.steps(1)
    assert len(world.store.batches) == 1
    begun = world.clock.now
    while len(world.store.batches) == 1:
        world.steps(1)
    assert world.clock.now - begun <= 0.25
    assert len(world.store.batches[1][0].records) == 3


def test_a_full_hand_is_written_at_once(world: World) -> None:
    world.steps()
    world.log.add(0, upload(1, 2))
    world.steps(1)
    for number in range(90):
        world.log.add(0, upload(3 + 100 * number, 102 + 100 * number))
    begun = world.clock.now
    world.steps(1)
    assert len(world.store.batches) == 2
    assert world.clock.now == begun


def test_it_waits_for_kafka_at_the_start_longer_each_time(world: World) -> None:
    world.reachable = False
    begun, waits = world.clock.now, []
    for _ in range(8):
        world.steps(1)
        waits.append(world.clock.now - begun)
        begun = world.clock.now
    assert waits[0] < 0.3
    assert 2.5 <= waits[-1] <= 5
    assert "nobody there" in world.reasons()
    world.reachable = True
    world.log.add(1, upload(1, 1))
    world.steps()
    assert world.stored() == [1]
    assert world.reasons() == ""


def test_it_joins_no_group_before_there_is_a_topic(world: World) -> None:
    topic_id, world.log.describe = world.log.topic_id, lambda: None  # type: ignore[method-assign]  # stands in for the method
    world.consumer._describe = world.log.describe
    world.steps()
    assert world.clients == []
    assert "run site.yml" in world.reasons()
    world.consumer._describe = lambda: Topic(topic_id, tuple(Partition(n, 1, 3, 3) for n in (0, 1)), {})
    world.steps()
    assert world.reasons() == ""


def test_it_waits_for_postgres_and_goes_on(world: World) -> None:
    world.steps()
    world.store.away = True
    world.log.add(0, upload(1, 2))
    world.steps(3)
    assert "Postgres: gone" in world.reasons()
    assert not world.clients[0].closed
    world.store.away = False
    world.steps(3)
    assert world.stored() == [1, 2]
    assert world.reasons() == ""


@pytest.mark.parametrize(
    "error", [KafkaError("broken"), FencedInstanceIdError("c1"), OSError("socket"), AttributeError("of its own making")]
)
def test_a_client_that_failed_is_not_used_again(world: World, error: Exception) -> None:
    world.steps()
    world.log.add(0, upload(1, 2))
    world.clients[0].errors = [error]
    world.steps(1)
    assert world.clients[0].closed
    assert "Kafka: " in world.reasons()
    world.steps()
    assert len(world.clients) == 2
    assert world.stored() == [1, 2]
    assert world.reasons() == ""


def test_a_fault_of_the_program_is_not_taken_for_one_of_kafka(world: World) -> None:
    world.steps()

    def fault(runs: list[Run]) -> None:
        raise AttributeError("a bug")

    world.store.refuse = fault
    world.log.add(0, upload(1, 1))
    with pytest.raises(AttributeError):
        world.steps()


def test_a_fenced_batch_is_read_again_from_where_the_store_is(world: World) -> None:
    world.steps()
    world.log.add(0, upload(1, 2))
    world.log.add(0, upload(3, 4))
    # Another worker writes the first upload between our reading and our writing
    first = world.log.messages[0][0]

    def other(runs: list[Run]) -> None:
        world.store.refuse = lambda runs: None
        run = Run(0, 0, 1, (TopicRecord(0, 0, first.timestamp, first.key, first.value),))
        Recording(world.store.database).write(ID, TOPIC, [run])

    world.store.refuse = other
    world.steps()
    assert world.stored() == [1, 2, 3, 4]
    assert world.reasons() == ""


def test_what_is_in_hand_of_a_lost_partition_is_not_written(world: World) -> None:
    world.steps()
    world.log.add(0, upload(1, 2))
    world.steps(1)
    world.log.add(0, upload(3, 4))
    world.log.add(1, upload(1, 1, epoch=2))
    # Under load the hand is not written at once
    world.steps(1)
    assert world.consumer._buffer.records.keys() == {0, 1}
    world.clients[0].assign([1])
    world.steps(8)
    assert [(run.partition, run.start, run.end) for batch in world.store.batches for run in batch] == [(0, 0, 1), (1, 0, 1)]


def test_a_partition_that_is_lost_without_a_word_is_not_written(world: World) -> None:
    world.steps()
    world.log.add(0, upload(1, 2))
    world.steps(1)
    world.log.add(0, upload(3, 4))
    world.steps(1)
    assert world.consumer._buffer.records.keys() == {0}
    world.consumer.on_partitions_lost({TopicPartition(TOPIC, 0)})
    world.steps(8)
    assert world.stored() == [1, 2]


def test_offsets_of_markers_are_passed_after_a_second_reading(world: World) -> None:
    world.log.add(0, upload(1, 1))
    world.log.add(0, upload(2, 2), skip=1)
    world.log.ends[0] += 1
    world.steps(8)
    assert world.stored() == [1, 2]
    assert world.store.places(TOPIC)[0][0].next == 3
    world.log.add(0, upload(3, 3))
    world.steps(8)
    assert world.stored() == [1, 2, 3]
    runs = [(run.start, run.end) for batch in world.store.batches for run in batch]
    assert runs == [(0, 3), (3, 5)]
    # The marker at the end was not taken for a hole
    assert world.consumer._offsets_without_records == set()


def test_a_record_that_one_reading_passed_over_is_not_lost(world: World) -> None:
    world.steps()
    for seq in (1, 2, 3):
        world.log.add(0, upload(seq, seq))
    world.clients[0].swallow = {0: [1]}
    world.steps(8)
    assert world.stored() == [1, 2, 3]
    assert world.store.database.tables.gaps == {}


def place(following: int, topic_id: uuid.UUID = ID, before: Fingerprint = UNKNOWN) -> Place:
    return Place(topic_id, following, before)


@pytest.mark.parametrize(
    ("places", "start", "end", "word"),
    [
        ([], 0, 0, None),
        ([], 0, 9, None),
        ([], 3, 9, "begins at offset 3"),
        ([place(5)], 0, 5, None),
        ([place(5)], 5, 9, None),
        ([place(5)], 6, 9, "offsets 5 to 5 were deleted"),
        ([place(5)], 0, 4, "cut short"),
        ([place(5, uuid.UUID(int=8))], 0, 9, "made again"),
        ([place(5), place(9, uuid.UUID(int=8))], 0, 9, "made again"),
    ],
)
def test_the_start_check(places: list[Place], start: int, end: int, word: str | None) -> None:
    reason = start_reason(TOPIC, 0, ID, places, start, end)
    assert (reason is None) == (word is None)
    assert word is None or word in str(reason)


def set_place(world: World, number: int, following: int, before: Fingerprint = UNKNOWN) -> None:
    world.store.database.tables.offsets[str(ID), number] = Offset(TOPIC, following, *before)


def test_the_record_before_is_compared_and_not_stored_again(world: World) -> None:
    for seq in (1, 2):
        world.log.add(0, upload(seq, seq))
    before = world.log.messages[0][0]
    set_place(world, 0, 1, Fingerprint(before.timestamp, crc(before.key, before.value)))
    world.steps()
    assert [(run.start, run.end) for batch in world.store.batches for run in batch] == [(1, 2)]
    assert world.reasons() == ""


@pytest.mark.parametrize("field", ["timestamp", "crc"])
def test_another_record_before_stops_the_partition_only(world: World, field: str) -> None:
    for seq in (1, 2):
        world.log.add(0, upload(seq, seq))
    world.log.add(1, upload(1, 1, epoch=2))
    before = world.log.messages[0][0]
    good = Fingerprint(before.timestamp, crc(before.key, before.value))
    set_place(world, 0, 1, good._replace(**{field: 1}))
    world.steps(8)
    assert {run.partition for batch in world.store.batches for run in batch} == {1}
    assert "is not the one that was stored" in world.reasons()
    assert "accept_loss.yml -e read_again=0" in world.reasons()
    # The remedy needs no restart
    set_place(world, 0, 0)
    world.clock.now += worker.STOPPED_INTERVAL
    world.steps(8)
    assert len(world.stored()) == 3
    assert world.reasons() == ""


def test_a_record_before_that_is_not_held_any_more_is_not_compared(world: World) -> None:
    for seq in (1, 2):
        world.log.add(0, upload(seq, seq))
    world.log.starts[0] = 1
    set_place(world, 0, 1, Fingerprint(1, 1))
    world.steps()
    assert world.reasons() == ""
    assert [(run.start, run.end) for batch in world.store.batches for run in batch] == [(1, 2)]


def test_a_topic_that_is_made_again_under_way_stops_it(world: World) -> None:
    world.log.add(0, upload(1, 1))
    world.steps()
    world.log.topic_id = uuid.UUID(int=9)
    world.consumer.live_topic_id = world.log.topic_id
    world.log.add(0, upload(2, 2))
    world.steps()
    assert world.clients[0].closed
    assert world.stored() == [1]
    assert "made again" in world.reasons()


def test_a_partition_without_a_leader_waits_alone(world: World) -> None:
    world.log.leaderless = {0}
    world.log.add(0, upload(1, 1))
    world.log.add(1, upload(1, 1, epoch=2))
    world.steps()
    assert len(world.stored()) == 1
    assert "partition 0 of telemetry has no leader" in world.reasons()
    world.log.leaderless = set()
    world.clock.now += worker.LEADER_INTERVAL
    world.steps()
    assert len(world.stored()) == 2
    assert world.reasons() == ""


def test_a_record_that_cannot_be_read_stops_its_partition_only(world: World) -> None:
    world.steps()
    world.clients[0].errors = [Unreadable(TopicPartition(TOPIC, 0), 4, 6, "the batch has a wrong checksum")]
    world.log.add(0, upload(1, 1))
    world.log.add(1, upload(1, 1, epoch=2))
    world.steps(8)
    assert [run.partition for batch in world.store.batches for run in batch] == [1]
    assert "offsets 4 to 6 cannot be read: the batch has a wrong checksum" in world.reasons()
    # What else the batch held only a second look tells
    assert "accept_loss.yml says which offsets" in world.reasons()
    world.run(worker.UNPARSABLE_INTERVAL + worker.STOPPED_INTERVAL)
    assert len(world.stored()) == 2
    assert world.reasons() == ""


def test_an_error_of_one_partition_stops_that_one_and_the_others_go_on(world: World) -> None:
    world.steps()

    def refuse(runs: list[Run]) -> None:
        if any(run.partition == 0 for run in runs):
            raise Failed("Postgres: index is corrupted")

    world.store.refuse = refuse
    world.log.add(0, upload(1, 1))
    world.log.add(1, upload(1, 1, epoch=2))
    world.steps(12)
    assert [run.partition for batch in world.store.batches for run in batch] == [1]
    assert "offset 0 cannot be written, while others can: Postgres: index is corrupted" in world.reasons()
    world.store.refuse = lambda runs: None
    world.clock.now += worker.STOPPED_INTERVAL
    world.steps(8)
    assert len(world.stored()) == 2
    assert world.reasons() == ""


def test_an_unknown_commit_is_read_again_and_stored_once(world: World) -> None:
    world.steps()
    world.log.add(0, upload(1, 2))
    real = Recording.write

    def write_and_break(topic_id: uuid.UUID, topic: str, runs: Any) -> Written:
        world.store.write = lambda *arguments: real(world.store, *arguments)  # type: ignore[method-assign]  # stands in for the method
        real(world.store, topic_id, topic, runs)
        raise Unavailable("Postgres: the connection broke during COMMIT")

    world.store.write = write_and_break  # type: ignore[method-assign]  # stands in for the method
    world.steps(8)
    assert world.stored() == [1, 2]
    assert world.reasons() == ""


def test_metrics_tell_what_was_done(world: World) -> None:
    world.log.add(0, upload(3, 4))
    world.log.add(0, upload(3, 4))
    world.log.add(0, b"garbage")
    world.steps()
    sample = world.health.registry.get_sample_value
    assert sample("telemetry_rows_total") == 2
    assert sample("telemetry_repeats_total") == 2
    assert sample("telemetry_dead_letters_total") == 1
    assert sample("telemetry_gaps_total", {"state": "undeclared"}) == 1
    assert sample("telemetry_lag", {"partition": "0"}) == 0
    assert sample("telemetry_batch_seconds_count") == 1
    assert sample("telemetry_age_seconds_count") == 3


def test_a_join_is_awaited_without_a_pause_in_which_it_would_be_lost(world: World) -> None:
    world.steps()
    for seconds in (0.1, 0.77, 2.1, 6.3):
        client = world.clients[-1]
        client.join_seconds, client.joins = seconds, []
        client.listener.on_partitions_revoked({TopicPartition(TOPIC, number) for number in (0, 1)})
        client.assigned = None
        began = world.clock.now
        client.settled = False
        while client.assigned is None:
            assert len(client.joins) <= 1
            assert ("the group" in world.reasons()) == (world.clock.now - began > worker.JOIN_TOLD)
            world.steps(1)
        world.steps(4)
        assert world.reasons() == ""


def test_fenced_batches_are_counted(world: World) -> None:
    world.steps()

    def fence(runs: list[Run]) -> None:
        world.store.refuse = lambda runs: None
        raise Fenced("moved")

    world.store.refuse = fence
    world.log.add(0, upload(1, 1))
    world.steps()
    assert world.health.registry.get_sample_value("telemetry_fenced_total") == 1
    assert world.stored() == [1]


def test_partitions_added_by_hand_are_not_read_and_say_so(world: World) -> None:
    world.log.add(0, upload(1, 2))
    world.steps()
    world.log.messages[2] = []
    world.log.add(2, upload(3, 4))
    world.clients[-1].assign([0, 1, 2])
    world.steps(10)
    assert "has 3 partitions, kafka_topic_partitions is 2" in world.reasons()
    world.log.add(0, upload(3, 4))
    world.steps()
    assert world.stored() == [1, 2, 3, 4]
    assert {run.partition for batch in world.store.batches for run in batch} == {0}


def test_a_leader_that_does_not_answer_stops_its_own_partitions_only(world: World) -> None:
    world.log.leaders = {0: 1, 1: 2}
    world.log.silent = {2}
    world.log.add(1, upload(1, 1, epoch=2))
    for seq in range(1, 41):
        world.log.add(0, upload(seq, seq))
        world.run(2)
    # The group is at peace, and what one leader holds up is seconds
    assert len(world.clients) == 1
    assert world.stored() == list(range(1, 41))
    assert "partition 1 of telemetry: its leader, broker 2, does not answer" in world.reasons()
    assert world.health.changes == [False]
    world.log.silent = set()
    world.run(worker.LEADER_INTERVAL_MAX + 1)
    assert len(world.stored()) == 41
    assert world.health.changes == [False, True]


def test_of_a_silent_leader_the_others_wait_less_and_less(world: World) -> None:
    world.log.leaders, world.log.silent = {0: 1, 1: 2}, {2}
    world.run(60)
    # 3 s each, at 0, 2, 4, 8 and every 16 s
    asked = 60 / (worker.LEADER_INTERVAL_MAX + worker.OFFSETS_TIMEOUT)
    assert world.consumer._partitions[1].unanswered <= asked + 4


def test_a_client_whom_no_leader_answers_is_given_up(world: World) -> None:
    world.log.silent = {1}
    world.run(120)
    assert 2 <= len(world.clients) <= 4
    assert world.health.changes == [False]


def test_who_describes_the_topic_is_not_the_client_in_the_group(world: World) -> None:
    world.steps()

    def away() -> Topic | None:
        raise KafkaTimeoutError("no answer")

    world.consumer._describe = away
    world.consumer.on_partitions_assigned(())
    world.steps(1)
    assert world.reasons() == ""
    world.steps(1)
    assert "Kafka: no answer" in world.reasons()
    world.consumer._describe = world.log.describe
    world.steps(3)
    assert world.reasons() == ""
    assert len(world.clients) == 1


@pytest.mark.parametrize("error", [OffsetOutOfRangeError({}), LogTruncationError({}, {})])
def test_a_log_without_the_position_that_was_read_to_stops_its_partition(world: World, error: Exception) -> None:
    for seq in (1, 2):
        world.log.add(0, upload(seq, seq))
    world.steps()
    world.log.messages[0].pop()
    world.log.ends[0] = 1
    world.clients[0].errors = [error]
    world.steps()
    assert len(world.clients) == 1
    assert "ends at offset 1, but 2 is next: the log was cut short" in world.reasons()


def test_a_record_that_cannot_be_parsed_and_is_not_named_stops_its_partition_only(world: World) -> None:
    world.steps()
    for seq in range(1, 4):
        world.log.add(0, upload(seq, seq))
    world.log.unparsable = {0: 1}
    begun = world.clock.now
    seq = 0
    while world.clock.now - begun < 150:
        seq += 1
        world.log.add(1, upload(seq, seq, epoch=2))
        world.run(1)
    rows = [(row.epoch, row.seq) for row in world.store.database.tables.rows]
    assert [each for each in rows if each[0] == 1] == [(1, 1)]
    assert len([each for each in rows if each[0] == 2]) >= seq - 2
    assert "partition 0 of telemetry: a record at offset 1 or soon after cannot be parsed" in world.reasons()
    assert "accept_loss.yml" in world.reasons()
    # Twice at first, and once each time that it is read again
    assert len(world.clients) <= 1 + 2 + 150 / worker.UNPARSABLE_INTERVAL
    # Ready, and not ready for good
    assert world.health.changes == [False, True, False]
    world.log.unparsable = {}
    world.run(worker.UNPARSABLE_INTERVAL + worker.STOPPED_INTERVAL)
    assert sorted(each.seq for each in world.store.database.tables.rows if each.epoch == 1) == [1, 2, 3]
    assert world.health.readiness() == {"ready": True, "reasons": [], "degraded": []}
    assert world.health.changes == [False, True, False, True]


def test_one_at_a_time_nobody_waits_for_a_suspect_with_much_to_read(world: World) -> None:
    suspects = worker.Suspects()
    suspects.numbers = {1, 3, 9}
    turns = [suspects.turn({0, 1, 2, 3}, now) for now in (0.0, worker.TURN - 0.1, worker.TURN, 2 * worker.TURN, 3 * worker.TURN)]
    assert turns == [{1}, {1}, {3}, {0, 2}, {1}]
    suspects.numbers.clear()
    assert suspects.turn({0, 1}, 100.0) == {0, 1}


def test_a_record_whose_offset_is_misread_stops_its_partition_before_it(world: World) -> None:
    world.steps()
    for seq in (1, 2):
        world.log.add(0, upload(seq, seq))
    world.log.misread = {0: 1}
    world.log.add(1, upload(1, 1, epoch=2))
    world.steps(12)
    assert world.store.places(TOPIC)[0][0].next == 1
    assert "the record at offset 1 is read as one at offset 2, where the next to be read is 2" in world.reasons()
    assert len(world.stored()) == 2
    world.run(3 * worker.STOPPED_INTERVAL)
    assert world.health.changes == [False, True, False]


def test_a_good_step_in_between_does_not_end_the_back_off(world: World) -> None:
    world.steps()
    waits = []
    for _ in range(8):
        world.clients[-1].errors = [KafkaError("broken")]
        before = world.clock.now
        world.steps(1)
        waits.append(world.clock.now - before)
        world.steps(1)
    assert waits[-1] >= 2.5
    world.run(worker.WELL + 1)
    world.clients[-1].errors = [KafkaError("broken")]
    before = world.clock.now
    world.steps(1)
    assert world.clock.now - before < 0.3


def test_a_worker_whose_clock_is_far_off_leaves_the_group_until_it_is_right(world: World) -> None:
    world.steps()

    def apart(*_: Any) -> None:
        raise ClockApart("this host's clock is 3 days ahead of the database's: set it right")

    world.store.refuse, world.store.checking = apart, apart
    world.log.add(0, upload(1, 1))
    world.run(60)
    assert world.clients[0].closed
    assert len(world.clients) == 1
    assert "3 days ahead" in world.reasons()
    assert world.health.changes == [False, True, False]
    world.store.refuse = lambda runs: None
    world.store.checking = lambda: None
    world.run(10)
    assert world.stored() == [1]
    assert world.health.changes == [False, True, False, True]


def test_a_worker_whose_clock_is_far_off_joins_no_group(world: World) -> None:
    def apart() -> None:
        raise ClockApart("3 days ahead")

    world.store.checking = apart
    world.run(10)
    assert world.clients == []
    assert "3 days ahead" in world.reasons()


def test_an_idle_worker_notices_that_its_clock_went_wrong(world: World) -> None:
    world.steps()

    def apart() -> None:
        raise ClockApart("3 days ahead")

    world.store.checking = apart
    world.run(worker.CLOCK_INTERVAL + 1)
    assert world.clients[0].closed


@pytest.mark.parametrize("records", [True, False])
def test_a_locked_table_makes_it_not_ready_once_and_ready_once(world: World, records: bool) -> None:
    world.steps()
    begun = world.clock.now

    def locked(*_: Any) -> None:
        if world.clock.now - begun < 45:
            world.clock.now += 12
            raise TimedOut("Postgres: canceling statement due to lock timeout")

    world.store.refuse = world.store.probing = locked
    world.log.add(0, upload(1, 1))
    world.steps(1)
    if not records:
        # Somebody else stores it; what remains to be asked is whether one could write
        world.clients[-1].assign([1])
    while world.clock.now - begun < 45:
        assert world.health.readiness()["ready"] is False
        world.steps(1)
    world.run(10)
    assert world.stored() == ([1] if records else [])
    assert world.health.changes == [False, True, False, True]


def test_with_nothing_in_hand_a_probe_ends_the_doubt(world: World) -> None:
    world.steps()
    world.consumer.doubt_store("Postgres does not answer")
    assert world.health.readiness()["ready"] is False
    world.steps(1)
    assert world.health.readiness()["ready"] is True


def test_it_is_not_ready_before_the_store_has_taken_a_transaction(world: World) -> None:
    def locked() -> None:
        raise TimedOut("Postgres: canceling statement due to lock timeout")

    world.store.probing = locked
    world.run(5)
    assert world.health.changes == [False]
    world.store.probing = lambda: None
    world.run(5)
    assert world.health.changes == [False, True]


def test_a_batch_that_takes_too_long_is_halved_and_grows_again(world: World) -> None:
    world.steps()

    def slow(runs: list[Run]) -> None:
        sizes.append(sum(len(run.records) for run in runs))
        if sizes[-1] > 12:
            raise TimedOut("Postgres: canceling statement due to statement timeout")

    sizes: list[int] = []
    world.store.refuse = slow
    for seq in range(1, 101):
        world.log.add(0, upload(seq, seq))
    world.run(30)
    assert sizes[:5] == [100, 50, 25, 12, 12]
    assert world.stored() == list(range(1, 101))
    world.store.refuse = lambda runs: None
    world.store.batches.clear()
    for seq in range(101, 1001):
        world.log.add(0, upload(seq, seq))
    world.run(30)
    assert world.stored() == list(range(1, 1001))
    assert max(len(batch[0].records) for batch in world.store.batches) >= 100


def test_a_record_that_always_takes_too_long_stops_its_partition_alone(world: World) -> None:
    world.steps()

    def slow(runs: list[Run]) -> None:
        if any((record.partition, record.offset) == (0, 10) for run in runs for record in run.records):
            world.clock.now += 30
            raise TimedOut("Postgres: server closed the connection")

    world.store.refuse = slow
    for seq in range(1, 21):
        world.log.add(0, upload(seq, seq))
        world.log.add(1, upload(seq, seq, epoch=2))
    world.run(900)
    rows = [(row.epoch, row.seq) for row in world.store.database.tables.rows]
    assert [seq for epoch, seq in rows if epoch == 1] == list(range(1, 11))
    assert [seq for epoch, seq in rows if epoch == 2] == list(range(1, 21))
    assert "partition 0 of telemetry: offset 10 cannot be written, while others can" in world.reasons()
    assert len(world.clients) == 1


def test_a_stop_is_told_until_it_is_read_past(world: World) -> None:
    world.steps()

    def refuse(runs: list[Run]) -> None:
        if any(run.partition == 0 for run in runs):
            raise Failed("Postgres: index is corrupted")

    world.store.refuse = refuse
    world.log.add(0, upload(1, 1))
    world.run(5 * worker.STOPPED_INTERVAL)
    # The first refusal is the database's fault, until a probe has passed
    assert world.health.changes == [False, True, False]
    world.store.refuse = lambda runs: None
    world.run(worker.STOPPED_INTERVAL)
    assert world.health.changes == [False, True, False, True]


def test_why_a_partition_stopped_goes_with_it(world: World) -> None:
    set_place(world, 0, 5)
    world.steps()
    assert "partition 0 of telemetry ends at offset 0" in world.reasons()
    world.clients[-1].assign([0, 1])
    assert "partition 0 of telemetry ends at offset 0" in world.reasons()
    world.clients[-1].assign([1])
    world.run(worker.JOIN_TOLD + 1)
    assert world.reasons() == ""


def test_append_times_that_were_not_believed_are_counted(world: World) -> None:
    world.log.add(0, upload(1, 2))
    world.log.messages[0][0] = world.log.messages[0][0]._replace(timestamp=946_771_200_000)
    world.steps()
    assert world.stored() == [1, 2]
    assert world.health.registry.get_sample_value("telemetry_clock_faults_total") == 1


def test_what_is_stored_of_each_partition_is_known_without_postgres(world: World) -> None:
    world.log.add(0, upload(1, 2))
    world.steps()
    assert world.consumer.stored == {0: (1, int(NOW * 1000)), 1: (0, None)}
    world.store.away = True
    world.log.add(0, upload(3, 4))
    world.run(30)
    assert world.consumer.stored == {0: (1, int(NOW * 1000)), 1: (0, None)}


def test_a_worker_for_whom_nothing_is_left_is_ready(world: World) -> None:
    world.steps(1)
    world.clients[-1].settled = True
    world.clients[-1].assign([])
    assert "waiting for the group" in world.reasons()
    world.run(worker.JOIN_TOLD + 1)
    assert world.reasons() == ""


def test_of_a_stopped_partition_too_it_is_known_what_is_stored(world: World) -> None:
    set_place(world, 0, 5, Fingerprint(123, 456))
    world.steps()
    assert "partition 0 of telemetry ends at offset 0" in world.reasons()
    world.clients[-1].assign([0])
    assert world.consumer.stored == {}
    world.steps()
    assert world.consumer.stored == {0: (5, 123)}


def poisoned(world: World) -> None:
    """Partition 0 is known to hold a record that cannot be parsed, at offset 1 of 3."""
    world.steps()
    for seq in (1, 2, 3):
        world.log.add(0, upload(seq, seq))
    world.log.unparsable = {0: 1}
    world.run(10)
    assert "offset 1 or soon after cannot be parsed" in world.reasons()


def test_what_was_read_before_a_record_that_cannot_be_parsed_is_stored(world: World) -> None:
    """Also where it waits for company meanwhile."""
    world.steps()
    world.log.add(0, upload(1, 10))
    world.steps(1)
    world.log.add(0, upload(11, 20))
    world.steps(1)
    assert len(world.stored()) == 10
    world.log.add(0, upload(21, 30))
    world.log.unparsable[0] = 2
    world.steps(1)
    assert len(world.stored()) == 20
    assert world.clients[0].closed


@pytest.mark.parametrize(
    "error", [Unavailable("Postgres: gone"), Fenced("another was first"), TimedOut("a lock is not given in time")]
)
def test_a_client_that_met_what_it_cannot_parse_goes_also_when_the_rest_cannot_be_written(world: World, error: StoreError) -> None:
    """Its next poll would never return."""

    def refuse(runs: list[Run]) -> None:
        world.store.refuse = lambda runs: None
        raise error

    world.steps()
    world.log.add(0, upload(1, 10))
    world.steps(1)
    world.log.add(0, upload(11, 20))
    world.steps(1)
    world.log.add(0, upload(21, 30))
    world.log.unparsable[0] = 2
    world.store.refuse = refuse
    world.steps(1)
    assert world.clients[0].closed
    world.run(30)
    assert len(world.stored()) == 20


def test_where_the_last_stored_record_cannot_be_read_the_partition_is_read_again_when_it_is_led_back(world: World) -> None:
    world.steps()
    for seq in (1, 2):
        world.log.add(0, upload(seq, seq))
    world.steps(3)
    world.log.add(0, upload(3, 3))
    world.clients[0].errors = [Unreadable(TopicPartition(TOPIC, 0), 1, 1, "the batch has a wrong checksum")]
    world.steps(8)
    assert "the record at offset 1, the last one that was stored, cannot be read: the batch has a wrong checksum" in world.reasons()
    assert "accept_loss.yml -e read_again=0" in world.reasons()
    set_place(world, 0, 0)
    world.run(worker.STOPPED_INTERVAL + 2)
    assert world.stored() == [1, 2, 3]
    assert world.reasons() == ""


def test_what_an_operator_has_accepted_the_loss_of_is_passed_soon(world: World) -> None:
    poisoned(world)
    set_place(world, 0, 2)
    world.run(worker.STOPPED_INTERVAL + 1)
    assert world.stored() == [1, 3]
    assert world.reasons() == ""


def test_what_cannot_be_parsed_is_not_read_again_while_its_reader_replaces_its_client(world: World) -> None:
    poisoned(world)
    clients = len(world.clients)
    for _ in range(4):
        # Another worker has it, and leaves for a moment
        world.clients[-1].assign([1])
        world.run(worker.JOIN_TOLD + 25)
        assert world.reasons() == ""
        world.clients[-1].assign([0, 1])
        world.run(2)
        world.clients[-1].assign([1])
        world.run(10)
    assert len(world.clients) == clients
    # It is ours again, for good
    world.clients[-1].assign([0, 1])
    world.run(worker.JOIN_TOLD + 1)
    assert "offset 1 or soon after cannot be parsed" in world.reasons()


def test_each_call_of_the_store_shows_that_the_loop_goes_on(world: World) -> None:
    stop, seen = threading.Event(), list[float]()
    world.store.checking = lambda: world.clock.sleep(40)

    def probing() -> None:
        world.clock.sleep(40)
        stop.set()

    world.store.probing = probing
    world.consumer.run(stop, lambda: seen.append(world.clock.now))
    assert max(later - earlier for earlier, later in pairwise(seen)) < 50
    assert world.clients[0].closed
