"""What senders know, and whether the table agrees. The expectation comes from here, never from the table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from telemetry.consumer.batch import values_of
from telemetry.consumer.progress import DECLARED, FILLED
from telemetry.record import Record
from telemetry.vehicle.spool import Made, Spool

from simulation.postgres import Row, Tables, open_gaps

Key = tuple[str, int]
Identity = tuple[str, int, int]


class Violation(Exception):
    """The promise is broken; the text says where."""


class Ledger:
    """What was made, acknowledged, refused and destroyed with its spool; by (vin, epoch, seq)."""

    def __init__(self) -> None:
        self.made: dict[Key, dict[int, list[tuple[Any, ...]]]] = defaultdict(lambda: defaultdict(list))
        """Every record that was ever kept by a spool; one identity given to two records is two."""
        self.acknowledged: dict[Key, set[int]] = defaultdict(set)
        self.rejected: dict[Key, set[int]] = defaultdict(set)
        self.destroyed: dict[Key, set[int]] = defaultdict(set)
        self.forms: dict[tuple[Any, ...], bool] = {}
        """What form clients sent (vin, make, model, values), and whether each was acknowledged."""
        self._forms_stored: set[tuple[Any, ...]] = set()
        self._rows: dict[Key, list[Row]] = defaultdict(list)

    def unacknowledged(self) -> list[Identity]:
        """Records whose sender still waits, and has them."""
        return [
            (*key, seq)
            for key, seqs in self.made.items()
            for seq in seqs
            if seq not in self.acknowledged[key] and seq not in self.destroyed[key]
        ]

    def check_commit(self, tables: Tables, changes: Tables, poisoned: Callable[[], set[tuple[int, int]]]) -> None:
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
        if changes.dead and not {key[1:] for key in changes.dead} <= poisoned():
            raise Violation(f"a dead letter that nobody planted: {changes.dead}")
        for key in sorted(touched):
            self._check_key(tables, key)

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

    def check_end(self, tables: Tables, poisoned: set[tuple[int, int]]) -> None:
        """What must hold when all was delivered. Raises Violation."""
        for key in sorted(self.made):
            rows = {row.seq: (row.make, row.model, *row.values) for row in self._rows[key]}
            gaps = {seq: gap for gap in open_gaps(tables, *key) for seq in range(gap[0], gap[1] + 1)}
            destroyed, rejected = self.destroyed[key], self.rejected[key]
            for seq, spoken in sorted(self.made[key].items()):
                for each in spoken:
                    if seq in rejected:
                        if seq not in destroyed and gaps.get(seq, ("", "", "", ""))[2:] != (DECLARED, "rejected"):
                            raise Violation(f"{key}: {seq} was refused, but there is no gap that says so")
                    elif rows.get(seq) != each and (seq in self.acknowledged[key] or seq not in destroyed):
                        raise Violation(f"{key}: {seq} is lost, acknowledged: {seq in self.acknowledged[key]}")
            unexplained = gaps.keys() - destroyed - rejected
            if unexplained:
                raise Violation(f"{key}: gaps that nothing explains: {sorted(unexplained)}")
        if self.forms.keys() != self._forms_stored:
            raise Violation(f"forms are lost: {self.forms.keys() - self._forms_stored}")
        dead = {key[1:] for key in tables.dead}
        if dead != poisoned:
            raise Violation(f"dead letters are {sorted(dead)}, not {sorted(poisoned)}")


class LedgerSpool(Spool):
    """The spool, which tells the ledger what its commits keep and forget."""

    def __init__(self, ledger: Ledger, disk: Any, **options: Any) -> None:
        self._ledger = ledger
        self._notes: list[Any] = []
        disk.on_commit, disk.on_rollback = self._committed, self._notes.clear
        super().__init__(disk, disk, **options)

    def _committed(self) -> None:
        for note, *arguments in self._notes:
            note(*arguments)
        self._notes.clear()

    def append(self, made: Made) -> int:
        """See Spool."""
        dropped = super().append(made)
        self._notes.append((self._note_made, made))
        return dropped

    def _note_made(self, made: Made) -> None:
        record: Record = made.record
        self._ledger.made[made.vin, made.epoch][record.seq].append((made.make, made.model, *values_of(record)))

    def acknowledge(self, vin: str, epoch: int, through: int) -> None:
        """See Spool."""
        super().acknowledge(vin, epoch, through)
        self._notes.append((self._note_acknowledged, (vin, epoch), through))

    def _note_acknowledged(self, key: Key, through: int) -> None:
        known = self._ledger.acknowledged[key]
        known.update(seq for seq in self._ledger.made[key] if seq <= through and seq not in self._ledger.destroyed[key])

    def set_aside(self, vin: str, epoch: int, details: Any, reason: str) -> None:
        """See Spool."""
        super().set_aside(vin, epoch, details, reason)
        self._notes.append((self._ledger.rejected[vin, epoch].update, list(details)))
