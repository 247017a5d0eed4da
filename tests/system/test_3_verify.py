"""verify.yml: clean while parts are killed, and not clean when anything at all is wrong with what is stored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import requests
from system.deployment import BUILD, INSTANCE, ROOT, VEHICLES, Database, begin, play, wait_for
from system.sender import new_vin, post, upload

REPORT = BUILD / "verify.json"
LEDGERS = ROOT / "build" / "verify" / INSTANCE
FAULTS = ["broker", "consumer", "postgres"]


@pytest.fixture(scope="module")
def verdict(summary: dict[str, Any]) -> dict[str, Any]:
    """The verdict of a short round with three faults."""
    play("verify", "verify.yml", "-e", f"records=3000 seed=1 faults={','.join(FAULTS)} verify_report_file={REPORT}")
    found: dict[str, Any] = json.loads(REPORT.read_text())
    return found


def fleet() -> list[str]:
    """VINs of the product's own vehicles."""
    return [vin for url in VEHICLES for vin in requests.get(f"{url}/fleet", timeout=5).json()["here"]]


def judge() -> dict[str, Any]:
    """The verdict on the same round, as the database is now."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "proof", "judge", str(LEDGERS), "--report", str(REPORT)],
        env=os.environ | {"PYTHONPATH": str(ROOT / "services")},
        input=json.dumps({"lines": [], "secrets": [], "traces": []}),
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 3), done.stderr
    found: dict[str, Any] = json.loads(REPORT.read_text())
    return found


def test_a_round_with_faults_is_clean(verdict: dict[str, Any]) -> None:
    assert verdict["verdict"] == "clean"
    assert [fault["name"] for fault in verdict["faults"]] == FAULTS
    assert all(fault["bit"] and fault["accepted_seconds"] is not None for fault in verdict["faults"])
    assert verdict["made"] >= 3000
    assert verdict["rows"] == verdict["acknowledged"] > 0
    assert verdict["gaps"] >= verdict["refused"] > 0
    for fault in verdict["faults"]:
        print(f"{fault['name']}: accepted again after {fault['accepted_seconds']} s, stored after {fault['stored_seconds']} s")


def test_what_others_send_is_no_finding(verdict: dict[str, Any], database: Database) -> None:
    """Numberings with holes and new epochs of vehicles that are not the product's."""
    vin = new_vin()
    assert [post(upload(vin, [seq], epoch=epoch)).status_code for epoch, seq in ((1, 5), (2, 1))] == [200, 200]
    wait_for("the rows", lambda: database.value(f"SELECT count(*) FROM diag WHERE vin = '{vin}'") == 2)
    found = judge()
    assert found["verdict"] == "clean"
    assert found["counts"]["fleet_vehicles"] == len(fleet())


COLUMNS = "timestamp, vin, make, model, position_x, position_y, position_z, speed, epoch, seq"
PICK = "vin = '{vin}' AND epoch = {epoch} AND seq = {seq}"
DEFECTS: dict[str, tuple[str, str, Callable[[str], str]]] = {
    # Name: count in the verdict, invariant, statements for the row that is picked
    "a deleted row": ("missing", "I1", lambda pick: f"DELETE FROM diag WHERE {pick}"),
    "an altered value": ("altered", "I5", lambda pick: f"UPDATE diag SET speed = speed + 1 WHERE {pick}"),
    "a doubled row": (
        "duplicates",
        "I3",
        # The guard index is one of a day: another day takes the same record again
        lambda pick: (
            "SELECT make_day((now() AT TIME ZONE 'UTC')::date + 1); "
            f"INSERT INTO diag ({COLUMNS}, received_at) SELECT {COLUMNS}, received_at + interval '1 day' FROM diag WHERE {pick}"
        ),
    ),
    "two rows swapped": (
        "reordered",
        "I4",
        lambda pick: f"UPDATE diag SET id = (SELECT max(id) + 1 FROM diag) WHERE {pick}",
    ),
    "an epoch left out": ("missing", "I1", lambda pick: f"UPDATE diag SET epoch = epoch + 1 WHERE {pick}"),
    "a gap forgotten": ("undeclared", "I2", lambda pick: "DELETE FROM gap WHERE epoch = {epoch}"),
    "a gap that nobody declared": (
        "unexplained",
        "I2",
        lambda pick: (
            f"DELETE FROM diag WHERE {pick}; "
            "INSERT INTO gap VALUES ('{vin}', {epoch}, {seq}, {seq}, 'undeclared', 'missing')"
        ),
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_found_and_named(verdict: dict[str, Any], database: Database, name: str) -> None:
    count, invariant, plant = DEFECTS[name]
    vins = ", ".join(f"'{vin}'" for vin in verdict["vins"])
    # In the middle of its vehicle's rows, so that its place can be wrong
    [[vin, epoch, seq]] = database.rows(
        f"SELECT vin, epoch, seq FROM diag WHERE vin IN ({vins}) AND epoch = {verdict['epoch']} AND seq BETWEEN 5 AND 30 LIMIT 1"
    )
    where = {"vin": vin, "epoch": epoch, "seq": seq}
    database.run("CREATE TABLE kept_diag AS SELECT * FROM diag; CREATE TABLE kept_gap AS SELECT * FROM gap")
    try:
        database.run(plant(PICK).format(**where))
        found = judge()
    finally:
        # Rows that vehicles sent meanwhile stay
        database.run(
            f"DELETE FROM diag WHERE vin IN ({vins}); INSERT INTO diag SELECT * FROM kept_diag WHERE vin IN ({vins}); "
            f"DELETE FROM gap WHERE vin IN ({vins}); INSERT INTO gap SELECT * FROM kept_gap WHERE vin IN ({vins}); "
            "DROP TABLE kept_diag, kept_gap"
        )
    assert found["verdict"] == "failed"
    assert found["counts"][count] >= 1
    assert any(vin in what or name == "a gap forgotten" for what in found["wrong"][invariant])
    assert judge()["verdict"] == "clean"


def test_a_change_is_proved_while_it_is_made(summary: dict[str, Any]) -> None:
    """The last one here: its ledger is the newest."""
    report = BUILD / "verify-change.json"
    proof = begin("ansible-playbook", "verify.yml", "-e", f"records=3000 minutes=1 verify_report_file={report}")
    assert proof.stdout
    said = ""
    while "Let it drive" not in said and (line := proof.stdout.readline()):
        said += line
    play("proved", "site.yml", "-e", f"container_restart={time.time()} container_restart_kinds=producer,consumer")
    rest, _ = proof.communicate()
    assert proof.returncode == 0, said + rest
    found = json.loads(report.read_text())
    assert found["verdict"] == "clean"
    assert found["rows"] == found["acknowledged"] > 2000
