"""Postgres in memory: exactly the statements of store.py, with transactions, row locks, and sessions that end.

Isolation is Postgres' READ COMMITTED: a statement sees what was committed when it began and what its own transaction did; an
UPDATE whose row another transaction holds waits and looks again; INSERT ... ON CONFLICT waits for who is inserting the same
key. Ids come from a sequence as rows arrive, whether or not their transaction commits.

It passes the contract tests of tests/contract beside the real one. Without a `Network` nothing waits and nothing breaks.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple, Protocol

import psycopg2
import psycopg2.errors
import psycopg2.extensions
from telemetry.consumer import remedy, store
from telemetry.consumer.progress import FILLED
from telemetry.consumer.store import COPY_COLUMNS, COPY_HEADER, COPY_TRAILER, EPOCH_2000

IDLE_TIMEOUT, LOCK_TIMEOUT, STATEMENT_TIMEOUT = 10.0, 12.0, 30.0
"""Seconds, as SESSION says."""
DAYS_LOCK_TIMEOUT, RETENTION_LOCK_TIMEOUT = 10.0, 1.0
"""Seconds, as make_day and the functions of retention say."""
DAYS_AHEAD = timedelta(days=7)
FIRST_DAY = date(2000, 1, 1)
"""make_day makes no other days."""
FORMS_KEPT = 97
"""Days, beyond the topic's retention of a week."""
MAX_NAME = 20


class Row(NamedTuple):
    """A row of diag."""

    id: int
    vin: str
    epoch: int
    seq: int
    make: str
    model: str
    values: tuple[float, ...]
    received_at: datetime


class Offset(NamedTuple):
    """A row of stream_offset."""

    topic: str
    next: int
    last_timestamp: int | None
    last_crc: int | None


class _Diagnostics(NamedTuple):
    message_primary: str


def refusal(state: str, message: str) -> psycopg2.Error:
    """The exception that psycopg2 raises for a SQLSTATE."""
    kind = psycopg2.errors.lookup(state)
    named = type(kind.__name__, (kind,), {"pgcode": state, "diag": _Diagnostics(message)})
    error: psycopg2.Error = named(message)
    return error


class Network(Protocol):
    """What lies between a client and the database, and the time that passes."""

    def now(self) -> float:
        """Seconds."""

    def travel(self, connection: Connection, what: str, answer: bool) -> bool:
        """A request or an answer is under way; False when it is lost, and the connection with it."""

    def lost(self, what: str, action: Callable[[], None]) -> None:
        """A request was lost to its sender. It may still arrive."""

    def wait(self, waiters: list[Callable[[], None]], timeout: float) -> bool:
        """Wait for a call of what is put into waiters; tells whether it came in time."""

    def cost(self, rows: int) -> float:
        """Seconds that the server takes for a statement that touches so many rows."""

    def work(self, seconds: float) -> None:
        """So much time passes."""


class Direct:
    """No network at all."""

    def now(self) -> float:
        """See Network."""
        return 0.0

    def travel(self, connection: Connection, what: str, answer: bool) -> bool:
        """See Network."""
        return True

    def lost(self, what: str, action: Callable[[], None]) -> None:
        """See Network."""

    def wait(self, waiters: list[Callable[[], None]], timeout: float) -> bool:
        """See Network."""
        return False

    def cost(self, rows: int) -> float:
        """See Network."""
        return 0.0

    def work(self, seconds: float) -> None:
        """See Network."""


