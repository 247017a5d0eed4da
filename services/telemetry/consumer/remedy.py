"""What an operator does about a partition that stopped, about dead letters, and about records that Kafka does not delete.

Runs inside a consumer's container, which reaches Kafka and Postgres:

    python -m telemetry remedy partitions                       what is stored, what the log holds, and what to do
    python -m telemetry remedy rewind PARTITION                 read the log again from its start: repeats are harmless
    python -m telemetry remedy accept_loss PARTITION FROM TO    give up exactly these offsets, and note them in lost_range
    python -m telemetry remedy dead_letters                     dead letters that were not put back
    python -m telemetry remedy redrive PARTITION OFFSET         put one back into the topic; repaired bytes may come by stdin
    python -m telemetry remedy stored                           what Kafka still holds of what is stored, and since when
    python -m telemetry remedy delete_stored PARTITION [BEFORE] delete from Kafka what is stored, below an offset if one is given

Every answer is a line of JSON. Nothing is changed that is not exactly as it was asked for.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from typing import Any, Protocol

import psycopg2
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from telemetry import record as records
from telemetry import topic as topics
from telemetry.clients import REQUEST_TIMEOUT, client_errors, connect_admin, make_client, options
from telemetry.consumer.batch import Fingerprint, Place, Run, crc, received_at
from telemetry.consumer.resume import other_record, place_in, read_again, start_reason, unreadable_before, way_on
from telemetry.consumer.store import PostgresStore, StoreError, move_offset
from telemetry.record import KAFKA_HEADERS, MAX_BODY, Refused
from telemetry.settings import ConsumerSettings
from telemetry.topic import Stamps
from telemetry.wire import Unreadable

SEND_TIMEOUT = 10.0


class RemedyError(Exception):
    """It is not done; the text says why, and what to do."""


class Log(Protocol):
    """The live topic."""

    def describe(self) -> topics.Topic:
        """What it is. Raises RemedyError if there is none."""

    def bounds(self, partition: int) -> tuple[int, int]:
        """First offset held, and the offset after the last."""

    def unreadable(self, partition: int, offset: int) -> Unreadable | None:
        """What cannot be read from `offset` on; None if something can be read there.

        A checksum covers all that a producer sent in one batch: with one record of it the others are lost.
        """

    def fingerprint(self, partition: int, offset: int) -> Fingerprint | None:
        """What the record at an offset looks like; None if it cannot be read."""

    def send(self, partition: int, key: bytes, value: bytes) -> int:
        """Put an upload in; returns its offset when all in-sync replicas hold it."""

    def stamps(self) -> dict[int, Stamps]:
        """Append times that the log of each partition with a leader holds."""

    def delete_before(self, partition: int, offset: int) -> int:
        """Delete what is below an offset; returns the first offset held."""


def partitions(log: Log, places: dict[int, list[Place]], name: str) -> list[dict[str, Any]]:
    """What each partition is, in words and numbers; `do` is the command that leads on, if one is needed."""
    topic = log.describe()
    found = []
    for each in topic.partitions:
        known = places.get(each.number, [])
        here = place_in(known, topic.topic_id)
        start, end = log.bounds(each.number)
        following = here.next if here else 0
        reason = start_reason(name, each.number, topic.topic_id, known, start, end)
        todo = ""
        if reason and start > following:
            todo = way_on(each.number, following, start - 1)
        elif reason:
            todo = read_again(each.number)
        elif broken := log.unreadable(each.number, following) if following < end else None:
            reason = f"offsets {broken.first} to {broken.last} of partition {each.number} cannot be read: {broken.reason}"
            todo = way_on(each.number, broken.first, broken.last)
        elif fault := fault_before(log, name, each.number, here, start):
            reason, todo = fault, read_again(each.number)
        found.append(
            {"partition": each.number, "next": following, "log_start": start, "log_end": end, "reason": reason or "", "do": todo}
        )
    return found


def fault_before(log: Log, name: str, partition: int, place: Place | None, start: int) -> str:
    """What is wrong with the record before the next one, if it is still held: it should be the one that was stored."""
    if place is None or place.before.crc is None or start >= place.next:
        return ""
    last = place.next - 1
    if broken := log.unreadable(partition, last):
        return unreadable_before(name, partition, last, broken.reason)
    return "" if log.fingerprint(partition, last) in (None, place.before) else other_record(name, partition, last)


def accept_loss(connection: Any, log: Log, topic: str, partition: int, first: int, last: int) -> dict[str, Any]:
    """Give up offsets first..last, which must be exactly those that are lost: below the log's start, or up to an unreadable record.

    The offset moves by compare-and-set in the transaction that notes the range. Raises RemedyError.
    """
    live = log.describe()
    start, end = log.bounds(partition)
    if first <= last == start - 1:
        reason = "deleted before it was stored"
    elif (
        start <= first <= last < end
        and (broken := log.unreadable(partition, first))
        and (broken.first, broken.last) == (first, last)
    ):
        reason = f"unreadable: {broken.reason}"
    else:
        raise RemedyError(
            f"Offsets {first} to {last} of partition {partition} are not what is lost: the log holds {start} to {end - 1}. "
            "Ask for the exact range first, and give it as it is told."
        )
    with connection, connection.cursor() as cursor:
        if move_offset(cursor, live.topic_id, topic, Run(partition, first, last + 1, ())) is None:
            raise RemedyError(f"Partition {partition} does not go on at offset {first} any more. Ask again what is lost.")
        note_lost(cursor, live.topic_id, Run(partition, first, last + 1, ()), topic, reason)
    return {"partition": partition, "lost_from": first, "lost_to": last, "reason": reason, "next": last + 1}


NOTE_LOST = (
    "INSERT INTO lost_range (topic_id, partition, from_offset, to_offset, topic, reason) "
    "VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING"
)
NOTED = "SELECT to_offset FROM lost_range WHERE topic_id = %s AND partition = %s AND from_offset = %s"


def note_lost(cursor: Any, topic_id: uuid.UUID, lost: Run, topic: str, reason: str) -> None:
    """Note what is lost; what was given up before, and is given up again after the log was read again, is noted already."""
    first = lost.start
    while first < lost.end:
        cursor.execute(NOTE_LOST, (str(topic_id), lost.partition, first, lost.end - 1, topic, reason))
        if cursor.rowcount == 1:
            return
        cursor.execute(NOTED, (str(topic_id), lost.partition, first))
        first = cursor.fetchone()[0] + 1


def rewind(connection: Any, log: Log, topic: str, partition: int) -> dict[str, Any]:
    """Read a partition again from its log's start. Never forward: raises RemedyError where that would pass over offsets."""
    live = log.describe()
    start, _ = log.bounds(partition)
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT topic_id::text, next FROM stream_offset WHERE topic = %s AND partition = %s FOR UPDATE", (topic, partition)
        )
        known = {uuid.UUID(topic_id): following for topic_id, following in cursor.fetchall()}
        following = known.get(live.topic_id, 0)
        if start > following:
            raise RemedyError(
                f"The log of partition {partition} begins at {start}, after offset {following}, which is next: "
                f"going there would lose offsets. Accept that loss: {way_on(partition, following, start - 1)}"
            )
        if live.topic_id in known:
            cursor.execute(
                "UPDATE stream_offset SET next = %s, last_timestamp = NULL, last_crc = NULL WHERE topic_id = %s AND partition = %s",
                (start, str(live.topic_id), partition),
            )
        for gone in set(known) - {live.topic_id}:
            # What the old topic held beyond is nobody's to know: noted from where it ended, so that it can be found
            unknown = Run(partition, known[gone], 2**63, ())
            note_lost(cursor, gone, unknown, topic, "the topic was made again; whether it held these is not known")
            cursor.execute(
                "UPDATE stream_offset SET topic = %s WHERE topic_id = %s AND partition = %s",
                (f"{topic} {gone}", str(gone), partition),
            )
    return {"partition": partition, "next": start if live.topic_id in known else 0}


