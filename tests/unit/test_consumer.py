"""The consumer's loop with a topic and a Postgres in memory, and a clock that nobody waits for."""

from __future__ import annotations

import random
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from kafka import TopicPartition
from kafka.errors import CorruptRecordError, FencedInstanceIdError, KafkaConnectionError, KafkaError
from simulation.postgres import Database, Offset
from telemetry.consumer import service, worker
from telemetry.consumer.batch import Fingerprint, Place, Run, TopicRecord, Written, crc
from telemetry.consumer.resume import start_reason
from telemetry.consumer.store import Failed, Fenced, PostgresStore, Unavailable
from telemetry.consumer.worker import Worker
from telemetry.health import Health
from telemetry.metrics import ConsumerMetrics
from telemetry.record import Record, Upload, encode
from telemetry.settings import ConsumerSettings
from telemetry.topic import Partition, Topic

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

    def add(self, number: int, value: bytes, skip: int = 0) -> None:
        """Append; skip offsets as a transaction's marker does."""
        offset = self.ends[number] + skip
        self.messages[number].append(Message(offset, int(NOW * 1000), b"key", value, [("v", b"1")]))
        self.ends[number] = offset + 1

    def describe(self) -> Topic | None:
        partitions = tuple(Partition(each, -1 if each in self.leaderless else 1, 3, 3) for each in self.messages)
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
            self.assign(self.log.messages)
            return {}
        found = {}
        for number in sorted(self.assigned - self.paused):
            messages = [each for each in self.log.messages[number] if each.offset >= self.positions[number]][:max_records]
            passed_over = self.swallow.pop(number, [])
            messages = [each for each in messages if each.offset not in passed_over]
            if messages:
                found[TopicPartition(TOPIC, number)] = messages
                self.positions[number] = messages[-1].offset + 1
            else:
                self.positions[number] = max(self.positions[number], self.log.ends[number])
        if not found:
            self.clock.now += timeout_ms / 1000
        return found

    def position(self, partition: TopicPartition, timeout_ms: int) -> int:
        return self.positions[partition.partition]

    def beginning_offsets(self, partitions: list[TopicPartition], timeout_ms: int) -> dict[TopicPartition, int]:
        assert not {each.partition for each in partitions} & self.log.leaderless, "would wait for a leader"
        return {each: self.log.starts[each.partition] for each in partitions}

    def end_offsets(self, partitions: list[TopicPartition], timeout_ms: int) -> dict[TopicPartition, int]:
        return {each: self.log.ends[each.partition] for each in partitions}

    def highwater(self, partition: TopicPartition) -> int:
        return self.log.ends[partition.partition]

    def close(self, autocommit: bool, timeout_ms: int) -> None:
        assert not autocommit
        self.closed = True
        if self.assigned:
            self.listener.on_partitions_revoked({TopicPartition(TOPIC, number) for number in self.assigned})


class Recording(PostgresStore):
    """The store on a Postgres in memory, which remembers batches and fails on demand."""

    def __init__(self, database: Database) -> None:
        self.database = database
        super().__init__(lambda: {}, now=database.clock, connect=database.connect)
        self.batches: list[list[Run]] = []
        self.refuse: Callable[[list[Run]], None] = lambda runs: None
        self.away = False

    def places(self, topic: str) -> dict[int, list[Place]]:
        if self.away:
            raise Unavailable("Postgres: gone")
        return super().places(topic)

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
    health: Health
    clients: list[Client]
    consumer: Worker
    reachable: bool = True

    def steps(self, count: int = 6) -> None:
        for _ in range(count):
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
        Health("consumer", "c1", "0"),
    )
    health.clear("start")
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
    assert world.consumer._hand.records.keys() == {0, 1}
    world.clients[0].assign([1])
    world.steps(8)
    assert [(run.partition, run.start, run.end) for batch in world.store.batches for run in batch] == [(0, 0, 1), (1, 0, 1)]


