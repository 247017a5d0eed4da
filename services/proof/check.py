"""The check: what the ledger says against what the database, the services and the logs say.

`read` asks the database; all else is pure. Invariants I1 to I8 are those of docs/verification.md.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from proof.ledger import MAKE, MODEL, VALUES, Entry, Ledger, Reading

TOLD = 10.0
"""Seconds within which /readyz has to tell the truth."""
EXAMPLES = 5
"""Findings of one sort that are named; all are counted."""

Key = tuple[str, int]
"""(vin, epoch)"""


class DiagRow(NamedTuple):
    """A row of diag."""

    id: int
    seq: int
    values: tuple[float, ...]
    """In the order of ledger.VALUES."""
    make: str
    model: str


class GapRow(NamedTuple):
    """A row of gap."""

    first: int
    last: int
    state: str
    reason: str


@dataclass
class Contents:
    """What the database has of one ledger."""

    rows: dict[Key, list[DiagRow]] = field(default_factory=lambda: defaultdict(list))
    """In the order of id."""
    gaps: dict[Key, list[GapRow]] = field(default_factory=lambda: defaultdict(list))
    conflicts: list[tuple[str, int, int]] = field(default_factory=list)
    """(vin, epoch, seq) of conflict records."""


@dataclass
class Findings:
    """What is wrong, by invariant; `counts` are the numbers of the table."""

    wrong: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, invariant: str, count: str, what: str) -> None:
        """Note one violation."""
        self.wrong[invariant].append(what)
        self.counts[count] += 1


def read(connection: Any, ledger: Ledger) -> Contents:
    """Everything the database has of a ledger's vehicles. Raises psycopg2.Error."""
    stored = Contents()
    vins = sorted({entry.vin for entry in ledger.entries})
    # Form clients share epoch 0 with earlier rounds of the same seed: their seqs are times
    scope = "vin = ANY(%(vins)s) AND (epoch = %(epoch)s OR epoch = 0 AND seq BETWEEN %(begun)s AND %(ended)s)"
    values = {"vins": vins, "epoch": ledger.epoch, "begun": int(ledger.begun * 1e6), "ended": int(ledger.ended * 1e6) + 1}
    columns = ", ".join(("vin", "epoch", "id", "seq", *VALUES, "make", "model"))
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {columns} FROM diag WHERE {scope} ORDER BY id", values)
        for vin, epoch, number, seq, *numbers, make, model in cursor:
            stored.rows[vin, epoch].append(DiagRow(number, seq, tuple(numbers), make, model))
        cursor.execute("SELECT vin, epoch, from_seq, to_seq, state, reason FROM gap WHERE vin = ANY(%(vins)s) AND epoch = %(epoch)s"
                       " ORDER BY from_seq", values)  # fmt: skip
        for vin, epoch, *gap in cursor:
            stored.gaps[vin, epoch].append(GapRow(*gap))
        cursor.execute(f"SELECT vin, epoch, seq FROM conflict WHERE {scope} ORDER BY id", values)
        stored.conflicts = cursor.fetchall()
    return stored


def check_stored(ledger: Ledger, stored: Contents) -> Findings:
    """I1 to I5: rows, gaps and conflicts against the ledger."""
    found = Findings()
    for entry in ledger.entries:
        key = (entry.vin, entry.epoch)
        rows, gaps = stored.rows.get(key, []), stored.gaps.get(key, [])
        _check_rows(entry, rows, found)
        if entry.epoch:
            _check_gaps(entry, rows, gaps, found)
            _check_order(entry, rows, gaps, found)
        for refusal in entry.unexpected:
            found.add("I2", "refused_wrongly", f"{_name(entry)}: a good record was refused: {refusal}")
        found.counts["made"] += len(entry.made)
        found.counts["rows"] += len(rows)
        found.counts["gaps"] += sum(last - first + 1 for first, last, _ in entry.gaps)
        found.counts["refused"] += sum(reason == "rejected" for _, _, reason in entry.gaps)
        found.counts["acknowledged"] += sum(1 for _ in _acknowledged(entry))
    for vin, epoch, seq in stored.conflicts:
        found.add("I5", "conflicts", f"{vin} epoch {epoch} seq {seq}: a conflict that nobody planted")
    return found