def dead_letters(connection: Any, topic: str) -> list[dict[str, Any]]:
    """Dead letters that were not put back, the oldest first."""
    with connection, connection.cursor() as cursor:
        cursor.execute(
            'SELECT partition, "offset", reason, coalesce(length(value), 0), noted_at::text FROM dead_letter '
            'WHERE topic = %s AND redriven_at IS NULL ORDER BY noted_at, partition, "offset" LIMIT 1000',
            (topic,),
        )
        names = ("partition", "offset", "reason", "bytes", "noted_at")
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def redrive(connection: Any, log: Log, topic: str, partition: int, offset: int, repaired: bytes) -> dict[str, Any]:
    """Put one dead letter back as a new record, as it was or repaired; it is marked, so that nobody puts it back again.

    The row is locked from before the sending until after the mark. If the mark is lost then, a second try sends the same identities
    again, which is harmless. Raises RemedyError.
    """
    live = log.describe()
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT topic_id::text, value, redriven_at::text FROM dead_letter "
            'WHERE topic = %s AND partition = %s AND "offset" = %s '
            "ORDER BY noted_at DESC LIMIT 1 FOR UPDATE",
            (topic, partition, offset),
        )
        row = cursor.fetchone()
        if row is None:
            raise RemedyError(f"There is no dead letter at offset {offset} of partition {partition}.")
        topic_id, value, redriven_at = row
        if redriven_at is not None:
            raise RemedyError(f"The dead letter at offset {offset} of partition {partition} was put back at {redriven_at}.")
        content = repaired or bytes(value or b"")
        try:
            upload = records.decode(content)
        except Refused as refused:
            why = refused.message if not refused.rejected else refused.rejected[:3]
            raise RemedyError(f"These bytes would be a dead letter again: {why} Give repaired ones.") from refused
        key = upload.vin.encode()
        to = topics.partition_of(key, len(live.partitions))
        cursor.execute(
            'UPDATE dead_letter SET redriven_at = now() WHERE topic_id = %s AND partition = %s AND "offset" = %s',
            (topic_id, partition, offset),
        )
        sent = log.send(to, key, content)
    return {"vin": upload.vin, "epoch": upload.epoch, "records": len(upload.records), "partition": to, "offset": sent}


