"""The fleet follows its count, and keeps who it is."""

from __future__ import annotations

from typing import Any

import requests
from system.deployment import VEHICLES, Database, container, docker, play, started, wait_for


def vehicles() -> list[str]:
    return sorted(vin for url in VEHICLES for vin in requests.get(f"{url}/fleet", timeout=5).json()["here"])


def undeclared(database: Database) -> list[list[Any]]:
    """Gaps that nobody declared: records that were lost, or are not there yet."""
    return database.rows("SELECT vin, epoch, from_seq, to_seq FROM gap WHERE state = 'undeclared' AND epoch > 1 ORDER BY 1, 2, 3")


def counts(database: Database) -> dict[str, int]:
    found = database.rows("SELECT vin, count(*) FROM diag WHERE make = 'Ford' AND epoch > 1 GROUP BY vin")
    return dict(found)


def grows(database: Database, vins: list[str]) -> bool:
    before = counts(database)
    wait_for("all vehicles' rows", lambda: all(counts(database).get(vin, 0) > before.get(vin, 0) for vin in vins))
    return True


def test_a_fleet_grows_and_shrinks_and_nothing_is_restarted(database: Database) -> None:
    first, before = vehicles(), started()
    play("fleet-12", "fleet.yml", "-e", "num_vehicles=12")
    twelve = vehicles()
    assert len(twelve) == 12
    assert set(first) < set(twelve)
    grows(database, twelve)
    play("fleet-4", "fleet.yml", "-e", "num_vehicles=4")
    four = vehicles()
    assert len(four) == 4
    assert set(four) < set(first)
    assert all(requests.get(f"{url}/fleet", timeout=5).json()["undrained"] == [] for url in VEHICLES)
    again = play("fleet-same", "fleet.yml")
    assert again.changed == 0
    assert vehicles() == four
    assert started() == before


def test_vehicles_keep_vin_and_epoch_through_a_restart_and_lose_nothing(database: Database) -> None:
    vins = vehicles()
    known = database.rows("SELECT DISTINCT vin, epoch FROM progress WHERE epoch > 1")
    mine = {tuple(each) for each in known if each[0] in vins}
    docker("restart", container("vehicle", "node1"))
    wait_for("the vehicles", lambda: vehicles() == vins)
    grows(database, vins)
    after = {tuple(each) for each in database.rows("SELECT DISTINCT vin, epoch FROM progress WHERE epoch > 1") if each[0] in vins}
    assert after == mine
    assert whole(database, vins)


def whole(database: Database, vins: list[str]) -> bool:
    """Rows and open gaps of every vehicle are exactly 1..last, in order."""
    names = ",".join(f"'{vin}'" for vin in vins)
    bad: list[list[Any]] = database.rows(
        "SELECT vin, epoch, last, stored, distinct_seqs, open FROM progress "
        "JOIN LATERAL (SELECT count(*) AS stored, count(DISTINCT seq) AS distinct_seqs FROM diag d "
        "WHERE (d.vin, d.epoch) = (progress.vin, progress.epoch)) r ON true "
        "JOIN LATERAL (SELECT coalesce(sum(to_seq - from_seq + 1), 0) AS open FROM gap g "
        "WHERE (g.vin, g.epoch) = (progress.vin, progress.epoch) AND state <> 'filled') o ON true "
        f"WHERE vin IN ({names}) AND (stored + open <> last OR stored <> distinct_seqs)"
    )
    assert bad == []
    disorder = database.rows(
        "SELECT vin, seq FROM (SELECT vin, seq, lag(seq) OVER (PARTITION BY vin, epoch ORDER BY id) AS before "
        f"FROM diag WHERE vin IN ({names})) x WHERE seq <= before"
    )
    assert disorder == []
    return True