def _name(entry: Entry) -> str:
    return f"{entry.vin} epoch {entry.epoch}"


def _gap_seqs(entry: Entry) -> set[int]:
    return {seq for first, last, _ in entry.gaps for seq in range(first, last + 1)}


def _acknowledged(entry: Entry) -> Iterable[Reading]:
    """Records that were answered 200 as records, not as part of a gap."""
    gone, ranges, index = _gap_seqs(entry), entry.acknowledged, 0
    for reading in entry.made:
        while index < len(ranges) and ranges[index][1] < reading.seq:
            index += 1
        if index < len(ranges) and ranges[index][0] <= reading.seq and reading.seq not in gone:
            yield reading


def _check_rows(entry: Entry, rows: Sequence[DiagRow], found: Findings) -> None:
    """I1 (acknowledged is there), I3 (once), I5 (as it was made, and nothing else)."""
    made = {reading.seq: reading for reading in entry.made}
    times = Counter(row.seq for row in rows)
    for seq, count in times.items():
        if count > 1:
            found.counts["duplicates"] += count - 2
            found.add("I3", "duplicates", f"{_name(entry)} seq {seq}: {count} rows")
    gone = _gap_seqs(entry)
    for row in rows:
        reading = made.get(row.seq)
        if reading is None or row.seq in gone:
            found.add("I5", "foreign", f"{_name(entry)} seq {row.seq}: a row that nobody sent (id {row.id})")
        elif (row.values, row.make, row.model) != (tuple(reading[1:]), MAKE, MODEL):
            found.add("I5", "altered", f"{_name(entry)} seq {row.seq}: {row.values} instead of {tuple(reading[1:])} (id {row.id})")
    for reading in _acknowledged(entry):
        if not times[reading.seq]:
            found.add("I1", "missing", f"{_name(entry)} seq {reading.seq}: acknowledged, and not there")


def _check_gaps(entry: Entry, rows: Sequence[DiagRow], gaps: Sequence[GapRow], found: Findings) -> None:
    """I2: made = rows + open gaps, disjoint, and every open gap is one of the ledger's."""
    declared = {seq: reason for first, last, reason in entry.gaps for seq in range(first, last + 1)}
    sent = {seq for first, last in entry.acknowledged for seq in range(first, last + 1)}
    there = {row.seq for row in rows}
    opened: dict[int, GapRow] = {}
    for gap in gaps:
        if gap.state != "filled":
            opened |= dict.fromkeys(range(gap.first, gap.last + 1), gap)
    for seq, gap in opened.items():
        if seq in there:
            found.add("I2", "torn", f"{_name(entry)} seq {seq}: a row and an open gap")
        if gap.state != "declared" or declared.get(seq) != gap.reason:
            found.add(
                "I2", "unexplained", f"{_name(entry)} seq {seq}: an open gap ({gap.state}, {gap.reason}) that is not the vehicle's"
            )
    for seq in declared:
        if seq in sent and seq not in opened:
            found.add("I2", "undeclared", f"{_name(entry)} seq {seq}: declared as a gap ({declared[seq]}), and not noted")


def _check_order(entry: Entry, rows: Sequence[DiagRow], gaps: Sequence[GapRow], found: Findings) -> None:
    """I4: ids ascend as seqs do, except seqs of filled gaps."""
    filled = {seq for gap in gaps if gap.state == "filled" for seq in range(gap.first, gap.last + 1)}
    last = 0
    for row in rows:
        if row.seq in filled:
            continue
        if row.seq < last:
            found.add("I4", "reordered", f"{_name(entry)} seq {row.seq}: stored after {last} (id {row.id})")
        last = max(last, row.seq)


# Time: recovery, drain, and what services said of themselves