def time_text(milliseconds: int) -> str:
    """An append time, which may be any that 64 bits hold: as a date where it has one."""
    try:
        return received_at(milliseconds).isoformat()
    except OverflowError:
        return f"{milliseconds} ms since 1970"


def stored(connection: Any, log: Log, topic: str) -> list[dict[str, Any]]:
    """What Kafka still holds of what is stored: how much, since when, and the first record that is stamped far ahead."""
    live, stamps = log.describe(), log.stamps()
    found = []
    for number in sorted(stamps):
        place = place_of(connection, topic, live.topic_id, number)
        start, end = log.bounds(number)
        following, here = place.next if place else 0, stamps[number]
        found.append(
            {
                "partition": number,
                "log_start": start,
                "next": following,
                "log_end": end,
                "stored": max(0, following - start),
                "oldest": "" if here.first is None else time_text(here.first),
                "ahead": "" if here.ahead is None else f"offset {here.ahead[0]}, {time_text(here.ahead[1])}",
            }
        )
    return found


def delete_stored(connection: Any, log: Log, topic: str, partition: int, before: int | None = None) -> dict[str, Any]:
    """Delete from Kafka what is stored, below `before` if it is given. Raises RemedyError for what is not, or may not be, stored.

    What is deleted cannot be read again after the database was restored from an older backup.
    """
    live = log.describe()
    place = place_of(connection, topic, live.topic_id, partition)
    start, end = log.bounds(partition)
    if place is None:
        raise RemedyError(f"Nothing of partition {partition} of this topic is stored.")
    reason = start_reason(topic, partition, live.topic_id, [place], start, end) or fault_before(log, topic, partition, place, start)
    if reason:
        raise RemedyError(f"The log is not the one that was stored from. {reason}")
    until = place.next if before is None else before
    if until > place.next:
        raise RemedyError(
            f"Partition {partition} is stored up to offset {place.next - 1}: {place.next} is the last that BEFORE may be."
        )
    left = log.delete_before(partition, until) if until > start else start
    return {"partition": partition, "deleted": max(0, left - start), "log_start": left, "next": place.next}


def place_of(connection: Any, topic: str, topic_id: uuid.UUID, partition: int) -> Place | None:
    """Where the store is in a partition of the live topic."""
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT next, last_timestamp, last_crc FROM stream_offset WHERE topic = %s AND topic_id = %s AND partition = %s",
            (topic, str(topic_id), partition),
        )
        row = cursor.fetchone()
    return None if row is None else Place(topic_id, row[0], Fingerprint(*row[1:]))