@dataclass
class Tables:
    """What is in the database, or what a transaction adds to it. None stands for what a transaction removes."""

    offsets: dict[tuple[str, int], Offset] = field(default_factory=dict)
    progress: dict[tuple[str, int], int] = field(default_factory=dict)
    gaps: dict[tuple[str, int, int], tuple[int, str, str] | None] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    guard: set[tuple[date, str, int, int]] = field(default_factory=set)
    forms: dict[tuple[str, int, bytes], datetime] = field(default_factory=dict)
    dead: dict[tuple[str, int, int], tuple[bytes | None, str, list[bytes | None]]] = field(default_factory=dict)
    conflicts: dict[tuple[str, int, int, str, int, int], tuple[list[int], bytes]] = field(default_factory=dict)
    lost: dict[tuple[str, int, int], tuple[int, str]] = field(default_factory=dict)
    """lost_range: the last offset and the reason, by topic id, partition and first offset."""
    dropped: set[date] = field(default_factory=set)
    """Days that a transaction drops."""
    forms_from: datetime | None = None
    """Forms before it are forgotten by a transaction."""


class Session:
    """The server's side of a connection."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.changes: Tables | None = None
        self.aborted = self.ended = False
        self.locks: list[Any] = []
        self.idle_since = self.begun = 0.0
        """Since when the client has sent nothing, and when the statement under way began."""
        self.working = False
        self.waiting_for: Session | None = None
        self.released: list[Callable[[], None]] = []
        """Who waits until this transaction ends."""

    def begin(self) -> Tables:
        """The transaction's changes, from its first statement on."""
        if self.changes is None:
            self.changes = Tables()
        return self.changes

    def finish(self, commit: bool) -> None:
        """End the transaction."""
        changes, self.changes = self.changes, None
        aborted, self.aborted = self.aborted, False
        if commit and changes is not None and not aborted:
            self.database.apply(changes)
        for key in self.locks:
            del self.database.locks[key]
        self.locks.clear()
        waiting, self.released = self.released, []
        for wake in waiting:
            wake()

    def end(self) -> None:
        """The session is gone, and with it what was not committed."""
        self.ended = True
        self.finish(commit=False)

    def work(self, rows: int) -> None:
        """The statement under way touches so many rows, which takes its time: one that takes longer than it may is cancelled."""
        network = self.database.network
        left = self.begun + STATEMENT_TIMEOUT - network.now()
        cost = network.cost(rows)
        self.working = True
        network.work(max(0.0, min(cost, left)))
        self.working = False
        if cost > left:
            self.database.on_limit("a statement is cancelled")
            raise refusal("57014", "canceling statement due to statement timeout")

    def lock(self, key: Any, timeout: float = LOCK_TIMEOUT) -> None:
        """Hold a row, or the right to insert it, until the transaction ends."""
        locks, network = self.database.locks, self.database.network
        begun = network.now()
        while (owner := locks.get(key)) not in (None, self):
            assert owner is not None
            blocker: Session | None = owner
            while blocker is not None:
                if blocker is self:
                    raise refusal("40P01", "deadlock detected")
                blocker = blocker.waiting_for
            left = begun + timeout - network.now()
            busy = owner.working or owner.waiting_for is not None
            idle = left if busy else owner.idle_since + IDLE_TIMEOUT - network.now()
            self.waiting_for = owner
            woken = network.wait(owner.released, max(0.0, min(left, idle)))
            self.waiting_for = None
            if self.ended:
                raise psycopg2.OperationalError("server closed the connection unexpectedly")
            if woken:
                continue
            if network.now() >= begun + timeout or idle == left:
                self.database.on_limit("a lock is not given in time")
                raise refusal("55P03", "canceling statement due to lock timeout")
            if owner.waiting_for is None and not owner.working and network.now() >= owner.idle_since + IDLE_TIMEOUT:
                self.database.on_limit("an idle transaction is ended")
                owner.end()
        if key not in locks:
            locks[key] = self
            self.locks.append(key)


def day_of(moment: datetime) -> date:
    """The day, in UTC."""
    return moment.astimezone(UTC).date()


