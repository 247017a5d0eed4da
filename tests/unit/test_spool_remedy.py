"""What an operator does about records that were set aside, beside a service that has the spool open."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from telemetry.record import VALUES, Record
from telemetry.settings import VehicleSettings
from telemetry.vehicle import remedy
from telemetry.vehicle.spool import STEPS, Made, Spool

VIN, OTHER = "1M8GDM9AXKP042788", "11111111111111111"
NAMES = ("Ford", "Edge")


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """Two vehicles with ten records each, every second of them set aside for a fault of one kind, the last for another."""
    one = Spool(tmp_path, tmp_path)
    with one.transaction():
        for vin in (VIN, OTHER):
            epoch = one.join(vin).epoch
            for seq in range(1, 11):
                one.append(Made(vin, epoch, *NAMES, Record(seq, 100.0 + seq, 1.0, 2.0, 3.0, 99_999.0)))
            one.set_aside(vin, epoch, dict.fromkeys((2, 4, 6, 8), "speed: too fast"), "rejected")
            one.set_aside(vin, epoch, {10: "timestamp: too early"}, "rejected")
    yield one
    one.close()


@pytest.fixture
def settings(tmp_path: Path) -> VehicleSettings:
    environment = {
        "TELEMETRY_NAME": "node1", "TELEMETRY_LISTEN": "127.0.0.1:5003", "VEHICLE_URLS": "http://a:1", "VEHICLE_FLEET_FILE": "/f",
        "VEHICLE_FLEET_SEED": "s", "VEHICLE_SPOOL_DIR": str(tmp_path), "VEHICLE_COUNTER_DIR": str(tmp_path),
    }  # fmt: skip
    return VehicleSettings.load(environment)


class Tool:
    """The command, and what it printed."""

    def __init__(self, settings: VehicleSettings, capsys: pytest.CaptureFixture[str]) -> None:
        self._settings, self._capsys = settings, capsys

    def __call__(self, *arguments: str, status: int = 0) -> Any:
        assert remedy.run(self._settings, arguments) == status
        out = self._capsys.readouterr().out
        assert out.count("\n") == 1
        return json.loads(out)


@pytest.fixture
def tool(settings: VehicleSettings, capsys: pytest.CaptureFixture[str]) -> Tool:
    return Tool(settings, capsys)


def marked(spool: Spool) -> dict[str, int]:
    return {vin: each.put_back for vin, each in spool.backlog().items() if each.put_back}


def test_what_is_set_aside_is_shown_by_its_fault_with_an_example(spool: Spool, tool: Tool) -> None:
    fast, early = tool("list")
    assert [fast[name] for name in ("fault", "records", "vehicles", "put_back")] == ["speed: too fast", 8, 2, 0]
    assert fast["example"]["seq"] == 2
    assert {name: fast["example"][name] for name in ("make", "model", *VALUES)} == {
        "make": "Ford", "model": "Edge", "timestamp": 102.0,
        "position_x": 1.0, "position_y": 2.0, "position_z": 3.0, "speed": 99_999.0,
    }  # fmt: skip
    assert (early["fault"], early["records"]) == ("timestamp: too early", 2)
    assert marked(spool) == {}


@pytest.mark.parametrize("part", [10_000, 2])
def test_what_is_put_back_is_sent_again_by_the_service(
    spool: Spool, tool: Tool, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    monkeypatch.setattr(remedy, "SLICE", part)
    assert tool("put_back", VIN) == {"records": 5}
    assert marked(spool) == {VIN: 5}
    assert tool("put_back", "all") == {"records": 5}
    assert tool("put_back", "all") == {"records": 0}
    assert marked(spool) == {VIN: 5, OTHER: 5}
    assert [each["put_back"] for each in tool("list")] == [8, 2]
    with spool.transaction():
        upload = spool.next_upload(VIN, NAMES, 50)
        assert upload is not None
        spool.acknowledge(VIN, upload.epoch, upload.last_seq)
        sent = []
        while again := spool.next_put_back(VIN, 50):
            sent += [record.seq for record in again.records]
            spool.acknowledge_put_back(again)
    assert sent == [2, 4, 6, 8, 10]
    assert spool.kept_aside() == {OTHER: 5}


@pytest.mark.parametrize("part", [10_000, 2])
def test_what_is_discarded_is_gone_and_stays_declared(spool: Spool, tool: Tool, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    monkeypatch.setattr(remedy, "SLICE", part)
    assert tool("discard", VIN) == {"records": 5}
    assert spool.kept_aside() == {OTHER: 5}
    upload = spool.next_upload(VIN, NAMES, 50)
    assert upload is not None
    assert len(upload.gaps) == 5
    assert tool("discard", "all") == {"records": 5}
    assert (spool.kept_aside(), tool("list")) == ({}, [])


@pytest.mark.parametrize(
    "arguments",
    [[], ["list", "all"], ["put_back"], ["put_back", "every"], ["discard", "' OR 1"], ["put_back", VIN, OTHER], ["drop", VIN]],
)
def test_what_nobody_asked_for_is_not_done(spool: Spool, tool: Tool, arguments: list[str]) -> None:
    assert "put_back all" in tool(*arguments, status=1)["error"]
    assert (marked(spool), spool.kept_aside()) == ({}, {VIN: 5, OTHER: 5})


def test_a_vehicle_that_is_not_here_has_nothing(spool: Spool, tool: Tool) -> None:
    assert tool("put_back", "2" * 17) == {"records": 0}


def test_a_spool_that_is_not_there_or_of_another_version_is_left_alone(tool: Tool, tmp_path: Path) -> None:
    assert "made when the service starts" in tool("list", status=1)["error"]
    assert list(tmp_path.iterdir()) == []
    old = sqlite3.connect(tmp_path / "spool.sqlite")
    old.executescript(STEPS[0] + "PRAGMA user_version = 1")
    old.close()
    assert "Run fleet.yml" in tool("put_back", "all", status=1)["error"]


def test_a_service_that_is_in_the_middle_of_a_commit_is_waited_for_and_no_longer_than_may_be(
    spool: Spool, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remedy, "PATIENCE", 0.0)
    with spool.transaction():
        assert "locked" in tool("put_back", "all", status=1)["error"]
    assert tool("put_back", "all") == {"records": 10}
