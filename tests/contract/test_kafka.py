"""What the product relies on in Kafka's clients, on Kafka in memory and, where TACHOGRAPH_TEST_KAFKA is given, on real brokers.

The variable holds the bootstrap servers, as address:port and joined by commas. Every test has a topic of its own, so the brokers
may be in use.
"""

from __future__ import annotations

import gzip
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from kafka import ConsumerRebalanceListener, KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from kafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError, OffsetOutOfRangeError
from simulation import clients as memory_clients
from simulation import kafka as memory
from telemetry import clients
from telemetry import topic as topics
from telemetry.consumer.remedy import LiveLog
from telemetry.settings import ConsumerSettings

from .raw import batch, body, framed, produce

SERVERS = os.environ.get("TACHOGRAPH_TEST_KAFKA", "")
PARTITIONS = memory.PARTITIONS
HEADERS = [("v", b"1")]
only_broker = pytest.mark.parametrize("kind", ["broker"])


class MemoryKafka:
    """Kafka in memory; the topic is made with it."""

    def __init__(self) -> None:
        self.bench, self.topic = memory_clients.Bench(), memory.TOPIC

    def run(self, call: Callable[[], Any]) -> Any:
        return self.bench.run(call)

    def consumer(self, **more: Any) -> Any:
        return memory_clients.ConsumerClient(self.bench.cluster, **READING, **more)

    def producer(self) -> Any:
        return memory_clients.ProducerClient(self.bench.cluster, **WRITING)

    def now(self) -> float:
        return self.bench.process.clock.time()

    def remove_topic(self) -> None:
        """Nobody leads its partitions any more."""
        self.bench.cluster.delete_topic(lambda number: 0)

    def close(self) -> None:
        # Or other tests would run within the process's event loop
        self.bench.process.end()
        self.bench.scheduler.enter(None)


class RealKafka:
    """Real brokers, and a topic that is removed in the end."""

    def __init__(self) -> None:
        self.servers, self.topics = SERVERS.split(","), list[str]()
        self.admin = KafkaAdminClient(bootstrap_servers=self.servers)
        self.topic = self.make(len(self.admin.describe_cluster()["brokers"]))

    def make(self, factor: int, **more: str) -> str:
        """A topic; ready when each of its partitions has a leader."""
        name = f"contract-{uuid.uuid4().hex}"
        config = {key: value for key, value in memory.CONFIG.items() if factor > 1 or key != "min.insync.replicas"} | more
        self.admin.create_topics([NewTopic(name, PARTITIONS, factor, topic_configs=config)])
        self.topics.append(name)
        self.settle(lambda: self.led(name))
        return name

    def settle(self, heard: Callable[[], bool]) -> None:
        """Wait until all brokers have heard of a change: they do so one after the other, and any of them may answer."""
        times, deadline = 0, time.monotonic() + 20
        while times < 10 and time.monotonic() < deadline:
            times = times + 1 if heard() else 0
        assert times == 10

    def led(self, name: str) -> bool:
        found = topics.describe(self.admin, name, {})
        return found is not None and len(found.partitions) == PARTITIONS and all(each.leader >= 0 for each in found.partitions)

    def run(self, call: Callable[[], Any]) -> Any:
        return call()

    def consumer(self, **more: Any) -> Any:
        return clients.make_client(KafkaConsumer, bootstrap_servers=self.servers, **READING, **more)

    def producer(self) -> Any:
        return clients.make_client(KafkaProducer, bootstrap_servers=self.servers, **WRITING)

    def now(self) -> float:
        return time.time()

    def remove_topic(self) -> None:
        """Nobody leads its partitions any more: a leader answers for a while after the brokers have forgotten the topic."""
        with closing(self.consumer()) as consumer:
            consumer.end_offsets([place(self)], timeout_ms=5_000)
            self.topics.remove(self.topic)
            self.admin.delete_topics([self.topic])
            self.settle(lambda: topics.describe(self.admin, self.topic, {}) is None and self.unanswered(consumer))

    def unanswered(self, consumer: Any) -> bool:
        try:
            consumer.end_offsets([place(self)], timeout_ms=200)
        except KafkaTimeoutError:
            return True
        return False

    def leader(self, partition: int) -> tuple[str, int]:
        """Where a partition's leader listens."""
        found = topics.describe(self.admin, self.topic, {})
        assert found
        brokers = {each["broker_id"]: (each["host"], each["port"]) for each in self.admin.describe_cluster()["brokers"]}
        return brokers[found.partitions[partition].leader]

    def close(self) -> None:
        self.admin.delete_topics(self.topics)
        self.admin.close()


