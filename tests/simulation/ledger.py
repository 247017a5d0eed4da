"""What senders know, and whether the table agrees. The expectation comes from here, never from the table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import date, timedelta
from typing import Any

from telemetry.consumer.batch import values_of
from telemetry.consumer.progress import DECLARED, FILLED
from telemetry.record import BOUNDS, Record, Upload
from telemetry.vehicle.spool import Made, Spool

from simulation.kernel import Scheduler
from simulation.postgres import Row, Tables, open_gaps

Key = tuple[str, int]
Identity = tuple[str, int, int]
Spoken = tuple[Any, ...]
"""Make, model and values of a record, as its sender made it."""
CLOCK_TOLERANCE = timedelta(days=1)
"""How far clocks may differ before anybody minds: days are dropped that much too soon."""


class Violation(Exception):
    """The promise is broken; the text says where."""


def valid(spoken: Spoken) -> bool:
    """Whether a producer has to accept a record."""
    return all(low <= value <= high for value, (low, high) in zip(spoken[2:], BOUNDS.values(), strict=True))


class Ledger:
    """What was made, acknowledged, refused, dropped and destroyed with its spool; by (vin, epoch, seq)."""

    def __init__(self) -> None:
        self.made: dict[Key, dict[int, list[Spoken]]] = defaultdict(lambda: defaultdict(list))
        """Every record that was ever kept by a spool; one identity given to two records is two."""
        self.acknowledged: dict[Key, set[int]] = defaultdict(set)
        self.rejected: dict[Key, set[int]] = defaultdict(set)
        self.destroyed: dict[Key, set[int]] = defaultdict(set)
        self.dropped: dict[Key, set[int]] = defaultdict(set)
        """What a spool at its bound gave up."""
        self.missing: dict[Key, dict[int, str]] = defaultdict(dict)
        """Seqs that a sender declared in an acknowledged upload, and the reason that it gave."""
        self.forms: dict[Spoken, bool] = {}
        """What form clients sent (vin, make, model, values), and whether each was acknowledged."""
        self._sent: dict[Key, Upload] = {}
        self._forms_stored: set[Spoken] = set()
        self._rows: dict[Key, list[Row]] = defaultdict(list)
        self._next: dict[tuple[str, int], int] = {}

    def unacknowledged(self) -> list[Identity]:
        """Records whose sender still waits, and has them."""
        over = (self.acknowledged, self.destroyed, self.dropped, self.rejected)
        waiting = {key: seqs.keys() - set().union(*(known[key] for known in over)) for key, seqs in self.made.items()}
        return [(*key, seq) for key, seqs in waiting.items() for seq in sorted(seqs)]

    def sends(self, upload: Upload) -> None:
        """A sender posts an upload: what its answer will be about."""
        self._sent[upload.vin, upload.epoch] = upload

    def sent(self, key: Key) -> set[int]:
        """The records of the upload that was posted last."""
        upload = self._sent.get(key)
        return {record.seq for record in upload.records} if upload else set()

    def acknowledges(self, vin: str, epoch: int, through: int) -> None:
        """A sender takes what it posted last as delivered."""
        upload = self._sent[vin, epoch]
        if upload.last_seq != through:
            raise Violation(f"{vin}, {epoch}: seqs up to {through} were forgotten, but the upload ended at {upload.last_seq}")
        self.acknowledged[vin, epoch].update(record.seq for record in upload.records)

    # What must hold at every commit

    def check_commit(
        self, tables: Tables, changes: Tables, poisoned: Callable[[], set[tuple[str, int, int]]], today: date, keep: int
    ) -> None:
        """What must hold at every commit, of what it touched. Raises Violation."""
        touched = {(row.vin, row.epoch) for row in changes.rows if row.epoch}
        touched |= changes.progress.keys() | {key[:2] for key in changes.gaps}
        for row in changes.rows:
            if not row.epoch:
                self._check_form(row)
                continue
            self._rows[row.vin, row.epoch].append(row)
            spoken = (row.make, row.model, *row.values)
            if spoken not in self.made.get((row.vin, row.epoch), {}).get(row.seq, ()):
                raise Violation(f"a row that nobody sent: {row}")
        if len(tables.conflicts):
            raise Violation(f"a conflict: {tables.conflicts}")
        if changes.dead and not changes.dead.keys() <= poisoned():
            raise Violation(f"a dead letter that nobody planted: {changes.dead}")
        for day in changes.dropped:
            if day > today - timedelta(days=keep) + CLOCK_TOLERANCE:
                raise Violation(f"the day {day} is dropped on {today}, though days are kept for {keep} days")
        self._check_offsets(changes)
        for key in sorted(touched):
            self._check_key(tables, key)

    def _check_offsets(self, changes: Tables) -> None:
        for place, each in changes.offsets.items():
            # An operator who leads back leaves no fingerprint
            if each.next < self._next.get(place, 0) and each.last_crc is not None:
                raise Violation(f"the offset of {place} goes back from {self._next[place]} to {each.next}")
            self._next[place] = each.next

    def _check_form(self, row: Row) -> None:
        spoken = (row.vin, row.make, row.model, *row.values)
        if spoken not in self.forms:
            raise Violation(f"a form that nobody sent: {row}")
        if spoken in self._forms_stored:
            raise Violation(f"a form is stored twice: {row}")
        self._forms_stored.add(spoken)

    def _check_key(self, tables: Tables, key: Key) -> None:
        rows = sorted(self._rows[key])
        seqs = [row.seq for row in rows]
        if len(seqs) != len(set(seqs)):
            raise Violation(f"{key}: rows are doubled: {seqs}")
        missing = [seq for first, last, *_ in open_gaps(tables, *key) for seq in range(first, last + 1)]
        last = tables.progress.get(key, 0)
        if sorted(seqs + missing) != list(range(1, last + 1)):
            raise Violation(f"{key}: rows {sorted(seqs)} and open gaps {missing} are not 1..{last}")
        late: set[int] = set()
        for (vin, epoch, first), gap in tables.gaps.items():
            if (vin, epoch) == key and gap is not None and gap[1] == FILLED:
                late.update(range(first, gap[0] + 1))
        ordered = [seq for seq in seqs if seq not in late]
        if ordered != sorted(ordered):
            raise Violation(f"{key}: order is lost: {ordered}")

    # What must hold at the end

    def check_end(self, tables: Tables, poisoned: set[tuple[str, int, int]], lost: Iterable[Upload], lost_poison: set[Any]) -> None:
        """What must hold when all was delivered, except for uploads that the topic has lost. Raises Violation."""
        excused: dict[Key, set[int]] = defaultdict(set)
        excused_forms: set[Spoken] = set()
        for upload in lost:
            if upload.epoch:
                excused[upload.vin, upload.epoch].update(range(upload.first_seq, upload.last_seq + 1))
            else:
                excused_forms.add((upload.vin, upload.make, upload.model, *values_of(upload.records[0])))
        for key in sorted(self.made):
            self._check_made(tables, key, excused[key])
        if not self.forms.keys() - excused_forms <= self._forms_stored:
            raise Violation(f"forms are lost: {self.forms.keys() - self._forms_stored - excused_forms}")
        dead = set(tables.dead)
        if not poisoned - lost_poison <= dead <= poisoned:
            raise Violation(f"dead letters are {sorted(dead)}, not {sorted(poisoned - lost_poison)}")

    def _check_made(self, tables: Tables, key: Key, excused: set[int]) -> None:
        rows = {row.seq: (row.make, row.model, *row.values) for row in self._rows[key]}
        gaps = {seq: gap for gap in open_gaps(tables, *key) for seq in range(gap[0], gap[1] + 1)}
        destroyed, rejected, dropped = self.destroyed[key], self.rejected[key], self.dropped[key]
        acknowledged = self.acknowledged[key]
        for seq, spoken in sorted(self.made[key].items()):
            state = gaps.get(seq, ("", "", "", ""))[2:]
            for each in spoken:
                if rows.get(seq) == each or seq in excused:
                    continue
                if seq in rejected:
                    if seq not in destroyed and state != (DECLARED, "rejected"):
                        raise Violation(f"{key}: {seq} was refused, but there is no gap that says so")
                elif seq in dropped and seq not in acknowledged:
                    if seq not in destroyed and state != (DECLARED, "spool_full"):
                        raise Violation(f"{key}: {seq} was dropped, but there is no gap that says so")
                elif seq in acknowledged or seq not in destroyed:
                    raise Violation(f"{key}: {seq} is lost, acknowledged: {seq in acknowledged}")
        for seq, reason in self.missing[key].items():
            if seq not in excused and gaps.get(seq, ("", "", "", ""))[2:] != (DECLARED, reason):
                raise Violation(f"{key}: {seq} was declared missing, but there is no gap that says so")
        unexplained = gaps.keys() - destroyed - rejected - dropped - excused - self.missing[key].keys()
        if unexplained:
            raise Violation(f"{key}: gaps that nothing explains: {sorted(unexplained)}")


class LedgerSpool(Spool):
    """The spool, which tells the ledger what its commits keep and forget."""

    def __init__(self, ledger: Ledger, disk: Any, shown: set[float], scheduler: Scheduler, **options: Any) -> None:
        """`shown`: all times that the vehicles' clock showed them."""
        self._ledger, self._shown, self._scheduler = ledger, shown, scheduler
        self._notes: list[Any] = []
        self._disk = disk
        disk.on_commit, disk.on_rollback = self._committed, self._notes.clear
        super().__init__(disk, disk, **options)

    def _committed(self, database: Any) -> None:
        try:
            for note, *arguments in self._notes:
                note(*arguments)
            for vin, epoch, first, last, reason in database.execute("SELECT vin, epoch, from_seq, to_seq, reason FROM gap"):
                self._note_gap((vin, epoch), range(first, last + 1), reason)
        except Violation as violation:
            self._scheduler.faults.append(violation)
        self._notes.clear()

    def append(self, made: Made) -> int:
        """See Spool."""
        dropped = super().append(made)
        self._notes.append((self._note_made, made))
        return dropped

    def _note_made(self, made: Made) -> None:
        record: Record = made.record
        self._ledger.made[made.vin, made.epoch][record.seq].append((made.make, made.model, *values_of(record)))
        if record.timestamp not in self._shown:
            raise Violation(f"{made.vin}: a record has the time {record.timestamp}, which its vehicle's clock never showed")

    def acknowledge(self, vin: str, epoch: int, through: int) -> None:
        """See Spool."""
        super().acknowledge(vin, epoch, through)
        self._notes.append((self._ledger.acknowledges, vin, epoch, through))

    def _note_gap(self, key: Key, seqs: range, reason: str) -> None:
        ledger = self._ledger
        if reason == "spool_full":
            if new := set(seqs) - ledger.dropped[key]:
                sent = ledger.sent(key)
                kind = "a spool at its bound drops what is under way" if new & sent else "a spool at its bound"
                self._scheduler.happen(kind, "%s: %s of %s", kind, sorted(new), key)
            ledger.dropped[key].update(seqs)
        elif reason == "rejected":
            ledger.rejected[key].update(seqs)
            for seq in seqs:
                if any(valid(spoken) for spoken in ledger.made[key][seq]):
                    raise Violation(f"{key}: {seq} is set aside as a gap (rejected), though it is valid")
        else:
            # A run is shorter than any age, and no record is too large
            raise Violation(f"{key}: seqs {seqs[0]} to {seqs[-1]} became a gap ({reason})")