class LiveLog:
    """The topic by Kafka's clients."""

    def __init__(self, settings: ConsumerSettings) -> None:
        self._settings = settings
        self._consumer = self._reader()

    def _reader(self) -> Any:
        return make_client(
            KafkaConsumer, auto_offset_reset="none", enable_auto_commit=False, max_poll_records=1,
            **options(self._settings, f"remedy-{self._settings.name}"),
        )  # fmt: skip

    def _admin(self) -> AbstractContextManager[Any]:
        return closing(connect_admin(self._settings, f"remedy-{self._settings.name}-admin"))

    def describe(self) -> topics.Topic:
        """See Log."""
        with self._admin() as admin:
            found = topics.describe(admin, self._settings.topic, {})
        if found is None:
            raise RemedyError(f"Topic {self._settings.topic} is not there: run site.yml.")
        return found

    def bounds(self, partition: int) -> tuple[int, int]:
        """See Log."""
        place = TopicPartition(self._settings.topic, partition)
        timeout = int(REQUEST_TIMEOUT * 1000)
        start = self._consumer.beginning_offsets([place], timeout_ms=timeout)[place]
        return int(start), int(self._consumer.end_offsets([place], timeout_ms=timeout)[place])

    def unreadable(self, partition: int, offset: int) -> Unreadable | None:
        """See Log."""
        found = self._read(partition, offset)
        return found if isinstance(found, Unreadable) else None

    def fingerprint(self, partition: int, offset: int) -> Fingerprint | None:
        """See Log."""
        found = self._read(partition, offset)
        return None if found is None or isinstance(found, Unreadable) else Fingerprint(found.timestamp, crc(found.key, found.value))

    def _read(self, partition: int, offset: int) -> Any:
        """The first record from an offset on, or why it cannot be read; None if nothing comes in time.

        By a client of its own, for one that could not read a batch reads nothing more.
        """
        place = TopicPartition(self._settings.topic, partition)
        with closing(self._reader()) as reader:
            reader.assign([place])
            reader.seek(place, offset)
            try:
                found = reader.poll(timeout_ms=int(REQUEST_TIMEOUT * 1000))
            except Unreadable as error:
                return error
        return next(iter(found.get(place, [])), None)

    def stamps(self) -> dict[int, Stamps]:
        """See Log."""
        with self._admin() as admin:
            found = topics.describe(admin, self._settings.topic, {})
            return topics.stamps(admin, self._settings.topic, found, time.time()) if found else {}

    def delete_before(self, partition: int, offset: int) -> int:
        """See Log."""
        place = TopicPartition(self._settings.topic, partition)
        with self._admin() as admin:
            answer = admin.delete_records({place: offset}, timeout_ms=int(SEND_TIMEOUT * 1000))
        return int(answer[place]["low_watermark"])

    def send(self, partition: int, key: bytes, value: bytes) -> int:
        """See Log."""
        producer = make_client(
            KafkaProducer, acks="all", enable_idempotence=False, allow_auto_create_topics=False,
            max_request_size=5 * MAX_BODY, **options(self._settings, f"redrive-{self._settings.name}"),
        )  # fmt: skip
        try:
            future = producer.send(self._settings.topic, value=value, key=key, headers=KAFKA_HEADERS, partition=partition)
            return int(future.get(timeout=SEND_TIMEOUT).offset)
        finally:
            producer.close(timeout=SEND_TIMEOUT)


def integers(arguments: Sequence[str], names: str) -> list[int]:
    """Arguments as integers from 0; raises RemedyError unless they are as many as `names`."""
    if len(arguments) != len(names.split()) or not all(each.isascii() and each.isdecimal() for each in arguments):
        raise RemedyError(f"Give {names}, as integers from 0.")
    return [int(argument) for argument in arguments]


def act(settings: ConsumerSettings, connection: Any, log: Log, arguments: Sequence[str], repaired: Callable[[], bytes]) -> Any:
    """Do what the arguments ask for. Raises RemedyError."""
    command, rest, topic = arguments[0] if arguments else "", arguments[1:], settings.topic
    if command == "partitions":
        return partitions(log, PostgresStore(settings.postgres_arguments, settings.topic_retention_ms).places(topic), topic)
    if command == "dead_letters":
        return dead_letters(connection, topic)
    if command == "rewind":
        return rewind(connection, log, topic, *integers(rest, "PARTITION"))
    if command == "accept_loss":
        return accept_loss(connection, log, topic, *integers(rest, "PARTITION FROM TO"))
    if command == "redrive":
        partition, offset = integers(rest, "PARTITION OFFSET")
        return redrive(connection, log, topic, partition, offset, repaired())
    if command == "stored":
        return stored(connection, log, topic)
    if command == "delete_stored":
        return delete_stored(connection, log, topic, *integers(rest, "PARTITION BEFORE" if len(rest) > 1 else "PARTITION"))
    raise RemedyError("Ask for one of: partitions, rewind, accept_loss, dead_letters, redrive, stored, delete_stored.")


def run(settings: ConsumerSettings, arguments: Sequence[str]) -> int:
    """Print the answer as one line of JSON; 0 when it was done, 1 otherwise."""
    try:
        with client_errors(), closing(psycopg2.connect(**settings.postgres_arguments())) as connection:
            answer = act(settings, connection, LiveLog(settings), arguments, lambda: sys.stdin.buffer.read())
    except (RemedyError, StoreError, KafkaError, OSError, psycopg2.Error) as error:
        print(json.dumps({"error": str(error).strip()}))
        return 1
    print(json.dumps(answer))
    return 0