def test_a_partition_that_is_lost_without_a_word_is_not_written(world: World) -> None:
    world.steps()
    world.log.add(0, upload(1, 2))
    world.steps(1)
    world.log.add(0, upload(3, 4))
    world.steps(1)
    assert world.consumer._hand.records.keys() == {0}
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
    assert world.consumer._holes == {(0, 1, 2)}


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
        ([place(5), place(9, uuid.UUID(int=8))], 0, 9, None),
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
    world.consumer.heard = world.log.topic_id
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
    text = "Record batch for partition TopicPartition(topic='telemetry', partition=0) at offset 4 failed crc check"
    world.clients[0].errors = [CorruptRecordError(text)]
    world.log.add(0, upload(1, 1))
    world.log.add(1, upload(1, 1, epoch=2))
    world.steps(8)
    assert [run.partition for batch in world.store.batches for run in batch] == [1]
    assert "offset 4 has a wrong checksum" in world.reasons()
    # What else the batch held only a second look tells
    assert "accept_loss.yml says which offsets" in world.reasons()
    world.clock.now += worker.STOPPED_INTERVAL
    world.steps(8)
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
    assert "partition 0 cannot be written: Postgres: index is corrupted" in world.reasons()
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


@pytest.mark.parametrize("passed", [0.0, service.SLOW_WRITE + 1, service.HUNG_WRITE + 1])
def test_a_write_that_hangs_is_told_and_broken_off(world: World, monkeypatch: pytest.MonkeyPatch, passed: float) -> None:
    class Hanging:
        broken = False

        def break_off(self) -> None:
            self.broken = True

    store = Hanging()
    monkeypatch.setattr("telemetry.consumer.service.time.monotonic", lambda: 100.0 + passed)
    world.consumer.writing_since = 100.0
    service.watch(world.consumer, store, world.log.describe, settings(), world.health)  # type: ignore[arg-type]  # no more of a store than watch needs
    assert ("does not answer" in world.reasons()) == (passed > service.SLOW_WRITE)
    assert store.broken == (passed > service.HUNG_WRITE)


def test_the_watch_tells_of_kafka(world: World) -> None:
    def away() -> Topic | None:
        raise KafkaConnectionError("nobody there")

    arguments = (settings(), world.health)
    service.watch(world.consumer, None, away, *arguments)  # type: ignore[arg-type]  # no more of a store than watch needs
    assert "Kafka cannot be reached at 127.0.0.1:1: nobody there" in world.reasons()
    service.watch(world.consumer, None, lambda: None, *arguments)  # type: ignore[arg-type]  # no more of a store than watch needs
    assert "topic telemetry is not there" in world.reasons()
    service.watch(world.consumer, None, world.log.describe, *arguments)  # type: ignore[arg-type]  # no more of a store than watch needs
    assert world.reasons() == ""
    assert world.consumer.heard == ID


def test_a_join_is_awaited_without_a_pause_in_which_it_would_be_lost(world: World) -> None:
    world.steps()
    for seconds in (0.1, 0.77, 2.1, 6.3):
        client = world.clients[-1]
        client.join_seconds, client.joins = seconds, []
        client.listener.on_partitions_revoked({TopicPartition(TOPIC, number) for number in (0, 1)})
        client.assigned = None
        began = world.clock.now
        while client.assigned is None:
            assert len(client.joins) <= 1
            assert ("the group" in world.reasons()) == (world.clock.now - began > worker.JOIN_TOLD)
            world.steps(1)
        world.steps(3)
        assert world.reasons() == ""


@pytest.mark.parametrize("loop", ["consume", "watch"])
def test_a_client_that_never_returns_ends_the_process(
    loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    over = threading.Event()

    def never_returns() -> None:
        if threading.current_thread().name == loop:
            over.wait()
        raise KafkaConnectionError("nobody there")

    (tmp_path / "password").write_text("x")
    monkeypatch.setattr("telemetry.consumer.service.topics.describer", lambda settings, client_id: never_returns)
    monkeypatch.setattr(service, "retain_forever", lambda settings, health, stop: None)
    monkeypatch.setattr("telemetry.consumer.service.signal.signal", lambda number, handler: None)
    for limit, seconds in {
        "LOOP_LIMIT": 2.0,
        "WATCH_LIMIT": 2.0,
        "WATCH_INTERVAL": 0.1,
        "STOP_TIMEOUT": 0.1,
    }.items():
        monkeypatch.setattr(service, limit, seconds)
    monkeypatch.setattr(worker, "BACKOFF_MAX", 0.1)
    monkeypatch.setattr("telemetry.consumer.service.healths.serve", lambda app, host, port: None)
    consumer = replace(settings(), postgres_password_file=str(tmp_path / "password"))
    status: list[int] = []
    process = threading.Thread(target=lambda: status.append(service.run(consumer)), daemon=True)
    process.start()
    process.join(20)
    over.set()
    assert status == [1]
    assert f"the loop '{loop}' has not come round for 2 s; it is in" in caplog.text


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
