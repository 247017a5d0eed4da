"""The spool: what vehicles keep until it is acknowledged. SQLite, one file for all vehicles of a container.

A record may be sent only after its commit here, and leaves only when it was acknowledged, set aside or given up at the bound.
Commits are grouped: a thread takes all that is asked of it, does it in one transaction (WAL, synchronous FULL: on the disk), and
then tells the loop.

An epoch names a spool's numbering. It is made with the spool; a spool that was restored or copied is noticed by a start counter
kept in a second place, and new records then begin a new epoch, while what the spool holds of the old one is still delivered.

What is unsent of a numbering is a line of seqs without a hole: records, and gaps. Records that were set aside are gaps of that
line, and stay whole in a table of their own; one that is put back is sent again, under its seq, as soon as that gap is
acknowledged: it then fills the gap in the store.

A record's age is the time that the spool's processes have run since it was made. No clock that can be put has a say in it.
"""

from __future__ import annotations

import asyncio
import fcntl
import heapq
import logging
import math
import os
import queue
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from telemetry.record import MAX_EPOCH, MAX_GAPS, VALUES, Gap, Record, Refused, Upload, decode, encode
from telemetry.watchdog import Watchdog

log = logging.getLogger(__name__)

T = TypeVar("T")

COMMIT_WINDOW = 0.005
"""Seconds that the thread waits for more calls to share a commit. The commit's fsync costs more than the wait."""
ROUND_LIMIT = 60.0
"""Seconds after which a spool that does not come round is taken to hang. It is asked for what is unsent every few seconds."""
CLOSE_TIMEOUT = 10.0
"""Seconds that the thread gets to do what was asked for when the process ends."""

RECORD_BYTES = 160
"""What one record takes in the file, with room for pages that are not full (measured: 109 of vehicles that report in turn)."""
SET_ASIDE_BYTES = 320
"""What one takes that was set aside, with the words about it and its indexes (measured: 226 to 289)."""
MAX_FAULT = 100
"""Characters that are kept of why a record was set aside."""
REJECTED, SPOOL_FULL, SPOOL_AGE = "rejected", "spool_full", "spool_age"
"""Reasons of gaps: the records were set aside, the oldest went because a vehicle's share was full, or because they were too old."""
RANDOM_BITS = 20
"""Of an epoch, the low ones: spools that are made in the same instant have different names."""
COUNT_INTERVAL = 60.0
"""Seconds after which a spool in use counts again: a backup that is older is recognized when it is put back, even after a crash."""

# The file's user_version counts how many of these it has seen. Released steps are never changed, only added to. What a record holds
# follows from record.VALUES: a new field there needs a step here, with two statements,
#   ALTER TABLE record ADD COLUMN <field> REAL NOT NULL DEFAULT <what records that are spooled already shall have>;
#   ALTER TABLE set_aside ADD COLUMN <field> REAL NOT NULL DEFAULT <the same>;
# and every statement below takes it up. A test compares the tables' columns with the list.
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
    # made_at was a reading of the wall clock, which proves no age: the age of what is there is counted from here on.
    """
ALTER TABLE counter ADD COLUMN ran REAL NOT NULL DEFAULT 0;
ALTER TABLE vehicle DROP COLUMN last_timestamp;
ALTER TABLE vehicle ADD COLUMN aside INTEGER NOT NULL DEFAULT 0;
ALTER TABLE gap DROP COLUMN detail;
ALTER TABLE gap DROP COLUMN make;
ALTER TABLE gap DROP COLUMN model;
UPDATE record SET made_at = 0;
CREATE TABLE set_aside (
  vin TEXT NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL, made_at REAL NOT NULL, make TEXT NOT NULL, model TEXT NOT NULL,
  timestamp REAL NOT NULL, position_x REAL NOT NULL, position_y REAL NOT NULL, position_z REAL NOT NULL, speed REAL NOT NULL,
  fault TEXT NOT NULL, put_back INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (vin, epoch, seq)
) WITHOUT ROWID;
CREATE INDEX set_aside_by_age ON set_aside (vin, made_at);
CREATE INDEX set_aside_put_back ON set_aside (vin, epoch, seq) WHERE put_back;
""",
)

