"""The store: one transaction a batch writes rows, progress, gaps, dead letters, conflicts and offsets, or nothing.

The transaction begins with a compare-and-set of every partition's offset, so a worker that was paused and replaced writes nothing.
What it knows of progress is kept only after a confirmed COMMIT, and forgotten at any error. batch.py decides what a batch does.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any, NamedTuple, Protocol, cast

import psycopg2
import psycopg2.extensions
from msgspec.structs import astuple
from psycopg2.extras import execute_values

from telemetry.consumer.batch import (
    DAY,
    Decoded,
    Fingerprint,
    Key,
    Place,
    Plan,
    Row,
    Run,
    TopicRecord,
    Written,
    add,
    believe,
    changed_gaps,
    decode_all,
    fingerprint,
    form_hash,
    halves,
    needed_gaps,
    plan,
    received_at,
    values_of,
)
from telemetry.consumer.progress import DECLARED, UNDECLARED, Progress, Span
from telemetry.record import MAX_REASON, VALUES, Upload

log = logging.getLogger(__name__)

CLOCKS_APART = timedelta(days=1)
"""How far this host's clock and the database's may be apart."""


class StoreError(Exception):
    """The batch was not written, or it is not known whether it was: reread the offsets and seek."""


class Fenced(StoreError):
    """Another worker has moved on: the offsets or the progress are not what this one read."""


class Unavailable(StoreError):
    """Postgres cannot be reached, cannot write, or broke off; the outcome of a commit may be unknown."""


class TimedOut(Unavailable):
    """A statement or the transaction took too long, or the connection broke meanwhile: a smaller batch may pass."""


class ClockApart(StoreError):
    """The database's clock and this host's differ by more than a day; nothing was written."""


class Failed(StoreError):
    """Postgres works, but refused this batch for a reason that is not its data."""


class PartitionStop(StoreError):
    """A partition must not go on; the text has the reason and the remedy."""

    def __init__(self, partition: int, reason: str) -> None:
        super().__init__(reason)
        self.partition = partition


class Store(Protocol):
    """Keeps batches whole."""

    def places(self, topic: str) -> dict[int, list[Place]]:
        """Every place known under the topic's name, by partition. Raises Unavailable."""

    def write(self, topic_id: uuid.UUID, topic: str, runs: Sequence[Run]) -> Written:
        """Write a batch. Raises StoreError, and then nothing of it is kept in memory."""

    def forget(self) -> None:
        """Empty all caches: partitions were taken or given."""

    def probe(self) -> None:
        """Take the locks that a batch takes, and let them go. Raises StoreError."""

    def check_clock(self) -> None:
        """Compare this host's clock with the database's. Raises ClockApart or Unavailable."""


class DaysMissing(Exception):
    """Days of diag that a batch's rows need, by their number since 1970, and that are not known to be there."""

    def __init__(self, days: set[int]) -> None:
        super().__init__(days)
        self.days = days


class Retained(NamedTuple):
    """What retention did: the days that it dropped, and why it held back, if it did; and how many gaps are open, about."""

    dropped: list[str]
    held: str
    open_gaps: int = 0


# Postgres