READING: dict[str, Any] = {
    "client_id": "contract", "auto_offset_reset": "none", "enable_auto_commit": False, "request_timeout_ms": 5_000,
    "max_poll_records": 100,
}  # fmt: skip
WRITING: dict[str, Any] = {
    "client_id": "contract", "acks": "all", "enable_idempotence": False, "request_timeout_ms": 4_000, "delivery_timeout_ms": 5_000,
    "retry_backoff_ms": 100, "max_request_size": 5 * 256 * 1024, "allow_auto_create_topics": False, "max_block_ms": 2_000,
}  # fmt: skip
Kafka = MemoryKafka | RealKafka


@pytest.fixture(params=["memory", "broker"])
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def kafka(kind: str) -> Iterator[Kafka]:
    with closing(MemoryKafka() if kind == "memory" else RealKafka()) as found:
        yield found


def place(kafka: Kafka, partition: int = 0) -> TopicPartition:
    return TopicPartition(kafka.topic, partition)


def write(kafka: Kafka, *values: bytes | None, partition: int = 0, headers: Any = None) -> list[int]:
    """Write values one after the other; their offsets."""
    producer = kafka.producer()
    headers = HEADERS if headers is None else headers
    sent = [
        producer.send(kafka.topic, value=value, key=b"k", headers=headers, partition=partition).get(timeout=10) for value in values
    ]
    producer.close(timeout=5)
    assert all(each.partition == partition for each in sent)
    return [each.offset for each in sent]


def reader(kafka: Kafka, *numbers: int) -> Any:
    """A client that reads partitions from their start, without a group."""
    consumer = kafka.consumer()
    places = [place(kafka, number) for number in numbers or (0,)]
    consumer.assign(places)
    for each in places:
        consumer.seek(each, 0)
    return consumer


def read(kafka: Kafka, consumer: Any, count: int, most: int = 100) -> list[Any]:
    """What comes until there are so many."""
    found: list[Any] = []
    deadline = kafka.now() + 20
    while len(found) < count and kafka.now() < deadline:
        polled = consumer.poll(timeout_ms=500, max_records=most)
        assert sum(map(len, polled.values())) <= most
        found += [each for some in polled.values() for each in some]
    return found


def test_a_confirmed_record_has_its_place_and_comes_back_whole(kafka: Kafka) -> None:
    def act() -> None:
        before = kafka.now()
        assert write(kafka, b"one", None, b"") == [0, 1, 2]
        found = read(kafka, reader(kafka), 3)
        assert [(each.offset, each.key, each.value, each.headers) for each in found] == [
            (0, b"k", b"one", HEADERS),
            (1, b"k", None, HEADERS),
            (2, b"k", b"", HEADERS),
        ]
        assert all(before - 5 <= each.timestamp / 1000 <= kafka.now() + 5 for each in found)

    kafka.run(act)


def test_outcomes_are_told_by_both_ways(kafka: Kafka) -> None:
    def act() -> None:
        told: list[Any] = []
        producer = kafka.producer()
        future = producer.send(kafka.topic, value=b"x", key=b"k", headers=HEADERS, partition=1)
        future.add_both(told.append)
        assert future.get(timeout=10).offset == 0
        future.add_both(told.append)
        assert [each.offset for each in told] == [0, 0]
        producer.close(timeout=5)

    kafka.run(act)


def test_what_no_leader_takes_is_not_confirmed_and_the_future_ends_in_time(kafka: Kafka) -> None:
    def act() -> None:
        producer = kafka.producer()
        producer.send(kafka.topic, value=b"x", key=b"k", headers=HEADERS, partition=0).get(timeout=10)
        kafka.remove_topic()
        begun = kafka.now()
        with pytest.raises(KafkaError):
            producer.send(kafka.topic, value=b"x", key=b"k", headers=HEADERS, partition=0).get(timeout=10)
        assert 1 <= kafka.now() - begun <= 9
        producer.close(timeout=5)

    kafka.run(act)


