"""The spool: what vehicles keep until it is acknowledged. SQLite, one file for all vehicles of a container.

A record may be sent only after its commit here, and leaves only when it was acknowledged or set aside. Commits are grouped: a
thread takes all that is asked of it, does it in one transaction (WAL, synchronous FULL: on the disk), and then tells the loop.

An epoch names a spool's numbering. It is made with the spool; a spool that was restored or copied is noticed by a start counter
kept in a second place, and new records then begin a new epoch, while what the spool holds of the old one is still delivered.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import math
import os
import queue
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from telemetry.record import MAX_GAPS, Gap, Record, Upload

log = logging.getLogger(__name__)

T = TypeVar("T")

COMMIT_WINDOW = 0.005
"""Seconds that the thread waits for more calls to share a commit. The commit's fsync costs more than the wait."""

RECORD_BYTES = 160
"""What one record takes in the file, with room for pages that are not full (measured: 109 of vehicles that report in turn)."""
SPOOL_FULL, SPOOL_AGE = "spool_full", "spool_age"
"""Reasons of gaps: the oldest records went because a vehicle's share of the spool was full, or because they were too old."""
COUNT_INTERVAL = 60.0
"""Seconds after which a spool in use counts anew: a backup that is older is recognized when it is put back, even after a crash."""

# The file's user_version counts how many of these it has seen. Released steps are never changed, only added to.
STEPS = (
    """
CREATE TABLE IF NOT EXISTS counter (starts INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS vehicle (vin TEXT PRIMARY KEY, epoch INTEGER NOT NULL, next_seq INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS record (
  vin TEXT NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL, made_at REAL NOT NULL, make TEXT NOT NULL, model TEXT NOT NULL,
  timestamp REAL NOT NULL, position_x REAL NOT NULL, position_y REAL NOT NULL, position_z REAL NOT NULL, speed REAL NOT NULL,
  PRIMARY KEY (vin, epoch, seq)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS gap (
  vin TEXT NOT NULL, epoch INTEGER NOT NULL, from_seq INTEGER NOT NULL, to_seq INTEGER NOT NULL, reason TEXT NOT NULL,
  detail TEXT NOT NULL, make TEXT NOT NULL, model TEXT NOT NULL, PRIMARY KEY (vin, epoch, from_seq)
) WITHOUT ROWID;
""",
    "ALTER TABLE vehicle ADD COLUMN last_timestamp REAL NOT NULL DEFAULT 0;",
)


class SpoolError(Exception):
    """The spool cannot be used; the text names where and why."""


class Made(NamedTuple):
    """A record as a vehicle made it."""

    vin: str
    epoch: int
    make: str
    model: str
    record: Record


class Place(NamedTuple):
    """Where a vehicle's numbering stands. last_timestamp: of its last record, in s since 1970; 0 before the first."""

    epoch: int
    next_seq: int
    last_timestamp: float


class Bound(NamedTuple):
    """What a spool may hold: bytes of all vehicles together, each having an even share, and hours of each record."""

    bytes: float
    hours: float


UNBOUNDED = Bound(math.inf, math.inf)


class Backlog(NamedTuple):
    """What a vehicle has not delivered: seqs of records and gaps, and when the oldest record was made (s since 1970)."""

    unsent: int
    oldest: float | None


def new_epoch(microseconds: int, rng: random.Random) -> int:
    """A name for a numbering: the time of its creation, with the low 20 bits drawn at random; at least 1."""
    return max(1, (microseconds & ~0xFFFFF) | rng.getrandbits(20))