COLUMNS = ("vin", "epoch", "seq", "made_at", "make", "model", *VALUES)
"""What is kept of a record; `counter.ran` is the scale of made_at, in seconds."""
_ALL = ", ".join(COLUMNS)
_INSERT_RECORD = f"INSERT INTO record ({_ALL}) VALUES ({', '.join('?' * len(COLUMNS))})"
_READ = ", ".join(("seq", *VALUES, "make", "model"))
_READ_RECORDS = f"SELECT {_READ} FROM record WHERE vin = ? AND epoch = ? ORDER BY seq LIMIT ?"
_READ_PUT_BACK = f"SELECT {_READ} FROM set_aside WHERE vin = ? AND epoch = ? AND put_back ORDER BY seq LIMIT ?"
_SET_ASIDE = f"INSERT INTO set_aside ({_ALL}, fault) SELECT {_ALL}, ? FROM record WHERE vin = ? AND epoch = ? AND seq = ?"


class SpoolError(Exception):
    """The spool cannot be used; the text names where and why."""


class Made(NamedTuple):
    """A record as a vehicle made it."""

    vin: str
    epoch: int
    make: str
    model: str
    record: Record


class Numbering(NamedTuple):
    """Where a vehicle's numbering stands."""

    epoch: int
    next_seq: int


class PutBack(Upload, frozen=True):
    """An upload of records that were set aside and put back. Their seqs fill a gap that was acknowledged."""


class Bound(NamedTuple):
    """What a spool may hold: bytes of all vehicles together, each having an even share, and hours of each record."""

    bytes: float
    hours: float


UNBOUNDED = Bound(math.inf, math.inf)


class Backlog(NamedTuple):
    """What a vehicle has not delivered.

    unsent: seqs of records and gaps; put_back: how many of them were set aside and put back; age of the oldest record in s, None if
    there are gaps alone.
    """

    unsent: int
    age: float | None = None
    put_back: int = 0


@dataclass
class Line:
    """What is unsent of a numbering: seqs first..last without a hole, and when its first record was made.

    made_at is None when it has to be looked up, and inf when the line has gaps alone.
    """

    first: int
    last: int
    made_at: float | None


def new_epoch(microseconds: int, rng: random.Random) -> int:
    """A name for a numbering: the time of its creation, with the low 20 bits drawn at random.

    A clock that shows a time before 1970 or after 2255 has no name in the range: then all of it is drawn at random.
    """
    epoch = microseconds >> RANDOM_BITS << RANDOM_BITS | rng.getrandbits(RANDOM_BITS)
    return epoch if 1 <= epoch <= MAX_EPOCH else rng.randint(1, MAX_EPOCH)