class Database:
    """The tables, and who is connected."""

    guarded = True
    """Whether days have their unique index."""

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC), network: Network | None = None) -> None:
        self.clock = now
        self.network: Network = network or Direct()
        self.tables = Tables()
        self.days: set[date] = set()
        self.locks: dict[Any, Session] = {}
        self.up = True
        self.retention_days = 0
        self.reached: date | None = None
        self.held = ""
        """What the table retention says."""
        self.on_commit: Callable[[Tables], None] = lambda changes: None
        self.on_refused: Callable[[tuple[Any, ...]], None] = lambda row: None
        """The guard has refused a row."""
        self.on_limit: Callable[[str], None] = lambda what: None
        """Something took longer than it may."""
        self._id = 0
        self._by_identity: dict[tuple[str, int, int], list[Row]] = {}
        self._connections: list[Connection] = []

    def connect(self, **arguments: Any) -> Connection:
        """As psycopg2.connect."""
        connection = Connection(self)
        if not self.network.travel(connection, "connect", answer=False) or not self.up:
            raise psycopg2.OperationalError("connection refused")
        self._connections = [each for each in self._connections if not each.session.ended]
        self._connections.append(connection)
        return connection

    def disconnect(self, which: Callable[[Connection], bool] = lambda connection: True) -> None:
        """End sessions: of a client that died, or all when the server stops."""
        for connection in self._connections:
            if which(connection):
                connection.session.end()

    def next_id(self) -> int:
        """Of the sequence."""
        self._id += 1
        return self._id

    def apply(self, changes: Tables) -> None:
        """COMMIT."""
        tables = self.tables
        tables.offsets.update(changes.offsets)
        tables.progress.update(changes.progress)
        for key, gap in changes.gaps.items():
            if gap is None:
                tables.gaps.pop(key, None)
            else:
                tables.gaps[key] = gap
        tables.rows += changes.rows
        for row in changes.rows:
            self._by_identity.setdefault((row.vin, row.epoch, row.seq), []).append(row)
        tables.guard |= changes.guard
        tables.forms |= changes.forms
        tables.dead.update(changes.dead)
        tables.conflicts.update(changes.conflicts)
        tables.lost.update(changes.lost)
        if changes.dropped:
            self._drop(changes.dropped)
        if changes.forms_from is not None:
            tables.forms = {key: at for key, at in tables.forms.items() if at >= changes.forms_from}
        self.on_commit(changes)

    def _drop(self, days: set[date]) -> None:
        self.days -= days
        self.tables.rows = [row for row in self.tables.rows if day_of(row.received_at) not in days]
        self.tables.guard = {key for key in self.tables.guard if key[0] not in days}
        self._by_identity.clear()
        for row in self.tables.rows:
            self._by_identity.setdefault((row.vin, row.epoch, row.seq), []).append(row)

    def found(self, vin: str, epoch: int, first: int, last: int) -> list[Row]:
        """Committed rows by identity."""
        return [row for seq in range(first, last + 1) for row in self._by_identity.get((vin, epoch, seq), ())]


