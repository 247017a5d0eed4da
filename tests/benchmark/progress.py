"""What the progress of a large fleet costs.

    PYTHONPATH=services:tests python -m benchmark.progress

Whole transactions on the Postgres that TACHOGRAPH_TEST_POSTGRES names (as in tests/contract/test_store.py), each an upload of 50
records of each of 100 vehicles, by a store that knows nothing of them: with 10,000 vehicles in `progress`, with the same 10,000
active ones among 10 million, and with vehicles drawn at random from the 10 million.
Prints a line of JSON for each: milliseconds (median of ROUNDS), and the factor to the first. Ends with 1 if that of the active ones is
above LIMIT. The rows that it makes stay: take a database made for it. It takes some minutes and 3 GB.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import closing

import psycopg2
from contract.test_store import WEEK, Topic, arguments, record
from telemetry.consumer.store import PostgresStore
from telemetry.record import Upload, encode

ACTIVE, ALL, VEHICLES, ROUNDS = 10_000, 10_000_000, 100, 100
LIMIT = 1.5
EPOCH = random.randrange(1, 2**53)
# VINs whose order says nothing of their number
FILL = (
    "INSERT INTO progress SELECT 'T' || upper(substr(md5(number::text), 1, 16)), %s, 1000 FROM generate_series(%s, %s) AS number "
    "ON CONFLICT DO NOTHING"
)
DRAWN = "SELECT 'T' || upper(substr(md5(number::text), 1, 16)) FROM unnest(%s::bigint[]) AS number"


def main() -> int:
    """Print the figures; 1 if one is beyond its limit."""
    topic, lasts = Topic(), dict[str, int]()
    with closing(psycopg2.connect(**arguments())) as connection, closing(PostgresStore(arguments, WEEK)) as store:
        connection.autocommit = True
        cursor = connection.cursor()

        def fill(first: int, last: int) -> None:
            for start in range(first, last + 1, 500_000):
                cursor.execute(FILL, (EPOCH, start, min(start + 499_999, last)))

        def batches(draw: Callable[[], list[int]]) -> float:
            """Milliseconds of a batch."""
            taken = []
            for _ in range(ROUNDS + 1):
                cursor.execute(DRAWN, (draw(),))
                values = []
                for (vin,) in cursor.fetchall():
                    last = lasts.get(vin, 1000)
                    lasts[vin] = last + 50
                    records = tuple(record(seq) for seq in range(last + 1, last + 51))
                    values.append(encode(Upload(vin, EPOCH, "Ford", "F-150", records)))
                store._progress.clear()
                run = topic.run(*values)
                begun = time.perf_counter()
                written = store.write(topic.topic_id, topic.name, [run])
                taken.append(1000 * (time.perf_counter() - begun))
                assert written.rows == 50 * VEHICLES
                assert not written.gaps_undeclared
            return statistics.median(taken[1:])

        def active() -> list[int]:
            return random.sample(range(1, ACTIVE + 1), VEHICLES)

        fill(1, ACTIVE)
        few = batches(active)
        fill(ACTIVE + 1, ALL)
        # The active ones are active, also while others come and go
        batches(active)
        many, anyone = batches(active), batches(lambda: random.sample(range(1, ALL + 1), VEHICLES))
    for name, milliseconds in (("10,000 of 10,000", few), ("10,000 of 10 million", many), ("any of 10 million", anyone)):
        print(json.dumps({"vehicles": name, "ms": round(milliseconds, 1), "factor": round(milliseconds / few, 2)}))
    return int(many / few > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
