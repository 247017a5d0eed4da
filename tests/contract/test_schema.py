"""What the schema promises, on a database of its own in the real Postgres: retention, readers' limits, and steps beside writers.

TACHOGRAPH_TEST_PSQL is a JSON list: the psql of a superuser, with what leads to the server. Where it is not given, these tests are
not collected. Roles are the whole server's, so it must be one that the product's schema may set up.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from telemetry.consumer import store
from telemetry.consumer import store as stores

PSQL: list[str] = json.loads(os.environ.get("TACHOGRAPH_TEST_PSQL", "[]"))
DATA = Path(__file__).parent / "data"
SCHEMA = (Path(__file__).parents[2] / "roles" / "postgres" / "files" / "schema.sql").read_text()
OLD_SCHEMA = (DATA / "schema_2.sql").read_text()
OLD_BATCH = (DATA / "batch_2.sql").read_text()
TODAY = "(now() AT TIME ZONE 'UTC')::date"
COLUMNS = "vin, make, model, epoch, received_at, seq, timestamp, position_x, position_y, position_z, speed"

pytestmark = pytest.mark.parametrize("kind", ["psql"])


class Refused(Exception):
    """What psql says of a statement that failed."""


class Database:
    """A database by psql."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.argv = [*PSQL, "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", name]

    def run(self, script: str, **variables: object) -> list[str]:
        """The lines that it prints. Raises Refused."""
        given = [part for name, value in variables.items() for part in ("-v", f"{name}={value}")]
        done = subprocess.run([*self.argv, *given], input=script, capture_output=True, text=True)
        if done.returncode:
            raise Refused(done.stderr.strip())
        return done.stdout.split("\n")[:-1]

    def value(self, query: str) -> Any:
        """The one value of a query."""
        return json.loads(self.run(f"SELECT to_json(({query}))")[0])

    def day(self, ahead: int, rows: int = 1) -> None:
        """Make a day with rows, today or so many days after it."""
        self.run(
            f"SELECT make_day({TODAY} + {ahead}); INSERT INTO diag ({COLUMNS}) SELECT 'DAY00000000000000', 'Ford', 'F-150', 1, "
            f"({TODAY} + {ahead})::timestamp AT TIME ZONE 'UTC', seq, 0, 0, 0, 0, 0 FROM generate_series(1, {rows}) AS seq"
        )

    def days(self) -> list[int]:
        """The days that are there, as so many after today."""
        return [int(line) for line in self.run(f"SELECT day - {TODAY} FROM diag_days() AS day")]

    def as_writer(self, query: str) -> list[str]:
        """What it answers to the consumers."""
        return self.run(f"SET ROLE telemetry_writer; {query}")

    @contextmanager
    def session(self, statements: str) -> Iterator[None]:
        """A session that has run these, and stays."""
        with subprocess.Popen(self.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdin is not None
            assert other.stdout is not None
            other.stdin.write(f"{statements}; SELECT 'there';\n")
            other.stdin.flush()
            while other.stdout.readline().strip() != "there":
                assert other.poll() is None
            yield
            other.stdin.close()


@contextmanager
def made() -> Iterator[Database]:
    """An empty database."""
    server = Database("postgres")
    name = f"schema_test_{uuid.uuid4().hex}"
    server.run(f"CREATE DATABASE {name}")
    try:
        yield Database(name)
    finally:
        server.run(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def shared() -> Iterator[Database]:
    """A database of the schema as it is, for one test after the other."""
    with made() as one:
        one.run(SCHEMA)
        yield one


@pytest.fixture
def database(kind: str, shared: Database) -> Database:
    """The same with nothing in it."""
    shared.run(EMPTY)
    return shared


EMPTY = """
SELECT format('DROP TABLE %I', 'diag_' || to_char(day, 'YYYYMMDD')) FROM diag_days() AS day \\gexec
TRUNCATE form_seen, dead_letter, conflict;
UPDATE retention SET (days, kafka_hours, letter_days, reached, held) = (0, 168, 365, NULL, '');
"""


# Retention


def test_old_days_go_one_at_a_time_and_young_ones_stay(database: Database) -> None:
    database.run("UPDATE retention SET days = 3")
    for ahead in range(-6, 1):
        database.day(ahead)
    before = database.run("SELECT 'diag_' || to_char(day, 'YYYYMMDD') FROM diag_days() AS day")
    assert [database.as_writer("SELECT drop_days()") for _ in range(4)] == [[before[0]], [before[1]], [before[2]], []]
    assert database.days() == [-3, -2, -1, 0]
    assert database.value("SELECT count(*) FROM diag") == 4
    assert database.value("SELECT held FROM retention") == ""


def test_a_retention_of_nothing_keeps_all(database: Database) -> None:
    database.day(-400)
    database.day(0)
    assert database.as_writer("SELECT drop_days()") == []
    assert database.days() == [-400, 0]


def test_a_leap_drops_nothing_and_is_told(database: Database) -> None:
    """As when the clock of all hosts is a month ahead for an hour, seen from there."""
    database.run("UPDATE retention SET days = 10")
    for ahead in (-34, -33, -32, -31, -30):
        database.day(ahead)
    database.run(f"UPDATE retention SET reached = {TODAY} - 31")
    database.day(0)
    assert database.as_writer("SELECT drop_days()") == []
    assert database.days() == [-34, -33, -32, -31, -30, 0]
    assert "more than two days for each day with rows" in database.value("SELECT held FROM retention")
    assert database.value(f"SELECT reached - {TODAY} FROM retention") == -30


@pytest.mark.parametrize(("stored", "reached"), [(4, -10), (5, 0)])
def test_what_was_away_for_long_goes_on_when_as_much_was_stored(database: Database, stored: int, reached: int) -> None:
    """Ten days ahead, two for each day with rows."""
    database.run(f"UPDATE retention SET reached = {TODAY} - 10")
    for ahead in range(-stored + 1, 1):
        database.day(ahead)
    database.as_writer("SELECT drop_days()")
    assert database.value(f"SELECT reached - {TODAY} FROM retention") == reached


def test_rows_ahead_of_the_clock_make_nothing_old(database: Database) -> None:
    database.run("UPDATE retention SET days = 1")
    for ahead in (-2, -1, 6):
        database.day(ahead)
    assert database.as_writer("SELECT drop_days()") == []
    assert database.value(f"SELECT reached - {TODAY} FROM retention") == -1


def test_a_clock_that_was_ahead_and_is_right_again_drops_nothing(database: Database) -> None:
    database.run(f"UPDATE retention SET days = 1, reached = {TODAY} + 30")
    database.day(-1)
    database.day(0)
    assert database.as_writer("SELECT drop_days()") == []
    assert database.value(f"SELECT reached - {TODAY} FROM retention") == 0


def test_forms_go_in_slices_when_neither_kafka_nor_a_backup_has_them(database: Database) -> None:
    database.day(0)
    database.run(
        f"INSERT INTO form_seen SELECT 'V', seq, '', ({TODAY} - 98)::timestamptz FROM generate_series(1, 25000) AS seq; "
        f"INSERT INTO form_seen SELECT 'W', seq, '', ({TODAY} - 96)::timestamptz FROM generate_series(1, 10) AS seq; "
    )
    assert [database.as_writer("SELECT forget()") for _ in range(4)] == [["10000"], ["10000"], ["5000"], ["0"]]
    assert database.value("SELECT count(*) FROM form_seen") == 10
    database.run("UPDATE retention SET kafka_hours = 24")
    assert database.as_writer("SELECT forget()") == ["10"]


def test_forms_outlive_a_long_retention_of_the_topic(database: Database) -> None:
    database.day(0)
    database.run(
        f"UPDATE retention SET kafka_hours = 24 * 400; INSERT INTO form_seen VALUES ('V', 1, '', ({TODAY} - 480)::timestamptz)"
    )
    assert database.as_writer("SELECT forget()") == ["0"]


@pytest.mark.parametrize(("days", "left"), [(30, 1), (0, 2)])
def test_dead_letters_and_conflicts_go_by_days(database: Database, days: int, left: int) -> None:
    database.day(0)
    database.run(f"UPDATE retention SET letter_days = {days}")
    for age in (29, 31):
        database.run(
            'INSERT INTO dead_letter (topic_id, partition, "offset", topic, received_at, reason, noted_at) '
            f"VALUES (gen_random_uuid(), 0, 0, 't', now(), 'bad', ({TODAY} - {age})::timestamptz); "
            'INSERT INTO conflict (vin, epoch, seq, topic_id, partition, "offset", noted_at) '
            f"VALUES ('V', 1, 1, gen_random_uuid(), 0, 0, ({TODAY} - {age})::timestamptz)"
        )
    database.as_writer("SELECT forget()")
    for table in ("dead_letter", "conflict"):
        assert database.value(f"SELECT count(*) FROM {table}") == left


def test_a_view_that_keeps_a_day_is_told(database: Database) -> None:
    database.run("UPDATE retention SET days = 1")
    for ahead in (-3, -2, -1, 0):
        database.day(ahead)
    oldest = database.run("SELECT 'diag_' || to_char(min(day), 'YYYYMMDD') FROM diag_days() AS day")[0]
    database.run(f"CREATE VIEW keeper AS SELECT * FROM {oldest}")
    with pytest.raises(Refused, match="keeper"):
        database.as_writer("SELECT drop_days()")
    assert database.days() == [-3, -2, -1, 0]
    database.run("DROP VIEW keeper")
    assert database.as_writer("SELECT drop_days()") == [oldest]


def test_a_reader_under_way_is_waited_for_a_moment_only(database: Database) -> None:
    database.run("UPDATE retention SET days = 1")
    for ahead in (-2, -1, 0):
        database.day(ahead)
    with database.session("BEGIN; SELECT count(*) FROM diag"):
        begun = time.monotonic()
        with pytest.raises(Refused, match="lock timeout"):
            database.as_writer("SELECT drop_days()")
        assert time.monotonic() - begun < 3
    assert len(database.as_writer("SELECT drop_days()")) == 1


# Readers


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT pg_advisory_lock(1)",
        "SELECT pg_try_advisory_xact_lock_shared(1, 2)",
        "SELECT lo_create(0)",
        "SELECT lo_from_bytea(0, '')",
        "BEGIN; LOCK TABLE retention IN SHARE MODE",
        "SELECT FROM retention FOR UPDATE",
        "SELECT FROM stream_offset FOR SHARE",
        "CREATE TEMPORARY TABLE mine (a int)",
        "SELECT make_day(current_date)",
        "SELECT drop_days()",
        "SET temp_file_limit = -1",
        "SELECT pg_logical_emit_message(false, 'x', 'y')",
    ],
)
def test_a_reader_can_hold_up_nothing(database: Database, statement: str) -> None:
    with pytest.raises(Refused, match="permission denied"):
        database.run(f"SET ROLE telemetry_reader; {statement}")


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE RULE mine AS ON INSERT TO diag DO INSTEAD NOTHING",
        "CREATE TRIGGER mine BEFORE INSERT ON diag EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "CREATE INDEX mine ON diag (vin)",
        "ALTER TABLE diag ADD COLUMN mine integer",
        "COMMENT ON TABLE diag IS 'mine'",
        "DROP TABLE diag",
        "TRUNCATE diag",
        "BEGIN; LOCK TABLE diag",
        "CLUSTER diag",
    ],
)
def test_a_reader_waits_for_no_lock_that_it_has_no_right_to(database: Database, statement: str) -> None:
    with (
        database.session("SET ROLE telemetry_writer; BEGIN; LOCK TABLE diag IN ROW EXCLUSIVE MODE"),
        pytest.raises(Refused, match="permission denied"),
    ):
        database.run(f"SET ROLE telemetry_reader; SET lock_timeout = '200ms'; {statement}")


