"""What the store promises, on Postgres in memory and, where TACHOGRAPH_TEST_POSTGRES is given, on the real one.

The variable holds a DSN, or a JSON object of psycopg2's arguments, of a user with the writer's rights on a database that has
the schema. Every test has vehicles and a topic of its own, so it may be a database in use.
"""

from __future__ import annotations

import json
import os
import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import psycopg2
import pytest
from simulation.postgres import Database
from telemetry.consumer import batch as batches
from telemetry.consumer import store as stores
from telemetry.consumer.batch import Run, TopicRecord
from telemetry.consumer.store import ClockApart, Fenced, PostgresStore, TimedOut, Unavailable
from telemetry.record import Gap, Record, Upload, encode

POSTGRES = os.environ.get("TACHOGRAPH_TEST_POSTGRES", "")
NOW = datetime.now(UTC)
WEEK = 7 * 86_400_000
CENTURY = 36_500 * 86_400_000
only_postgres = pytest.mark.parametrize("kind", ["postgres"])


def arguments() -> dict[str, Any]:
    return json.loads(POSTGRES) if POSTGRES.startswith("{") else {"dsn": POSTGRES}


def milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def record(seq: int, speed: float = 1.0) -> Record:
    return Record(seq=seq, timestamp=1e9 + seq, position_x=1.5, position_y=-2.5, position_z=seq, speed=speed)


class Vehicle:
    """One (vin, epoch), and its uploads as values of Kafka records."""

    def __init__(self) -> None:
        self.vin = f"T{uuid.uuid4().hex.upper()[:16]}"
        self.epoch = random.randrange(1, 2**53)

    def upload(
        self, first: int = 1, last: int = 0, gaps: Sequence[tuple[int, int, str]] = (), speed: float = 1.0, epoch: int | None = None
    ) -> bytes:
        return encode(
            Upload(
                vin=self.vin,
                epoch=self.epoch if epoch is None else epoch,
                make="Ford",
                model="F-150",
                records=tuple(record(seq, speed) for seq in range(first, last + 1)),
                gaps=tuple(Gap(*gap) for gap in gaps),
            )
        )


class Topic:
    """A topic's partition as the consumer reads it."""

    def __init__(self, partition: int = 0, name: str = "", topic_id: uuid.UUID | None = None) -> None:
        self.topic_id, self.partition = topic_id or uuid.uuid4(), partition
        self.name = name or f"topic-{self.topic_id}"
        self.next = 0

    def run(self, *values: bytes | None, at: datetime = NOW) -> Run:
        """The next Kafka records, as a run."""
        start = self.next
        self.next += len(values)
        records = [
            TopicRecord(self.partition, start + index, milliseconds(at), b"key", value, (("v", b"1"),))
            for index, value in enumerate(values)
        ]
        return Run(self.partition, start, self.next, tuple(records))