def percentile(values: Iterable[float], share: float) -> float | None:
    """The value that `share` of all do not exceed; None of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)] if ordered else None


def accepted_again(ledger: Ledger, healed: float) -> list[float | None]:
    """For each vehicle the seconds from heal to its first acknowledgement after it."""
    first: dict[int, float] = {}
    for _, answered, vehicle, status in ledger.uploads:
        if status == 200 and answered >= healed:
            first[vehicle] = min(first.get(vehicle, math.inf), answered)
    return [first[number] - healed if number in first else None for number in range(len(ledger.entries))]


def stored_again(ledger: Ledger, healed: float) -> float | None:
    """Seconds from heal until all that was acknowledged by then is stored."""
    acknowledged = max((count for when, _, count in ledger.stored if when <= healed), default=0)
    return next((when - healed for when, count, _ in ledger.stored if when >= healed and (count or 0) >= acknowledged), None)


def drain_ratio(ledger: Ledger, healed: float, until: float) -> float | None:
    """Records stored a second against records made a second, from heal until the backlog is gone; None without a backlog.

    The backlog is gone when rows are stored no faster than twice the rate at which they are made.
    """
    samples = [(when, count) for when, count, _ in ledger.stored if count is not None and healed <= when <= until]
    steps = [(later - earlier, more - count) for (earlier, count), (later, more) in pairwise(samples) if later > earlier]
    fast = [(seconds, count) for seconds, count in steps if count > 2 * ledger.rate * seconds]
    if not ledger.rate or sum(count for _, count in fast) < 10 * ledger.rate:
        return None
    return float(sum(count for _, count in fast) / sum(seconds for seconds, _ in fast) / ledger.rate)


def outages(times: Sequence[tuple[float, bool]], least: float) -> list[tuple[float, float]]:
    """From the first failure to the next success, where no success came between; only those longer than `least` seconds."""
    found, begun = [], None
    for when, good in sorted(times):
        if good:
            if begun is not None and when - begun > least:
                found.append((begun, when))
            begun = None
        elif begun is None:
            begun = when
    return found


def check_readiness(ledger: Ledger, faults: Sequence[dict[str, Any]], producers: set[str], consumers: set[str]) -> Findings:
    """I7: while nothing was accepted (or stored) its services said so within 10 s, and were ready again within 10 s after."""
    found = Findings()
    posts = outages([(answered, status in (200, 422)) for _, answered, _, status in ledger.uploads], TOLD)
    writes = outages([(when, count is not None) for when, count, _ in ledger.stored], TOLD)
    for url_set, spans in ((producers, posts), (consumers, writes)):
        for begun, ended in spans:
            for asked, answered, url, ready, _ in ledger.polls:
                if url in url_set and ready and begun + TOLD < asked and answered < ended:
                    found.add("I7", "false_ready", f"{url} said ready {asked - begun:.0f} s after nothing worked any more")
    troubled = [(fault["begun"], fault["settled"] or math.inf) for fault in faults]
    for asked, answered, url, ready, why in ledger.polls:
        # One that was asked before a fault may be answered, or not, within it
        calm = all(answered < begun or asked > settled + TOLD for begun, settled in troubled)
        if calm and not ready:
            found.add("I7", "false_unready", f"{url} was not ready without a fault: {why or 'no answer'}")
    return found


def check_words(ledger: Ledger, lines: Sequence[dict[str, str]], secrets: Sequence[str], traces: Sequence[str]) -> Findings:
    """I8: no secret and no stack trace in an answer, nor in a log; `lines` are what was found in the logs on their hosts."""
    found = Findings()
    for line in lines:
        found.add("I8", line["what"], f"the log of {line['container']} holds {line['what']}: {line['text']}")
    for body in ledger.bodies:
        if any(secret in body for secret in secrets):
            found.add("I8", "secrets", "an answer holds a secret")
        if any(trace in body for trace in traces):
            found.add("I8", "traces", f"an answer holds a stack trace: {body[:200]}")
    return found


def check_drain(ledger: Ledger) -> Findings:
    """I6: nothing is unsent, and the consumers are not behind."""
    found = Findings()
    if ledger.undelivered:
        found.counts["undelivered"] = ledger.undelivered
        found.wrong["I6"].append(f"{ledger.undelivered} records and gaps were never acknowledged")
    if ledger.lag != 0:
        found.wrong["I6"].append(f"consumers were {'not to be asked' if ledger.lag is None else f'{ledger.lag} behind'} at the end")
    return found