class Spool:
    """The file and what may be asked of it, within a transaction. For one thread."""

    def __init__(
        self,
        folder: str | Path,
        counter_folder: str | Path,
        microseconds: Callable[[], int] = lambda: time.time_ns() // 1000,
        rng: random.Random | None = None,
        bound: Bound = UNBOUNDED,
    ) -> None:
        self._bound, self._microseconds, self._rng = bound, microseconds, rng or random.SystemRandom()
        self._counter = Path(counter_folder, "starts")
        self._path = Path(folder, "spool.sqlite")
        try:
            self._lock = os.open(Path(folder, "lock"), os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            # Without WAL (some network filesystems refuse it) synchronous=FULL would not be durable.
            if self._database.execute("PRAGMA journal_mode=WAL").fetchone() != ("wal",):
                raise SpoolError(f"the spool {self._path} is on a filesystem where SQLite has no WAL: put it on a local disk")
            self._database.execute("PRAGMA synchronous=FULL")
            self._migrate()
            self._begin_life()
        except BlockingIOError as error:
            raise SpoolError(f"the spool {self._path} is in use by another process: end that one first") from error
        except (sqlite3.Error, OSError) as error:
            raise SpoolError(
                f"the spool {self._path} or its counter {self._counter} cannot be used: {error}. "
                "Both folders must be there and writable by this service's user"
            ) from error

    def _migrate(self) -> None:
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version > len(STEPS):
            raise SpoolError(f"the spool {self._path} was written by a later version of this service: run that one")
        for number, step in enumerate(STEPS[version:], version + 1):
            self._database.executescript(f"BEGIN IMMEDIATE; {step} PRAGMA user_version = {number}; COMMIT")

    def _begin_life(self) -> None:
        """Count this start; if the two places disagree, every vehicle begins a new epoch."""
        here, there = self._counted()
        count = self._count_there(max(here, there))
        with self.transaction():
            if here != there:
                for (vin,) in self._database.execute("SELECT vin FROM vehicle").fetchall():
                    self._database.execute("UPDATE vehicle SET epoch = ?, next_seq = 1 WHERE vin = ?", (self._new_epoch(), vin))
            self._count_here(count)

    def _counted(self) -> tuple[int, int]:
        """The counter here and in the second place, 0 where there is none yet; one that is no number is equal to none."""
        row = self._database.execute("SELECT starts FROM counter").fetchone()
        try:
            there = int(self._counter.read_text())
        except FileNotFoundError:
            there = 0
        except ValueError:
            there = -1
        return (row[0] if row else 0), there

    def _count_there(self, last: int) -> int:
        """Count on in the second place, and return the count for the first.

        The second is first: a crash between them makes them unequal, which costs an epoch, no record. The other way round it would
        leave the second place as it was when a backup was made, and that would pass for this spool. The low 32 bits are drawn at
        random: spools that began equally often are not equal.
        """
        count = ((last >> 32) + 1) << 32 | self._rng.getrandbits(32)
        new = self._counter.with_suffix(".new")
        with new.open("w") as file:
            file.write(str(count))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._counter)
        folder = os.open(self._counter.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return count

    def _count_here(self, count: int) -> None:
        self._database.execute("DELETE FROM counter")
        self._database.execute("INSERT INTO counter VALUES (?)", (count,))

    def _new_epoch(self) -> int:
        return new_epoch(self._microseconds(), self._rng)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is asked within it or nothing; on the disk when it ends. Raises SpoolError if the disk refuses."""
        try:
            if self._database.in_transaction:
                # The last one could neither be ended nor taken back.
                self._database.execute("ROLLBACK")
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                # SQLite has taken back by itself what a full disk or a failed write broke off.
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise SpoolError(f"the spool {self._path} cannot be written: {error}") from error

    def count(self) -> None:
        """Count as a start does: a backup made before is recognized when it is put back. Raises SpoolError."""
        try:
            count = self._count_there(self._counted()[0])
            with self.transaction():
                self._count_here(count)
        except OSError as error:
            raise SpoolError(f"the spool's counter {self._counter} cannot be written: {error}") from error

    def close(self) -> None:
        """End, which counts as a start does."""
        try:
            self.count()
        finally:
            self._database.close()
            os.close(self._lock)

    def join(self, vin: str) -> Place:
        """Where a vehicle's numbering stands; it gets an epoch the first time."""
        self._database.execute("INSERT OR IGNORE INTO vehicle VALUES (?, ?, 1, 0)", (vin, self._new_epoch()))
        return Place(
            *self._database.execute("SELECT epoch, next_seq, last_timestamp FROM vehicle WHERE vin = ?", (vin,)).fetchone()
        )

    def append(self, made: Made, now: float) -> int:
        """Keep a record, which must be the vehicle's next. now: s since 1970.

        At the bound the vehicle's oldest records go, and become a declared gap in the same transaction; returns how many went.
        """
        record = made.record
        counted = self._database.execute(
            "UPDATE vehicle SET next_seq = next_seq + 1, last_timestamp = ? WHERE vin = ? AND epoch = ? AND next_seq = ?",
            (record.timestamp, made.vin, made.epoch, record.seq),
        )
        if counted.rowcount != 1:
            raise SpoolError(f"seq {record.seq} is not the next of {made.vin} in epoch {made.epoch}")
        self._database.execute(
            "INSERT INTO record VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                made.vin, made.epoch, record.seq, now, made.make, made.model,
                record.timestamp, record.position_x, record.position_y, record.position_z, record.speed,
            ),
        )  # fmt: skip
        return self._keep_bound(made.vin, now)

    def _keep_bound(self, vin: str, now: float) -> int:
        """Let a vehicle's oldest records go, if they are too old or too many: its share is its own, and it crowds out nobody."""
        (vehicles,) = self._database.execute("SELECT count(*) FROM vehicle").fetchone()
        most = max(1.0, self._bound.bytes / RECORD_BYTES / vehicles)
        long_ago = now - 3600 * self._bound.hours
        gone = epoch = 0
        # Nearly always one: others are left by a spool that was restored
        while row := self._database.execute(
            "SELECT epoch, seq, made_at FROM record WHERE vin = ? AND epoch > ? ORDER BY epoch, seq LIMIT 1", (vin, epoch)
        ).fetchone():
            epoch, first, made_at = row
            (last,) = self._database.execute("SELECT max(seq) FROM record WHERE vin = ? AND epoch = ?", (vin, epoch)).fetchone()
            if made_at < long_ago:
                # In the order of seq, and no further than to the first that is young: a clock that was put leaves no holes
                young = self._database.execute(
                    "SELECT seq FROM record WHERE vin = ? AND epoch = ? AND made_at >= ? ORDER BY seq LIMIT 1",
                    (vin, epoch, long_ago),
                ).fetchone()
                gone += self._drop(vin, epoch, young[0] - 1 if young else last, SPOOL_AGE)
            if first <= last - most:
                gone += self._drop(vin, epoch, math.floor(last - most), SPOOL_FULL)
        return gone

    def _drop(self, vin: str, epoch: int, through: int, reason: str) -> int:
        """Turn all records up to and including seq `through` into declared gaps, between those there are; returns how many."""
        gone = 0
        while row := self._database.execute(
            "SELECT seq, make, model FROM record WHERE vin = ? AND epoch = ? AND seq <= ? ORDER BY seq LIMIT 1",
            (vin, epoch, through),
        ).fetchone():
            first = row[0]
            (last,) = self._database.execute(
                "SELECT min(?, coalesce(min(from_seq) - 1, ?)) FROM gap WHERE vin = ? AND epoch = ? AND from_seq > ?",
                (through, through, vin, epoch, first),
            ).fetchone()
            gone += self._database.execute(
                "DELETE FROM record WHERE vin = ? AND epoch = ? AND seq BETWEEN ? AND ?", (vin, epoch, first, last)
            ).rowcount
            # Both bounds may be met in turn; what they open is one gap all the same, under the first one's name
            self._declare(vin, epoch, Gap(first, last, reason), (SPOOL_AGE, SPOOL_FULL), "", *row[1:])
        return gone

    def _declare(self, vin: str, epoch: int, gap: Gap, alike: tuple[str, str], detail: str, make: str, model: str) -> None:
        """Note a gap; one that ends just before it and has a reason alike grows instead, so that gaps stay few."""
        before = self._database.execute(
            "UPDATE gap SET to_seq = ? WHERE vin = ? AND epoch = ? AND to_seq = ? AND reason IN (?, ?)",
            (gap.to_seq, vin, epoch, gap.from_seq - 1, *alike),
        )
        if before.rowcount == 0:
            self._database.execute(
                "INSERT INTO gap VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (vin, epoch, gap.from_seq, gap.to_seq, gap.reason, detail, make, model),
            )

    def next_upload(self, vin: str, most: int) -> Upload | None:
        """What the vehicle sends next, one epoch after the other; None when it has nothing unsent.

        Begins at the first seq that is not acknowledged and goes on without a hole, up to `most` records of one make and model.
        """
        row = self._database.execute(
            "SELECT min(epoch) FROM (SELECT min(epoch) AS epoch FROM record WHERE vin = ? UNION ALL "
            "SELECT min(epoch) FROM gap WHERE vin = ?)",
            (vin, vin),
        ).fetchone()
        if row[0] is None:
            return None
        epoch = row[0]
        kept = self._database.execute(
            "SELECT make, model, seq, timestamp, position_x, position_y, position_z, speed FROM record "
            "WHERE vin = ? AND epoch = ? ORDER BY seq LIMIT ?",
            (vin, epoch, most),
        ).fetchall()
        missing = self._database.execute(
            "SELECT from_seq, to_seq, reason, make, model FROM gap WHERE vin = ? AND epoch = ? ORDER BY from_seq LIMIT ?",
            (vin, epoch, MAX_GAPS),
        ).fetchall()
        name = kept[0][:2] if kept and (not missing or kept[0][2] < missing[0][0]) else missing[0][3:]
        records: list[Record] = []
        gaps: list[Gap] = []
        expected: int | None = None
        while kept or missing:
            if kept and (not missing or kept[0][2] < missing[0][0]):
                values = kept[0][2:]
                if kept[0][:2] != name or (expected is not None and values[0] != expected):
                    break
                records.append(Record(*values))
                expected = values[0] + 1
                kept.pop(0)
            else:
                first, last, reason = missing[0][:3]
                if expected is not None and first != expected:
                    break
                gaps.append(Gap(first, last, reason))
                expected = last + 1
                missing.pop(0)
        make, model = name
        return Upload(vin, epoch, make, model, tuple(records), tuple(gaps))

    def acknowledge(self, vin: str, epoch: int, through: int) -> None:
        """Forget all up to and including seq `through`."""
        self._database.execute("DELETE FROM record WHERE vin = ? AND epoch = ? AND seq <= ?", (vin, epoch, through))
        self._database.execute("DELETE FROM gap WHERE vin = ? AND epoch = ? AND to_seq <= ?", (vin, epoch, through))
        # A gap that grew while the upload was under way: what was acknowledged of it is not declared
        self._database.execute(
            "UPDATE gap SET from_seq = ? WHERE vin = ? AND epoch = ? AND from_seq <= ?", (through + 1, vin, epoch, through)
        )

    def set_aside(self, vin: str, epoch: int, details: Mapping[int, str], reason: str) -> None:
        """Records that will never be accepted become declared gaps; `details` keeps, by seq, what was said of each."""
        for seq, detail in sorted(details.items()):
            row = self._database.execute(
                "DELETE FROM record WHERE vin = ? AND epoch = ? AND seq = ? RETURNING make, model", (vin, epoch, seq)
            ).fetchone()
            if row is not None:
                self._declare(vin, epoch, Gap(seq, seq, reason), (reason, reason), detail, *row)

    def backlog(self) -> dict[str, Backlog]:
        """What every vehicle has not delivered, also of vehicles that left; by VIN, without those that have nothing.

        Steps from one numbering to the next and reads its ends only: an outage's millions of records are not counted one by one.
        """
        spans: dict[tuple[str, int], tuple[int, int, float | None]] = {}
        key = ("", 0)
        while first := self._database.execute(
            "SELECT vin, epoch, seq, made_at FROM record WHERE (vin, epoch) > (?, ?) ORDER BY vin, epoch, seq LIMIT 1", key
        ).fetchone():
            key = first[:2]
            (last,) = self._database.execute("SELECT max(seq) FROM record WHERE vin = ? AND epoch = ?", key).fetchone()
            spans[key] = (first[2], last, first[3])
        for vin, epoch, low, high in self._database.execute(
            "SELECT vin, epoch, min(from_seq), max(to_seq) FROM gap GROUP BY vin, epoch"
        ):
            first_seq, last_seq, made_at = spans.get((vin, epoch), (low, high, None))
            spans[vin, epoch] = (min(first_seq, low), max(last_seq, high), made_at)
        backlogs: dict[str, Backlog] = {}
        for (vin, _), (first_seq, last_seq, made_at) in spans.items():
            unsent, oldest = backlogs.get(vin, Backlog(0, None))
            ages = [each for each in (oldest, made_at) if each is not None]
            backlogs[vin] = Backlog(unsent + last_seq - first_seq + 1, min(ages, default=None))
        return backlogs


