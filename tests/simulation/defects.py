"""Defects to plant: each takes one precaution away from the product. The simulation is worth something only if it notices.

Where one precaution is healed by another, both are said, and planted away together as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import telemetry.consumer.batch
import telemetry.consumer.progress
import telemetry.consumer.resume
import telemetry.consumer.worker
import telemetry.vehicle.spool
import telemetry.vehicle.vehicle
from telemetry.consumer.store import PostgresStore

from simulation import disk, postgres
from simulation.clients import Future, ProducerClient, RecordMetadata
from simulation.kafka import TOPIC

# Kafka


def acks_of_one(cluster: Any, **configuration: Any) -> ProducerClient:
    """The leader's word is enough."""
    return ProducerClient(cluster, **configuration | {"acks": 1})


class Flushing(ProducerClient):
    """What was sent counts as stored: flush() raises nothing, whatever Kafka answered."""

    def send(self, *arguments: Any, **named: Any) -> Future:
        """See KafkaProducer."""
        super().send(*arguments, **named)
        flushed = Future(self.process)
        flushed.resolve(RecordMetadata(TOPIC, 0, 0))
        return flushed


# The store. Mixins of PostgresStore, so that some can be planted together.


class OffsetsFirst(PostgresStore):
    """Commits the offsets, and then the rows."""

    def _read_progress(self, cursor: Any, keys: Any) -> Any:
        self._connection.commit()
        return super()._read_progress(cursor, keys)


class Hasty(PostgresStore):
    """Keeps in its cache what was not committed."""

    def _save_progress(self, cursor: Any, found: Any, written: Any) -> None:
        super()._save_progress(cursor, found, written)
        self._progress.update({key: each.last for key, each in found.after.items()})


class Remembering(PostgresStore):
    """Keeps its cache at errors."""

    def _rollback(self) -> None:
        kept = dict(self._progress.young)
        super()._rollback()
        self._progress.update(kept)

    def close(self) -> None:
        """See PostgresStore."""
        kept = dict(self._progress.young)
        super().close()
        self._progress.update(kept)


def remembering(drop: Callable[..., Any]) -> Callable[..., Any]:
    """A worker's method that drops what is in hand, but the store's cache stays."""

    def wrapper(worker: Any) -> None:
        kept = dict(worker._store._progress.young)
        drop(worker)
        worker._store._progress.update(kept)

    return wrapper


def in_place(replacement: Any) -> Callable[[Any], Any]:
    """It, whatever was there."""
    return lambda before: replacement


def refuse_all(body: bytes, upload: Any) -> dict[int, str]:
    """All records of an upload, whatever its 422 says."""
    return {record.seq: "refused" for record in upload.records}


def growing(record: Callable[..., Any]) -> Callable[..., Any]:
    """What makes records, each a little later than all that were made before."""
    last = 0.0

    def make(seq: int, timestamp: float, *rest: Any) -> Any:
        nonlocal last
        last = max(timestamp, last + 1e-6)
        return record(seq, last, *rest)

    return make


# Statements


def set_offset(
    session: postgres.Session, end: int, timestamp: int, checksum: int, topic_id: str, number: int, start: int
) -> list[tuple[Any, ...]]:
    """UPDATE without a comparison."""
    there = postgres.offset(session, (topic_id, number))
    return postgres.move_offset(session, end, timestamp, checksum, topic_id, number, there.next if there else start)


def set_progress(session: postgres.Session, vins: list[str], epochs: list[int], *columns: list[int]) -> int:
    """The same of progress."""
    for vin, epoch, new in zip(vins, epochs, columns[-1], strict=True):
        session.lock(("progress", (vin, epoch)))
        session.begin().progress[vin, epoch] = new
    return len(vins)


def set_gaps(session: postgres.Session, vins: list[str], epochs: list[int], firsts: list[int], *columns: list[Any]) -> int:
    """Gap rows as they come."""
    gaps = zip(*columns, strict=True) if columns else [None] * len(vins)
    for key, gap in zip(zip(vins, epochs, firsts, strict=True), gaps, strict=True):
        session.lock(("gap", key))
        session.begin().gaps[key] = gap
    return len(vins)


