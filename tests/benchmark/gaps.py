"""What the gaps that a vehicle has piled up cost.

    PYTHONPATH=services:tests python -m benchmark.gaps

Whole transactions on the Postgres that TACHOGRAPH_TEST_POSTGRES names (as in tests/contract/test_store.py), each by a store that
knows nothing of the vehicle: an upload of 50 records that follows, the same again, and one whose 1,000 records fill 1,000 gaps.
Prints a line of JSON for each: milliseconds (median of ROUNDS) beside few and beside many open gaps, and the factor between them.
Ends with 1 if a factor is above LIMIT. The rows that it makes stay: take a database made for it.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from contextlib import closing
from typing import Any

import psycopg2
from contract.test_store import WEEK, Topic, Vehicle, arguments, record
from telemetry.consumer.store import PostgresStore
from telemetry.record import Gap, Upload, encode

FEW, MANY, FILLED, ROUNDS = 100, 100_000, 1_000, 21
LIMIT = 1.5
ROWS = {"new": 50, "repeat": 0, "fill": FILLED}
"""The uploads, and how many rows each becomes."""
INSERT_GAPS = (
    "INSERT INTO gap (vin, epoch, from_seq, to_seq, state, reason) "
    "SELECT %s, %s, seq, seq, 'undeclared', 'missing' FROM generate_series(%s, %s, 2) AS seq"
)


class Piled:
    """A vehicle that has as many open gaps, each of one seq, above the seqs in which rounds fill theirs."""

    def __init__(self, connection: Any, gaps: int) -> None:
        self.vehicle, self.topic = Vehicle(), Topic()
        self.connection = connection
        self.room = 2 * FILLED * (ROUNDS + 1)
        self.last = self.room + 2 * gaps
        self._ask(INSERT_GAPS, self.vehicle.vin, self.vehicle.epoch, self.room + 2, self.last)
        self._ask("INSERT INTO progress VALUES (%s, %s, %s)", self.vehicle.vin, self.vehicle.epoch, self.last)
        self.upload = b""

    def _ask(self, statement: str, *values: Any) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(statement, values)

    def new(self, number: int) -> bytes:
        """The upload that follows."""
        self.upload = self.vehicle.upload(self.last + 1, self.last + 50)
        self.last += 50
        return self.upload

    def repeat(self, number: int) -> bytes:
        """The one before, again."""
        return self.upload

    def fill(self, number: int) -> bytes:
        """Records for 1,000 gaps; what lies between is said to be gaps, which changes nothing there."""
        first = 2 * FILLED * number + 2
        seqs = range(first, first + 2 * FILLED, 2)
        self._ask(INSERT_GAPS, self.vehicle.vin, self.vehicle.epoch, first, seqs[-1])
        between = tuple(Gap(seq + 1, seq + 1, "rejected") for seq in seqs[:-1])
        records = tuple(record(seq) for seq in seqs)
        return encode(Upload(self.vehicle.vin, self.vehicle.epoch, "Ford", "F-150", records, between))

    def written(self, store: PostgresStore, value: bytes, rows: int) -> float:
        """Milliseconds of one transaction by a store that knows nothing of the vehicle."""
        store._progress.clear()
        run = self.topic.run(value)
        begun = time.perf_counter()
        written = store.write(self.topic.topic_id, self.topic.name, [run])
        taken = 1000 * (time.perf_counter() - begun)
        assert written.rows == rows
        return taken


def main() -> int:
    """Print the figures; 1 if one is beyond its limit."""
    worst = 0.0
    with closing(psycopg2.connect(**arguments())) as connection, closing(PostgresStore(arguments, WEEK)) as store:
        connection.autocommit = True
        vehicles = [Piled(connection, gaps) for gaps in (FEW, MANY)]
        figures: dict[str, list[list[float]]] = {name: [[], []] for name in ROWS}
        for number in range(ROUNDS + 1):
            for name, columns in figures.items():
                for vehicle, column in zip(vehicles, columns, strict=True):
                    column.append(vehicle.written(store, getattr(vehicle, name)(number), ROWS[name]))
    for name, columns in figures.items():
        # The first round makes plans and days
        few, many = (statistics.median(column[1:]) for column in columns)
        worst = max(worst, many / few)
        print(
            json.dumps(
                {"upload": name, f"ms_at_{FEW}": round(few, 2), f"ms_at_{MANY}": round(many, 2), "factor": round(many / few, 2)}
            )
        )
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
