"""What a fetched batch of Kafka records holds, read by us in place of the client library.

A broker keeps bytes that kafka-python 3.0.12 does not read: header names that are not UTF-8, a first byte of a record other than 0,
numbers in more bytes than they need. The library then raises an error without a place, and its client reads nothing more. Here each
record of a batch is read: one that cannot be taken apart is whole in the value of a record whose version nobody knows, so it
is a dead letter like any other. Only a batch with a wrong checksum cannot be read, and Unreadable says where it is.

The format is that of Kafka's DefaultRecordBatch and DefaultRecord; versions before it are not in logs of Kafka 3 and later.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from kafka import TopicPartition
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import CorruptRecordError, KafkaError

RELEASE = "3.0.12"
"""The release of kafka-python whose reading this replaces; a test compares."""
FORMAT = 2
UNPARSABLE = b"unparsable"
"""The version of a record that cannot be taken apart."""
ONE_HEADER, ONLY_VERSION = b"\x02\x02v\x021", ("v", b"1")
"""The end of nearly every record, and what it says."""
INT, LONG = 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF
LONGEST = 63


class Unreadable(CorruptRecordError):  # type: ignore[misc]  # kafka-python has no types
    """Offsets first..last of a partition are in a batch that cannot be read; the text names partition and offset."""

    def __init__(self, place: TopicPartition, first: int, last: int, reason: str) -> None:
        super().__init__(f"{place} at offset {first}: {reason}")
        self.partition, self.first, self.last, self.reason = place.partition, first, last, reason


class Content(NamedTuple):
    """A record without its place; created is ms since the batch's first."""

    created: int
    delta: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


def varint(buffer: bytes, at: int, mask: int = INT) -> tuple[int, int]:
    """The number at a place, and the place after it; bits beyond the mask are dropped, as Kafka does.

    Raises ValueError or IndexError where there is no number.
    """
    byte = buffer[at]
    if byte < 0x80:
        return (byte >> 1) ^ -(byte & 1), at + 1
    bits, shift = byte & 0x7F, 7
    while byte >= 0x80:
        if shift > LONGEST:
            raise ValueError("a number does not end")
        at += 1
        byte = buffer[at]
        bits |= (byte & 0x7F) << shift
        shift += 7
    bits &= mask
    return (bits >> 1) ^ -(bits & 1), at + 1


def name_of(raw: bytes) -> str:
    """A header's name as text; bytes that are not UTF-8 are lone surrogates, from which they can be had again."""
    return raw.decode("utf-8", "surrogateescape")


def parse(buffer: bytes, at: int, end: int) -> Content:
    """The record at..end-1, without its length. Raises ValueError or IndexError for bytes that are not one."""
    # The first byte has bits that nobody gave a meaning yet
    created, at = varint(buffer, at + 1, LONG)
    delta, at = varint(buffer, at)
    size, at = varint(buffer, at)
    key = value = None
    if size >= 0:
        key, at = buffer[at : at + size], at + size
    size, at = varint(buffer, at)
    if size >= 0:
        value, at = buffer[at : at + size], at + size
    if buffer[at:end] == ONE_HEADER:
        return Content(created, delta, key, value, [ONLY_VERSION])
    count, at = varint(buffer, at)
    headers: list[tuple[str, bytes | None]] = []
    for _ in range(count):
        size, at = varint(buffer, at)
        name, after = name_of(buffer[at : at + size]), at + size
        if not at <= after <= end:
            raise ValueError(f"a header's name of {size} bytes")
        size, at = varint(buffer, after)
        headers.append((name, buffer[at : at + size] if size >= 0 else None))
        at += max(size, 0)
    if at != end or count < 0:
        raise ValueError(f"the record ends at byte {at} and not at {end}")
    return Content(created, delta, key, value, headers)


def unparsable(raw: bytes, error: Exception) -> Content:
    """In place of a record that cannot be taken apart: its bytes, and why."""
    reason = f"{type(error).__name__}: {error}".encode("utf-8", "backslashreplace")
    return Content(0, 0, None, raw, [("v", UNPARSABLE), ("reason", reason)])


def contents(batch: Any) -> Iterator[Content]:
    """The records of a batch, as many as it says that it has."""
    left = batch.records_count
    try:
        batch._maybe_uncompress()
    except (KafkaError, ValueError, OSError, EOFError) as error:
        buffer, at = bytes(batch._buffer), batch._pos
        broken: Exception | None = error
    else:
        buffer, at, broken = bytes(batch._buffer), batch._pos, None
    while left:
        left -= 1
        if broken is None:
            try:
                length, start = varint(buffer, at)
                if not 0 <= length <= len(buffer) - start:
                    raise ValueError(f"a record of {length} bytes, of which {len(buffer) - start} are there")
            except (ValueError, IndexError) as error:
                broken = error
        if broken is not None:
            # Where the next one begins is not known: the first has all of them
            yield unparsable(buffer[at:], broken)
            at = len(buffer)
            continue
        at = start + length
        try:
            found = parse(buffer, start, at)
        except (ValueError, IndexError) as error:
            found = unparsable(buffer[start:at], error)
        yield found


def read_batches(
    part: Any, place: TopicPartition, records: Any, key_deserializer: None = None, value_deserializer: None = None
) -> Iterator[Any]:
    """In place of PartitionRecords._unpack_records: every record of what was fetched. Raises Unreadable for a wrong checksum."""
    while (batch := records.next_batch()) is not None:
        if batch.magic != FORMAT or (part.check_crcs and not batch.validate_crc()):
            raise unreadable(part, place, batch, records)
        part.leader_epoch, base = batch.leader_epoch, batch.base_offset
        # A broker looks at a batch's numbers alone: where as many records are in it as it has offsets, their own are not believed
        gapless = batch.records_count == batch.last_offset_delta + 1
        appended = batch.max_timestamp if batch.timestamp_type == batch.LOG_APPEND_TIME else None
        for index, (created, delta, key, value, headers) in enumerate(() if batch.is_control_batch else contents(batch)):
            offset = base + (index if gapless else delta)
            part.next_fetch_offset = offset + 1
            yield ConsumerRecord(
                place.topic, place.partition, part.leader_epoch, offset,
                long(batch.first_timestamp + created) if appended is None else appended, batch.timestamp_type, key, value, headers,
                None, -1 if key is None else len(key), -1 if value is None else len(value), -1,
            )  # fmt: skip
        # Markers of transactions have offsets too
        part.next_fetch_offset = batch.next_offset
    part.drain()


def unreadable(part: Any, place: TopicPartition, batch: Any, records: Any) -> Unreadable:
    """What cannot be read: from where the client is to where the next batch begins, for a broken batch may lie about its end."""
    reason = "the batch has a wrong checksum" if batch.magic == FORMAT else f"the batch is of format {batch.magic}"
    following = records.next_batch()
    last = batch.last_offset if following is None else following.base_offset - 1
    first = part.next_fetch_offset
    return Unreadable(place, first, max(first, last), reason)


def long(number: int) -> int:
    """A sum as Kafka's 64 bits hold it."""
    return (number + 2**63 & LONG) - 2**63
