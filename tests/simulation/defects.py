"""Defects to plant: each takes one precaution away from the product. The simulation is worth something only if it notices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import telemetry.consumer.progress
import telemetry.consumer.worker
import telemetry.vehicle.spool
from telemetry.consumer.batch import fingerprint
from telemetry.consumer.store import Fenced, PostgresStore, StoreError

from simulation import disk, postgres
from simulation.kafka import Future, ProducerClient


def acks_of_one(cluster: Any, **configuration: Any) -> ProducerClient:
    """The leader's word is enough."""
    return ProducerClient(cluster, **configuration | {"acks": 1})


class Flushing(ProducerClient):
    """What was sent counts as stored: flush() raises nothing, whatever Kafka answered."""

    def send(self, *arguments: Any, **named: Any) -> Future:
        """See KafkaProducer."""
        super().send(*arguments, **named)
        flushed = Future()
        flushed.resolve(("flushed",))
        return flushed


class OffsetsFirst(PostgresStore):
    """Commits the offsets, and then the rows."""

    def _read_progress(self, cursor: Any, keys: Any) -> Any:
        self._connection.commit()
        return super()._read_progress(cursor, keys)


class Careless(PostgresStore):
    """Sets offsets without comparing, and progress too. The guard index would heal nearly all of it: it goes as well."""

    def _move(self, cursor: Any, topic_id: Any, topic: str, run: Any) -> None:
        try:
            super()._move(cursor, topic_id, topic, run)
        except Fenced:
            cursor.execute(SET_OFFSET, (run.end, *fingerprint(run), str(topic_id), run.partition))


SET_OFFSET = "UPDATE stream_offset SET next = %s, last_timestamp = %s, last_crc = %s WHERE topic_id = %s AND partition = %s"


def set_offset(session: postgres.Session, end: int, timestamp: int, checksum: int, topic_id: str, number: int) -> int:
    """UPDATE without a comparison."""
    session.lock(("offset", (topic_id, number)))
    there = postgres.offset(session, (topic_id, number))
    assert there is not None
    session.begin().offsets[topic_id, number] = there._replace(next=end, last_timestamp=timestamp, last_crc=checksum)
    return 1


def set_progress(session: postgres.Session, *rows: tuple[Any, ...]) -> int:
    """The same of progress."""
    for vin, epoch, *_, new in rows:
        session.lock(("progress", (vin, epoch)))
        session.begin().progress[vin, epoch] = new
    return len(rows)


def set_gaps(session: postgres.Session, *rows: tuple[Any, ...]) -> int:
    """Gap rows as they come."""
    for vin, epoch, first, *rest in rows:
        session.lock(("gap", (vin, epoch, first)))
        session.begin().gaps[vin, epoch, first] = tuple(rest) if rest else None
    return len(rows)


CARELESS: dict[str, Callable[..., Any]] = {
    statement: set_progress if " progress " in statement else set_gaps
    for statement in postgres.STATEMENTS
    if statement.startswith(("INSERT INTO progress", "UPDATE progress", "INSERT INTO gap", "DELETE FROM gap"))
}


class Hasty(PostgresStore):
    """Keeps in its cache what was not committed. Emptying it at errors and comparing stored progress would each heal that."""

    def _save_progress(self, cursor: Any, found: Any, written: Any) -> None:
        super()._save_progress(cursor, found, written)
        self._progress.update(found.after)

    def _broken(self, error: Any) -> StoreError:
        kept = dict(self._progress)
        known = super()._broken(error)
        self._progress.update(kept)
        return known


def wait_and_remember(consumer: Any, longest: float) -> None:
    """Consumer._wait, but the store's cache stays."""
    kept = dict(consumer._store._progress)
    WAIT(consumer, longest)
    consumer._store._progress.update(kept)


WAIT = telemetry.consumer.worker.Worker._wait


@dataclass(frozen=True)
class Defect:
    """What is different: arguments of World, attributes, and statements of Postgres."""

    arguments: dict[str, Any] = field(default_factory=dict)
    attributes: tuple[tuple[Any, str, Any], ...] = ()
    statements: dict[str, Callable[..., Any]] = field(default_factory=dict)


DEFECTS = {
    "acks=1": Defect({"producer_client": acks_of_one}),
    "an answer from flush": Defect({"producer_client": Flushing}),
    "offsets committed before rows": Defect({"store": OffsetsFirst}),
    "no compare-and-set": Defect(
        {"store": Careless}, ((postgres.Database, "guarded", False),), CARELESS | {SET_OFFSET: set_offset}
    ),
    "a cache advanced before COMMIT": Defect(
        {"store": Hasty}, ((telemetry.consumer.worker.Worker, "_wait", wait_and_remember),), CARELESS
    ),
    "seq <= last taken as duplicate inside a gap": Defect(attributes=((telemetry.consumer.progress, "_fill", lambda *_: False),)),
    "a spool without fsync": Defect(attributes=((disk, "SYNCHRONOUS_FULL", 3),)),
    "an epoch left out": Defect(attributes=((telemetry.vehicle.spool, "new_epoch", lambda *_: 1),)),
}


@contextmanager
def planted(name: str) -> Iterator[dict[str, Any]]:
    """The product with one defect, by its name; gives the arguments of World."""
    defect = DEFECTS[name]
    with ExitStack() as stack:
        for target, attribute, value in defect.attributes:
            stack.enter_context(patch.object(target, attribute, value))
        stack.enter_context(patch.dict(postgres.STATEMENTS, defect.statements))
        yield defect.arguments