def test_a_probe_feels_a_lock_on_todays_partition(database: Database) -> None:
    database.day(0)
    probe = f"SET ROLE telemetry_writer; SET lock_timeout = '200ms'; BEGIN; {stores.PROBE}; ROLLBACK"
    database.run(probe)
    day = database.value("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')")
    with database.session(f"BEGIN; LOCK TABLE diag_{day}"), pytest.raises(Refused, match="lock timeout"):
        database.run(probe)


def test_a_reader_has_limits(database: Database) -> None:
    assert database.value("SELECT rolconnlimit FROM pg_roles WHERE rolname = 'telemetry_reader'") == 20
    limits = database.value("SELECT rolconfig FROM pg_roles WHERE rolname = 'telemetry_reader'")
    assert {limit.split("=")[0] for limit in limits} == {
        "statement_timeout",
        "idle_in_transaction_session_timeout",
        "temp_file_limit",
    }


def test_a_reader_that_reads_keeps_no_day_from_being_made(database: Database) -> None:
    database.day(0)
    with database.session("SET ROLE telemetry_reader; BEGIN; SELECT count(*) FROM diag; SELECT * FROM retention"):
        assert database.as_writer(f"SELECT make_day({TODAY} + 1)") == ["t"]


def test_questions_about_one_vehicle_use_an_index_of_each_day(database: Database) -> None:
    for ahead in (-1, 0):
        database.day(ahead)
    # Small tables are read whole unless that is made dear; a query of diag has no other way
    settings = "SET ROLE telemetry_reader; SET enable_seqscan = off"
    assert [line for line in database.run(f"{settings}; EXPLAIN SELECT * FROM diag WHERE vin = 'X'") if "Seq Scan" in line]
    plan = database.run(f"{settings}; EXPLAIN SELECT * FROM diag_by_vin WHERE vin = 'DAY00000000000000'")
    assert not [line for line in plan if "Seq Scan" in line]
    assert len([line for line in plan if "_guard" in line]) == len([line for line in plan if "_forms" in line]) == 2
    assert database.value("SELECT count(*) FROM diag_by_vin WHERE vin = 'DAY00000000000000'") == 2


