"""The operator's first question after a change: does a record that is posted become a row, and how fast?

Runs inside a consumer's container, which reaches both nginx and Postgres: `python -m telemetry selfcheck URL...`.
Posts a few records of one made-up vehicle through every nginx and waits for each in Postgres. The vehicle's VIN is
`SELFCHECK00000000`; whoever runs the check removes its rows afterwards.
"""

from __future__ import annotations

import json
import random
import statistics
import time
import urllib.request
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import psycopg2

from telemetry.settings import ConsumerSettings

VIN = "SELFCHECK00000000"
ROUNDS = 5
ROW_TIMEOUT = 30.0
"""Seconds that a record may take from its acknowledgement to its row."""

# By progress and gaps, of which rows ever inserted follow: diag may have billions.
STORED = (
    "SELECT (SELECT coalesce(sum(last), 0) FROM progress WHERE vin <> %(vin)s)::bigint "
    "- (SELECT coalesce(sum(to_seq - from_seq + 1), 0) FROM gap WHERE vin <> %(vin)s AND state <> 'filled')::bigint, "
    "(SELECT count(*) FROM (SELECT DISTINCT vin FROM progress WHERE vin <> %(vin)s) AS vehicle)"
)


class CheckFailed(Exception):
    """The path is broken; the text says where."""


def post(url: str, upload: dict[str, Any]) -> None:
    """Send one upload; raise CheckFailed unless it is acknowledged."""
    request = urllib.request.Request(
        f"{url}/events", json.dumps(upload).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=25) as response:
            answer = json.load(response)
    except OSError as error:
        raise CheckFailed(f"POST {url}/events: {error}. Look at the nginx and the producers.") from error
    if answer.get("acked_through") != upload["records"][-1]["seq"]:
        raise CheckFailed(f"POST {url}/events: unexpected answer {answer}")


def wait_for_row(cursor: Any, epoch: int, seq: int) -> None:
    """Return as soon as the record is committed; raise CheckFailed after ROW_TIMEOUT."""
    deadline = time.monotonic() + ROW_TIMEOUT
    while time.monotonic() < deadline:
        cursor.execute("SELECT 1 FROM diag WHERE vin = %s AND epoch = %s AND seq = %s", (VIN, epoch, seq))
        if cursor.fetchone():
            return
        time.sleep(0.005)
    raise CheckFailed(f"an acknowledged record is not in Postgres after {ROW_TIMEOUT:.0f} s. Look at the consumers' /readyz.")


def check(settings: ConsumerSettings, urls: Sequence[str]) -> dict[str, Any]:
    """Post ROUNDS records through every URL and wait for each.

    Returns milliseconds from POST to row (median and worst), and how many records of how many vehicles were ever stored
    besides those of the check and of form clients.
    """
    milliseconds = []
    epoch = (time.time_ns() // 1000 & ~0xFFFFF) | random.getrandbits(20)
    with closing(psycopg2.connect(**settings.postgres_arguments())) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for seq, url in enumerate([url for url in urls for _ in range(ROUNDS)], start=1):
                record = {"seq": seq, "timestamp": time.time(), "speed": 0.0}
                record |= {f"position_{axis}": 0.0 for axis in "xyz"}
                begun = time.monotonic()
                post(url, {"vin": VIN, "epoch": epoch, "make": "Tachograph", "model": "self-check", "records": [record]})
                wait_for_row(cursor, epoch, seq)
                milliseconds.append(1000 * (time.monotonic() - begun))
            cursor.execute(STORED, {"vin": VIN})
            records, vehicles = cursor.fetchone()
    return {
        "post_to_row_ms": {"median": round(statistics.median(milliseconds), 1), "worst": round(max(milliseconds), 1)},
        "records": records,
        "vehicles": vehicles,
    }


def run(settings: ConsumerSettings, urls: Sequence[str]) -> int:
    """Print the result as one line of JSON; 0 when every record arrived, 1 otherwise."""
    try:
        print(json.dumps(check(settings, urls)))
    except (CheckFailed, psycopg2.Error) as error:
        print(json.dumps({"error": str(error).strip()}))
        return 1
    return 0
