"""What an operator may do about a stopped partition and a dead letter, against the real Postgres: exactly that, and once."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg2
import pytest
from kafka import TopicPartition
from telemetry.consumer import remedy
from telemetry.consumer.batch import Fingerprint
from telemetry.consumer.remedy import RemedyError
from telemetry.consumer.store import PostgresStore
from telemetry.record import decode
from telemetry.topic import Partition, Stamps
from telemetry.topic import Topic as LiveTopic
from telemetry.wire import Unreadable

from .test_store import WEEK, Topic, Vehicle, arguments, only_postgres


class FakeLog:
    """A live topic with one partition that holds offsets start..end-1; those of `bad` cannot be read."""

    def __init__(self, topic: Topic, start: int, end: int, bad: tuple[int, int] = (0, -1), held: Fingerprint | None = None) -> None:
        self.topic_id, self.start, self.end, self.bad, self.held = topic.topic_id, start, end, bad, held
        self.sent: list[tuple[int, bytes, bytes]] = []
        self.held_times = Stamps(None, None)

    def describe(self) -> LiveTopic:
        return LiveTopic(self.topic_id, (Partition(0, 1, 3, 3),), {})

    def bounds(self, partition: int) -> tuple[int, int]:
        return self.start, self.end

    def unreadable(self, partition: int, offset: int) -> Unreadable | None:
        if not self.bad[0] <= offset <= self.bad[1]:
            return None
        return Unreadable(TopicPartition("telemetry", partition), offset, self.bad[1], "it is broken")

    def fingerprint(self, partition: int, offset: int) -> Fingerprint | None:
        return self.held

    def send(self, partition: int, key: bytes, value: bytes) -> int:
        self.sent.append((partition, key, value))
        self.end += 1
        return self.end - 1

    def stamps(self) -> dict[int, Stamps]:
        return {0: self.held_times}

    def delete_before(self, partition: int, offset: int) -> int:
        assert self.start < offset <= self.end
        self.start = offset
        return offset


@pytest.fixture
def connection(kind: str) -> Iterator[Any]:
    with closing(psycopg2.connect(**arguments())) as one:
        yield one


@pytest.fixture
def store(kind: str) -> Iterator[PostgresStore]:
    with closing(PostgresStore(arguments, WEEK)) as one:
        yield one


def rows(connection: Any, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    with connection, connection.cursor() as cursor:
        cursor.execute(statement, values)
        found: list[tuple[Any, ...]] = cursor.fetchall()
        return found


def lost(connection: Any, topic: Topic) -> list[tuple[Any, ...]]:
    return rows(connection, "SELECT from_offset, to_offset, reason FROM lost_range WHERE topic = %s", topic.name)


@only_postgres
def test_exactly_the_lost_range_is_accepted_and_noted(kind: str, store: PostgresStore, connection: Any) -> None:
    topic, vehicle = Topic(), Vehicle()
    store.write(topic.topic_id, topic.name, [topic.run(vehicle.upload(1, 1), vehicle.upload(2, 2))])
    log = FakeLog(topic, start=10, end=20)
    [told] = remedy.partitions(log, store.places(topic.name), topic.name)
    assert told["do"] == "ansible-playbook accept_loss.yml -e accept_loss=0:2-9"
    for wrong in ((2, 8), (3, 9), (2, 10), (0, 9)):
        with pytest.raises(RemedyError):
            remedy.accept_loss(connection, log, topic.name, 0, *wrong)
    assert lost(connection, topic) == []
    assert remedy.accept_loss(connection, log, topic.name, 0, 2, 9)["next"] == 10
    assert lost(connection, topic) == [(2, 9, "deleted before it was stored")]
    [place] = store.places(topic.name)[0]
    assert (place.next, place.before.crc) == (10, None)
    # Once: it does not go on there any more
    with pytest.raises(RemedyError):
        remedy.accept_loss(connection, log, topic.name, 0, 2, 9)
    assert remedy.partitions(log, store.places(topic.name), topic.name)[0]["do"] == ""


@only_postgres
def test_a_loss_that_was_accepted_is_accepted_again_after_the_log_was_read_again(
    kind: str, store: PostgresStore, connection: Any
) -> None:
    topic = Topic()
    log = FakeLog(topic, start=0, end=9, bad=(0, 3))
    remedy.accept_loss(connection, log, topic.name, 0, 0, 3)
    for _ in range(2):
        remedy.rewind(connection, log, topic.name, 0)
        assert remedy.accept_loss(connection, log, topic.name, 0, 0, 3)["next"] == 4
    assert lost(connection, topic) == [(0, 3, "unreadable: it is broken")]
    # More of it is broken by now: what was not noted is
    log.bad = (0, 5)
    remedy.rewind(connection, log, topic.name, 0)
    remedy.accept_loss(connection, log, topic.name, 0, 0, 5)
    assert lost(connection, topic) == [(0, 3, "unreadable: it is broken"), (4, 5, "unreadable: it is broken")]


@only_postgres
def test_a_log_that_was_never_read_and_begins_late_is_accepted_too(kind: str, store: PostgresStore, connection: Any) -> None:
    topic = Topic()
    log = FakeLog(topic, start=5, end=9)
    assert remedy.partitions(log, {}, topic.name)[0]["do"].endswith(" -e accept_loss=0:0-4")
    remedy.accept_loss(connection, log, topic.name, 0, 0, 4)
    assert store.places(topic.name)[0][0].next == 5


@only_postgres
def test_where_the_last_stored_record_cannot_be_read_the_log_is_read_again(kind: str, store: PostgresStore) -> None:
    topic, vehicle = Topic(), Vehicle()
    store.write(topic.topic_id, topic.name, [topic.run(vehicle.upload(1, 1), vehicle.upload(2, 2))])
    log = FakeLog(topic, start=0, end=3, bad=(1, 1))
    [told] = remedy.partitions(log, store.places(topic.name), topic.name)
    assert told["do"] == "ansible-playbook accept_loss.yml -e read_again=0"
    assert "the record at offset 1, the last one that was stored, cannot be read: it is broken" in told["reason"]


@only_postgres
def test_only_an_unreadable_batch_is_given_up_within_the_log_and_all_of_it(
    kind: str, store: PostgresStore, connection: Any
) -> None:
    topic, vehicle = Topic(), Vehicle()
    store.write(topic.topic_id, topic.name, [topic.run(vehicle.upload(1, 1))])
    for bad in ((0, -1), (3, 3), (1, 2)):
        with pytest.raises(RemedyError):
            remedy.accept_loss(connection, FakeLog(topic, 0, 20, bad), topic.name, 0, 1, 1)
    log = FakeLog(topic, 0, 20, (1, 4))
    [told] = remedy.partitions(log, store.places(topic.name), topic.name)
    assert told["do"].endswith(" -e accept_loss=0:1-4")
    assert told["reason"] == "offsets 1 to 4 of partition 0 cannot be read: it is broken"
    remedy.accept_loss(connection, log, topic.name, 0, 1, 4)
    assert lost(connection, topic) == [(1, 4, "unreadable: it is broken")]
    assert remedy.partitions(log, store.places(topic.name), topic.name)[0]["do"] == ""


@only_postgres
def test_a_log_that_was_written_anew_is_told(kind: str, store: PostgresStore, connection: Any) -> None:
    topic, vehicle = Topic(), Vehicle()
    store.write(topic.topic_id, topic.name, [topic.run(vehicle.upload(1, 1))])
    [place] = store.places(topic.name)[0]
    for held in (place.before, None):
        [told] = remedy.partitions(FakeLog(topic, 0, 20, held=held), store.places(topic.name), topic.name)
        assert told["do"] == ""
    [told] = remedy.partitions(FakeLog(topic, 0, 20, held=Fingerprint(1, 1)), store.places(topic.name), topic.name)
    assert told["do"].endswith(" -e read_again=0")
    assert "offset 0 is not the one that was stored" in told["reason"]


@only_postgres
def test_a_log_that_was_cut_short_is_read_again_and_never_forward(kind: str, store: PostgresStore, connection: Any) -> None:
    topic, vehicle = Topic(), Vehicle()
    store.write(topic.topic_id, topic.name, [topic.run(*(vehicle.upload(seq, seq) for seq in range(1, 6)))])
    log = FakeLog(topic, start=1, end=3)
    assert remedy.partitions(log, store.places(topic.name), topic.name)[0]["do"].endswith(" -e read_again=0")
    assert remedy.rewind(connection, log, topic.name, 0)["next"] == 1
    with pytest.raises(RemedyError, match="accept_loss=0:1-7"):
        remedy.rewind(connection, FakeLog(topic, start=8, end=9), topic.name, 0)
    assert lost(connection, topic) == []


@only_postgres
def test_a_topic_that_was_made_again_is_read_from_its_start_and_the_old_place_is_noted(
    kind: str, store: PostgresStore, connection: Any
) -> None:
    old, vehicle = Topic(), Vehicle()
    store.write(old.topic_id, old.name, [old.run(vehicle.upload(1, 1))])
    new = Topic(name=old.name)
    log = FakeLog(new, start=0, end=3)
    assert remedy.partitions(log, store.places(old.name), old.name)[0]["do"].endswith(" -e read_again=0")
    assert remedy.rewind(connection, log, old.name, 0)["next"] == 0
    assert store.places(old.name) == {}
    assert lost(connection, old)[0][0] == 1
    store.write(new.topic_id, new.name, [new.run(vehicle.upload(2, 2))])
    assert store.places(new.name)[0][0].topic_id == new.topic_id


@only_postgres
def test_a_dead_letter_is_put_back_once_and_fills_its_gap(kind: str, store: PostgresStore, connection: Any) -> None:
    topic, vehicle = Topic(), Vehicle()
    broken = vehicle.upload(2, 3).replace(b'"speed":1.0', b'"speed":"fast"', 1)
    assert broken != vehicle.upload(2, 3)
    store.write(topic.topic_id, topic.name, [topic.run(vehicle.upload(1, 1), broken, vehicle.upload(4, 4))])
    log = FakeLog(topic, 0, topic.next)
    [letter] = remedy.dead_letters(connection, topic.name)
    assert (letter["partition"], letter["offset"], letter["bytes"]) == (0, 1, len(broken))
    with pytest.raises(RemedyError, match="dead letter again"):
        remedy.redrive(connection, log, topic.name, 0, 1, b"")
    assert log.sent == []
    answer = remedy.redrive(connection, log, topic.name, 0, 1, vehicle.upload(2, 3))
    assert (answer["vin"], answer["records"], answer["offset"]) == (vehicle.vin, 2, 3)
    [(_, key, value)] = log.sent
    assert (key.decode(), decode(value).last_seq) == (vehicle.vin, 3)
    assert remedy.dead_letters(connection, topic.name) == []
    with pytest.raises(RemedyError, match="was put back at"):
        remedy.redrive(connection, log, topic.name, 0, 1, vehicle.upload(2, 3))
    store.write(topic.topic_id, topic.name, [topic.run(value)])
    gaps = rows(connection, "SELECT from_seq, to_seq, state, reason FROM gap WHERE vin = %s", vehicle.vin)
    assert gaps == [(2, 3, "filled", "dead_letter")]
    assert rows(connection, "SELECT count(*) FROM diag WHERE vin = %s", vehicle.vin) == [(4,)]


@only_postgres
def test_what_is_stored_is_deleted_from_kafka_and_nothing_above(kind: str, store: PostgresStore, connection: Any) -> None:
    topic, vehicle = Topic(), Vehicle()
    store.write(topic.topic_id, topic.name, [topic.run(*(vehicle.upload(seq, seq) for seq in range(1, 6)))])
    [place] = store.places(topic.name)[0]
    log = FakeLog(topic, start=1, end=9, held=place.before)
    log.held_times = Stamps(946_771_200_000, (3, 2_085_000_000_000))
    [told] = remedy.stored(connection, log, topic.name)
    assert told == {
        "partition": 0, "log_start": 1, "next": 5, "log_end": 9, "stored": 4,
        "oldest": "2000-01-02T00:00:00+00:00", "ahead": "offset 3, 2036-01-26T22:40:00+00:00",
    }  # fmt: skip
    # A client may stamp a record with any number, while the topic lets it
    log.held_times = Stamps(-(2**63), (3, 2**63 - 1))
    [told] = remedy.stored(connection, log, topic.name)
    assert (told["oldest"], told["ahead"]) == (f"{-(2**63)} ms since 1970", f"offset 3, {2**63 - 1} ms since 1970")
    with pytest.raises(RemedyError, match="is stored up to offset 4"):
        remedy.delete_stored(connection, log, topic.name, 0, 6)
    assert log.start == 1
    assert remedy.delete_stored(connection, log, topic.name, 0, 3)["deleted"] == 2
    assert remedy.delete_stored(connection, log, topic.name, 0) == {"partition": 0, "deleted": 2, "log_start": 5, "next": 5}
    # Once
    assert remedy.delete_stored(connection, log, topic.name, 0)["deleted"] == 0
    assert remedy.delete_stored(connection, log, topic.name, 0, 0)["deleted"] == 0
    assert store.places(topic.name)[0] == [place]


@only_postgres
def test_of_a_log_that_is_not_the_one_that_was_stored_from_nothing_is_deleted(
    kind: str, store: PostgresStore, connection: Any
) -> None:
    topic, vehicle = Topic(), Vehicle()
    store.write(topic.topic_id, topic.name, [topic.run(vehicle.upload(1, 1), vehicle.upload(2, 2))])
    [place] = store.places(topic.name)[0]
    wrong = {
        "Nothing of partition 0": FakeLog(Topic(name=topic.name), 0, 9),
        "cut short": FakeLog(topic, 0, 1),
        "not the one that was stored": FakeLog(topic, 0, 9, held=Fingerprint(1, 1)),
        "begins at": FakeLog(topic, 5, 9),
    }
    for why, log in wrong.items():
        before = log.start
        with pytest.raises(RemedyError, match=why):
            remedy.delete_stored(connection, log, topic.name, 0)
        assert log.start == before
    assert store.places(topic.name)[0] == [place]


@only_postgres
def test_what_could_not_be_sent_is_not_marked(kind: str, store: PostgresStore, connection: Any) -> None:
    topic, vehicle = Topic(), Vehicle()
    store.write(topic.topic_id, topic.name, [topic.run(b"no upload")])

    class Broken(FakeLog):
        def send(self, partition: int, key: bytes, value: bytes) -> int:
            raise OSError("no broker")

    with pytest.raises(OSError, match="no broker"):
        remedy.redrive(connection, Broken(topic, 0, 1), topic.name, 0, 0, vehicle.upload(1, 1))
    assert len(remedy.dead_letters(connection, topic.name)) == 1
    with pytest.raises(RemedyError, match="no dead letter at offset 7"):
        remedy.redrive(connection, FakeLog(topic, 0, 1), topic.name, 0, 7, b"")


@only_postgres
@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["accept_loss"],
        ["accept_loss", "0", "1"],
        ["accept_loss", "0", "1", "-2"],
        ["rewind", "x"],
        ["delete_stored"],
        ["delete_stored", "0", "1", "2"],
        ["drop", "1"],
    ],
)
def test_anything_else_is_refused(kind: str, connection: Any, arguments: list[str]) -> None:
    class Settings:
        topic = str(uuid.uuid4())

    with pytest.raises(RemedyError):
        remedy.act(Settings(), connection, FakeLog(Topic(), 0, 0), arguments, bytes)  # type: ignore[arg-type]  # no more of each than act needs
