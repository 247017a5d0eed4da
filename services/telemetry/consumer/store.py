"""The store: one transaction a batch writes rows, progress, gaps, dead letters, conflicts and offsets, or nothing.

The transaction begins with a compare-and-set of every partition's offset, so a worker that was paused and replaced writes nothing.
What it knows of progress is kept only after a confirmed COMMIT, and forgotten at any error. batch.py decides what a batch does.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any, NamedTuple, Protocol, cast

import psycopg2
import psycopg2.extensions
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
    conflict_json,
    decode_all,
    fingerprint,
    form_hash,
    halves,
    plan,
    received_at,
    values_of,
)
from telemetry.consumer.progress import FILLED, Progress, Span
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
    """What retention did: the days that it dropped, and why it held back, if it did."""

    dropped: list[str]
    held: str


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
SESSION = "SET idle_in_transaction_session_timeout = '10s'; SET lock_timeout = '12s'; SET statement_timeout = '30s'"
# Nothing is inserted or changed; the locks are those of a batch, and a database that cannot write says so.
PROBE = "; ".join(
    [
        "UPDATE stream_offset SET next = next WHERE false",
        "UPDATE progress SET last = last WHERE false",
        "DELETE FROM gap WHERE false",
        *(f"INSERT INTO {table} SELECT * FROM {table} WHERE false" for table in ("diag", "form_seen", "dead_letter", "conflict")),
    ]
)
MAX_CACHED = 100_000
"""Vehicles whose progress is kept in memory."""
EPOCH_2000 = 946_684_800_000
COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)
COPY_TRAILER = struct.pack("!h", -1)
COPY_COLUMNS = "vin, make, model, epoch, received_at, seq, timestamp, position_x, position_y, position_z, speed"
_fixed = struct.Struct("!iq" + "id" * len(VALUES))


def copy_rows(rows: Iterable[Row]) -> bytes:
    """Rows in the format of a binary COPY into COPY_COLUMNS.

    What an upload's rows share is encoded once for it; the rest is one preassembled struct.
    """
    buffer = BytesIO()
    buffer.write(COPY_HEADER)
    shared: tuple[Upload, TopicRecord] | None = None
    prefix = b""
    for upload, record, source in rows:
        if shared is None or shared[0] is not upload or shared[1] is not source:
            shared = (upload, source)
            texts = [text.encode() for text in (upload.vin, upload.make, upload.model)]
            prefix = struct.pack("!h", 11) + b"".join(struct.pack("!i", len(text)) + text for text in texts)
            prefix += struct.pack("!iqiq", 8, upload.epoch, 8, (source.timestamp - EPOCH_2000) * 1000)
        buffer.write(prefix)
        buffer.write(
            _fixed.pack(
                8,
                record.seq,
                8,
                record.timestamp,
                8,
                record.position_x,
                8,
                record.position_y,
                8,
                record.position_z,
                8,
                record.speed,
            )
        )
    buffer.write(COPY_TRAILER)
    return buffer.getvalue()


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
        self._progress: dict[Key, Progress] = {}
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
            self._connection = self._connect(**self._arguments())
            with self._connection.cursor() as cursor:
                cursor.execute(SESSION)
            self._connection.commit()
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
        """Drop the days older than the database's retention. Raises StoreError."""
        return Retained([name for (name,) in self._alone("SELECT drop_days()", ())], "")

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
            with self._cursor() as cursor:
                cursor.execute(PROBE)
            self._connection.rollback()
        except psycopg2.Error as error:
            raise self._broken(error, writing=True) from error

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
                written.clock_faults = faults
                known = self._read_progress(cursor, {each.key for each in decoded if each.key})
                found = plan(decoded, known.__getitem__)
                rows = found.rows + self._new_forms(cursor, found.forms, written)
                missing = {row.source.timestamp // DAY for row in rows} - self._days
                if missing:
                    raise DaysMissing(missing)
                again = self._insert_one_by_one(cursor, rows) if guarded else self._copy(cursor, rows)
                written.rows, written.guarded = len(rows) - len(again), len(again)
                self._compare(cursor, topic_id, [*found.repeats, *again], written)
                self._save_progress(cursor, found, written)
                self._bury(cursor, topic_id, topic, found.dead, written)
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
        if len(self._progress) > MAX_CACHED:
            self._progress.clear()
        self._progress.update(found.after)
        return written

    def _move(self, cursor: Any, topic_id: uuid.UUID, topic: str, run: Run) -> datetime:
        """Compare-and-set of one partition's offset; returns the database's time."""
        timestamp, checksum = fingerprint(run)
        cursor.execute(
            "UPDATE stream_offset SET next = %s, last_timestamp = %s, last_crc = %s "
            "WHERE topic_id = %s AND partition = %s AND next = %s RETURNING now()",
            (run.end, timestamp, checksum, str(topic_id), run.partition, run.start),
        )
        if cursor.rowcount == 1:
            return cast("datetime", cursor.fetchall()[0][0])
        if run.start == 0:
            cursor.execute(
                "INSERT INTO stream_offset (topic_id, partition, topic, next, last_timestamp, last_crc) "
                "VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING RETURNING now()",
                (str(topic_id), run.partition, topic, run.end, timestamp, checksum),
            )
            if cursor.rowcount == 1:
                return cast("datetime", cursor.fetchall()[0][0])
        raise Fenced(f"partition {run.partition}: the stored offset is not {run.start} any more")

    def _read_progress(self, cursor: Any, keys: set[Key]) -> dict[Key, Progress]:
        """Progress of all keys: from the cache, or read within the transaction."""
        missing = [key for key in keys if key not in self._progress]
        read: dict[Key, Progress] = dict.fromkeys(missing, Progress())
        if missing:
            vins, epochs = [vin for vin, _ in missing], [epoch for _, epoch in missing]
            wanted = "JOIN unnest(%s::char(17)[], %s::bigint[]) AS wanted (vin, epoch) USING (vin, epoch)"
            cursor.execute(f"SELECT vin, epoch, last FROM progress {wanted}", (vins, epochs))
            lasts = {(vin, epoch): last for vin, epoch, last in cursor.fetchall()}
            cursor.execute(
                f"SELECT vin, epoch, from_seq, to_seq, state, reason FROM gap {wanted} WHERE state <> %s ORDER BY from_seq",
                (vins, epochs, FILLED),
            )
            gaps: dict[Key, list[Span]] = {}
            for vin, epoch, *span in cursor.fetchall():
                gaps.setdefault((vin, epoch), []).append(Span(*span))
            for key, last in lasts.items():
                read[key] = Progress(last, tuple(gaps.get(key, ())))
        return {key: self._progress[key] if key in self._progress else read[key] for key in keys}

    def _new_forms(self, cursor: Any, forms: Sequence[Row], written: Written) -> list[Row]:
        """Forms that were not seen before; the others are repeats."""
        if not forms:
            return []
        first: dict[tuple[str, int, bytes], Row] = {}
        for row in forms:
            first.setdefault((row.upload.vin, row.record.seq, form_hash(row.upload)), row)
        new = execute_values(
            cursor,
            "INSERT INTO form_seen (vin, seq, hash, received_at) VALUES %s ON CONFLICT DO NOTHING RETURNING vin, seq, hash",
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
            cursor.execute(
                f"INSERT INTO diag ({COPY_COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                (
                    row.upload.vin, row.upload.make, row.upload.model, row.upload.epoch, received_at(row.source.timestamp),
                    row.record.seq, *values_of(row.record),
                ),
            )  # fmt: skip
            if cursor.rowcount != 1:
                refused.append(row)
        return refused

    def _compare(self, cursor: Any, topic_id: uuid.UUID, repeats: Sequence[Row], written: Written) -> None:
        """Compare repeats with their rows, where retention still holds them; other values become conflicts."""
        if not repeats:
            return
        # By ranges, in a loop over them by each day's guard index: after a return to the topic's start everything is a repeat.
        ranges: list[list[Any]] = []
        for row in repeats:
            upload, seq = row.upload, row.record.seq
            if ranges and ranges[-1][:2] == [upload.vin, upload.epoch] and ranges[-1][3] == seq - 1:
                ranges[-1][3] = seq
            else:
                ranges.append([upload.vin, upload.epoch, seq, seq])
        cursor.execute(
            "SELECT found.* FROM unnest(%s::char(17)[], %s::bigint[], %s::bigint[], %s::bigint[]) "
            "AS wanted (vin, epoch, first, last) CROSS JOIN LATERAL ("
            "SELECT vin, epoch, seq, make, model, timestamp, position_x, position_y, position_z, speed FROM diag "
            "WHERE diag.vin = wanted.vin AND diag.epoch = wanted.epoch AND diag.epoch >= 1 "
            "AND diag.seq BETWEEN wanted.first AND wanted.last OFFSET 0) AS found",
            [list(column) for column in zip(*ranges, strict=True)],
        )
        stored = {(vin, epoch, seq): values for vin, epoch, seq, *values in cursor.fetchall()}
        for row in repeats:
            there = stored.get((row.upload.vin, row.upload.epoch, row.record.seq))
            if there is None or there == [row.upload.make, row.upload.model, *values_of(row.record)]:
                written.repeats += 1
                continue
            cursor.execute(
                'INSERT INTO conflict (vin, epoch, seq, record, topic_id, partition, "offset") '
                "VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                (
                    row.upload.vin, row.upload.epoch, row.record.seq, conflict_json(row), str(topic_id),
                    row.source.partition, row.source.offset,
                ),
            )  # fmt: skip
            written.conflicts += 1

    def _save_progress(self, cursor: Any, found: Plan, written: Written) -> None:
        """Compare-and-set of all progress, and the gap rows that changed."""
        fresh = [(vin, epoch, found.after[vin, epoch].last) for (vin, epoch), was in found.before.items() if not was.last]
        fresh = [row for row in fresh if row[2]]
        moved = [(vin, epoch, was.last, found.after[vin, epoch].last) for (vin, epoch), was in found.before.items() if was.last]
        done = 0
        if fresh:
            execute_values(
                cursor,
                "INSERT INTO progress (vin, epoch, last) VALUES %s ON CONFLICT DO NOTHING",
                sorted(fresh),
                page_size=10_000,
            )
            done += cursor.rowcount
        if moved:
            execute_values(
                cursor,
                "UPDATE progress SET last = new.last FROM (VALUES %s) AS new (vin, epoch, was, last) "
                "WHERE progress.vin = new.vin::char(17) AND progress.epoch = new.epoch AND progress.last = new.was",
                sorted(moved),
                page_size=10_000,
            )
            done += cursor.rowcount
        if done != len(fresh) + len(moved):
            raise Fenced("the stored progress of a vehicle is not what was read")
        gone, come = [], []
        for (vin, epoch), was in found.before.items():
            remove, insert = changed_gaps(was, found.after[vin, epoch], found.filled.get((vin, epoch), []))
            gone += [(vin, epoch, span.first) for span in remove]
            come += [(vin, epoch, *span) for span in insert]
            written.gaps_undeclared += sum(span.state == "undeclared" and span.last > was.last for span in insert)
            written.gaps_declared += sum(span.state == "declared" for span in insert)
        if gone:
            execute_values(
                cursor,
                "DELETE FROM gap USING (VALUES %s) AS old (vin, epoch, from_seq) WHERE gap.vin = old.vin::char(17) "
                "AND gap.epoch = old.epoch AND gap.from_seq = old.from_seq",
                gone,
                page_size=len(gone),
            )
            if cursor.rowcount != len(gone):
                raise Fenced("the stored gaps of a vehicle are not what was read")
        if come:
            execute_values(
                cursor,
                "INSERT INTO gap (vin, epoch, from_seq, to_seq, state, reason) VALUES %s",
                come,
                page_size=10_000,
            )

    def _bury(
        self, cursor: Any, topic_id: uuid.UUID, topic: str, dead: Sequence[tuple[TopicRecord, str]], written: Written
    ) -> None:
        for source, reason in dead:
            # Postgres' JSON has no NUL
            headers = [[name.replace("\0", "\\0"), (value or b"").hex()] for name, value in source.headers]
            cursor.execute(
                'INSERT INTO dead_letter (topic_id, partition, "offset", topic, key, value, headers, received_at, reason) '
                "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                (
                    str(topic_id), source.partition, source.offset, topic, source.key, source.value,
                    json.dumps(headers), received_at(source.timestamp), reason[: 10 * MAX_REASON].replace("\0", "\\0"),
                ),
            )  # fmt: skip
            written.dead_letters += 1