class Spool:
    """The file and what may be asked of it, within a transaction. For one thread."""

    def __init__(
        self,
        folder: str | Path,
        counter_folder: str | Path,
        microseconds: Callable[[], int] = lambda: time.time_ns() // 1000,
        rng: random.Random | None = None,
        bound: Bound = UNBOUNDED,
        monotonic: Callable[[], float] = lambda: time.monotonic(),
    ) -> None:
        self._bound, self._microseconds, self._rng = bound, microseconds, rng or random.SystemRandom()
        self._monotonic, self._began = monotonic, monotonic()
        self._ran_before = 0.0
        self._appended = False
        # What a transaction that is taken back may have made wrong, and is then read again
        self._vehicles: int | None = None
        self._lines: dict[tuple[str, int], Line] | None = None
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
            self._begin()
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

    def _begin(self) -> None:
        """Count this start; if the two places disagree, every vehicle begins a new epoch."""
        row = self._database.execute("SELECT ran FROM counter").fetchone()
        self._ran_before = row[0] if row else 0.0
        here, there = self._counters()
        count = self._count_in_second_place(max(here, there))
        with self.transaction():
            if here != there:
                for (vin,) in self._database.execute("SELECT vin FROM vehicle").fetchall():
                    self._database.execute("UPDATE vehicle SET epoch = ?, next_seq = 1 WHERE vin = ?", (self._new_epoch(), vin))
            self._count_in_file(count)

    def _counters(self) -> tuple[int, int]:
        """The start counter in the file and in the second place, 0 where there is none yet; an unreadable one matches nothing."""
        row = self._database.execute("SELECT starts FROM counter").fetchone()
        try:
            there = int(self._counter.read_text())
        except FileNotFoundError:
            there = 0
        except ValueError:
            there = -1
        return (row[0] if row else 0), there

    def _count_in_second_place(self, last: int) -> int:
        """Count on in the second place, and return the count for the file.

        The second place is first: a crash between them makes them unequal, which costs an epoch, no record. The other way round it
        would leave the second place as it was when a backup was made, and that would pass for this spool. The low 32 bits are drawn
        at random: spools that began equally often are not equal.
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

    def _count_in_file(self, count: int) -> None:
        self._database.execute("DELETE FROM counter")
        self._database.execute("INSERT INTO counter (starts, ran) VALUES (?, ?)", (count, self.ran()))

    def _new_epoch(self) -> int:
        return new_epoch(self._microseconds(), self._rng)

    def ran(self) -> float:
        """Seconds that this spool's processes have run, all together, until now. Kept with every commit that holds a new record."""
        return self._ran_before + self._monotonic() - self._began

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is asked within it or nothing; on the disk when it ends. Raises SpoolError if the disk refuses."""
        try:
            if self._database.in_transaction:
                # The last one could neither be ended nor taken back.
                self._database.execute("ROLLBACK")
            self._appended = False
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                if self._appended:
                    self._database.execute("UPDATE counter SET ran = ?", (self.ran(),))
                self._database.execute("COMMIT")
            except BaseException:
                self._vehicles = self._lines = None
                # SQLite has taken back by itself what a full disk or a failed write broke off.
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise SpoolError(f"the spool {self._path} cannot be written: {error}") from error

    def count(self) -> None:
        """Count as a start does: a backup made before is recognized when it is put back. Raises SpoolError."""
        try:
            count = self._count_in_second_place(self._counters()[0])
        except (OSError, sqlite3.Error) as error:
            raise SpoolError(f"the spool {self._path} or its counter {self._counter} cannot be used: {error}") from error
        with self.transaction():
            self._count_in_file(count)

    def close(self) -> None:
        """End, which counts as a start does."""
        try:
            self.count()
        finally:
            self._database.close()
            os.close(self._lock)

    def join(self, vin: str) -> Numbering:
        """Where a vehicle's numbering stands; it gets an epoch the first time."""
        added = self._database.execute(
            "INSERT OR IGNORE INTO vehicle (vin, epoch, next_seq) VALUES (?, ?, 1)", (vin, self._new_epoch())
        )
        if self._vehicles is not None:
            self._vehicles += added.rowcount
        return Numbering(*self._database.execute("SELECT epoch, next_seq FROM vehicle WHERE vin = ?", (vin,)).fetchone())

    def append(self, made: Made) -> int:
        """Keep a record, which must be the vehicle's next.

        At the bound the vehicle's oldest records go, and become a declared gap in the same transaction; returns how many went.
        Raises SpoolError for what could not even be declared as a gap. Whether the values are valid is for the producers to say:
        such a record has its seq, and is set aside.
        """
        vin, epoch, make, model, record = made
        try:
            decode(encode(Upload(vin, epoch, make, model, gaps=(Gap(record.seq, record.seq, REJECTED),))), lowest_epoch=1)
        except (Refused, UnicodeEncodeError) as error:
            raise SpoolError(f"seq {record.seq} of {vin} in epoch {epoch} cannot be sent: {error}") from error
        counted = self._database.execute(
            "UPDATE vehicle SET next_seq = next_seq + 1 WHERE vin = ? AND epoch = ? AND next_seq = ? RETURNING aside",
            (vin, epoch, record.seq),
        ).fetchone()
        if counted is None:
            raise SpoolError(f"seq {record.seq} is not the next of {vin} in epoch {epoch}")
        made_at = self.ran()
        self._database.execute(
            _INSERT_RECORD, (vin, epoch, record.seq, made_at, make, model, *(getattr(record, name) for name in VALUES))
        )
        self._appended = True
        if self._lines is not None:
            line = self._lines.setdefault((vin, epoch), Line(record.seq, record.seq, made_at))
            line.last = record.seq
            if line.made_at == math.inf:
                line.made_at = made_at
        return self._keep_bound(vin, made_at, counted[0])

    def _keep_bound(self, vin: str, now: float, aside: int) -> int:
        """Let a vehicle's oldest records go, if they are too old or too many: its share is its own, and it crowds out nobody.

        What was set aside is worth less than what was not sent yet, and goes first.
        """
        if self._vehicles is None:
            (self._vehicles,) = self._database.execute("SELECT count(*) FROM vehicle").fetchone()
        share = self._bound.bytes / self._vehicles
        most = max(1.0, share / RECORD_BYTES)
        long_ago = now - 3600 * self._bound.hours
        gone = epoch = held = 0
        # Nearly always one: others are left by a spool that was restored
        while row := self._database.execute(
            "SELECT epoch, seq, made_at FROM record WHERE vin = ? AND epoch > ? ORDER BY epoch, seq LIMIT 1", (vin, epoch)
        ).fetchone():
            epoch, first, made_at = row
            (last,) = self._database.execute("SELECT max(seq) FROM record WHERE vin = ? AND epoch = ?", (vin, epoch)).fetchone()
            if made_at < long_ago:
                # In the order of seq, which is that of age
                young = self._database.execute(
                    "SELECT seq FROM record WHERE vin = ? AND epoch = ? AND made_at >= ? ORDER BY seq LIMIT 1",
                    (vin, epoch, long_ago),
                ).fetchone()
                gone += self._drop(vin, epoch, young[0] - 1 if young else last, SPOOL_AGE)
            if first <= last - most:
                gone += self._drop(vin, epoch, math.floor(last - most), SPOOL_FULL)
            held += last - first + 1
        return gone + (self._drop_set_aside(vin, long_ago, (share - held * RECORD_BYTES) / SET_ASIDE_BYTES) if aside else 0)

    def _drop_set_aside(self, vin: str, long_ago: float, most: float) -> int:
        """Let what was set aside go where it is too old or too much; it is declared already. Returns how many went."""
        gone = self._database.execute("DELETE FROM set_aside WHERE vin = ? AND made_at < ?", (vin, long_ago)).rowcount
        (left,) = self._database.execute("SELECT aside - ? FROM vehicle WHERE vin = ?", (gone, vin)).fetchone()
        if left > most:
            gone += self._database.execute(
                "DELETE FROM set_aside WHERE (vin, epoch, seq) IN "
                "(SELECT vin, epoch, seq FROM set_aside WHERE vin = ? ORDER BY made_at, epoch, seq LIMIT ?)",
                (vin, left - max(0, math.floor(most))),
            ).rowcount
        if gone:
            self._database.execute("UPDATE vehicle SET aside = aside - ? WHERE vin = ?", (gone, vin))
        return gone

    def _drop(self, vin: str, epoch: int, through: int, reason: str) -> int:
        """Turn all records up to and including seq `through` into declared gaps, between those there are; returns how many."""
        gone = 0
        while row := self._database.execute(
            "SELECT seq FROM record WHERE vin = ? AND epoch = ? AND seq <= ? ORDER BY seq LIMIT 1", (vin, epoch, through)
        ).fetchone():
            (first,) = row
            (last,) = self._database.execute(
                "SELECT min(?, coalesce(min(from_seq) - 1, ?)) FROM gap WHERE vin = ? AND epoch = ? AND from_seq > ?",
                (through, through, vin, epoch, first),
            ).fetchone()
            gone += self._database.execute(
                "DELETE FROM record WHERE vin = ? AND epoch = ? AND seq BETWEEN ? AND ?", (vin, epoch, first, last)
            ).rowcount
            # Both bounds may be met in turn; what they open is one gap all the same, under the first one's name
            self._declare(vin, epoch, Gap(first, last, reason), (SPOOL_AGE, SPOOL_FULL))
        return gone

    def _declare(self, vin: str, epoch: int, gap: Gap, alike: tuple[str, str]) -> None:
        """Note a gap; one that ends just before it and has a reason alike grows instead, so that gaps stay few."""
        before = self._database.execute(
            "UPDATE gap SET to_seq = ? WHERE vin = ? AND epoch = ? AND to_seq = ? AND reason IN (?, ?) AND from_seq = "
            "(SELECT max(from_seq) FROM gap WHERE vin = ? AND epoch = ? AND from_seq < ?)",
            (gap.to_seq, vin, epoch, gap.from_seq - 1, *alike, vin, epoch, gap.from_seq),
        )
        if before.rowcount == 0:
            self._database.execute(
                "INSERT INTO gap (vin, epoch, from_seq, to_seq, reason) VALUES (?, ?, ?, ?, ?)",
                (vin, epoch, gap.from_seq, gap.to_seq, gap.reason),
            )
        if self._lines is not None:
            # The first record of the line may be another one now
            self._lines[vin, epoch].made_at = None

    def next_upload(self, vin: str, names: tuple[str, str], records: int, gaps: int = MAX_GAPS) -> Upload | None:
        """What the vehicle sends next, one epoch after the other; None when it has nothing unsent.

        Begins at the first seq that is not acknowledged and goes on without a hole, up to so many records, of one make and model,
        and gaps. `names`: make and model where there are gaps alone, for those belong to records.
        """
        (epoch,) = self._database.execute(
            "SELECT min(epoch) FROM (SELECT min(epoch) AS epoch FROM record WHERE vin = ? UNION ALL "
            "SELECT min(epoch) FROM gap WHERE vin = ?)",
            (vin, vin),
        ).fetchone()
        if epoch is None:
            return None
        kept = self._database.execute(_READ_RECORDS, (vin, epoch, records)).fetchall()
        missing = self._database.execute(
            "SELECT from_seq, to_seq, reason FROM gap WHERE vin = ? AND epoch = ? ORDER BY from_seq LIMIT ?", (vin, epoch, gaps)
        ).fetchall()
        parts: Iterator[tuple[int, int, Record | Gap, tuple[str, str] | None]] = heapq.merge(
            ((row[0], row[0], Record(*row[:-2]), row[-2:]) for row in kept),
            ((row[0], row[1], Gap(*row), None) for row in missing),
            key=itemgetter(0),
        )
        taken: list[Record] = []
        declared: list[Gap] = []
        found: tuple[str, str] | None = None
        expected: int | None = None
        for first, last, part, its_names in parts:
            if expected not in (None, first):
                break
            if isinstance(part, Gap):
                declared.append(part)
            elif found in (None, its_names):
                taken.append(part)
                found = its_names
            else:
                break
            expected = last + 1
        make, model = found or names
        return Upload(vin, epoch, make, model, tuple(taken), tuple(declared))

    def next_put_back(self, vin: str, records: int) -> PutBack | None:
        """Up to so many records that were set aside and put back, in a row; None when nothing is to be sent again, or not yet.

        A gap that is not acknowledged yet comes first: the store would take seqs before it for lost.
        """
        (epoch,) = self._database.execute("SELECT min(epoch) FROM set_aside WHERE vin = ? AND put_back", (vin,)).fetchone()
        if epoch is None:
            return None
        (line,) = self._database.execute(
            "SELECT min(first) FROM (SELECT min(seq) AS first FROM record WHERE vin = ? AND epoch = ? UNION ALL "
            "SELECT min(from_seq) FROM gap WHERE vin = ? AND epoch = ?)",
            (vin, epoch, vin, epoch),
        ).fetchone()
        rows = self._database.execute(_READ_PUT_BACK, (vin, epoch, records)).fetchall()
        make, model = rows[0][-2:]
        taken: list[Record] = []
        for seq, row in enumerate(rows, rows[0][0]):
            if row[0] != seq or row[-2:] != (make, model) or (line is not None and seq >= line):
                break
            taken.append(Record(*row[:-2]))
        return PutBack(vin, epoch, make, model, tuple(taken)) if taken else None

    def acknowledge(self, vin: str, epoch: int, through: int) -> None:
        """Forget all up to and including seq `through`, but not what was set aside."""
        self._database.execute("DELETE FROM record WHERE vin = ? AND epoch = ? AND seq <= ?", (vin, epoch, through))
        self._database.execute("DELETE FROM gap WHERE vin = ? AND epoch = ? AND to_seq <= ?", (vin, epoch, through))
        # A gap that grew while the upload was under way: what was acknowledged of it is not declared
        self._database.execute(
            "UPDATE gap SET from_seq = ? WHERE vin = ? AND epoch = ? AND from_seq <= ?", (through + 1, vin, epoch, through)
        )
        line = self._lines.get((vin, epoch)) if self._lines is not None else None
        if self._lines is not None and line is not None:
            line.first, line.made_at = max(line.first, through + 1), None
            if line.first > line.last:
                del self._lines[vin, epoch]

    def acknowledge_put_back(self, upload: PutBack) -> None:
        """Forget records that had been set aside, for they are stored now."""
        gone = self._database.execute(
            "DELETE FROM set_aside WHERE vin = ? AND epoch = ? AND seq BETWEEN ? AND ?",
            (upload.vin, upload.epoch, upload.first_seq, upload.last_seq),
        )
        self._database.execute("UPDATE vehicle SET aside = aside - ? WHERE vin = ?", (gone.rowcount, upload.vin))

    def set_aside(self, vin: str, epoch: int, faults: Mapping[int, str], reason: str) -> None:
        """Records that are not accepted become declared gaps, and are kept whole; `faults` tells, by seq, what is wrong with each.

        One that had been put back is set aside again.
        """
        taken = 0
        for seq, fault in sorted(faults.items()):
            key = (vin, epoch, seq)
            if self._database.execute(_SET_ASIDE, (fault[:MAX_FAULT], *key)).rowcount:
                self._database.execute("DELETE FROM record WHERE vin = ? AND epoch = ? AND seq = ?", key)
                self._declare(vin, epoch, Gap(seq, seq, reason), (reason, reason))
                taken += 1
            else:
                self._database.execute(
                    "UPDATE set_aside SET fault = ?, put_back = 0 WHERE vin = ? AND epoch = ? AND seq = ?",
                    (fault[:MAX_FAULT], *key),
                )
        self._database.execute("UPDATE vehicle SET aside = aside + ? WHERE vin = ?", (taken, vin))

    def kept_aside(self) -> dict[str, int]:
        """How many records of each vehicle are set aside, by VIN, without those that have none."""
        return dict(self._database.execute("SELECT vin, aside FROM vehicle WHERE aside > 0"))

    def backlog(self) -> dict[str, Backlog]:
        """What every vehicle has not delivered, also of vehicles that left; by VIN, without those that have nothing.

        Read from the file once, then followed: what a fleet has acknowledged costs nothing.
        """
        if self._lines is None:
            self._lines = self._read_lines()
        now = self.ran()
        backlogs: dict[str, Backlog] = {}
        for (vin, epoch), line in self._lines.items():
            if line.made_at is None:
                row = self._database.execute(
                    "SELECT made_at FROM record WHERE vin = ? AND epoch = ? ORDER BY seq LIMIT 1", (vin, epoch)
                ).fetchone()
                line.made_at = row[0] if row else math.inf
            unsent, age, _ = backlogs.get(vin, Backlog(0))
            ages = [each for each in (age, now - line.made_at) if each is not None and each >= 0]
            backlogs[vin] = Backlog(unsent + line.last - line.first + 1, max(ages, default=None))
        for vin, put_back in self._database.execute("SELECT vin, count(*) FROM set_aside WHERE put_back GROUP BY vin"):
            unsent, age, _ = backlogs.get(vin, Backlog(0))
            backlogs[vin] = Backlog(unsent + put_back, age, put_back)
        return backlogs

    def _read_lines(self) -> dict[tuple[str, int], Line]:
        """The line of every numbering: steps from one to the next and reads its ends only, not an outage's millions of records."""
        lines: dict[tuple[str, int], Line] = {}
        key = ("", 0)
        while first := self._database.execute(
            "SELECT vin, epoch, seq, made_at FROM record WHERE (vin, epoch) > (?, ?) ORDER BY vin, epoch, seq LIMIT 1", key
        ).fetchone():
            key = first[:2]
            (last,) = self._database.execute("SELECT max(seq) FROM record WHERE vin = ? AND epoch = ?", key).fetchone()
            lines[key] = Line(first[2], last, first[3])
        for vin, epoch, low, high in self._database.execute(
            "SELECT vin, epoch, min(from_seq), max(to_seq) FROM gap GROUP BY vin, epoch"
        ):
            line = lines.setdefault((vin, epoch), Line(low, high, math.inf))
            line.first, line.last = min(line.first, low), max(line.last, high)
        return lines