# The data is at fault: class 22 (data exception) but not a broken COPY of ours, and not-null violations.
DATA_STATES = ("22", "23502")
NOT_DATA_STATES = ("22P04",)
NO_PARTITION, UNIQUE = "23514", "23505"
# Nothing can be written now, whatever it is: connection, login, read-only, rollback, schema or rights missing, resources, locks,
# operator, disk. No state at all is a connection that broke. Any other may be the fault of one partition.
AWAY_STATES = ("08", "25", "28", "3D", "40", "42", "53", "55", "57", "58")
# A statement, an idle transaction, a lock: what took too long for its limit.
TIMED_OUT_STATES = ("57014", "25P03", "55P03")
# A worker that is paused within a transaction must not keep its rows locked from the one that takes over.
# All that the store reads it looks up by keys: no plan may read a whole table, whatever the statistics say.
SESSION = (
    "SET idle_in_transaction_session_timeout = '10s'; SET lock_timeout = '12s'; SET statement_timeout = '30s'; "
    "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off"
)
MAX_CACHED = 100_000
"""Vehicles of one generation in memory."""
COMPARED = 2_000
"""Records that are compared at a time: after a return to the topic's start everything is a repeat."""
DAYS_OPENED = 100
"""Days of diag that one statement opens: each costs locks, of which all sessions share a table."""
EPOCH_2000 = 946_684_800_000
COLUMNS = ("vin", "make", "model", "epoch", "received_at", "seq", *VALUES)
COPY_COLUMNS = ", ".join(COLUMNS)
# It is rolled back; the locks are those of a batch, today's partition of diag included, and a database that cannot write says so.
PROBE = "; ".join(
    [
        "UPDATE stream_offset SET next = next WHERE false",
        "UPDATE progress SET last = last WHERE false",
        "DELETE FROM gap WHERE false",
        "INSERT INTO dead_letter (topic) SELECT '' WHERE false",
        *(f"INSERT INTO {table} (vin) SELECT '' WHERE false" for table in ("form_seen", "conflict")),
        f"INSERT INTO diag ({COPY_COLUMNS}) VALUES ('PROBE000000000000', '-', '-', 0, now(), 0{', 0' * len(VALUES)})",
    ]
)
COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)
COPY_TRAILER = struct.pack("!h", -1)
# A field is its length in bytes (int32), then its bytes; what follows the upload's own fields is 8 bytes each: seq, then floats.
_fixed = struct.Struct("!iq" + "id" * len(VALUES))
_lengths = [8] * (2 + 2 * len(VALUES))


def copy_rows(rows: Iterable[Row]) -> bytes:
    """Rows in the format of a binary COPY into COPY_COLUMNS.

    After a header each row is the number of its fields (int16) and the fields; -1 in place of a number ends them. Times are
    microseconds since 2000. What an upload's rows share is encoded once for it; the rest is one preassembled struct.
    """
    buffer = BytesIO()
    buffer.write(COPY_HEADER)
    shared: tuple[Upload, TopicRecord] | None = None
    prefix = b""
    fields = _lengths.copy()
    for upload, record, source in rows:
        if shared is None or shared[0] is not upload or shared[1] is not source:
            shared = (upload, source)
            texts = [text.encode() for text in (upload.vin, upload.make, upload.model)]
            prefix = struct.pack("!h", len(COLUMNS)) + b"".join(struct.pack("!i", len(text)) + text for text in texts)
            prefix += struct.pack("!iqiq", 8, upload.epoch, 8, (source.timestamp - EPOCH_2000) * 1000)
        fields[1::2] = astuple(record)
        buffer.write(prefix)
        buffer.write(_fixed.pack(*fields))
    buffer.write(COPY_TRAILER)
    return buffer.getvalue()


