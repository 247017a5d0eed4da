"""The spool: what vehicles keep until it is acknowledged. SQLite, one file for all vehicles of a container.

A record may be sent only after its commit here, and leaves only when it was acknowledged or set aside. Commits are grouped: a
thread takes all that is asked of it, does it in one transaction (WAL, synchronous FULL: on the disk), and then tells the loop.

An epoch names a spool's numbering. It is made with the spool; a spool that was restored or copied is noticed by a start counter
kept in a second place, and new records then begin a new epoch, while what the spool holds of the old one is still delivered.
"""

from __future__ import annotations

import asyncio
import os
import queue
import random
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from telemetry.record import MAX_GAPS, Gap, Record, Upload

T = TypeVar("T")

SCHEMA = """
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
"""


class SpoolError(Exception):
    """The spool cannot be used; the text names where and why."""


class Made(NamedTuple):
    """A record as a vehicle made it."""

    vin: str
    epoch: int
    make: str
    model: str
    record: Record


def new_epoch(microseconds: int, rng: random.Random) -> int:
    """A name for a numbering: the time of its creation, with the low 20 bits drawn at random."""
    return (microseconds & ~0xFFFFF) | rng.getrandbits(20)


class Spool:
    """The file and what is asked of it; every call is one step of a transaction that `commit` ends. For one thread."""

    def __init__(
        self,
        folder: str | Path,
        counter_folder: str | Path,
        microseconds: Callable[[], int] = lambda: time.time_ns() // 1000,
        rng: random.Random | None = None,
    ) -> None:
        self._microseconds, self._rng = microseconds, rng or random.SystemRandom()
        self._counter = Path(counter_folder, "starts")
        path = Path(folder, "spool.sqlite")
        try:
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.executescript(SCHEMA)
            self._begin_life()
        except (sqlite3.Error, OSError, ValueError) as error:
            raise SpoolError(f"the spool {path} or its counter {self._counter} cannot be used: {error}") from error
        self._database.execute("BEGIN IMMEDIATE")

    def _begin_life(self) -> None:
        """Count this start in both places; if they disagreed, every vehicle begins a new epoch."""
        row = self._database.execute("SELECT starts FROM counter").fetchone()
        here = row[0] if row else 0
        there = int(self._counter.read_text()) if self._counter.exists() else 0
        starts = max(here, there) + 1
        self._database.execute("BEGIN IMMEDIATE")
        if here != there:
            for (vin,) in self._database.execute("SELECT vin FROM vehicle").fetchall():
                self._database.execute("UPDATE vehicle SET epoch = ?, next_seq = 1 WHERE vin = ?", (self._new_epoch(), vin))
        self._database.execute("DELETE FROM counter")
        self._database.execute("INSERT INTO counter VALUES (?)", (starts,))
        self._database.execute("COMMIT")
        with tempfile.NamedTemporaryFile("w", dir=self._counter.parent, delete=False) as file:
            file.write(str(starts))
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, self._counter)
        folder = os.open(self._counter.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _new_epoch(self) -> int:
        return new_epoch(self._microseconds(), self._rng)

    def commit(self) -> None:
        """Put all since the last commit on the disk."""
        self._database.execute("COMMIT")
        self._database.execute("BEGIN IMMEDIATE")

    def rollback(self) -> None:
        """Forget all since the last commit."""
        if self._database.in_transaction:
            self._database.execute("ROLLBACK")
        self._database.execute("BEGIN IMMEDIATE")

    def close(self) -> None:
        """End; what was not committed is gone."""
        self._database.close()

    def join(self, vin: str) -> tuple[int, int]:
        """(epoch, next seq) of a vehicle; it gets an epoch the first time."""
        self._database.execute("INSERT OR IGNORE INTO vehicle VALUES (?, ?, 1)", (vin, self._new_epoch()))
        epoch, next_seq = self._database.execute("SELECT epoch, next_seq FROM vehicle WHERE vin = ?", (vin,)).fetchone()
        return epoch, next_seq

    def append(self, made: Made, now: float) -> None:
        """Keep a record."""
        record = made.record
        self._database.execute(
            "INSERT INTO record VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                made.vin, made.epoch, record.seq, now, made.make, made.model,
                record.timestamp, record.position_x, record.position_y, record.position_z, record.speed,
            ),
        )  # fmt: skip
        self._database.execute("UPDATE vehicle SET next_seq = ? WHERE vin = ?", (record.seq + 1, made.vin))

    def next_upload(self, vin: str, most: int) -> Upload | None:
        """What the vehicle sends next, oldest epoch first; None when it has nothing unsent.

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

    def set_aside(self, vin: str, epoch: int, seqs: Iterable[int], reason: str, detail: str) -> None:
        """Records that will never be accepted become declared gaps; `detail` keeps what was said of them."""
        for seq in seqs:
            row = self._database.execute(
                "DELETE FROM record WHERE vin = ? AND epoch = ? AND seq = ? RETURNING make, model", (vin, epoch, seq)
            ).fetchone()
            if row is None:
                continue
            before = self._database.execute(
                "UPDATE gap SET to_seq = ? WHERE vin = ? AND epoch = ? AND to_seq = ? AND reason = ?",
                (seq, vin, epoch, seq - 1, reason),
            )
            if before.rowcount == 0:
                self._database.execute(
                    "INSERT INTO gap VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (vin, epoch, seq, seq, reason, detail[:500], *row)
                )

    def unsent(self, vins: Sequence[str] | None = None) -> dict[str, int]:
        """Records not yet acknowledged, by VIN; of all vehicles, or of some."""
        if vins is None:
            return dict(self._database.execute("SELECT vin, count(*) FROM record GROUP BY vin").fetchall())
        count = "SELECT count(*) FROM record WHERE vin = ?"
        return {vin: self._database.execute(count, (vin,)).fetchone()[0] for vin in vins}

    def oldest(self) -> float | None:
        """When the oldest unsent record was made, in seconds since 1970."""
        found: float | None = self._database.execute("SELECT min(made_at) FROM record").fetchone()[0]
        return found


class SpoolThread:
    """A spool behind a thread: calls are awaited, and many share one commit."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._loop = asyncio.get_running_loop()
        self._calls: queue.SimpleQueue[tuple[Callable[[Spool], Any], asyncio.Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="spool", daemon=True)
        self._thread.start()

    async def run(self, call: Callable[[Spool], T]) -> T:
        """Run a call in the spool's thread; returns after its commit. Raises SpoolError if the disk refuses."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._calls.put((call, future))
        return await future

    async def close(self) -> None:
        """Finish what was asked for, and end."""
        self._calls.put(None)
        await asyncio.to_thread(self._thread.join)
        self._spool.close()

    def _serve(self) -> None:
        ended = False
        while not ended:
            batch = [self._calls.get()]
            while not self._calls.empty():
                batch.append(self._calls.get())
            ended = None in batch
            calls = [each for each in batch if each is not None]
            try:
                results: list[Any] = [call(self._spool) for call, _ in calls]
                self._spool.commit()
            except sqlite3.Error as error:
                self._spool.rollback()
                results = [SpoolError(f"the spool cannot be written: {error}")] * len(calls)
            done = list(zip((future for _, future in calls), results, strict=True))
            self._loop.call_soon_threadsafe(_resolve, done)


def _resolve(done: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, result in done:
        if future.done():
            continue
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)
