"""What a batch does: which of its records are rows, repeats, forms and dead letters. Pure; the store carries it out.

A batch is made of runs: the Kafka records of one partition from `start` to `end` without a hole.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from crc32c import crc32c

from telemetry import record as records
from telemetry.consumer.progress import Extent, Progress, Span, lose, needed, walk
from telemetry.record import FORM_EPOCH, KAFKA_HEADERS, VALUES, VERSION, Record, Refused, Upload

Key = tuple[str, int]
"""(vin, epoch)"""


DAY = 86_400_000
"""Milliseconds of a day."""


class TopicRecord(NamedTuple):
    """One Kafka record as it was read. timestamp is Kafka's append time in ms since 1970."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()


@dataclass(frozen=True)
class Run:
    """Kafka records of one partition, offsets start..end-1 without a hole."""

    partition: int
    start: int
    end: int
    records: tuple[TopicRecord, ...]


class Fingerprint(NamedTuple):
    """What the record before an offset looked like; None where it is not known."""

    timestamp: int | None
    crc: int | None


@dataclass(frozen=True)
class Place:
    """A partition's place in the topic as the store knows it."""

    topic_id: uuid.UUID
    next: int
    before: Fingerprint


@dataclass
class Written:
    """What a batch did, for metrics and alarms."""

    rows: int = 0
    repeats: int = 0
    conflicts: int = 0
    clock_faults: int = 0
    """Kafka records that were stored, or are dead letters, with the transaction's time: their append time was not believed."""
    gaps_undeclared: int = 0
    gaps_declared: int = 0
    dead_letters: int = 0
    guarded: int = 0
    """Rows that the guard index refused; progress should have known them."""


def crc(key: bytes | None, value: bytes | None) -> int:
    """CRC-32C over key and value."""
    return int(crc32c((key or b"") + (value or b"")))


def fingerprint(run: Run) -> Fingerprint:
    """Of the record right before the run's end, if it is in the run."""
    if run.records and run.records[-1].offset == run.end - 1:
        last = run.records[-1]
        return Fingerprint(last.timestamp, crc(last.key, last.value))
    return Fingerprint(None, None)


def append_time(timestamp: int, here: int, topic_retention_ms: int) -> int:
    """Kafka's append time in ms since 1970, or `here`, the database's time, where it cannot be right.

    It is not believed where it is more than a day ahead, or older than what the topic can hold by more than a day.
    """
    return timestamp if here - topic_retention_ms - DAY <= timestamp <= here + DAY else here


def received_at(timestamp: int) -> datetime:
    """An append time that is believed, as a point in time."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=timestamp)


class Row(NamedTuple):
    """One row to insert: a record and what surrounds it."""

    upload: Upload
    record: Record
    source: TopicRecord


def values_of(record: Record) -> tuple[float, ...]:
    """What two records with one identity must share, beside make and model."""
    return tuple(float(getattr(record, name)) for name in VALUES)


def form_hash(upload: Upload) -> bytes:
    """Over everything that a form client said; -0 is 0, as in the database."""
    spoken = json.dumps([upload.make, upload.model, *(value + 0.0 for value in values_of(upload.records[0]))])
    return hashlib.sha256(spoken.encode()).digest()


USUAL_HEADERS = tuple(KAFKA_HEADERS)


def decode(source: TopicRecord) -> Upload:
    """The upload in a Kafka record; raises Refused if there is none."""
    if source.value is None:
        raise Refused(400, "empty", "The Kafka record has no value.")
    version = dict(source.headers).get("v", VERSION)
    if version != VERSION:
        found = (version or b"")[:20]
        raise Refused(400, "version", f"The upload is of version {found!r}; this consumer knows {VERSION.decode()}.")
    if source.headers != USUAL_HEADERS:
        _check_names(source.headers)
    return records.decode(source.value)


def _check_names(headers: Iterable[tuple[str, bytes | None]]) -> None:
    """Raise Refused where a header's name is not UTF-8: a Kafka client need not be able to read such a record."""
    for name, _ in headers:
        try:
            name.encode()
        except UnicodeEncodeError:
            raw = name.encode(errors="surrogateescape")[:50]
            raise Refused(400, "header", f"The name of a header is not UTF-8: {raw!r}.") from None


@dataclass
class Plan:
    """What a batch does, before the database has its say on repeats."""

    rows: list[Row] = field(default_factory=list)
    repeats: list[Row] = field(default_factory=list)
    forms: list[Row] = field(default_factory=list)
    dead: list[tuple[TopicRecord, str]] = field(default_factory=list)
    before: dict[Key, Progress] = field(default_factory=dict)
    after: dict[Key, Progress] = field(default_factory=dict)
    filled: dict[Key, list[Span]] = field(default_factory=dict)