class SpoolThread:
    """A spool behind a thread: calls are awaited, and many share one commit."""

    def __init__(self, spool: Spool, window: float = COMMIT_WINDOW) -> None:
        self._spool, self._window = spool, window
        self._loop = asyncio.get_running_loop()
        self._calls: queue.SimpleQueue[tuple[Callable[[Spool], Any], asyncio.Future[Any]] | None] = queue.SimpleQueue()
        self._taken: list[tuple[Callable[[Spool], Any], asyncio.Future[Any]]] = []
        self._failure: SpoolError | None = None
        self._thread = threading.Thread(target=self._serve, name="spool", daemon=True)
        self._watchdog = Watchdog(self._thread, ROUND_LIMIT)
        self._thread.start()

    async def run(self, call: Callable[[Spool], T]) -> T:
        """Run a call in the spool's thread; returns after its commit. Raises SpoolError if the disk refuses, or what it raises.

        A call may run twice, the first time taken back.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._calls.put((call, future))
        # After it was put: a thread that ends fails what it finds, and this one may come too late for that
        if self._failure is not None:
            raise self._failure
        return await future

    def check(self, seconds: float) -> None:
        """To be called every so many seconds. Raises SpoolError when the thread has ended, or hangs."""
        if self._failure is not None:
            raise self._failure
        if why := self._watchdog.check(seconds):
            raise SpoolError(why)

    async def close(self) -> None:
        """Finish what was asked for, and end. Raises SpoolError if the disk refuses or hangs."""
        self._calls.put(None)
        await asyncio.to_thread(self._thread.join, CLOSE_TIMEOUT)
        if self._thread.is_alive():
            raise SpoolError(f"the spool does not end within {CLOSE_TIMEOUT:g} s: its disk hangs")
        self._spool.close()

    def _serve(self) -> None:
        try:
            self._commit_until_closed()
        except Exception as error:
            # Nobody may wait for ever, and the process ends: `check` tells it.
            self._failure = SpoolError(f"the spool's thread has ended: {error!r}")
            log.error("%s", self._failure)
            while not self._calls.empty():
                call = self._calls.get()
                self._taken += [call] if call is not None else []
            # Whose loop is closed waits for nothing
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_resolve, [(future, self._failure) for _, future in self._taken])

    def _commit_until_closed(self) -> None:
        ended, counted = False, time.monotonic()
        while not ended:
            self._taken = []
            batch = [self._calls.get()]
            self._watchdog.feed()
            if self._window:
                time.sleep(self._window)
            while not self._calls.empty():
                batch.append(self._calls.get())
            ended = None in batch
            self._taken = [each for each in batch if each is not None]
            if time.monotonic() - counted >= COUNT_INTERVAL:
                # Before the calls: what they keep must not be missing from a backup that passes for this spool.
                counted = time.monotonic()
                # Records are worth more than the count: the calls go on, and tell if it is the spool's disk that refuses.
                try:
                    self._spool.count()
                except SpoolError as error:
                    log.warning("a backup of the spool that is put back might not be recognized: %s", error)
            results = perform(self._spool, [call for call, _ in self._taken])
            done = list(zip((future for _, future in self._taken), results, strict=True))
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