def test_what_cannot_be_sent_raises_at_once(kafka: Kafka) -> None:
    def act() -> None:
        producer = kafka.producer()
        with pytest.raises(MessageSizeTooLargeError):
            producer.send(kafka.topic, value=bytes(WRITING["max_request_size"] + 1), key=b"k", headers=HEADERS, partition=0)
        with pytest.raises(ValueError, match="Unrecognized partition"):
            producer.send(kafka.topic, value=b"x", key=b"k", headers=HEADERS, partition=PARTITIONS)
        producer.close(timeout=5)

    kafka.run(act)


def test_a_position_is_where_it_was_sought_and_then_where_reading_ended(kafka: Kafka) -> None:
    def act() -> None:
        write(kafka, *(b"%d" % number for number in range(5)))
        consumer = reader(kafka)
        consumer.seek(place(kafka), 2)
        assert consumer.position(place(kafka), timeout_ms=1_000) == 2
        assert [each.offset for each in read(kafka, consumer, 3)] == [2, 3, 4]
        assert consumer.position(place(kafka), timeout_ms=1_000) == 5
        assert consumer.highwater(place(kafka)) == 5
        consumer.seek(place(kafka), 4)
        assert [each.offset for each in read(kafka, consumer, 1)] == [4]

    kafka.run(act)


def test_a_poll_brings_so_many_records_of_all_partitions_together(kafka: Kafka) -> None:
    def act() -> None:
        for number in range(PARTITIONS):
            write(kafka, *[b"x"] * 5, partition=number)
        consumer = reader(kafka, *range(PARTITIONS))
        places = {number: [] for number in range(PARTITIONS)}  # type: dict[int, list[int]]
        left, deadline = 5 * PARTITIONS, kafka.now() + 20
        while left and kafka.now() < deadline:
            found = consumer.poll(timeout_ms=500, max_records=4)
            assert sum(map(len, found.values())) <= 4
            for where, some in found.items():
                places[where.partition] += [each.offset for each in some]
                left -= len(some)
        assert places == {number: [0, 1, 2, 3, 4] for number in range(PARTITIONS)}

    kafka.run(act)


def test_a_paused_partition_brings_nothing_until_it_is_resumed(kafka: Kafka) -> None:
    def act() -> None:
        for number in (0, 1):
            write(kafka, b"x", partition=number)
        consumer = reader(kafka, 0, 1)
        consumer.pause(place(kafka, 0))
        assert [each.offset for each in read(kafka, consumer, 1)] == [0]
        assert consumer.poll(timeout_ms=500, max_records=9) == {}
        consumer.resume(place(kafka, 0))
        [(where, found)] = consumer.poll(timeout_ms=5_000, max_records=9).items()
        assert (where, [each.offset for each in found]) == (place(kafka, 0), [0])

    kafka.run(act)


def test_what_was_fetched_of_a_partition_before_it_was_paused_is_read_when_it_is_resumed(kafka: Kafka) -> None:
    """Also where others were read meanwhile, and nothing of them is left."""

    def act() -> None:
        write(kafka, *[b"x"] * 5, partition=0)
        consumer = reader(kafka, 0, 1)
        [(_, [first])] = consumer.poll(timeout_ms=5_000, max_records=1).items()
        consumer.pause(place(kafka, 0))
        write(kafka, b"y", partition=1)
        assert [each.value for each in read(kafka, consumer, 1)] == [b"y"]
        assert consumer.poll(timeout_ms=500, max_records=9) == {}
        consumer.seek(place(kafka, 0), first.offset)
        consumer.resume(place(kafka, 0))
        assert [each.offset for each in read(kafka, consumer, 5)] == [0, 1, 2, 3, 4]

    kafka.run(act)


def test_a_position_beyond_the_end_is_an_error_and_nothing_is_reset(kafka: Kafka) -> None:
    def act() -> None:
        write(kafka, b"x")
        consumer = reader(kafka)
        consumer.seek(place(kafka), 7)
        with pytest.raises(OffsetOutOfRangeError):
            read(kafka, consumer, 1)

    kafka.run(act)


def test_bounds_of_a_log(kafka: Kafka) -> None:
    def act() -> None:
        write(kafka, b"x", b"y")
        consumer, places = kafka.consumer(), [place(kafka, 0), place(kafka, 1)]
        assert consumer.beginning_offsets(places, timeout_ms=5_000) == {places[0]: 0, places[1]: 0}
        assert consumer.end_offsets(places, timeout_ms=5_000) == {places[0]: 2, places[1]: 0}

    kafka.run(act)


