"""What is seen from beside the consumer's loop, with a Kafka that answers as it is told."""

from __future__ import annotations

import uuid
from collections import defaultdict
from types import SimpleNamespace
from typing import Any, cast

import pytest
from kafka import TopicPartition
from kafka.errors import GroupAuthorizationFailedError, KafkaConnectionError, KafkaError, KafkaTimeoutError
from kafka.structs import OffsetAndTimestamp
from telemetry.consumer import watch
from telemetry.consumer.resume import Stored, oldest_unread
from telemetry.consumer.watch import KafkaView, Member, Watch
from telemetry.consumer.worker import Worker
from telemetry.health import Health
from telemetry.metrics import ConsumerMetrics
from telemetry.settings import ConsumerSettings
from telemetry.topic import Partition, Topic

TOPIC = "telemetry"
NOW = 1_700_000_000.0
HOUR = 3600.0
RETENTION = 168 * HOUR


def settings(**more: str) -> ConsumerSettings:
    return ConsumerSettings.load(
        {
            "TELEMETRY_NAME": "c1", "TELEMETRY_LISTEN": "127.0.0.1:1", "POSTGRES_HOST": "127.0.0.1",
            "POSTGRES_PASSWORD_FILE": "/nowhere", "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1", "KAFKA_TOPIC": TOPIC,
            "KAFKA_TOPIC_PARTITIONS": "3", "KAFKA_TOPIC_REPLICATION_FACTOR": "1", "KAFKA_TOPIC_MIN_INSYNC_REPLICAS": "1",
            "KAFKA_TOPIC_RETENTION_MS": str(int(RETENTION * 1000)), **more,
        }
    )  # fmt: skip


class FakeView:
    """Append times (s before NOW) by partition and offset; partition 2 has a leader of its own."""

    def __init__(self) -> None:
        self.logs: dict[int, list[float]] = defaultdict(list)
        self.silent: set[int] = set()
        self.topic: Topic | None = Topic(
            uuid.UUID(int=7), (Partition(0, 1, 3, 3), Partition(1, 1, 3, 3), Partition(2, 2, 3, 3)), {}
        )
        self.away: Exception | None = None
        self.group: list[Member] = []
        self.group_away: Exception | None = None

    def describe(self) -> Topic | None:
        if self.away:
            raise self.away
        return self.topic

    def _await_leader(self, partitions: Any) -> None:
        leaders = {1: 1, 0: 1, 2: 2}
        led = {leaders[each] for each in partitions}
        assert len(led) == 1
        if led & self.silent:
            raise KafkaTimeoutError("no answer")

    def end_offsets(self, partitions: list[int]) -> dict[int, int]:
        self._await_leader(partitions)
        return {each: len(self.logs[each]) for each in partitions}

    def first_since(self, times: dict[int, int]) -> dict[int, tuple[int, int]]:
        self._await_leader(times)
        found = {}
        for number, since in times.items():
            stamps = [round((NOW - age) * 1000) for age in self.logs[number]]
            if (first := next((each for each in enumerate(stamps) if each[1] >= since), None)) is not None:
                found[number] = first
        return found

    def members(self) -> list[Member]:
        if self.group_away:
            raise self.group_away
        return self.group


class World:
    """A watch and all that it sees."""

    def __init__(self) -> None:
        self.health = Health("consumer", "c1", "0")
        self.health.clear("start")
        self.view, self.now, self.broken_off = FakeView(), NOW, 0
        self.worker: Any = SimpleNamespace(store_call_since=None, live_topic_id=None, stored={}, doubts=[])
        self.worker.doubt_store = self.worker.doubts.append
        self.watch = Watch(
            settings(), cast("Worker", self.worker), self.break_off, self.view, self.health, ConsumerMetrics(self.health.registry),
            clock=lambda: self.now - NOW + 1000, wall=lambda: self.now,
        )  # fmt: skip

    def break_off(self) -> None:
        self.broken_off += 1

    def gauge(self, name: str, partition: int) -> float | None:
        return self.health.registry.get_sample_value(name, {"partition": str(partition)})

    def age(self, partition: int) -> float | None:
        return self.gauge("telemetry_oldest_unread_seconds", partition)

    def degraded(self) -> str:
        return "; ".join(self.health.readiness()["degraded"])


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize("passed", [0.0, watch.SLOW_CALL + 1, watch.HUNG_CALL + 1])
def test_a_call_of_the_store_that_hangs_is_told_and_broken_off(world: World, passed: float) -> None:
    world.worker.store_call_since = 1000.0 - passed
    world.watch.look_at_store()
    assert world.worker.doubts == ["Postgres does not answer"] * (passed > watch.SLOW_CALL)
    assert world.broken_off == (passed > watch.HUNG_CALL)


