"""The walk: what of an upload is new, what is a repeat, and which seqs are gaps. No I/O.

For every (vin, epoch) with epoch >= 1 there is a `last`, from 0 on, and the open gaps below it. Records and gaps of an upload are
walked together in the order of seq:

- a record at last + 1 is inserted and advances; one beyond opens an undeclared gap first;
- a record at or below last that lies in an open gap is inserted, and its seq of the gap turns filled;
- any other record at or below last is a repeat;
- of a declared gap the part above last opens a declared gap and advances, after an undeclared one for a hole before it; the part
  at or below last turns undeclared gaps declared;
- gaps that come to touch are one gap, if they are of one state and reason.

So the rows ever inserted and the open gaps are exactly 1..last, and no seq is in both.

A sender may pile up any number of open gaps. A walk asks for those alone that overlap or touch its upload (`needed` says which
seqs that are), finds each by bisection, and costs what the upload and those gaps cost.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from telemetry.record import Gap, Record

UNDECLARED, DECLARED, FILLED = "undeclared", "declared", "filled"
MISSING = "missing"
"""Reason of an undeclared gap that a later record revealed."""
DEAD_LETTER = "dead_letter"
"""Reason of an undeclared gap whose upload is a dead letter."""


class Span(NamedTuple):
    """Seqs first..last, both included, of one state and reason."""

    first: int
    last: int
    state: str
    reason: str


@dataclass(frozen=True)
class Progress:
    """Where a (vin, epoch) is: the highest seq known, and those of its open gaps that matter, in ascending order."""

    last: int = 0
    gaps: tuple[Span, ...] = ()


@dataclass
class Step:
    """What one upload does to a (vin, epoch)."""

    progress: Progress
    insert: list[Record] = field(default_factory=list)
    repeats: list[Record] = field(default_factory=list)
    filled: list[Span] = field(default_factory=list)


class Extent(NamedTuple):
    """Seqs first..last of an upload, and whether the first is a record's."""

    first: int
    last: int
    record: bool


def needed(last: int, extents: Iterable[Extent]) -> list[tuple[int, int]]:
    """The seqs whose open gaps must be known before uploads are walked one after the other, as ranges; `last` is what is stored."""
    ranges, now = [], last
    for each in extents:
        follows = each.record and each.first == now + 1
        # What begins at or below `last`, or opens a gap right above it
        if each.first <= last or (now == last and not follows):
            ranges.append((min(each.first, last + 1) - 1, min(each.last, last) + 1))
        now = max(now, each.last)
    return ranges


def walk(progress: Progress, records: Sequence[Record], gaps: Sequence[Gap]) -> Step:
    """Walk one upload; records ascend by seq, and none lies in a gap (record.decode sees to that).

    progress.gaps holds all open gaps in the ranges that `needed` names; others change nothing.
    """
    last = progress.last
    if not gaps and records and records[0].seq == last + 1 and records[-1].seq - records[0].seq == len(records) - 1:
        # What nearly always comes
        return Step(Progress(records[-1].seq, progress.gaps), list(records))
    step = Step(progress)
    spans = list(progress.gaps)
    items: list[tuple[int, Record | Gap]] = [(record.seq, record) for record in records]
    items += [(gap.from_seq, gap) for gap in gaps]
    items.sort(key=lambda item: item[0])
    for _, item in items:
        if isinstance(item, Gap):
            last = _declare(spans, last, item)
        elif item.seq > last:
            _open(spans, last + 1, item.seq - 1, UNDECLARED, MISSING)
            step.insert.append(item)
            last = item.seq
        elif _fill(spans, item.seq, step.filled):
            step.insert.append(item)
        else:
            step.repeats.append(item)
    step.progress = Progress(last, tuple(spans))
    return step


def lose(progress: Progress, first: int, last: int) -> Step:
    """Seqs first..last were in an upload that is a dead letter: what of them is above last opens an undeclared gap."""
    if last <= progress.last:
        return Step(progress)
    spans = list(progress.gaps)
    _open(spans, progress.last + 1, first - 1, UNDECLARED, MISSING)
    _open(spans, max(first, progress.last + 1), last, UNDECLARED, DEAD_LETTER)
    return Step(Progress(last, tuple(spans)))


def _declare(spans: list[Span], last: int, gap: Gap) -> int:
    """Take a declared gap in; returns the new last."""
    start = bisect_left(spans, gap.from_seq, key=lambda span: span.last)
    stop = bisect_right(spans, gap.to_seq, key=lambda span: span.first)
    parts: list[Span] = []
    for span in spans[start:stop]:
        if span.state != UNDECLARED:
            parts.append(span)
            continue
        first, end = max(span.first, gap.from_seq), min(span.last, gap.to_seq)
        declared = Span(first, end, DECLARED, gap.reason)
        around = (span._replace(last=first - 1), declared, span._replace(first=end + 1))
        parts += [part for part in around if part.first <= part.last]
    if parts:
        _put(spans, start, stop, parts)
    _open(spans, last + 1, gap.from_seq - 1, UNDECLARED, MISSING)
    _open(spans, max(gap.from_seq, last + 1), gap.to_seq, DECLARED, gap.reason)
    return max(last, gap.to_seq)


def _open(spans: list[Span], first: int, last: int, state: str, reason: str) -> None:
    """Open a gap above all others, if it has any seq."""
    if first <= last:
        _put(spans, len(spans), len(spans), [Span(first, last, state, reason)])


def _put(spans: list[Span], start: int, stop: int, parts: Iterable[Span]) -> None:
    """Replace spans[start:stop], and join what touches, the neighbours included."""
    before, after = max(start - 1, 0), stop + 1
    joined: list[Span] = []
    for span in (*spans[before:start], *parts, *spans[stop:after]):
        if joined and joined[-1].last + 1 == span.first and joined[-1][2:] == span[2:]:
            joined[-1] = joined[-1]._replace(last=span.last)
        else:
            joined.append(span)
    spans[before:after] = joined


def _fill(spans: list[Span], seq: int, filled: list[Span]) -> bool:
    """Take seq out of the open gap it lies in, if it does, and note it as filled."""
    index = bisect_right(spans, seq, key=lambda span: span.first) - 1
    if index < 0 or spans[index].last < seq:
        return False
    span = spans[index]
    spans[index : index + 1] = [
        part for part in (span._replace(last=seq - 1), span._replace(first=seq + 1)) if part.first <= part.last
    ]
    if filled and filled[-1].last == seq - 1 and filled[-1].reason == span.reason:
        filled[-1] = filled[-1]._replace(last=seq)
    else:
        filled.append(Span(seq, seq, FILLED, span.reason))
    return True
