"""The walk: what of an upload is new, what is a repeat, and which seqs are gaps. No I/O.

For every (vin, epoch) with epoch >= 1 there is a `last`, from 0 on, and the open gaps below it. Records and gaps of an upload are
walked together in the order of seq:

- a record at last + 1 is inserted and advances; one beyond opens an undeclared gap first;
- a record at or below last that lies in an open gap is inserted, and its seq of the gap turns filled;
- any other record at or below last is a repeat;
- of a declared gap the part above last opens a declared gap and advances, after an undeclared one for a hole before it; the part
  at or below last turns undeclared gaps declared.

So the rows ever inserted and the open gaps are exactly 1..last, and no seq is in both.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
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
    """Where a (vin, epoch) is: the highest seq known, and the open gaps in ascending order."""

    last: int = 0
    gaps: tuple[Span, ...] = ()


@dataclass
class Step:
    """What one upload does to a (vin, epoch)."""

    progress: Progress
    insert: list[Record] = field(default_factory=list)
    repeats: list[Record] = field(default_factory=list)
    filled: list[Span] = field(default_factory=list)


def walk(progress: Progress, records: Iterable[Record], gaps: Iterable[Gap]) -> Step:
    """Walk one upload; records ascend by seq, and none lies in a gap (record.decode sees to that)."""
    records, gaps = list(records), list(gaps)
    last = progress.last
    if not gaps and records and records[0].seq == last + 1 and records[-1].seq - records[0].seq == len(records) - 1:
        # What nearly always comes
        return Step(Progress(records[-1].seq, progress.gaps), records)
    step = Step(progress)
    spans = list(progress.gaps)
    items: list[tuple[int, Record | Gap]] = [(record.seq, record) for record in records]
    items += [(gap.from_seq, gap) for gap in gaps]
    items.sort(key=lambda item: item[0])
    for _, item in items:
        if isinstance(item, Gap):
            last = _declare(spans, last, item)
        elif item.seq > last:
            if item.seq > last + 1:
                spans.append(Span(last + 1, item.seq - 1, UNDECLARED, MISSING))
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
    if first > progress.last + 1:
        spans.append(Span(progress.last + 1, first - 1, UNDECLARED, MISSING))
    spans.append(Span(max(first, progress.last + 1), last, UNDECLARED, DEAD_LETTER))
    return Step(Progress(last, tuple(spans)))


def _declare(spans: list[Span], last: int, gap: Gap) -> int:
    """Take a declared gap in; returns the new last."""
    changed: list[Span] = []
    for span in spans:
        first, end = max(span.first, gap.from_seq), min(span.last, gap.to_seq)
        if span.state != UNDECLARED or first > end:
            changed.append(span)
            continue
        if span.first < first:
            changed.append(span._replace(last=first - 1))
        changed.append(Span(first, end, DECLARED, gap.reason))
        if end < span.last:
            changed.append(span._replace(first=end + 1))
    spans[:] = changed
    if gap.to_seq <= last:
        return last
    if gap.from_seq > last + 1:
        spans.append(Span(last + 1, gap.from_seq - 1, UNDECLARED, MISSING))
    spans.append(Span(max(gap.from_seq, last + 1), gap.to_seq, DECLARED, gap.reason))
    return gap.to_seq


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