def test_a_partition_without_a_leader_is_asked_for_the_whole_time(kafka: Kafka) -> None:
    def act() -> None:
        write(kafka, b"x")
        consumer = kafka.consumer()
        assert consumer.end_offsets([place(kafka)], timeout_ms=5_000) == {place(kafka): 1}
        kafka.remove_topic()
        for ask in (consumer.beginning_offsets, consumer.end_offsets):
            begun = kafka.now()
            with pytest.raises(KafkaTimeoutError):
                ask([place(kafka)], timeout_ms=1_500)
            assert 1 <= kafka.now() - begun <= 4

    kafka.run(act)


def test_asked_together_with_one_that_is_led_a_partition_without_a_leader_is_forgotten(kafka: Kafka) -> None:
    """One that is not there is to the client as one that nobody leads."""

    def act() -> None:
        consumer = kafka.consumer()
        assert consumer.end_offsets([place(kafka, 0)], timeout_ms=5_000) == {place(kafka, 0): 0}
        for ask in (consumer.beginning_offsets, consumer.end_offsets):
            with pytest.raises(KeyError):
                ask([place(kafka, 0), place(kafka, PARTITIONS)], timeout_ms=5_000)

    kafka.run(act)


def test_records_are_found_by_their_append_time(kafka: Kafka) -> None:
    def act() -> None:
        write(kafka, b"x", b"y")
        found = kafka.consumer().offsets_for_times({place(kafka): 0, place(kafka, 1): 0}, timeout_ms=5_000)
        assert found[place(kafka)].offset == 0
        assert found[place(kafka, 1)] is None
        late = int((kafka.now() + 86_400) * 1000)
        assert kafka.consumer().offsets_for_times({place(kafka): late}, timeout_ms=5_000) == {place(kafka): None}

    kafka.run(act)


def test_a_header_name_that_is_not_utf_8_is_read(kafka: Kafka) -> None:
    def act() -> None:
        write(kafka, b"x", headers=[(memory.RawName("Größe".encode("latin-1")), b"1"), ("v", b"1")])
        write(kafka, b"y")
        found = read(kafka, reader(kafka), 2)
        assert [(each.value, each.headers) for each in found] == [(b"x", [("Gr\udcf6\udcdfe", b"1"), ("v", b"1")]), (b"y", HEADERS)]

    kafka.run(act)