class Info:
    """As psycopg2's connection.info."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def transaction_status(self) -> int:
        """Idle, in a transaction, or in one that failed."""
        if self._session.aborted:
            return psycopg2.extensions.TRANSACTION_STATUS_INERROR
        if self._session.changes is not None:
            return psycopg2.extensions.TRANSACTION_STATUS_INTRANS
        return psycopg2.extensions.TRANSACTION_STATUS_IDLE


class Connection:
    """As much of a psycopg2 connection as the store uses."""

    encoding = "UTF8"

    def __init__(self, database: Database) -> None:
        self.database, self.session = database, Session(database)
        self.info = Info(self.session)
        self.client: Any = None
        """Whose it is; the network knows."""
        self.cut = False
        """Its socket was shut down by another thread: the call under way fails when it would return."""
        self._closed = False

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        """See psycopg2: the transaction ends, the connection stays."""
        if kind is None:
            self.commit()
        else:
            self.rollback()

    def fileno(self) -> Connection:
        """What the modules os and socket are called with here."""
        return self

    def cursor(self) -> Cursor:
        """See psycopg2."""
        if self._closed:
            raise psycopg2.InterfaceError("connection already closed")
        return Cursor(self)

    def commit(self) -> None:
        """See psycopg2: COMMIT of what has failed is a rollback that reports success."""
        self.call("COMMIT", lambda: self.session.finish(commit=True))

    def rollback(self) -> None:
        """See psycopg2."""
        self.call("ROLLBACK", lambda: self.session.finish(commit=False))

    def close(self) -> None:
        """See psycopg2."""
        if not self._closed:
            self._closed = True
            self.session.end()

    def call(self, what: str, action: Callable[[], None]) -> None:
        """Let the server do something: the request may be lost on its way, or the answer."""
        if self._closed:
            raise psycopg2.InterfaceError("connection already closed")
        network, session = self.database.network, self.session
        if not network.travel(self, what, answer=False):
            network.lost(what, lambda: None if session.ended else action())
            self._lose()
        if session.changes is not None and network.now() > session.idle_since + IDLE_TIMEOUT:
            self.database.on_limit("an idle transaction is ended")
            session.end()
        if session.ended:
            self._closed = True
            raise psycopg2.OperationalError("server closed the connection unexpectedly")
        refused = None
        session.begun = network.now()
        try:
            if session.aborted and what not in ("COMMIT", "ROLLBACK"):
                raise refusal("25P02", "current transaction is aborted, commands ignored until end of transaction block")
            action()
        except psycopg2.Error as error:
            refused, session.aborted = error, True
        session.idle_since = network.now()
        if not network.travel(self, what, answer=True) or self.cut:
            self._lose()
        if session.ended:
            self._closed = True
            raise psycopg2.OperationalError("server closed the connection unexpectedly")
        if refused is not None:
            raise refused

    def _lose(self) -> None:
        """The client sees its connection break; the server keeps the session until it notices."""
        self._closed = True
        raise psycopg2.OperationalError("could not receive data from server: Connection timed out")


class Cursor:
    """As much of a cursor as the store and psycopg2's execute_values use."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.rowcount = -1
        self.description: Any = ()
        self._found: list[tuple[Any, ...]] = []
        self._quoted: list[Any] = []

    def __enter__(self) -> Cursor:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def mogrify(self, template: str | bytes, arguments: Sequence[Any]) -> bytes:
        """Arguments are kept aside; what stands in the statement says which."""
        self._quoted.append(tuple(arguments))
        return b"%s"

    def execute(self, statement: str | bytes, arguments: Sequence[Any] = ()) -> None:
        """See psycopg2."""
        if isinstance(statement, bytes):
            # Of execute_values: one placeholder for each list of values
            arguments, self._quoted = self._quoted, []
            statement = statement.decode().replace(",".join(["%s"] * len(arguments)), "%s")
        perform = STATEMENTS.get(statement)
        if perform is None:
            raise NotImplementedError(f"a statement that this database does not know: {statement}")
        self.connection.call(statement, lambda: self._perform(perform, arguments))

    def copy_expert(self, statement: str, file: Any) -> None:
        """See psycopg2."""
        assert statement == f"COPY diag ({COPY_COLUMNS}) FROM STDIN (FORMAT binary)"
        rows = copied(file.read())
        self.connection.call("COPY diag", lambda: self._perform(insert_rows, [rows]))

    def fetchall(self) -> list[tuple[Any, ...]]:
        """See psycopg2."""
        return self._found

    def fetchone(self) -> tuple[Any, ...] | None:
        """See psycopg2."""
        return self._found.pop(0) if self._found else None

    def _perform(self, perform: Perform, arguments: Sequence[Any]) -> None:
        found = perform(self.connection.session, *arguments)
        if isinstance(found, int):
            self.rowcount, self._found = found, []
        else:
            self.rowcount, self._found = len(found), found
        self.connection.session.work(self.rowcount)