def test_a_comparison_opens_no_days_beyond_its_own(database: Database) -> None:
    """Each costs locks, of which all sessions share a table."""
    for ahead in (-3, -2, -1, 0):
        database.day(ahead)
    wanted = [
        "ARRAY['DAY00000000000000']",
        "ARRAY[1]",
        "ARRAY[1]",
        "ARRAY[1]",
        f"'{datetime.now(UTC).date() - timedelta(days=1)}'",
        "'infinity'",
    ]
    locked = database.run(
        f"{store.SESSION}; SET ROLE telemetry_writer; BEGIN; {store.READ_ROWS % tuple(wanted)}; "
        "SELECT relation::regclass FROM pg_locks WHERE pid = pg_backend_pid() AND relation::regclass::text ~ '^diag_[0-9]{8}$'"
    )
    assert len([name for name in locked if name.startswith("diag_")]) == 2


# Steps


class OldConsumer(threading.Thread):
    """Stores by the statements of version 2, one batch after the other, until it is told to stop."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self.database, self.taken, self.stopped = database, list[float](), threading.Event()
        self.error: Refused | None = None

    def run(self) -> None:
        try:
            while not self.stopped.is_set():
                begun = time.monotonic()
                self.database.run(OLD_BATCH, next=len(self.taken))
                self.taken.append(time.monotonic() - begun)
        except Refused as error:
            self.error = error

    def finish(self) -> None:
        """Let it store on the schema as it is now, and end."""
        batches = len(self.taken)
        while self.is_alive() and len(self.taken) < batches + 2:
            self.join(0.05)
        self.stopped.set()
        self.join()


@pytest.fixture
def old(kind: str) -> Iterator[Database]:
    """A database of the version before, with days and rows."""
    with made() as one:
        one.run(OLD_SCHEMA)
        for ahead in (-2, -1):
            one.day(ahead, 1000)
        yield one


def test_steps_run_beside_consumers_of_the_version_before(old: Database) -> None:
    consumer = OldConsumer(old)
    consumer.start()
    assert set(old.run(SCHEMA)) == {"changed"}
    consumer.finish()
    assert consumer.error is None
    assert max(consumer.taken) < 5
    batches = len(consumer.taken)
    assert old.value("SELECT next FROM stream_offset") == batches
    assert old.value("SELECT count(*) FROM diag WHERE vin = 'VERSION2000000000'") == batches
    assert old.value("SELECT count(*) FROM gap_acknowledged") == 0
    # Days that were there, one made under way, and one by the new function
    old.as_writer(f"SELECT make_day({TODAY} + 1)")
    without = "SELECT day FROM diag_days() AS day WHERE to_regclass('diag_' || to_char(day, 'YYYYMMDD') || '_forms') IS NULL"
    assert old.run(without) == []
    assert old.value("SELECT count(*) FROM pg_index WHERE NOT indisvalid") == 0
    assert old.run(SCHEMA) == []


def test_a_step_that_must_wait_gives_up_and_goes_on_later(old: Database) -> None:
    consumer = OldConsumer(old)
    with old.session("BEGIN; SELECT count(*) FROM conflict"):
        consumer.start()
        with pytest.raises(Refused, match="lock timeout"):
            old.run(SCHEMA)
    old.run(SCHEMA)
    consumer.finish()
    assert consumer.error is None
    assert max(consumer.taken) < 5
    assert old.run(SCHEMA) == []


def test_an_index_that_was_left_half_made_is_made_again(old: Database) -> None:
    old.run("INSERT INTO gap VALUES ('V', 1, 1, 1, 'declared', ''), ('V', 1, 2, 2, 'declared', '')")
    with pytest.raises(Refused, match="could not create unique index"):
        old.run("CREATE UNIQUE INDEX CONCURRENTLY gap_open ON gap (vin)")
    old.run(SCHEMA)
    assert old.value("SELECT count(*) FROM pg_index WHERE NOT indisvalid") == 0
    assert "WHERE (state <> 'filled'::text)" in old.value("SELECT indexdef FROM pg_indexes WHERE indexname = 'gap_open'")