class Shares(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """What the group gave a client."""

    def __init__(self) -> None:
        self.mine: set[int] = set()
        self.client: Any = None

    def on_partitions_assigned(self, assigned: Any) -> None:
        self.mine |= {each.partition for each in assigned}
        for each in assigned:
            self.client.seek(each, 0)
            self.client.pause(each)

    def on_partitions_revoked(self, revoked: Any) -> None:
        self.mine -= {each.partition for each in revoked}

    def on_partitions_lost(self, lost: Any) -> None:
        self.on_partitions_revoked(lost)


def test_a_group_hands_out_each_partition_once_and_again_when_a_member_leaves(kafka: Kafka) -> None:
    def act() -> None:
        group = f"contract-{uuid.uuid4().hex}"
        members = [Shares(), Shares()]
        for each in members:
            each.client = kafka.consumer(group_id=group, session_timeout_ms=10_000, heartbeat_interval_ms=1_000)
            each.client.subscribe([kafka.topic], listener=each)
        deadline = kafka.now() + 40

        def settle(wanted: Callable[[], bool], *joined: Shares) -> None:
            while not wanted() and kafka.now() < deadline:
                for each in joined:
                    each.client.poll(timeout_ms=500, max_records=1)
            assert wanted()

        one, other = members
        everything = set(range(PARTITIONS))
        settle(lambda: bool(one.mine and other.mine) and one.mine | other.mine == everything, one, other)
        assert not one.mine & other.mine
        other.client.close(autocommit=False, timeout_ms=2_000)
        settle(lambda: one.mine == everything, one)
        one.client.close(autocommit=False, timeout_ms=2_000)

    kafka.run(act)


# What only brokers can show


@only_broker
def test_what_other_clients_write_is_read_as_ordinary_records(kafka: RealKafka) -> None:
    write(kafka, b"first")
    odd = [
        framed(body(b"a", attributes=0x80)),
        framed(body(b"b", attributes=0xFF, delta=7)),
        framed(body(b"c", headers=[(b"\xff", b"\xfe"), (b"", None)])),
        framed(body(None, key=None, headers=[])),
    ]
    assert produce(kafka.leader(0), kafka.topic, 0, batch(odd)) == (0, 1)
    packed = batch([framed(body(b"packed"))], attributes=1, compress=gzip.compress)
    assert produce(kafka.leader(0), kafka.topic, 0, packed) == (0, 5)
    # The first transaction of a cluster makes a topic of 50 partitions first
    arguments = {**WRITING, "enable_idempotence": True, "transactional_id": uuid.uuid4().hex, "max_block_ms": 30_000}
    with closing(KafkaProducer(bootstrap_servers=kafka.servers, **arguments)) as foreign:
        foreign.init_transactions()
        for ending in (foreign.commit_transaction, foreign.abort_transaction):
            foreign.begin_transaction()
            foreign.send(kafka.topic, value=b"foreign", key=b"k", partition=0).get(timeout=10)
            ending()
    consumer = reader(kafka)
    found = read(kafka, consumer, 8)
    values = [b"first", b"a", b"b", b"c", None, b"packed", b"foreign", b"foreign"]
    assert [each.value for each in found] == values
    # After each transaction is its marker
    assert [each.offset for each in found] == [0, 1, 2, 3, 4, 5, 6, 8]
    assert found[3].headers == [("\udcff", b"\xfe"), ("", None)]
    assert read(kafka, consumer, 0) == []
    write(kafka, b"last")
    assert [each.offset for each in read(kafka, consumer, 1)] == [10]


@only_broker
@pytest.mark.parametrize("codec", ["lz4", "snappy", "zstd"])
def test_a_broker_refuses_what_it_cannot_unpack(kafka: RealKafka, codec: str) -> None:
    number = {"snappy": 2, "lz4": 3, "zstd": 4}[codec]
    error, _ = produce(kafka.leader(0), kafka.topic, 0, batch([b"not packed"], attributes=number))
    assert error
    assert write(kafka, b"x") == [0]


@pytest.fixture
def log(kafka: RealKafka, monkeypatch: pytest.MonkeyPatch) -> LiveLog:
    """The remedy's look at a topic whose clients stamp the records."""
    kafka.topic = kafka.make(1, **{"message.timestamp.type": "CreateTime"})
    values = {
        "TELEMETRY_NAME": "contract", "TELEMETRY_LISTEN": "127.0.0.1:1",
        "KAFKA_BOOTSTRAP_SERVERS": SERVERS, "KAFKA_TOPIC": kafka.topic,
        "KAFKA_TOPIC_PARTITIONS": str(PARTITIONS), "KAFKA_TOPIC_REPLICATION_FACTOR": "1", "KAFKA_TOPIC_MIN_INSYNC_REPLICAS": "1",
        "KAFKA_TOPIC_RETENTION_MS": "604800000", "POSTGRES_HOST": "nowhere", "POSTGRES_PASSWORD_FILE": "/nowhere",
    }  # fmt: skip
    return LiveLog(ConsumerSettings.load(values))


@only_broker
def test_a_record_stamped_far_ahead_is_found_until_it_is_deleted(kafka: RealKafka, log: LiveLog) -> None:
    now = int(time.time() * 1000)
    stamps = [now - 60_000, now, 946_771_200_000, 2_085_000_000_000, now]
    with closing(kafka.producer()) as producer:
        for stamp in stamps:
            producer.send(kafka.topic, value=b"x", key=b"k", partition=0, timestamp_ms=stamp).get(timeout=10)
    assert log.bounds(0) == (0, 5)
    assert log.stamps()[0] == topics.Stamps(stamps[0], (3, 2_085_000_000_000))
    assert log.stamps()[1] == topics.Stamps(None, None)
    assert log.delete_before(0, 2) == 2
    assert log.bounds(0) == (2, 5)
    assert log.stamps()[0] == topics.Stamps(946_771_200_000, (3, 2_085_000_000_000))
    assert log.delete_before(0, 4) == 4
    assert log.stamps()[0].ahead is None
    assert log.fingerprint(0, 4) is not None
    assert log.unreadable(0, 4) is None


@only_broker
def test_brokers_tell_how_full_their_disks_are(kafka: RealKafka) -> None:
    found = topics.disks(kafka.admin, kafka.topic)
    assert set(found) == {each["broker_id"] for each in kafka.admin.describe_cluster()["brokers"]}
    assert all(0 < used < 1 for used in found.values())