Perform = Callable[..., "int | list[tuple[Any, ...]]"]
Values = tuple[str, str, str, int, datetime, int, float, float, float, float, float]
"""In the order of COPY_COLUMNS."""


def copied(data: bytes) -> list[Values]:
    """The rows in a binary COPY."""
    assert data.startswith(COPY_HEADER)
    assert data.endswith(COPY_TRAILER)
    place, rows = len(COPY_HEADER), []
    while place < len(data) - len(COPY_TRAILER):
        (count,) = struct.unpack_from("!h", data, place)
        assert count == 11
        place += 2
        columns: list[Any] = []
        for number in range(count):
            (length,) = struct.unpack_from("!i", data, place)
            raw = data[place + 4 : place + 4 + length]
            place += 4 + length
            columns.append(raw.decode() if number < 3 else struct.unpack("!q" if number < 6 else "!d", raw)[0])
        columns[4] = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=columns[4] + EPOCH_2000 * 1000)
        rows.append(tuple(columns))
    return rows


# The statements. Each takes the session and its arguments, and returns rows or a count of rows.


def insert_row(session: Session, row: Values) -> bool:
    """One row into diag; False if the guard has it already."""
    vin, make, model, epoch, received_at, seq, *values = row
    changes, database = session.begin(), session.database
    if max(len(make), len(model)) > MAX_NAME:
        raise refusal("22001", f"value too long for type character varying({MAX_NAME})")
    day = day_of(received_at)
    if day not in database.days:
        raise refusal("23514", 'no partition of relation "diag" found for row')
    if epoch >= 1 and database.guarded:
        key = (day, vin, epoch, seq)
        if key not in changes.guard:
            session.lock(("diag", *key))
        if key in changes.guard or key in database.tables.guard:
            database.on_refused(row)
            return False
        changes.guard.add(key)
    changes.rows.append(Row(database.next_id(), vin, epoch, seq, make, model, tuple(map(float, values)), received_at))
    return True


def insert_rows(session: Session, rows: Iterable[Values]) -> int:
    count = 0
    for row in rows:
        if not insert_row(session, row):
            raise refusal("23505", "duplicate key value violates unique constraint of the guard")
        count += 1
    return count


def insert_one(session: Session, *row: Any) -> int:
    return int(insert_row(session, row))


def set_up(session: Session) -> int:
    session.begin()
    return 0


def divide(session: Session) -> int:
    session.begin()
    raise refusal("22012", "division by zero")


def tell_time(session: Session) -> list[tuple[Any, ...]]:
    session.begin()
    return [(session.database.clock(),)]


def make_day(session: Session, day: date) -> list[tuple[Any, ...]]:
    session.begin()
    database = session.database
    if not FIRST_DAY <= day <= day_of(database.clock()) + DAYS_AHEAD:
        raise refusal("P0001", f"no day of this table: {day}")
    if day not in database.days:
        session.lock(("days",), DAYS_LOCK_TIMEOUT)
    if day in database.days:
        return [(False,)]
    # It does not matter that this one is there before its COMMIT: nobody's rows can be in it
    database.days.add(day)
    return [(True,)]


def make_day_ahead(session: Session, ahead: int) -> list[tuple[Any, ...]]:
    return make_day(session, day_of(session.database.clock()) + timedelta(days=ahead))


def move_retention(session: Session) -> None:
    """Let the day that retention counts from follow the days with rows, two for each of them at most.

    What it reached is kept at once: a second try after a rollback finds the same.
    """
    session.begin()
    session.lock(("days",), RETENTION_LOCK_TIMEOUT)
    database = session.database
    today, first = day_of(database.clock()), database.reached is None
    counted = min(database.reached or date.min, today)
    newest, stored = counted, 0
    for day in sorted({day_of(row.received_at) for row in database.tables.rows}):
        if counted < day <= today:
            newest, stored = day, stored + 1
            if first or (day - counted).days <= 2 * stored:
                counted, stored = day, 0
    database.reached = None if counted == date.min else counted
    database.held = "nothing more is dropped" if newest > counted else ""