class SpoolThread:
    """A spool behind a thread: calls are awaited, and many share one commit."""

    def __init__(self, spool: Spool, window: float = COMMIT_WINDOW) -> None:
        self._spool, self._window = spool, window
        self._loop = asyncio.get_running_loop()
        self._calls: queue.SimpleQueue[tuple[Callable[[Spool], Any], asyncio.Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="spool", daemon=True)
        self._thread.start()

    async def run(self, call: Callable[[Spool], T]) -> T:
        """Run a call in the spool's thread; returns after its commit. Raises SpoolError if the disk refuses, or what it raises.

        A call may run twice, the first time taken back.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._calls.put((call, future))
        return await future

    async def close(self) -> None:
        """Finish what was asked for, and end. Raises SpoolError if the disk refuses."""
        self._calls.put(None)
        await asyncio.to_thread(self._thread.join)
        self._spool.close()

    def _serve(self) -> None:
        ended, counted = False, time.monotonic()
        while not ended:
            batch = [self._calls.get()]
            if self._window:
                time.sleep(self._window)
            if time.monotonic() - counted >= COUNT_INTERVAL:
                # Before the calls: what they keep must not be missing from a backup that passes for this spool.
                counted = time.monotonic()
                # Records are worth more than the count: the calls go on, and tell if it is the spool's disk that refuses.
                try:
                    self._spool.count()
                except SpoolError as error:
                    log.warning("a backup of the spool that is put back might not be recognized: %s", error)
            while not self._calls.empty():
                batch.append(self._calls.get())
            ended = None in batch
            calls = [each for each in batch if each is not None]
            results = perform(self._spool, [call for call, _ in calls])
            done = list(zip((future for _, future in calls), results, strict=True))
            self._loop.call_soon_threadsafe(_resolve, done)


def perform(spool: Spool, calls: list[Callable[[Spool], Any]]) -> list[Any]:
    """Results of calls done in one transaction. If one of them fails, each gets its own, and who fails gets its exception."""
    try:
        with spool.transaction():
            return [call(spool) for call in calls]
    except Exception as error:
        # Whatever it is belongs to who called; the thread serves all others and must go on.
        if len(calls) == 1:
            return [error]
        return [result for call in calls for result in perform(spool, [call])]


def _resolve(done: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, result in done:
        if future.done():
            continue
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)
