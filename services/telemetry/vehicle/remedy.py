"""What an operator does about records that were set aside.

Runs inside a vehicle's container, beside the service, on the spool that the service has open:

    python -m telemetry spool list                  how many there are, by what is wrong with them, each with an example
    python -m telemetry spool put_back VIN|all      send them again, as they are
    python -m telemetry spool discard VIN|all       forget them; they stay declared as gaps

Every answer is a line of JSON. What is put back is marked in the file, and the service sends it: so a spool whose service does not
run can be asked too, and nothing but this file has to be reached.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from telemetry.record import MAX_EPOCH, MAX_SEQ, VALUES, VIN
from telemetry.settings import VehicleSettings
from telemetry.vehicle.spool import STEPS

PATIENCE = 30.0
"""Seconds that one waits for the service's commits."""
SLICE = 10_000
"""Records of one transaction, for which the service has to wait."""
MOST_FAULTS = 100
EVERY = "all"
EXAMPLE = ("vin", "epoch", "seq", "make", "model", *VALUES)


class RemedyError(Exception):
    """It is not done; the text says why, and what to do."""


def connect(folder: str) -> sqlite3.Connection:
    """The spool's file. Raises RemedyError if it is not there, or of another version."""
    path = Path(folder, "spool.sqlite")
    try:
        database = sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=PATIENCE, isolation_level=None)
        database.execute("PRAGMA synchronous=FULL")
        (version,) = database.execute("PRAGMA user_version").fetchone()
    except sqlite3.Error as error:
        raise RemedyError(f"The spool {path} cannot be opened: {error}. It is made when the service starts.") from error
    if version != len(STEPS):
        database.close()
        raise RemedyError(f"The spool {path} was written by another version of the service. Run fleet.yml, and ask again.")
    return database


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, on the disk when it ends."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def faults(database: sqlite3.Connection) -> list[dict[str, Any]]:
    """What is set aside, by what is wrong with it: the most frequent first, each with its oldest record as an example."""
    # The columns that are not aggregates are those of the row with the least made_at: SQLite says so
    found = database.execute(
        f"SELECT fault, count(*), count(DISTINCT vin), sum(put_back), min(made_at), {', '.join(EXAMPLE)} FROM set_aside "
        "GROUP BY fault ORDER BY count(*) DESC, fault LIMIT ?",
        (MOST_FAULTS,),
    )
    return [
        {
            "fault": fault, "records": records, "vehicles": vehicles, "put_back": put_back,
            "example": dict(zip(EXAMPLE, example, strict=True)),
        }
        for fault, records, vehicles, put_back, _, *example in found
    ]  # fmt: skip


def slices(database: sqlite3.Connection, which: str) -> Iterator[tuple[str, int, int, int, int]]:
    """What is set aside of one vehicle or of every one, in parts: VIN, and the (epoch, seq) after which and through which.

    Each in a transaction of its own.
    """
    vins = [vin for (vin,) in database.execute("SELECT vin FROM vehicle WHERE aside > 0 AND ? IN (vin, ?)", (which, EVERY))]
    for vin in vins:
        after, more = (0, 0), True
        while more:
            with transaction(database):
                row = database.execute(
                    "SELECT epoch, seq FROM set_aside WHERE vin = ? AND (epoch, seq) > (?, ?) ORDER BY epoch, seq LIMIT 1 OFFSET ?",
                    (vin, *after, SLICE - 1),
                ).fetchone()
                through, more = row or (MAX_EPOCH, MAX_SEQ), row is not None
                yield (vin, *after, *through)
            after = through


def put_back(database: sqlite3.Connection, which: str) -> int:
    """Let the service send what is set aside of a vehicle, or of all; returns how many records."""
    return sum(
        database.execute(
            "UPDATE set_aside SET put_back = 1 WHERE vin = ? AND (epoch, seq) > (?, ?) AND (epoch, seq) <= (?, ?) AND NOT put_back",
            part,
        ).rowcount
        for part in slices(database, which)
    )


def discard(database: sqlite3.Connection, which: str) -> int:
    """Forget what is set aside of a vehicle, or of all; returns how many records."""
    gone = 0
    for part in slices(database, which):
        count = database.execute(
            "DELETE FROM set_aside WHERE vin = ? AND (epoch, seq) > (?, ?) AND (epoch, seq) <= (?, ?)", part
        ).rowcount
        database.execute("UPDATE vehicle SET aside = aside - ? WHERE vin = ?", (count, part[0]))
        gone += count
    return gone


def act(database: sqlite3.Connection, arguments: Sequence[str]) -> Any:
    """Do what the arguments ask for. Raises RemedyError."""
    match arguments:
        case ["list"]:
            return faults(database)
        case ["put_back" | "discard" as command, which] if which == EVERY or VIN.match(which):
            return {"records": (put_back if command == "put_back" else discard)(database, which)}
    raise RemedyError("Ask for one of: list, put_back VIN, put_back all, discard VIN, discard all.")


def run(settings: VehicleSettings, arguments: Sequence[str]) -> int:
    """Print the answer as one line of JSON; 0 when it was done, 1 otherwise."""
    try:
        with closing(connect(settings.spool_dir)) as database:
            answer = act(database, arguments)
    except (RemedyError, sqlite3.Error) as error:
        print(json.dumps({"error": str(error)}))
        return 1
    print(json.dumps(answer))
    return 0