def drop_days(session: Session) -> list[tuple[Any, ...]]:
    move_retention(session)
    changes, database = session.begin(), session.database
    keep, reached = database.retention_days, database.reached
    old = [day for day in database.days if keep and reached and day < reached - timedelta(days=keep)]
    changes.dropped = {min(old)} if old else set()
    return [(f"diag_{day:%Y%m%d}",) for day in changes.dropped]


def forget(session: Session) -> list[tuple[Any, ...]]:
    move_retention(session)
    changes, database = session.begin(), session.database
    if database.reached is None:
        return [(0,)]
    day = database.reached - timedelta(days=FORMS_KEPT)
    changes.forms_from = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return [(sum(at < changes.forms_from for at in database.tables.forms.values()),)]


def held(session: Session) -> list[tuple[Any, ...]]:
    session.begin()
    return [(session.database.held,)]


def oldest_day(session: Session) -> list[tuple[Any, ...]]:
    session.begin()
    return [(min(session.database.days, default=None),)]


def count_open_gaps(session: Session) -> list[tuple[Any, ...]]:
    session.begin()
    return [(sum(gap is not None and gap[1] != FILLED for gap in session.database.tables.gaps.values()),)]


def offset(session: Session, key: tuple[str, int]) -> Offset | None:
    return session.begin().offsets.get(key) or session.database.tables.offsets.get(key)


def read_offsets(session: Session, topic: str) -> list[tuple[Any, ...]]:
    rows = {**session.database.tables.offsets, **session.begin().offsets}
    return [(number, topic_id, *row[1:]) for (topic_id, number), row in rows.items() if row.topic == topic]


def move_offset(
    session: Session, end: int, timestamp: int | None, checksum: int | None, topic_id: str, number: int, start: int
) -> list[tuple[Any, ...]]:
    key = (topic_id, number)
    there = offset(session, key)
    if there is None or there.next != start:
        return []
    session.lock(("offset", key))
    there = offset(session, key)
    if there is None or there.next != start:
        return []
    session.begin().offsets[key] = Offset(there.topic, end, timestamp, checksum)
    return [(session.database.clock(),)]


def insert_offset(
    session: Session, topic_id: str, number: int, topic: str, end: int, timestamp: int | None, checksum: int | None
) -> list[tuple[Any, ...]]:
    key = (topic_id, number)
    if offset(session, key) is None:
        session.lock(("offset", key))
    if offset(session, key) is not None:
        return []
    session.begin().offsets[key] = Offset(topic, end, timestamp, checksum)
    return [(session.database.clock(),)]


def last(session: Session, key: tuple[str, int]) -> int | None:
    return session.begin().progress.get(key) or session.database.tables.progress.get(key)


def read_progress(session: Session, vins: list[str], epochs: list[int]) -> list[tuple[Any, ...]]:
    return [(*key, found) for key in zip(vins, epochs, strict=True) if (found := last(session, key)) is not None]


def insert_progress(session: Session, vins: list[str], epochs: list[int], lasts: list[int]) -> int:
    count = 0
    for vin, epoch, new in zip(vins, epochs, lasts, strict=True):
        key = (vin, epoch)
        if last(session, key) is None:
            session.lock(("progress", key))
        if last(session, key) is None:
            session.begin().progress[key] = new
            count += 1
    return count


def move_progress(session: Session, vins: list[str], epochs: list[int], before: list[int], lasts: list[int]) -> int:
    count = 0
    for vin, epoch, was, new in zip(vins, epochs, before, lasts, strict=True):
        key = (vin, epoch)
        if last(session, key) == was:
            session.lock(("progress", key))
            if last(session, key) == was:
                session.begin().progress[key] = new
                count += 1
    return count