class MemoryBench:
    """Postgres in memory, as the simulation has it, and a look into it."""

    def __init__(self) -> None:
        self.database = Database(now=lambda: NOW)

    def another(self, topic_retention_ms: int = WEEK) -> PostgresStore:
        return PostgresStore(lambda: {}, topic_retention_ms, now=lambda: NOW, connect=self.database.connect)

    def rows(self, vin: str) -> list[tuple[Any, ...]]:
        return [(row.epoch, row.seq, row.values[3], row.values[4]) for row in sorted(self.database.tables.rows) if row.vin == vin]

    def columns(self, vin: str) -> list[tuple[Any, ...]]:
        return [
            (row.values[0], row.vin, row.make, row.model, *row.values[1:], row.epoch, row.seq, row.received_at)
            for row in self.database.tables.rows
            if row.vin == vin
        ]

    def gaps(self, vehicle: Vehicle) -> list[tuple[int, int, str, str]]:
        found = [
            (key[2], *gap) for key, gap in self.database.tables.gaps.items() if gap and key[:2] == (vehicle.vin, vehicle.epoch)
        ]
        return sorted(found)

    def last(self, vehicle: Vehicle) -> int | None:
        return self.database.tables.progress.get((vehicle.vin, vehicle.epoch))

    def conflicts(self, vin: str) -> list[tuple[list[int], bytes, int]]:
        return [(seqs, value, key[2]) for key, (seqs, value) in self.database.tables.conflicts.items() if key[3] == vin]

    def dead(self, topic: Topic) -> list[tuple[int, bytes | None]]:
        return [(key[2], value) for key, (value, *_) in self.database.tables.dead.items() if key[0] == str(topic.topic_id)]

    def headers(self, topic: Topic) -> list[bytes | None]:
        return next(value[2] for key, value in self.database.tables.dead.items() if key[0] == str(topic.topic_id))

    def lose_progress(self, vin: str) -> None:
        progress = self.database.tables.progress
        for key in [key for key in progress if key[0] == vin]:
            progress[vin, 1] = progress.pop(key)

    def cut(self, store: PostgresStore) -> None:
        self.database.disconnect()

    def close(self) -> None:
        pass