def take_all_forms(session: postgres.Session, *rows: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Every form is one that was never seen."""
    session.begin()
    return [row[:3] for row in rows]


def forget_fingerprints(session: postgres.Session, topic: str) -> list[tuple[Any, ...]]:
    """Nothing is known of the record before the next."""
    return [(*row[:3], None, None) for row in postgres.read_offsets(session, topic)]


def read_all_gaps(session: postgres.Session, vins: list[str], epochs: list[int], *_: list[int]) -> list[tuple[Any, ...]]:
    """All open gaps of a vehicle, whatever an upload is about."""
    keys = sorted(set(zip(vins, epochs, strict=True)))
    return [(*key, *gap) for key in keys for gap in postgres.open_gaps(session.database.tables, *key)]


def drop_by_clock(session: postgres.Session) -> list[tuple[Any, ...]]:
    """Old is what is old now, whatever was stored meanwhile."""
    changes, database = session.begin(), session.database
    oldest = postgres.day_of(database.clock()) - timedelta(days=database.retention_days)
    old = [day for day in database.days if database.retention_days and day < oldest]
    changes.dropped = {min(old)} if old else set()
    return [(f"diag_{day:%Y%m%d}",) for day in changes.dropped]


@dataclass(frozen=True)
class Defect:
    """What is different."""

    stores: tuple[type[PostgresStore], ...] = ()
    """Mixins of the store."""
    producer_client: Callable[..., Any] | None = None
    attributes: tuple[tuple[Any, str, Callable[[Any], Any]], ...] = ()
    """What is replaced where, and what makes the replacement of what was there."""
    statements: tuple[tuple[str, Callable[..., Any]], ...] = ()
    """How statements begin that Postgres performs otherwise."""
    ages_by_wall_clock: bool = False
    """Whether the spool's clock of ages is one that jumps."""
    healed_by: str = ""
    """What heals it, if it is planted alone; then only its combinations are caught."""


OFFSETS, PROGRESS, GAPS = "offsets set without comparing", "progress set without comparing", "gaps set without comparing"
NO_GUARD = "days without their guard index"
HASTY, AT_ERRORS = "a cache advanced before COMMIT", "a cache kept at errors"
AT_CHANGES = "a cache kept when partitions change hands"

DEFECTS = {
    "acks=1": Defect(producer_client=acks_of_one),
    "an answer from flush": Defect(producer_client=Flushing),
    "offsets committed before rows": Defect((OffsetsFirst,)),
    OFFSETS: Defect(statements=(("UPDATE stream_offset SET next = %s, last_timestamp = %s", set_offset),)),
    PROGRESS: Defect(
        statements=(("INSERT INTO progress", set_progress), ("UPDATE progress", set_progress)),
        healed_by="the comparison of offsets, and caches that are emptied when partitions change hands",
    ),
    GAPS: Defect(
        statements=(("INSERT INTO gap", set_gaps), ("DELETE FROM gap", set_gaps)),
        healed_by="the comparisons of offsets and of progress",
    ),
    NO_GUARD: Defect(
        attributes=((postgres.Database, "guarded", in_place(False)),), healed_by="progress, which knows what is a repeat"
    ),
    HASTY: Defect((Hasty,), healed_by="caches that are emptied at errors, by the store and by the worker"),
    AT_ERRORS: Defect((Remembering,), healed_by="the worker, which empties the cache before it reads on after an error"),
    AT_CHANGES: Defect(
        attributes=((telemetry.consumer.worker.Worker, "_reset", remembering),),
        healed_by="the comparison of progress, and the store, which empties its cache when that fails",
    ),
    "forms not remembered": Defect(statements=(("INSERT INTO form_seen", take_all_forms),)),
    "no check of a partition's place at a start": Defect(
        attributes=((telemetry.consumer.resume, "start_reason", in_place(lambda *_: None)),)
    ),
    "no fingerprint of the record before": Defect(statements=(("SELECT partition, topic_id::text, next", forget_fingerprints),)),
    "seq <= last taken as duplicate inside a gap": Defect(
        attributes=((telemetry.consumer.progress, "_fill", in_place(lambda *_: False)),)
    ),
    "a spool without fsync": Defect(attributes=((disk, "SYNCHRONOUS_FULL", in_place(3)),)),
    "an epoch left out": Defect(attributes=((telemetry.vehicle.spool, "new_epoch", in_place(lambda *_: 1)),)),
    "a spool's start counter left out": Defect(
        attributes=((telemetry.vehicle.spool.Spool, "_counters", in_place(lambda _: (0, 0))),)
    ),
    "ages by the wall clock": Defect(ages_by_wall_clock=True),
    "times that only grow": Defect(attributes=((telemetry.vehicle.vehicle, "Record", growing),)),
    "append times believed": Defect(attributes=((telemetry.consumer.batch, "append_time", in_place(lambda at, *_: at)),)),
    "all gaps of a vehicle read": Defect(statements=(("SELECT wanted.vin, wanted.epoch, found.*", read_all_gaps),)),
    "days dropped by the database's clock": Defect(statements=(("SELECT drop_days()", drop_by_clock),)),
    "any 200 believed": Defect(attributes=((telemetry.vehicle.vehicle, "confirms", in_place(lambda *_: True)),)),
    "any 422 believed": Defect(attributes=((telemetry.vehicle.vehicle, "rejected", in_place(refuse_all)),)),
}
"""Each takes one precaution away."""

TOGETHER = (
    (PROGRESS, OFFSETS),
    (PROGRESS, AT_CHANGES),
    (HASTY, AT_ERRORS, AT_CHANGES),
    (AT_ERRORS, AT_CHANGES),
    (NO_GUARD, PROGRESS, AT_CHANGES),
)
"""Defects each of which is healed by what another one takes away."""

CAUGHT = [name for name, defect in DEFECTS.items() if not defect.healed_by] + [" + ".join(names) for names in TOGETHER]
"""What must be caught."""


@contextmanager
def planted(names: str) -> Iterator[dict[str, Any]]:
    """The product with one defect, or with some that are joined by ` + `; gives the arguments of World."""
    defects = [DEFECTS[name] for name in names.split(" + ")]
    stores = tuple(store for defect in defects for store in defect.stores)
    arguments: dict[str, Any] = {"store": type("Planted", (*stores, PostgresStore), {})} if stores else {}
    with ExitStack() as stack:
        for defect in defects:
            if defect.ages_by_wall_clock:
                arguments["ages_by_wall_clock"] = True
            if defect.producer_client is not None:
                arguments["producer_client"] = defect.producer_client
            for target, attribute, make in defect.attributes:
                stack.enter_context(patch.object(target, attribute, make(getattr(target, attribute))))
            for beginning, perform in defect.statements:
                found = {statement: perform for statement in postgres.STATEMENTS if statement.startswith(beginning)}
                assert found, f"Postgres knows no statement that begins with {beginning}"
                stack.enter_context(patch.dict(postgres.STATEMENTS, found))
        yield arguments