def test_it_tells_of_kafka(world: World) -> None:
    world.view.away = KafkaConnectionError("nobody there")
    world.watch.look()
    world.watch.look()
    # It may be the one broker of many that was asked
    assert world.health.readiness()["ready"]
    world.watch.look()
    assert world.health.readiness()["reasons"] == ["Kafka cannot be reached at 127.0.0.1:1: nobody there"]
    world.view.away, topic, world.view.topic = None, world.view.topic, None
    world.watch.look()
    assert world.health.readiness()["reasons"] == ["topic telemetry is not there: run site.yml"]
    world.view.topic = topic
    world.watch.look()
    assert world.health.readiness()["ready"]
    assert world.worker.live_topic_id == uuid.UUID(int=7)


def test_lag_and_age_grow_while_postgres_is_away(world: World) -> None:
    world.view.logs[0] = [50.0, 40.0, 30.0]
    world.worker.stored = {0: Stored(1, round((NOW - 50) * 1000))}
    world.watch.look()
    assert world.gauge("telemetry_lag", 0) == 2
    assert world.age(0) == pytest.approx(40)
    world.view.logs[0].append(-60.0)
    world.now += 60
    world.watch.look()
    assert world.gauge("telemetry_lag", 0) == 3
    assert world.age(0) == pytest.approx(100)
    world.worker.stored = {0: Stored(4, round(world.now * 1000))}
    world.watch.look()
    assert world.gauge("telemetry_lag", 0) == 0
    assert world.age(0) == 0


def test_what_was_never_stored_is_as_old_as_the_first_record(world: World) -> None:
    world.view.logs[1] = [7200.0, 10.0]
    world.worker.stored = {1: Stored(0, None)}
    world.watch.look()
    assert world.age(1) == pytest.approx(7200)


@pytest.mark.parametrize(
    ("stored", "first", "appended"),
    [
        (Stored(5, 1000), (5, 2000), 2000),
        # Records of one request share a millisecond: the next one behind them is younger
        (Stored(5, 1000), (7, 2000), 1000),
        (Stored(5, 1000), None, 1000),
        # A clock was put back meanwhile: what comes later than the last stored record was stored before it
        (Stored(5, 1000), (2, 1500), 1000),
        (Stored(0, None), (0, 2000), 2000),
        # Nothing is known of the last stored record
        (Stored(5, None), (0, 2000), None),
    ],
)
def test_when_the_oldest_unread_record_was_appended(stored: Stored, first: tuple[int, int] | None, appended: int | None) -> None:
    assert oldest_unread(stored, first) == appended


def test_an_unknown_age_is_not_told(world: World) -> None:
    world.view.logs[0] = [50.0, 40.0]
    world.worker.stored = {0: Stored(1, None)}
    world.watch.look()
    assert world.gauge("telemetry_lag", 0) == 1
    assert world.age(0) is None


def test_half_of_the_retention_is_degraded(world: World) -> None:
    world.view.logs[0] = [RETENTION / 2 - 30]
    world.worker.stored = {0: Stored(0, None)}
    world.watch.look()
    assert world.degraded() == ""
    world.now += 60
    world.watch.look()
    assert "partition 0 of telemetry: its oldest unread record is 84.0 h old" in world.degraded()
    assert "kafka_topic_retention_hours" in world.degraded()
    world.worker.stored = {0: Stored(1, None)}
    world.watch.look()
    assert world.degraded() == ""


def test_a_silent_leader_hides_only_what_it_leads_and_that_grows_older(world: World) -> None:
    world.view.logs[0], world.view.logs[2] = [10.0], [20.0]
    world.worker.stored = {0: Stored(0, None), 2: Stored(0, None)}
    world.watch.look()
    world.view.silent = {2}
    world.view.logs[0].append(0.0)
    world.now += 30
    world.watch.look()
    assert world.gauge("telemetry_lag", 0) == 2
    assert world.gauge("telemetry_lag", 2) == 1
    assert world.age(2) == pytest.approx(50)
    # And the more so what nobody answers for
    world.view.away = KafkaTimeoutError("no answer")
    world.now += 30
    world.watch.look()
    assert world.age(2) == pytest.approx(80)