def read_gaps(session: Session, vins: list[str], epochs: list[int], firsts: list[int], lasts: list[int]) -> list[tuple[Any, ...]]:
    wanted: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for vin, epoch, first, end in zip(vins, epochs, firsts, lasts, strict=True):
        wanted.setdefault((vin, epoch), []).append((first, end))
    found = []
    for key, gap in {**session.database.tables.gaps, **session.begin().gaps}.items():
        if gap is not None and gap[1] != FILLED:
            found += [(*key, *gap) for first, end in wanted.get(key[:2], ()) if key[2] <= end and gap[0] >= first]
    return found


def delete_gaps(session: Session, vins: list[str], epochs: list[int], firsts: list[int]) -> int:
    count, changes = 0, session.begin()
    for key in zip(vins, epochs, firsts, strict=True):
        session.lock(("gap", key))
        there = changes.gaps[key] if key in changes.gaps else session.database.tables.gaps.get(key)
        if there is not None:
            changes.gaps[key] = None
            count += 1
    return count


def insert_gaps(session: Session, vins: list[str], epochs: list[int], firsts: list[int], *columns: list[Any]) -> int:
    changes = session.begin()
    for key, gap in zip(zip(vins, epochs, firsts, strict=True), zip(*columns, strict=True), strict=True):
        session.lock(("gap", key))
        there = changes.gaps[key] if key in changes.gaps else session.database.tables.gaps.get(key)
        if there is not None:
            raise refusal("23505", "duplicate key value violates unique constraint of gap")
        changes.gaps[key] = gap
    return len(vins)


def insert_forms(session: Session, rows: list[tuple[str, int, bytes, datetime]]) -> list[tuple[Any, ...]]:
    changes, new = session.begin(), []
    for vin, seq, digest, at in rows:
        key = (vin, seq, digest)
        if key not in changes.forms and key not in session.database.tables.forms:
            session.lock(("form", key))
        if key not in changes.forms and key not in session.database.tables.forms:
            changes.forms[key] = at
            new.append(key)
    return new


def read_rows(
    session: Session, vins: list[str], epochs: list[int], firsts: list[int], lasts: list[int], begin: datetime, until: datetime
) -> list[tuple[Any, ...]]:
    mine: dict[tuple[str, int], list[Row]] = {}
    for row in session.begin().rows:
        mine.setdefault((row.vin, row.epoch), []).append(row)
    found = []
    for vin, epoch, first, end in zip(vins, epochs, firsts, lasts, strict=True):
        own = [row for row in mine.get((vin, epoch), ()) if first <= row.seq <= end]
        for row in session.database.found(vin, epoch, first, end) + own:
            if begin <= row.received_at < until:
                found.append((row.vin, row.epoch, row.seq, row.make, row.model, *row.values))
    return found


def insert_conflicts(session: Session, rows: list[tuple[str, int, int, list[int], bytes, str, int, int]]) -> int:
    count = 0
    for vin, epoch, seq, seqs, value, *place in rows:
        key = (*place, vin, epoch, seq)
        session.lock(("conflict", key))
        if key not in session.database.tables.conflicts and key not in session.begin().conflicts:
            session.begin().conflicts[key] = (seqs, value)  # type: ignore[index]
            count += 1
    return count


def insert_dead(session: Session, rows: list[tuple[Any, ...]]) -> int:
    count = 0
    for topic_id, number, place, _, _, value, headers, _, reason in rows:
        where = (topic_id, number, place)
        session.lock(("dead", where))
        if where not in session.database.tables.dead and where not in session.begin().dead:
            session.begin().dead[where] = (value, reason, headers)
            count += 1
    return count


def note_lost(session: Session, topic_id: str, number: int, first: int, last: int, topic: str, reason: str) -> int:
    key = (topic_id, number, first)
    session.lock(("lost", key))
    if key in session.database.tables.lost or key in session.begin().lost:
        return 0
    session.begin().lost[key] = (last, reason)
    return 1


