"""What the progress of a large fleet costs.

    PYTHONPATH=services:tests python -m benchmark.progress DATABASE

Whole transactions on the Postgres that TACHOGRAPH_TEST_POSTGRES names (as in tests/contract/test_store.py), each an upload of 50
records of each of 100 vehicles, by a store that knows nothing of them. In turn: any of 10,000 vehicles, which are all of DATABASE,
another one of that server; any of 10,000 active ones among 10 million; and any of the 10 million.
Prints a line of JSON for each: milliseconds (median of ROUNDS), and the factor to the first. Ends with 1 if that of the active ones
is above LIMIT. The rows that it makes stay: take two databases made for it. The first time takes minutes, and 3 GB.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from contextlib import closing
from typing import Any

import psycopg2
from contract.test_store import WEEK, Topic, arguments, record
from telemetry.consumer.store import PostgresStore
from telemetry.record import Upload, encode

ACTIVE, ALL, VEHICLES, ROUNDS = 10_000, 10_000_000, 100, 60
LIMIT = 1.5
EPOCH = 1
# VINs whose order says nothing of their number
VIN = "'T' || upper(substr(md5(number::text), 1, 16))"
FILL = f"INSERT INTO progress SELECT {VIN}, %s, 1000 FROM generate_series(%s, %s) AS number ON CONFLICT DO NOTHING"
DRAWN = f"SELECT vin, last FROM progress JOIN unnest(%s::bigint[]) AS number ON vin = {VIN} AND epoch = %s"


class Fleet:
    """A database with so many vehicles in progress, and a store."""

    def __init__(self, database: str, vehicles: int) -> None:
        def named() -> dict[str, Any]:
            return arguments() | ({"dbname": database} if database else {})

        self.topic, self.store = Topic(), PostgresStore(named, WEEK)
        self.connection = psycopg2.connect(**named())
        self.connection.autocommit = True
        self.cursor = self.connection.cursor()
        if len(self.drawn([vehicles])) == 0:
            for start in range(1, vehicles + 1, 500_000):
                self.cursor.execute(FILL, (EPOCH, start, min(start + 499_999, vehicles)))

    def drawn(self, numbers: list[int]) -> list[tuple[str, int]]:
        """VIN and last seq of vehicles by their numbers."""
        self.cursor.execute(DRAWN, (numbers, EPOCH))
        return [*self.cursor.fetchall()]

    def batch(self, vehicles: int) -> float:
        """Milliseconds of a batch of VEHICLES that are drawn from the first so many."""
        values = []
        for vin, last in self.drawn(random.sample(range(1, vehicles + 1), VEHICLES)):
            records = tuple(record(seq) for seq in range(last + 1, last + 51))
            values.append(encode(Upload(vin, EPOCH, "Ford", "F-150", records)))
        self.store._progress.clear()
        run = self.topic.run(*values)
        begun = time.perf_counter()
        written = self.store.write(self.topic.topic_id, self.topic.name, [run])
        taken = 1000 * (time.perf_counter() - begun)
        assert (written.rows, written.gaps_undeclared) == (50 * VEHICLES, 0)
        return taken

    def close(self) -> None:
        """End both connections."""
        self.store.close()
        self.connection.close()


def main() -> int:
    """Print the figures; 1 if one is beyond its limit."""
    if len(sys.argv) != 2:
        sys.exit("Name the second database.")
    with closing(Fleet(sys.argv[1], ACTIVE)) as small, closing(Fleet("", ALL)) as large:
        cases = [("10,000 of 10,000", small, ACTIVE), ("10,000 of 10 million", large, ACTIVE), ("any of 10 million", large, ALL)]
        taken: list[list[float]] = [[], [], []]
        for _ in range(ROUNDS + 1):
            for (_, fleet, vehicles), column in zip(cases, taken, strict=True):
                column.append(fleet.batch(vehicles))
    medians = [statistics.median(column[1:]) for column in taken]
    for (name, *_), milliseconds in zip(cases, medians, strict=True):
        print(json.dumps({"vehicles": name, "ms": round(milliseconds, 1), "factor": round(milliseconds / medians[0], 2)}))
    return int(medians[1] / medians[0] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
