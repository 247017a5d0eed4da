"""What a killed vehicle container did to the product's own vehicles: SQL alone tells, for their ledger is their spool."""

from __future__ import annotations

from typing import Any

from proof.check import Findings
from proof.ledger import Ledger

# Their rows since the round began; of others who send, nobody knows what they made
_ROWS = """
SELECT vin, epoch, seq, id FROM diag WHERE received_at >= to_timestamp(%(begun)s) AND epoch > 0 AND vin = ANY(%(fleet)s)
"""


def check_fleet(connection: Any, ledger: Ledger, moving: bool) -> Findings:
    """I2, I4 and the epoch, for all vehicles of the product that were heard during the round. Raises psycopg2.Error.

    `moving`: hosts come and go, and a vehicle that another host takes over begins an epoch there.
    """
    found = Findings()
    values = {"begun": ledger.begun, "fleet": ledger.fleet}
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*), count(DISTINCT vin) FROM ({_ROWS}) mine", values)
        found.counts["fleet_rows"], found.counts["fleet_vehicles"] = cursor.fetchone()
        cursor.execute(f"SELECT vin FROM ({_ROWS}) mine GROUP BY vin HAVING count(DISTINCT epoch) > 1", values)
        for (vin,) in [] if moving else cursor.fetchall():
            found.add("I2", "spools_lost", f"{vin} of the fleet began a new epoch: its spool was lost")
        cursor.execute(
            "SELECT g.vin, g.epoch, g.from_seq, g.to_seq, g.reason FROM gap g "
            f"WHERE g.state = 'undeclared' AND g.noted_at >= to_timestamp(%(begun)s)"
            f" AND (g.vin, g.epoch) IN (SELECT vin, epoch FROM ({_ROWS}) mine)",
            values,
        )
        for vin, epoch, first, last, reason in cursor.fetchall():
            found.add("I2", "unexplained", f"{vin} epoch {epoch} of the fleet lacks seqs {first} to {last} ({reason})")
        cursor.execute(
            "SELECT r.vin, r.epoch, r.seq FROM ("
            f"SELECT vin, epoch, seq, lag(seq) OVER (PARTITION BY vin, epoch ORDER BY id) AS before FROM ({_ROWS}) mine"
            ") r WHERE r.seq <= r.before AND NOT EXISTS (SELECT FROM gap g WHERE g.state = 'filled' AND g.vin = r.vin"
            " AND g.epoch = r.epoch AND r.seq BETWEEN g.from_seq AND g.to_seq)",
            values,
        )
        for vin, epoch, seq in cursor.fetchall():
            found.add("I4", "reordered", f"{vin} epoch {epoch} seq {seq} of the fleet: stored twice or out of order")
    return found


def heard_again(connection: Any, ledger: Ledger, begun: float, healed: float) -> tuple[float | None, int]:
    """Seconds from heal until each vehicle that was heard in the minute before the fault is heard again, and how many are not."""
    values = {"begun": begun, "healed": healed, "fleet": ledger.fleet}
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT extract(epoch FROM max(again)) - %(healed)s, count(*) FILTER (WHERE again IS NULL) FROM ("
            "SELECT min(received_at) FILTER (WHERE received_at > to_timestamp(%(healed)s)) AS again FROM diag"
            " WHERE received_at > to_timestamp(%(begun)s - 60) AND epoch > 0 AND vin = ANY(%(fleet)s)"
            " GROUP BY vin HAVING bool_or(received_at <= to_timestamp(%(begun)s))) heard",
            values,
        )
        seconds, silent = cursor.fetchone()
    return (None if seconds is None else float(seconds)), silent