def test_a_partition_that_went_to_another_consumer_is_not_told_of(world: World) -> None:
    world.view.logs[0] = [RETENTION]
    world.worker.stored = {0: Stored(0, None)}
    world.watch.look()
    assert world.degraded()
    world.worker.stored = {}
    world.watch.look()
    assert world.gauge("telemetry_lag", 0) is None
    assert world.age(0) is None
    assert world.degraded() == ""


def test_members_that_are_not_consumers_are_told_with_what_they_hold(world: World) -> None:
    world.view.group = [Member("consumer-c1", "10.0.0.1", (0,)), Member("consumer-c2", "10.0.0.2", (2,))]
    world.watch.look()
    assert world.degraded() == ""
    world.view.group.append(Member("kafka-python-3.0.12", "10.0.0.9", (1,)))
    world.now += watch.MEMBERS_INTERVAL
    world.watch.look()
    assert "[1] by kafka-python-3.0.12 at 10.0.0.9" in world.degraded()
    assert "consumer_group" in world.degraded()
    assert world.health.registry.get_sample_value("telemetry_foreign_partitions") == 1
    # Who does not answer says nothing
    world.view.group_away = GroupAuthorizationFailedError()
    world.now += watch.MEMBERS_INTERVAL
    world.watch.look()
    assert "[1] by kafka-python-3.0.12" in world.degraded()
    world.view.group_away = None
    world.view.group.pop()
    world.now += watch.MEMBERS_INTERVAL
    world.watch.look()
    assert world.degraded() == ""
    assert world.health.registry.get_sample_value("telemetry_foreign_partitions") == 0


class Reader:
    """As much of a KafkaConsumer as the view uses."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.closed = False

    def end_offsets(self, partitions: list[TopicPartition], timeout_ms: int) -> dict[TopicPartition, int]:
        if self.error:
            raise self.error
        return dict.fromkeys(partitions, 9)

    def offsets_for_times(self, times: dict[TopicPartition, int], timeout_ms: int) -> dict[TopicPartition, Any]:
        return {each: OffsetAndTimestamp(4, time + 5, 0) if time else None for each, time in times.items()}

    def close(self) -> None:
        self.closed = True


def test_the_view_makes_its_client_again_after_an_error_but_not_after_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Reader] = []

    def make(kind: Any, **_: Any) -> Reader:
        made.append(Reader())
        return made[-1]

    monkeypatch.setattr(watch, "make_client", make)
    view = KafkaView(settings())
    assert view.end_offsets([0, 1]) == {0: 9, 1: 9}
    assert view.first_since({0: 100, 1: 0}) == {0: (4, 105)}
    made[0].error = KafkaTimeoutError("no answer")
    with pytest.raises(KafkaTimeoutError):
        view.end_offsets([0])
    assert len(made) == 1
    made[0].error = RuntimeError("of its own making")
    with pytest.raises(KafkaError, match="of its own making"):
        view.end_offsets([0])
    assert made[0].closed
    assert view.end_offsets([0]) == {0: 9}
    assert len(made) == 2


def test_the_view_reads_the_group_as_the_client_describes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def member(client_id: str, assignment: Any) -> dict[str, Any]:
        return {"client_id": client_id, "client_host": "/127.0.0.1", "member_assignment": assignment}

    mine = {"assigned_partitions": [{"topic": TOPIC, "partitions": [2, 0]}, {"topic": "other", "partitions": [1]}]}
    group: dict[str, Any] = {"error": None, "members": [member("a", mine), member("b", "")]}
    admin = SimpleNamespace(describe_groups=lambda groups: dict.fromkeys(groups, group), close=lambda: None)
    monkeypatch.setattr(watch, "connect_admin", lambda *_: admin)
    view = KafkaView(settings())
    assert view.members() == [Member("a", "127.0.0.1", (0, 2)), Member("b", "127.0.0.1", ())]
    group["error"] = "[Error 15] CoordinatorNotAvailableError"
    with pytest.raises(KafkaError, match="CoordinatorNotAvailable"):
        view.members()


def test_an_age_from_before_more_was_stored_is_not_told_on(world: World) -> None:
    world.view.logs[0] = [50.0, 40.0]
    world.worker.stored = {0: Stored(0, None)}
    world.watch.look()
    assert world.age(0) == pytest.approx(50)
    world.view.away = KafkaTimeoutError("no answer")
    world.worker.stored = {0: Stored(2, round((NOW - 40) * 1000))}
    world.now += 1000
    world.watch.look()
    assert world.age(0) == pytest.approx(50)