class PostgresBench:
    """Postgres, and a look into it by a connection of its own."""

    def __init__(self) -> None:
        self.connection = psycopg2.connect(**arguments())
        self.connection.autocommit = True
        self.stores: list[PostgresStore] = []

    def another(self, topic_retention_ms: int = WEEK) -> PostgresStore:
        self.stores.append(PostgresStore(arguments, topic_retention_ms, now=lambda: NOW))
        return self.stores[-1]

    def ask(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def rows(self, vin: str) -> list[tuple[Any, ...]]:
        return self.ask("SELECT epoch, seq, position_z, speed FROM diag WHERE vin = %s ORDER BY id", vin)

    def columns(self, vin: str) -> list[tuple[Any, ...]]:
        columns = "timestamp, vin, make, model, position_x, position_y, position_z, speed, epoch, seq, received_at"
        return self.ask(f"SELECT {columns} FROM diag WHERE vin = %s", vin)

    def gaps(self, vehicle: Vehicle) -> list[tuple[int, int, str, str]]:
        return self.ask(
            "SELECT from_seq, to_seq, state, reason FROM gap WHERE vin = %s AND epoch = %s ORDER BY 1", vehicle.vin, vehicle.epoch
        )

    def last(self, vehicle: Vehicle) -> int | None:
        found = self.ask("SELECT last FROM progress WHERE vin = %s AND epoch = %s", vehicle.vin, vehicle.epoch)
        return found[0][0] if found else None

    def conflicts(self, vin: str) -> list[tuple[list[int], bytes, int]]:
        found = self.ask('SELECT seqs, value, "offset" FROM conflict WHERE vin = %s ORDER BY id', vin)
        return [(seqs, bytes(value), offset) for seqs, value, offset in found]

    def dead(self, topic: Topic) -> list[tuple[int, bytes | None]]:
        found = self.ask('SELECT "offset", value FROM dead_letter WHERE topic_id = %s ORDER BY 1', str(topic.topic_id))
        return [(offset, value if value is None else bytes(value)) for offset, value in found]

    def headers(self, topic: Topic) -> list[bytes | None]:
        [(found,)] = self.ask("SELECT header_bytes FROM dead_letter WHERE topic_id = %s", str(topic.topic_id))
        return [None if each is None else bytes(each) for each in found]

    def lose_progress(self, vin: str) -> None:
        """As if it had been restored from an older backup than diag."""
        self.ask("UPDATE progress SET epoch = 1 WHERE vin = %s", vin)

    def cut(self, store: PostgresStore) -> None:
        """Cut a store's connection."""
        store.break_off()

    def close(self) -> None:
        for store in self.stores:
            store.close()
        self.connection.close()


Bench = MemoryBench | PostgresBench


@pytest.fixture(params=["memory", "postgres"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bench(kind: str) -> Iterator[Bench]:
    with closing(MemoryBench() if kind == "memory" else PostgresBench()) as found:
        yield found


@pytest.fixture
def topic() -> Topic:
    return Topic()


@pytest.fixture
def vehicle() -> Vehicle:
    return Vehicle()


@pytest.fixture
def write(bench: Bench, topic: Topic) -> Callable[..., batches.Written]:
    """Write the next Kafka records of the topic."""
    store = bench.another()

    def written(*values: bytes | None, at: datetime = NOW) -> batches.Written:
        return store.write(topic.topic_id, topic.name, [topic.run(*values, at=at)])

    return written


def test_rows_hold_what_was_sent_in_its_order(bench: Bench, vehicle: Vehicle, write: Callable[..., batches.Written]) -> None:
    written = write(vehicle.upload(1, 3, speed=0.1), vehicle.upload(4, 4, speed=7.25))
    assert written.rows == 4
    assert bench.rows(vehicle.vin) == [
        (vehicle.epoch, 1, 1.0, 0.1),
        (vehicle.epoch, 2, 2.0, 0.1),
        (vehicle.epoch, 3, 3.0, 0.1),
        (vehicle.epoch, 4, 4.0, 7.25),
    ]
    assert bench.last(vehicle) == 4
    assert bench.gaps(vehicle) == []


def test_every_column_has_its_value(bench: Bench, vehicle: Vehicle, write: Callable[..., batches.Written]) -> None:
    moment = NOW.replace(microsecond=123_000)
    write(vehicle.upload(1, 1, speed=2.5), at=moment)
    assert bench.columns(vehicle.vin) == [(1e9 + 1, vehicle.vin, "Ford", "F-150", 1.5, -2.5, 1.0, 2.5, vehicle.epoch, 1, moment)]


def test_the_place_and_the_fingerprint_move_with_the_rows(bench: Bench, vehicle: Vehicle, topic: Topic) -> None:
    store = bench.another()
    run = topic.run(vehicle.upload(1, 1), vehicle.upload(2, 2))
    store.write(topic.topic_id, topic.name, [run])
    (place,) = store.places(topic.name)[0]
    assert (place.topic_id, place.next) == (topic.topic_id, 2)
    assert place.before == batches.Fingerprint(milliseconds(NOW), batches.crc(b"key", vehicle.upload(2, 2)))


def test_a_run_that_ends_after_its_last_record_has_no_fingerprint(bench: Bench, vehicle: Vehicle, topic: Topic) -> None:
    store = bench.another()
    run = topic.run(vehicle.upload(1, 1))
    store.write(topic.topic_id, topic.name, [Run(0, 0, 5, run.records)])
    (place,) = store.places(topic.name)[0]
    assert (place.next, place.before) == (5, batches.Fingerprint(None, None))


def test_the_same_run_again_is_fenced(bench: Bench, vehicle: Vehicle, topic: Topic) -> None:
    run = topic.run(vehicle.upload(1, 2))
    bench.another().write(topic.topic_id, topic.name, [run])
    with pytest.raises(Fenced):
        bench.another().write(topic.topic_id, topic.name, [run])
    assert len(bench.rows(vehicle.vin)) == 2


def test_a_run_ahead_of_the_place_is_fenced(bench: Bench, vehicle: Vehicle, topic: Topic) -> None:
    topic.next = 7
    with pytest.raises(Fenced):
        bench.another().write(topic.topic_id, topic.name, [topic.run(vehicle.upload(1, 2))])
    assert bench.rows(vehicle.vin) == []


def test_one_fenced_partition_keeps_the_whole_batch_out(bench: Bench, topic: Topic) -> None:
    here, there = Vehicle(), Vehicle()
    other = Topic(1, topic.name, topic.topic_id)
    store = bench.another()
    store.write(topic.topic_id, topic.name, [other.run(there.upload(1, 1))])
    stale = Run(1, 0, 1, (TopicRecord(1, 0, milliseconds(NOW), b"", there.upload(2, 2)),))
    with pytest.raises(Fenced):
        store.write(topic.topic_id, topic.name, [topic.run(here.upload(1, 1)), stale])
    assert bench.rows(here.vin) == []
    assert bench.last(here) is None
    assert len(bench.rows(there.vin)) == 1


def test_progress_that_another_worker_moved_is_fenced(bench: Bench, vehicle: Vehicle, topic: Topic) -> None:
    paused, other = bench.another(), bench.another()
    paused.write(topic.topic_id, topic.name, [topic.run(vehicle.upload(1, 1))])
    other.write(topic.topic_id, topic.name, [topic.run(vehicle.upload(2, 2))])
    run = topic.run(vehicle.upload(3, 3))
    with pytest.raises(Fenced):
        paused.write(topic.topic_id, topic.name, [run])
    # Now that it has forgotten what it knew
    assert paused.write(topic.topic_id, topic.name, [run]).rows == 1
    assert [row[1] for row in bench.rows(vehicle.vin)] == [1, 2, 3]
    assert bench.gaps(vehicle) == []


def test_repeats_are_harmless(bench: Bench, vehicle: Vehicle, write: Callable[..., batches.Written]) -> None:
    write(vehicle.upload(1, 4))
    written = write(vehicle.upload(3, 6), vehicle.upload(1, 6))
    assert (written.rows, written.repeats, written.conflicts) == (2, 8, 0)
    assert [row[1] for row in bench.rows(vehicle.vin)] == [1, 2, 3, 4, 5, 6]


def test_a_repeat_with_other_values_is_a_conflict(bench: Bench, vehicle: Vehicle, write: Callable[..., batches.Written]) -> None:
    write(vehicle.upload(1, 2))
    again = vehicle.upload(2, 3, speed=9.0)
    written = write(again)
    assert (written.rows, written.repeats, written.conflicts) == (1, 0, 1)
    assert bench.conflicts(vehicle.vin) == [([2], again, 1)]
    assert [row[3] for row in bench.rows(vehicle.vin)] == [1.0, 1.0, 9.0]


def test_an_upload_in_conflict_is_one_row_and_whole(bench: Bench, vehicle: Vehicle, write: Callable[..., batches.Written]) -> None:
    write(*(vehicle.upload(first, first + 999) for first in (1, 1001, 2001)))
    again = [vehicle.upload(2, 1000, speed=9.0), vehicle.upload(1001, 2000), vehicle.upload(2001, 2999, speed=8.0)]
    written = write(*again)
    assert (written.conflicts, written.repeats) == (1998, 1000)
    assert bench.conflicts(vehicle.vin) == [(list(range(2, 1001)), again[0], 3), (list(range(2001, 3000)), again[2], 5)]


def test_a_conflict_within_one_batch_is_found(bench: Bench, vehicle: Vehicle, write: Callable[..., batches.Written]) -> None:
    again = vehicle.upload(1, 1, speed=3.0)
    assert write(vehicle.upload(1, 1), again).conflicts == 1
    assert bench.conflicts(vehicle.vin) == [([1], again, 1)]


def test_a_hole_is_an_undeclared_gap_until_it_is_filled(
    bench: Bench, vehicle: Vehicle, write: Callable[..., batches.Written]
) -> None:
    written = write(vehicle.upload(4, 5))
    assert written.gaps_undeclared == 1
    assert bench.gaps(vehicle) == [(1, 3, "undeclared", "missing")]
    write(vehicle.upload(2, 2))
    assert bench.gaps(vehicle) == [
        (1, 1, "undeclared", "missing"), (2, 2, "filled", "missing"), (3, 3, "undeclared", "missing"),
    ]  # fmt: skip
    assert write(vehicle.upload(1, 5)).rows == 2
    assert {state for _, _, state, _ in bench.gaps(vehicle)} == {"filled"}
    assert sorted(row[1] for row in bench.rows(vehicle.vin)) == [1, 2, 3, 4, 5]
    assert bench.last(vehicle) == 5


def test_declared_gaps(bench: Bench, vehicle: Vehicle, write: Callable[..., batches.Written]) -> None:
    write(vehicle.upload(1, 2, [(3, 4, "rejected")]))
    assert bench.gaps(vehicle) == [(3, 4, "declared", "rejected")]
    assert bench.last(vehicle) == 4
    write(vehicle.upload(7, 7))
    write(vehicle.upload(gaps=[(4, 6, "dropped")]))
    assert bench.gaps(vehicle) == [(3, 4, "declared", "rejected"), (5, 6, "declared", "dropped")]


def test_a_gap_opened_and_filled_in_one_batch(bench: Bench, vehicle: Vehicle, write: Callable[..., batches.Written]) -> None:
    write(vehicle.upload(3, 3), vehicle.upload(1, 3))
    assert bench.gaps(vehicle) == [(1, 2, "filled", "missing")]
    assert sorted(row[1] for row in bench.rows(vehicle.vin)) == [1, 2, 3]


def test_gaps_that_touch_are_one(bench: Bench, vehicle: Vehicle, write: Callable[..., batches.Written]) -> None:
    write(vehicle.upload(1, 1, [(2, 3, "a")]))
    write(vehicle.upload(gaps=[(4, 5, "a"), (6, 7, "b")]))
    write(vehicle.upload(10, 10))
    write(vehicle.upload(gaps=[(8, 8, "b")]))
    assert bench.gaps(vehicle) == [(2, 5, "declared", "a"), (6, 8, "declared", "b"), (9, 9, "undeclared", "missing")]
    assert write(vehicle.upload(1, 10)).rows == 8


def test_more_vehicles_than_one_page_of_a_statement(bench: Bench, topic: Topic) -> None:
    vehicles = [Vehicle() for _ in range(10_001)]
    store = bench.another()
    written = store.write(topic.topic_id, topic.name, [topic.run(*(each.upload(2, 2) for each in vehicles))])
    assert (written.rows, written.gaps_undeclared) == (10_001, 10_001)
    written = store.write(topic.topic_id, topic.name, [topic.run(*(each.upload(1, 3) for each in vehicles))])
    assert (written.rows, written.repeats) == (20_002, 10_001)
    assert bench.last(vehicles[-1]) == 3
    assert bench.gaps(vehicles[0]) == [(1, 1, "filled", "missing")]


def test_a_repeat_is_compared_with_a_row_of_any_day_that_is_there(bench: Bench, vehicle: Vehicle, topic: Topic) -> None:
    """Also of one older than what the topic can hold."""
    old, odd = NOW - timedelta(days=450), vehicle.upload(1, 2, speed=9.0)
    bench.another(CENTURY).write(topic.topic_id, topic.name, [topic.run(vehicle.upload(1, 3), at=old)])
    written = bench.another().write(topic.topic_id, topic.name, [topic.run(odd, vehicle.upload(3, 3))])
    assert (written.conflicts, written.repeats) == (2, 1)
    assert bench.conflicts(vehicle.vin) == [([1, 2], odd, 1)]


def test_retention_makes_the_days_ahead_and_keeps_what_is_young(
    bench: Bench, vehicle: Vehicle, write: Callable[..., batches.Written]
) -> None:
    write(vehicle.upload(1, 1))
    retained = bench.another().retain()
    assert retained.held == ""
    assert all(f"{NOW:%Y%m%d}" not in name for name in retained.dropped)
    assert len(bench.rows(vehicle.vin)) == 1
    assert retained.open_gaps >= 0


def test_bytes_that_are_no_upload_are_a_dead_letter(
    bench: Bench, vehicle: Vehicle, topic: Topic, write: Callable[..., batches.Written]
) -> None:
    written = write(b"\x00\xff", None, vehicle.upload(1, 1))
    assert (written.dead_letters, written.rows) == (2, 1)
    assert bench.dead(topic) == [(0, b"\x00\xff"), (1, None)]


def test_a_dead_letter_with_odd_headers_is_kept(bench: Bench, topic: Topic) -> None:
    run = topic.run(b"no upload")
    [record] = run.records
    names = b"\0", "\U0010ffff".encode(), b"\xff\xfe", b"v"
    headers = tuple(
        (name.decode(errors="surrogateescape"), value) for name, value in zip(names, (b"\0", b"", b"\xff", None), strict=True)
    )
    odd = record._replace(headers=headers)
    bench.another().write(topic.topic_id, topic.name, [replace(run, records=(odd,))])
    assert bench.dead(topic) == [(0, b"no upload")]
    assert bench.headers(topic) == [names[0], b"\0", names[1], b"", names[2], b"\xff", names[3], None]


def test_a_dead_letter_whose_range_can_be_read_opens_a_gap(
    bench: Bench, vehicle: Vehicle, topic: Topic, write: Callable[..., batches.Written]
) -> None:
    broken = vehicle.upload(3, 5).replace(b'"speed":1.0', b'"speed":"x"', 1)
    assert write(vehicle.upload(1, 1), broken).dead_letters == 1
    assert bench.gaps(vehicle) == [(2, 2, "undeclared", "missing"), (3, 5, "undeclared", "dead_letter")]
    assert bench.dead(topic) == [(1, broken)]
    write(vehicle.upload(2, 6))
    assert [(first, last, state) for first, last, state, _ in bench.gaps(vehicle)] == [(2, 2, "filled"), (3, 5, "filled")]


def test_forms_repeat_by_their_values(bench: Bench, vehicle: Vehicle, write: Callable[..., batches.Written]) -> None:
    one, other = vehicle.upload(5, 5, epoch=0), vehicle.upload(5, 5, speed=4.0, epoch=0)
    written = write(one, other, one)
    assert (written.rows, written.repeats) == (2, 1)
    assert write(one).rows == 0
    assert sorted(row[3] for row in bench.rows(vehicle.vin)) == [1.0, 4.0]
    assert bench.conflicts(vehicle.vin) == []


@pytest.mark.parametrize(
    "at",
    [
        NOW + timedelta(days=1, hours=1),
        datetime(2036, 2, 7, tzinfo=UTC),
        NOW - timedelta(days=8, hours=1),
        datetime(2000, 1, 2, tzinfo=UTC),
        datetime(1960, 1, 1, tzinfo=UTC),
    ],
)
def test_an_append_time_that_cannot_be_right_is_the_databases(
    bench: Bench, vehicle: Vehicle, write: Callable[..., batches.Written], at: datetime
) -> None:
    written = write(vehicle.upload(1, 2), at=at)
    assert (written.rows, written.clock_faults) == (2, 1)
    assert all(abs(row[-1] - NOW) < timedelta(minutes=30) for row in bench.columns(vehicle.vin))
    assert write(vehicle.upload(3, 3)).clock_faults == 0


@pytest.mark.parametrize("timestamp", [-(2**63), -1, 2**63 - 1])
def test_any_number_may_be_an_append_time(bench: Bench, vehicle: Vehicle, topic: Topic, timestamp: int) -> None:
    run = topic.run(vehicle.upload(1, 1), b"no upload")
    odd = replace(run, records=tuple(each._replace(timestamp=timestamp) for each in run.records))
    written = bench.another().write(topic.topic_id, topic.name, [odd])
    assert (written.rows, written.dead_letters, written.clock_faults) == (1, 1, 2)
    (place,) = bench.another().places(topic.name)[0]
    assert place.before.timestamp == timestamp


@pytest.mark.parametrize("days", [-7.9, 0.9])
def test_any_other_append_time_stays(bench: Bench, vehicle: Vehicle, write: Callable[..., batches.Written], days: float) -> None:
    at = (NOW + timedelta(days=days)).replace(microsecond=0)
    assert write(vehicle.upload(1, 1), at=at).clock_faults == 0
    assert bench.columns(vehicle.vin)[0][-1] == at


@pytest.mark.parametrize("days", [-1.1, 1.1])
def test_a_clock_that_is_far_off_writes_nothing(bench: Bench, vehicle: Vehicle, topic: Topic, days: float) -> None:
    store = bench.another()
    store._now = lambda: NOW + timedelta(days=days)
    with pytest.raises(ClockApart):
        store.check_clock()
    run = topic.run(vehicle.upload(1, 1))
    with pytest.raises(ClockApart):
        store.write(topic.topic_id, topic.name, [run])
    assert bench.rows(vehicle.vin) == []
    store._now = lambda: NOW
    store.check_clock()
    assert store.write(topic.topic_id, topic.name, [run]).rows == 1


def test_a_probe_leaves_nothing(bench: Bench, vehicle: Vehicle, topic: Topic) -> None:
    store = bench.another()
    store.probe()
    assert store.write(topic.topic_id, topic.name, [topic.run(vehicle.upload(1, 1))]).rows == 1


# What only a database can do


@pytest.fixture
def lax(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that lets text pass which the table refuses; only make and model are looked at."""

    def decode(source: TopicRecord) -> Upload:
        found = msgspec.json.decode(source.value or b"")
        found["records"] = tuple(Record(**each) for each in found["records"])
        return Upload(**{**found, "gaps": ()})

    monkeypatch.setattr(batches, "decode", decode)


@pytest.mark.usefixtures("lax")
@pytest.mark.parametrize("place", range(5))
def test_data_that_postgres_refuses_becomes_the_one_dead_letter(bench: Bench, topic: Topic, place: int) -> None:
    vehicles = [Vehicle() for _ in range(5)]
    values = [each.upload(1, 2) for each in vehicles]
    values[place] = values[place].replace(b"F-150", b"x" * 21)
    other = Topic(3, topic.name, topic.topic_id)
    bystander = Vehicle()
    written = bench.another().write(topic.topic_id, topic.name, [topic.run(*values), other.run(bystander.upload(1, 1))])
    assert (written.rows, written.dead_letters) == (9, 1)
    assert bench.dead(topic) == [(place, values[place])]
    assert bench.gaps(vehicles[place]) == [(1, 2, "undeclared", "dead_letter")]
    assert all(len(bench.rows(each.vin)) == 2 for each in vehicles if each is not vehicles[place])
    assert bench.another().places(topic.name)[0][0].next == 5


def test_a_day_that_is_missing_is_made(bench: Bench, vehicle: Vehicle, topic: Topic) -> None:
    day = datetime(2001, 1, 1, 12, tzinfo=UTC) + timedelta(days=random.randrange(3000))
    store = bench.another(CENTURY)
    # As if retention had dropped it since
    store._days.add(milliseconds(day) // batches.DAY)
    assert store.write(topic.topic_id, topic.name, [topic.run(vehicle.upload(1, 2), at=day)]).rows == 2
    assert len(bench.rows(vehicle.vin)) == 2


def test_a_row_that_the_guard_refuses_is_a_repeat_or_a_conflict(bench: Bench, topic: Topic) -> None:
    same, other, new = Vehicle(), Vehicle(), Vehicle()
    for each, speed in ((same, 1.0), (other, 5.0)):
        bench.another().write(uuid.uuid4(), "elsewhere", [Topic().run(each.upload(1, 1, speed=speed))])
        bench.lose_progress(each.vin)
    written = bench.another().write(topic.topic_id, topic.name, [topic.run(*(each.upload(1, 2) for each in (same, other, new)))])
    assert (written.rows, written.repeats, written.conflicts, written.guarded) == (4, 1, 1, 2)
    assert [row[1] for row in bench.rows(new.vin)] == [1, 2]
    assert [row[1:] for row in bench.rows(other.vin)] == [(1, 1.0, 5.0), (2, 2.0, 1.0)]
    assert bench.conflicts(other.vin) == [([1], other.upload(1, 2), 1)]


def test_a_broken_connection_writes_nothing_and_heals(bench: Bench, vehicle: Vehicle, topic: Topic) -> None:
    store = bench.another()
    store.write(topic.topic_id, topic.name, [topic.run(vehicle.upload(1, 1))])
    run = topic.run(vehicle.upload(2, 2))
    bench.cut(store)
    # A batch that is too large for its limits looks the same
    with pytest.raises(TimedOut):
        store.write(topic.topic_id, topic.name, [run])
    assert len(bench.rows(vehicle.vin)) == 1
    assert store.write(topic.topic_id, topic.name, [run]).rows == 1


@only_postgres
def test_nobody_there_is_unavailable(kind: str, topic: Topic, vehicle: Vehicle) -> None:
    store = PostgresStore(lambda: {"host": "127.0.0.1", "port": 1, "user": "nobody", "dbname": "none"}, WEEK)
    for call in (
        lambda: store.write(topic.topic_id, topic.name, [topic.run(vehicle.upload(1, 1))]),
        lambda: store.places(topic.name),
        store.probe,
        store.check_clock,
    ):
        with pytest.raises(Unavailable) as caught:
            call()
        assert not isinstance(caught.value, TimedOut)


@only_postgres
@pytest.mark.parametrize("table", ["stream_offset", "progress", "gap"])
def test_a_lock_that_stops_batches_is_felt_by_a_probe(
    bench: PostgresBench, vehicle: Vehicle, topic: Topic, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    monkeypatch.setattr(stores, "SESSION", f"{stores.SESSION}; SET lock_timeout = '50ms'")
    store = bench.another()
    run = topic.run(vehicle.upload(2, 2))
    with closing(psycopg2.connect(**arguments())) as other, other.cursor() as cursor:
        cursor.execute(f"LOCK TABLE {table}")
        with pytest.raises(TimedOut):
            store.probe()
        with pytest.raises(TimedOut):
            store.write(topic.topic_id, topic.name, [run])
    store.probe()
    assert store.write(topic.topic_id, topic.name, [run]).rows == 1


@only_postgres
def test_progress_that_did_not_move_is_not_written(
    bench: PostgresBench, vehicle: Vehicle, write: Callable[..., batches.Written]
) -> None:
    write(vehicle.upload(1, 2))
    before = bench.ask("SELECT xmin::text FROM progress WHERE vin = %s", vehicle.vin)
    write(vehicle.upload(1, 2))
    assert bench.ask("SELECT xmin::text FROM progress WHERE vin = %s", vehicle.vin) == before


def test_a_swallowed_error_is_not_taken_for_a_commit(
    bench: Bench, vehicle: Vehicle, topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swallow(store: PostgresStore, cursor: Any, *_: Any) -> None:
        with pytest.raises(psycopg2.Error):
            cursor.execute("SELECT 1 / 0")

    monkeypatch.setattr(PostgresStore, "_bury", swallow)
    with pytest.raises(Unavailable):
        bench.another().write(topic.topic_id, topic.name, [topic.run(vehicle.upload(1, 1))])
    assert bench.rows(vehicle.vin) == []


@only_postgres
def test_the_writer_may_not_change_the_past(bench: PostgresBench) -> None:
    statements = (
        "DELETE FROM diag",
        "UPDATE diag SET speed = 0",
        "DROP TABLE diag",
        "CREATE TABLE mine (a int)",
        "UPDATE retention SET days = 1",
        "DELETE FROM form_seen",
        "DELETE FROM dead_letter",
        "DELETE FROM gap_acknowledged",
    )
    for statement in statements:
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            bench.ask(statement)