class Decoded(NamedTuple):
    """A Kafka record and what it is: an upload, or the reason why it is not one and the range that it may have held."""

    source: TopicRecord
    upload: Upload | None
    reason: str = ""
    lost: tuple[str, int, int, int] | None = None

    @property
    def key(self) -> Key | None:
        """The (vin, epoch) that it moves, if any."""
        if self.upload is not None:
            return (self.upload.vin, self.upload.epoch) if self.upload.epoch != FORM_EPOCH else None
        return self.lost[:2] if self.lost else None

    @property
    def extent(self) -> Extent:
        """The seqs that it covers; it has a key."""
        if self.upload is None:
            assert self.lost is not None
            return Extent(*self.lost[2:], record=False)
        first = self.upload.first_seq
        return Extent(first, self.upload.last_seq, record=bool(self.upload.records) and self.upload.records[0].seq == first)


def decode_all(runs: Iterable[Run], dead: dict[tuple[int, int], str]) -> list[Decoded]:
    """All records of the runs in order; `dead` names those that the database refused before, with the reason."""
    found = []
    for run in runs:
        for source in run.records:
            reason = dead.get((source.partition, source.offset))
            if reason is None:
                try:
                    found.append(Decoded(source, decode(source)))
                    continue
                except Refused as refused:
                    reason = refused.message if not refused.rejected else f"{refused.error}: {refused.rejected[:3]}"
            found.append(Decoded(source, None, reason, records.salvage(source.value or b"")))
    return found


def believe(decoded: list[Decoded], now: datetime, topic_retention_ms: int) -> tuple[list[Decoded], set[tuple[int, int]]]:
    """The records with append times that can be right; and partition and offset of those that got the database's time, `now`."""
    here, believed, faults = int(now.timestamp() * 1000), [], set()
    for each in decoded:
        at = append_time(each.source.timestamp, here, topic_retention_ms)
        if at == each.source.timestamp:
            believed.append(each)
        else:
            believed.append(each._replace(source=each.source._replace(timestamp=at)))
            faults.add(each.source[:2])
    return believed, faults


def needed_gaps(decoded: Iterable[Decoded], lasts: Mapping[Key, int]) -> list[tuple[str, int, int, int]]:
    """(vin, epoch, first, last): where open gaps must be known before these records are walked; `lasts` is what is stored."""
    extents: dict[Key, list[Extent]] = {}
    for each in decoded:
        if each.key and lasts[each.key]:
            extents.setdefault(each.key, []).append(each.extent)
    return [(*key, *each) for key, of_key in extents.items() for each in needed(lasts[key], of_key)]


def plan(decoded: Iterable[Decoded], progress: Callable[[Key], Progress]) -> Plan:
    """Walk all records in order."""
    found = Plan()
    for each in decoded:
        key, source = each.key, each.source
        if each.upload is None:
            found.dead.append((source, each.reason))
        elif key is None:
            found.forms.append(Row(each.upload, each.upload.records[0], source))
        if key is None:
            continue
        now = found.after.get(key) or found.before.setdefault(key, progress(key))
        if each.upload is not None:
            step = walk(now, each.upload.records, each.upload.gaps)
        else:
            assert each.lost is not None
            step = lose(now, each.lost[2], each.lost[3])
        found.after[key] = step.progress
        found.filled.setdefault(key, []).extend(step.filled)
        if each.upload is not None:
            found.rows += [Row(each.upload, record, source) for record in step.insert]
            found.repeats += [Row(each.upload, record, source) for record in step.repeats]
    return found


def changed_gaps(before: Progress, after: Progress, filled: Sequence[Span]) -> tuple[list[Span], list[Span]]:
    """Gap rows to remove and to add."""
    if before.gaps == after.gaps and not filled:
        return [], []
    old, new = set(before.gaps), set(after.gaps)
    return [span for span in before.gaps if span not in new], [span for span in after.gaps if span not in old] + list(filled)


def halves(run: Run) -> tuple[Run, Run]:
    """A run of two or more records, cut in two."""
    middle = len(run.records) // 2
    cut = run.records[middle].offset
    return (
        replace(run, end=cut, records=run.records[:middle]),
        replace(run, start=cut, records=run.records[middle:]),
    )


def add(total: Written, part: Written) -> None:
    """Add up what two batches did."""
    for name, value in vars(part).items():
        setattr(total, name, getattr(total, name) + value)