def noted(session: Session, topic_id: str, number: int, first: int) -> list[tuple[Any, ...]]:
    key = (topic_id, number, first)
    there = session.begin().lost.get(key) or session.database.tables.lost.get(key)
    return [there[:1]] if there else []


def places_of(session: Session, topic: str, number: int) -> list[tuple[Any, ...]]:
    rows = {**session.database.tables.offsets, **session.begin().offsets}
    found = [key for key, row in rows.items() if row.topic == topic and key[1] == number]
    for key in found:
        session.lock(("offset", key))
    rows = {**session.database.tables.offsets, **session.begin().offsets}
    return [(key[0], rows[key].next) for key in found if rows[key].topic == topic]


def go_back(session: Session, following: int, topic_id: str, number: int) -> int:
    there = offset(session, (topic_id, number))
    if there is None:
        return 0
    session.lock(("offset", (topic_id, number)))
    session.begin().offsets[topic_id, number] = Offset(there.topic, following, None, None)
    return 1


def rename_topic(session: Session, topic: str, topic_id: str, number: int) -> int:
    there = offset(session, (topic_id, number))
    if there is None:
        return 0
    session.lock(("offset", (topic_id, number)))
    session.begin().offsets[topic_id, number] = there._replace(topic=topic)
    return 1


def nothing(session: Session) -> int:
    """A savepoint around what only reads."""
    session.begin()
    return 0


def listed(perform: Callable[[Session, list[Any]], Any]) -> Perform:
    """A statement with VALUES: its arguments are rows, and so many that execute_values sends them in pages."""
    return lambda session, *rows: perform(session, list(rows))


STATEMENTS: dict[str, Perform] = {
    store.SESSION: set_up,
    store.PROBE: set_up,
    "SELECT 1 / 0": divide,
    "SELECT now()": tell_time,
    "SELECT drop_days()": drop_days,
    "SELECT forget()": forget,
    "SELECT held FROM retention": held,
    "SELECT make_day(%s)": make_day,
    "SELECT make_day((now() AT TIME ZONE 'UTC')::date + %s)": make_day_ahead,
    "SELECT min(day) FROM diag_days() AS day": oldest_day,
    "SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = 'gap_open'::regclass": count_open_gaps,
    "SELECT partition, topic_id::text, next, last_timestamp, last_crc FROM stream_offset WHERE topic = %s": read_offsets,
    store.MOVE_OFFSET: move_offset,
    store.FIRST_OFFSET: insert_offset,
    store.READ_PROGRESS: read_progress,
    store.READ_GAPS: read_gaps,
    store.NEW_PROGRESS: insert_progress,
    store.MOVE_PROGRESS: move_progress,
    store.OLD_GAPS: delete_gaps,
    store.NEW_GAPS: insert_gaps,
    store.NEW_FORMS: listed(insert_forms),
    store.ONE_ROW: insert_one,
    store.BESIDE: nothing,
    store.READ_ROWS: read_rows,
    store.BESIDE_OVER: nothing,
    store.NEW_CONFLICTS: listed(insert_conflicts),
    store.NEW_LETTERS: listed(insert_dead),
    # Of the remedy
    remedy.NOTE_LOST: note_lost,
    remedy.NOTED: noted,
    "SELECT topic_id::text, next FROM stream_offset WHERE topic = %s AND partition = %s FOR UPDATE": places_of,
    "UPDATE stream_offset SET next = %s, last_timestamp = NULL, last_crc = NULL WHERE topic_id = %s AND partition = %s": go_back,
    "UPDATE stream_offset SET topic = %s WHERE topic_id = %s AND partition = %s": rename_topic,
}


def open_gaps(tables: Tables, vin: str, epoch: int) -> list[tuple[int, int, str, str]]:
    """The open gaps of a (vin, epoch), ascending: first, last, state, reason."""
    found = [(key[2], *gap) for key, gap in tables.gaps.items() if key[:2] == (vin, epoch) and gap is not None and gap[1] != FILLED]
    return sorted(found)