MOVE_OFFSET = (
    "UPDATE stream_offset SET next = %s, last_timestamp = %s, last_crc = %s "
    "WHERE topic_id = %s AND partition = %s AND next = %s RETURNING now()"
)
FIRST_OFFSET = (
    "INSERT INTO stream_offset (topic_id, partition, topic, next, last_timestamp, last_crc) "
    "VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING RETURNING now()"
)
READ_PROGRESS = (
    "SELECT wanted.vin, wanted.epoch, last FROM unnest(%s::char(17)[], %s::bigint[]) AS wanted (vin, epoch) "
    "JOIN progress ON progress.vin = wanted.vin AND progress.epoch = wanted.epoch"
)
NEW_PROGRESS = (
    "INSERT INTO progress (vin, epoch, last) "
    "SELECT * FROM unnest(%s::char(17)[], %s::bigint[], %s::bigint[]) ON CONFLICT DO NOTHING"
)
MOVE_PROGRESS = (
    "UPDATE progress SET last = new.last FROM unnest(%s::char(17)[], %s::bigint[], %s::bigint[], %s::bigint[]) "
    "AS new (vin, epoch, was, last) WHERE progress.vin = new.vin AND progress.epoch = new.epoch AND progress.last = new.was"
)
# Gaps do not overlap: those that begin in the range, and the one that began last before it.
READ_GAPS = (
    "SELECT wanted.vin, wanted.epoch, found.* FROM unnest(%s::char(17)[], %s::bigint[], %s::bigint[], %s::bigint[]) "
    "AS wanted (vin, epoch, first, last) CROSS JOIN LATERAL ("
    "(SELECT from_seq, to_seq, state, reason FROM gap WHERE gap.vin = wanted.vin AND gap.epoch = wanted.epoch "
    "AND state <> 'filled' AND from_seq BETWEEN wanted.first AND wanted.last) UNION ALL "
    "(SELECT from_seq, to_seq, state, reason FROM gap WHERE gap.vin = wanted.vin AND gap.epoch = wanted.epoch "
    "AND state <> 'filled' AND from_seq < wanted.first ORDER BY from_seq DESC LIMIT 1)) AS found WHERE to_seq >= wanted.first"
)
OLD_GAPS = (
    "DELETE FROM gap USING unnest(%s::char(17)[], %s::bigint[], %s::bigint[]) AS old (vin, epoch, from_seq) "
    "WHERE gap.vin = old.vin AND gap.epoch = old.epoch AND gap.from_seq = old.from_seq"
)
NEW_GAPS = (
    "INSERT INTO gap (vin, epoch, from_seq, to_seq, state, reason) "
    "SELECT * FROM unnest(%s::char(17)[], %s::bigint[], %s::bigint[], %s::bigint[], %s::text[], %s::text[])"
)
NEW_FORMS = "INSERT INTO form_seen (vin, seq, hash, received_at) VALUES %s ON CONFLICT DO NOTHING RETURNING vin, seq, hash"
ONE_ROW = f"INSERT INTO diag ({COPY_COLUMNS}) VALUES ({', '.join(['%s'] * len(COLUMNS))}) ON CONFLICT DO NOTHING"
# In a loop over ranges by each day's guard index.
READ_ROWS = (
    "SELECT found.* FROM unnest(%s::char(17)[], %s::bigint[], %s::bigint[], %s::bigint[]) "
    "AS wanted (vin, epoch, first, last) CROSS JOIN LATERAL ("
    f"SELECT vin, epoch, seq, make, model, {', '.join(VALUES)} FROM diag "
    "WHERE diag.vin = wanted.vin AND diag.epoch = wanted.epoch AND diag.epoch >= 1 "
    "AND diag.seq BETWEEN wanted.first AND wanted.last AND received_at >= %s AND received_at < %s OFFSET 0) AS found"
)
NEW_CONFLICTS = (
    'INSERT INTO conflict (vin, epoch, seq, seqs, value, topic_id, partition, "offset") VALUES %s ON CONFLICT DO NOTHING'
)
NEW_LETTERS = (
    'INSERT INTO dead_letter (topic_id, partition, "offset", topic, key, value, header_bytes, received_at, reason) '
    "VALUES %s ON CONFLICT DO NOTHING"
)
LETTERS = "(%s, %s, %s, %s, %s, %s, %s::bytea[], %s, %s)"
BESIDE, BESIDE_OVER = "SAVEPOINT beside", "ROLLBACK TO SAVEPOINT beside; RELEASE SAVEPOINT beside"


def move_offset(cursor: Any, topic_id: uuid.UUID, topic: str, run: Run) -> datetime | None:
    """Compare-and-set of a partition's offset from the run's start to its end; the database's time, or None if it is not at start.

    The one way in which an offset moves on.
    """
    before = fingerprint(run)
    cursor.execute(MOVE_OFFSET, (run.end, *before, str(topic_id), run.partition, run.start))
    if not cursor.rowcount and run.start == 0:
        cursor.execute(FIRST_OFFSET, (str(topic_id), run.partition, topic, run.end, *before))
    return cast("datetime", cursor.fetchall()[0][0]) if cursor.rowcount else None


class Lasts:
    """The last seq of vehicles that were written lately: of two generations, the older of which goes when the younger is full."""

    def __init__(self) -> None:
        self.young: dict[Key, int] = {}
        self.old: dict[Key, int] = {}

    def get(self, key: Key) -> int | None:
        """None if it is not known."""
        return self.young.get(key) or self.old.get(key)

    def update(self, lasts: Mapping[Key, int]) -> None:
        """Take in what was committed."""
        if len(self.young) >= MAX_CACHED:
            self.old, self.young = self.young, {}
        self.young.update(lasts)

    def clear(self) -> None:
        """Forget all."""
        self.young, self.old = {}, {}


class PostgresStore:
    """The store in Postgres, by one connection."""

    def __init__(
        self,
        arguments: Callable[[], dict[str, Any]],
        topic_retention_ms: int,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        connect: Callable[..., Any] = psycopg2.connect,
    ) -> None:
        self._arguments, self._topic_retention_ms, self._now, self._connect = arguments, topic_retention_ms, now, connect
        self._connection: Any = None
        self._progress = Lasts()
        self._days: set[int] = set()

    def forget(self) -> None:
        """See Store."""
        self._progress.clear()
        self._days.clear()

    def close(self) -> None:
        """End the connection; what was not committed is gone."""
        self.forget()
        if self._connection is not None:
            with suppress(psycopg2.Error):
                self._connection.close()
            self._connection = None

    def break_off(self) -> None:
        """End a call that hangs in another thread: its connection is cut, and it raises Unavailable."""
        connection = self._connection
        if connection is not None:
            with suppress(psycopg2.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as cut:
                cut.shutdown(socket.SHUT_RDWR)

    def _cursor(self) -> Any:
        if self._connection is None:
            try:
                self._connection = self._connect(**self._arguments())
                with self._connection.cursor() as cursor:
                    cursor.execute(SESSION)
                self._connection.commit()
            except psycopg2.Error as error:
                raise self._broken(error) from error
        return self._connection.cursor()

    def _broken(self, error: psycopg2.Error, writing: bool = False) -> StoreError:
        self.close()
        text = f"Postgres: {' '.join(str(error).split()) or type(error).__name__}"
        if writing and (not error.pgcode or error.pgcode in TIMED_OUT_STATES):
            return TimedOut(text)
        if not error.pgcode or error.pgcode.startswith(AWAY_STATES):
            return Unavailable(text)
        return Failed(text)

    def places(self, topic: str) -> dict[int, list[Place]]:
        """See Store."""
        try:
            with self._cursor() as cursor:
                cursor.execute(
                    "SELECT partition, topic_id::text, next, last_timestamp, last_crc FROM stream_offset WHERE topic = %s",
                    (topic,),
                )
                found: dict[int, list[Place]] = {}
                for partition, topic_id, following, timestamp, checksum in cursor.fetchall():
                    place = Place(uuid.UUID(topic_id), following, Fingerprint(timestamp, checksum))
                    found.setdefault(partition, []).append(place)
            self._connection.rollback()
        except psycopg2.Error as error:
            raise self._broken(error) from error
        return found

    def retain(self) -> Retained:
        """Make the days ahead, forget and drop what is older than its retention. What cannot be done now is said in `held`.

        Raises StoreError when the database is away.
        """
        dropped: list[str] = []
        held = []
        for what, part in (
            ("the days ahead are not made", self._make_days_ahead),
            ("old records of form clients, dead letters and conflicts are not forgotten", self._forget_old),
            ("old days are not dropped", lambda: self._drop_days(dropped)),
        ):
            try:
                part()
            except StoreError as error:
                held.append(f"{what}: {error}")
        return Retained(dropped, "; ".join(held), self._open_gaps())

    def _make_days_ahead(self) -> None:
        for ahead in (1, 2):
            self._alone("SELECT make_day((now() AT TIME ZONE 'UTC')::date + %s)", (ahead,))

    def _forget_old(self) -> None:
        while self._alone("SELECT forget()", ())[0][0]:
            pass

    def _drop_days(self, dropped: list[str]) -> None:
        while names := self._alone("SELECT drop_days()", ()):
            dropped += [name for (name,) in names]
        ((reason,),) = self._alone("SELECT held FROM retention", ())
        if reason:
            raise Failed(reason)

    def _open_gaps(self) -> int:
        """As Postgres estimated it last: counting them would read them all."""
        ((count,),) = self._alone("SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = 'gap_open'::regclass", ())
        return int(count)

    def check_clock(self) -> None:
        """See Store."""
        ((now,),) = self._alone("SELECT now()", ())
        self._compare_clock(now)

    def _compare_clock(self, now: datetime) -> None:
        here = self._now()
        if abs(here - now) > CLOCKS_APART:
            raise ClockApart(
                f"The database's clock says {now.isoformat(timespec='seconds')}, this host's {here.isoformat(timespec='seconds')}: "
                "nothing is written until they are less than a day apart. Set the clocks right."
            )

    def probe(self) -> None:
        """See Store."""
        try:
            try:
                self._try_probe()
            except psycopg2.Error as error:
                if error.pgcode != NO_PARTITION:
                    raise
                self._rollback()
                self._alone("SELECT make_day((now() AT TIME ZONE 'UTC')::date + %s)", (0,))
                self._try_probe()
        except psycopg2.Error as error:
            raise self._broken(error, writing=True) from error

    def _try_probe(self) -> None:
        with self._cursor() as cursor:
            cursor.execute(PROBE)
        self._connection.rollback()

    def _alone(self, statement: str, arguments: tuple[Any, ...]) -> list[Any]:
        """One statement in a transaction of its own."""
        try:
            with self._cursor() as cursor:
                cursor.execute(statement, arguments)
                found = list(cursor.fetchall())
            self._connection.commit()
        except psycopg2.Error as error:
            raise self._broken(error) from error
        return found

    def _make_days(self, days: Iterable[int]) -> None:
        """Make days that a batch needs, each in a transaction of its own: it takes locks which no batch should hold."""
        self._connection.rollback()
        for day in sorted(days):
            self._alone("SELECT make_day(%s)", (received_at(day * DAY).date(),))
            self._days.add(day)

    def write(self, topic_id: uuid.UUID, topic: str, runs: Sequence[Run]) -> Written:
        """See Store."""
        runs = sorted(runs, key=lambda run: run.partition)
        try:
            return self._attempt(topic_id, topic, runs, {}, guarded=False)
        except psycopg2.Error as error:
            return self._recover(topic_id, topic, runs, error)

    def _recover(self, topic_id: uuid.UUID, topic: str, runs: Sequence[Run], error: psycopg2.Error) -> Written:
        """What the database refused: one of the data, one of a day, one of the guard, or one of its own."""
        state = error.pgcode or ""
        self._rollback()
        try:
            if state == NO_PARTITION:
                return self._attempt(topic_id, topic, runs, {}, guarded=False)
            if state == UNIQUE:
                log.error("the guard index refused a row that progress did not know: the batch is written row by row")
                return self._attempt(topic_id, topic, runs, {}, guarded=True)
            if state.startswith(DATA_STATES) and state not in NOT_DATA_STATES:
                total = Written()
                for run in runs:
                    add(total, self._bisect(topic_id, topic, run))
                return total
        except psycopg2.Error as second:
            raise self._broken(second, writing=True) from second
        raise self._broken(error, writing=True) from error

    def _bisect(self, topic_id: uuid.UUID, topic: str, run: Run) -> Written:
        """Write a run in parts, down to the one Kafka record that the database refuses: that is a dead letter."""
        try:
            return self._attempt(topic_id, topic, [run], {}, guarded=False)
        except psycopg2.Error as error:
            state = error.pgcode or ""
            if not state.startswith(DATA_STATES) or state in NOT_DATA_STATES:
                raise
            self._rollback()
            if len(run.records) == 1:
                source = run.records[0]
                reason = f"Postgres refuses it: {state} {(error.diag.message_primary or '').strip()}"
                return self._attempt(topic_id, topic, [run], {(source.partition, source.offset): reason}, guarded=False)
            total = Written()
            for half in halves(run):
                add(total, self._bisect(topic_id, topic, half))
            return total

    def _rollback(self) -> None:
        """Give up the transaction and what was known; a connection that cannot is closed."""
        self.forget()
        if self._connection is not None:
            try:
                self._connection.rollback()
            except psycopg2.Error:
                self.close()

    def _attempt(
        self, topic_id: uuid.UUID, topic: str, runs: Sequence[Run], dead: dict[tuple[int, int], str], *, guarded: bool
    ) -> Written:
        """The one transaction, again when the days that its rows need are there."""
        decoded = decode_all(runs, dead)
        while True:
            try:
                return self._transaction(topic_id, topic, runs, decoded, guarded=guarded)
            except DaysMissing as missing:
                self._make_days(missing.days)

    def _transaction(
        self, topic_id: uuid.UUID, topic: str, runs: Sequence[Run], decoded: list[Decoded], *, guarded: bool
    ) -> Written:
        written = Written()
        with self._cursor() as cursor:
            try:
                now, *_ = [self._move(cursor, topic_id, topic, run) for run in runs]
                self._compare_clock(now)
                decoded, faults = believe(decoded, now, self._topic_retention_ms)
                lasts = self._read_progress(cursor, {each.key for each in decoded if each.key})
                gaps = self._read_gaps(cursor, needed_gaps(decoded, lasts))
                found = plan(decoded, lambda key: Progress(lasts[key], gaps.get(key, ())))
                rows = found.rows + self._new_forms(cursor, found.forms, written)
                missing = {row.source.timestamp // DAY for row in rows} - self._days
                if missing:
                    raise DaysMissing(missing)
                again = self._insert_one_by_one(cursor, rows) if guarded else self._copy(cursor, rows)
                written.rows, written.guarded = len(rows) - len(again), len(again)
                self._compare(cursor, topic_id, [*found.repeats, *again], now, written)
                self._save_progress(cursor, found, written)
                self._bury(cursor, topic_id, topic, found.dead, written)
                if faults:
                    kept = {row.source[:2] for row in rows} | {source[:2] for source, _ in found.dead}
                    written.clock_faults = len(faults & kept)
            except StoreError:
                self._rollback()
                raise
        if self._connection.info.transaction_status != psycopg2.extensions.TRANSACTION_STATUS_INTRANS:
            # COMMIT would report success for what the server has rolled back.
            self.close()
            raise Unavailable("Postgres: the transaction was aborted before its commit")
        try:
            self._connection.commit()
        except psycopg2.Error as error:
            raise self._broken(error, writing=True) from error
        self._progress.update({key: progress.last for key, progress in found.after.items()})
        return written

    def _move(self, cursor: Any, topic_id: uuid.UUID, topic: str, run: Run) -> datetime:
        """Compare-and-set of one partition's offset; returns the database's time."""
        now = move_offset(cursor, topic_id, topic, run)
        if now is None:
            raise Fenced(f"partition {run.partition}: the stored offset is not {run.start} any more")
        return now

    def _read_progress(self, cursor: Any, keys: set[Key]) -> dict[Key, int]:
        """The last seqs of all keys, 0 where there is none: from the cache, or read within the transaction."""
        found = {key: self._progress.get(key) or 0 for key in keys}
        missing = [key for key, last in found.items() if not last]
        if missing:
            cursor.execute(READ_PROGRESS, columns(missing))
            found |= {(vin, epoch): last for vin, epoch, last in cursor.fetchall()}
        return found

    def _read_gaps(self, cursor: Any, ranges: Sequence[tuple[str, int, int, int]]) -> dict[Key, tuple[Span, ...]]:
        """Open gaps that overlap (vin, epoch, first, last)."""
        if not ranges:
            return {}
        cursor.execute(READ_GAPS, columns(ranges))
        found: dict[Key, set[Span]] = {}
        for vin, epoch, *span in cursor.fetchall():
            found.setdefault((vin, epoch), set()).add(Span(*span))
        return {key: tuple(sorted(spans)) for key, spans in found.items()}

    def _new_forms(self, cursor: Any, forms: Sequence[Row], written: Written) -> list[Row]:
        """Forms that were not seen before; the others are repeats."""
        if not forms:
            return []
        first: dict[tuple[str, int, bytes], Row] = {}
        for row in forms:
            first.setdefault((row.upload.vin, row.record.seq, form_hash(row.upload)), row)
        new = execute_values(
            cursor,
            NEW_FORMS,
            [(*key, received_at(row.source.timestamp)) for key, row in sorted(first.items())],
            fetch=True,
        )
        fresh = {(vin, seq, bytes(digest)) for vin, seq, digest in new}
        written.repeats += len(forms) - len(fresh)
        return [row for key, row in first.items() if key in fresh]

    def _copy(self, cursor: Any, rows: Sequence[Row]) -> list[Row]:
        if rows:
            cursor.copy_expert(f"COPY diag ({COPY_COLUMNS}) FROM STDIN (FORMAT binary)", BytesIO(copy_rows(rows)))
        return []

    def _insert_one_by_one(self, cursor: Any, rows: Sequence[Row]) -> list[Row]:
        """Insert in arrival order; returns what the guard refuses."""
        refused = []
        for row in rows:
            upload, record, source = row
            at = received_at(source.timestamp)
            cursor.execute(ONE_ROW, (upload.vin, upload.make, upload.model, upload.epoch, at, *astuple(record)))
            if cursor.rowcount != 1:
                refused.append(row)
        return refused

    def _compare(self, cursor: Any, topic_id: uuid.UUID, repeats: Sequence[Row], now: datetime, written: Written) -> None:
        """Compare repeats with their rows, where retention still holds them; what has other values becomes a conflict."""
        conflicts: dict[tuple[int, int], tuple[Row, list[int]]] = {}
        for start in range(0, len(repeats), COMPARED):
            part = repeats[start : start + COMPARED]
            stored = self._stored(cursor, part, now)
            for row in part:
                there = stored.get((row.upload.vin, row.upload.epoch, row.record.seq))
                if there is None or there == [row.upload.make, row.upload.model, *values_of(row.record)]:
                    written.repeats += 1
                else:
                    conflicts.setdefault(row.source[:2], (row, []))[1].append(row.record.seq)
                    written.conflicts += 1
        if conflicts:
            execute_values(
                cursor,
                NEW_CONFLICTS,
                [
                    (row.upload.vin, row.upload.epoch, seqs[0], seqs, row.source.value, str(topic_id), *place)
                    for place, (row, seqs) in sorted(conflicts.items())
                ],
            )

    def _stored(self, cursor: Any, repeats: Sequence[Row], now: datetime) -> dict[tuple[str, int, int], list[Any]]:
        """The rows of repeats, by identity: of late days first, for that is where nearly all are, then of those before."""
        found: dict[tuple[str, int, int], list[Any]] = {}
        tomorrow = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=2)
        days = min(self._topic_retention_ms // DAY + 4, DAYS_OPENED)
        begin, end, oldest = tomorrow - timedelta(days=days), tomorrow, tomorrow - timedelta(days=days)
        while ranges := seq_ranges(row for row in repeats if (row.upload.vin, row.upload.epoch, row.record.seq) not in found):
            # What a statement opens stays locked until this is over
            cursor.execute(BESIDE)
            if end == tomorrow:
                cursor.execute("SELECT min(day) FROM diag_days() AS day")
                ((first,),) = cursor.fetchall()
                oldest = datetime(first.year, first.month, first.day, tzinfo=UTC) if first else begin
            cursor.execute(READ_ROWS, (*columns(ranges), begin, end))
            found |= {(vin, epoch, seq): values for vin, epoch, seq, *values in cursor.fetchall()}
            cursor.execute(BESIDE_OVER)
            if begin <= oldest:
                break
            begin, end = begin - timedelta(days=DAYS_OPENED), begin
        return found

    def _save_progress(self, cursor: Any, found: Plan, written: Written) -> None:
        """Compare-and-set of all progress that moved."""
        fresh, moved = [], []
        for (vin, epoch), was in sorted(found.before.items()):
            last = found.after[vin, epoch].last
            if not was.last:
                fresh.append((vin, epoch, last))
            elif last != was.last:
                moved.append((vin, epoch, was.last, last))
        done = 0
        for statement, changes in ((NEW_PROGRESS, fresh), (MOVE_PROGRESS, moved)):
            if changes:
                cursor.execute(statement, columns(changes))
                done += cursor.rowcount
        if done != len(fresh) + len(moved):
            raise Fenced("the stored progress of a vehicle is not what was read")
        self._save_gaps(cursor, found, written)

    def _save_gaps(self, cursor: Any, found: Plan, written: Written) -> None:
        """The gap rows that changed; those that go must be there."""
        gone, come = [], []
        for (vin, epoch), was in found.before.items():
            remove, insert = changed_gaps(was, found.after[vin, epoch], found.filled.get((vin, epoch), []))
            gone += [(vin, epoch, span.first) for span in remove]
            come += [(vin, epoch, *span) for span in insert]
            written.gaps_undeclared += sum(span.state == UNDECLARED and span.last > was.last for span in insert)
            written.gaps_declared += sum(span.state == DECLARED for span in insert)
        if gone:
            cursor.execute(OLD_GAPS, columns(gone))
            if cursor.rowcount != len(gone):
                raise Fenced("the stored gaps of a vehicle are not what was read")
        if come:
            cursor.execute(NEW_GAPS, columns(come))

    def _bury(
        self, cursor: Any, topic_id: uuid.UUID, topic: str, dead: Sequence[tuple[TopicRecord, str]], written: Written
    ) -> None:
        if dead:
            letters = [
                (
                    str(topic_id), source.partition, source.offset, topic, source.key, source.value, header_bytes(source),
                    received_at(source.timestamp), plain(reason[: 10 * MAX_REASON]),
                )
                for source, reason in dead
            ]  # fmt: skip
            execute_values(cursor, NEW_LETTERS, letters, LETTERS)
            written.dead_letters += len(dead)


def columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    """Rows as columns, for unnest."""
    return [list(column) for column in zip(*rows, strict=True)]


def seq_ranges(rows: Iterable[Row]) -> list[tuple[str, int, int, int]]:
    """(vin, epoch, first, last) of rows with seqs in a row."""
    ranges: list[tuple[str, int, int, int]] = []
    for upload, record, _ in rows:
        if ranges and ranges[-1][:2] == (upload.vin, upload.epoch) and ranges[-1][3] == record.seq - 1:
            ranges[-1] = (*ranges[-1][:3], record.seq)
        else:
            ranges.append((upload.vin, upload.epoch, record.seq, record.seq))
    return ranges


def header_bytes(source: TopicRecord) -> list[bytes | None]:
    """Names and values of a Kafka record's headers in turn, as they were; bytes of a name that are not text come
    from the client as surrogates."""
    return [each for name, value in source.headers for each in (name.encode(errors="surrogateescape"), value)]


def plain(text: str) -> str:
    """Text that Postgres takes: NUL and lone surrogates are spelled out."""
    return text.replace("\0", "\\0").encode(errors="backslashreplace").decode()
