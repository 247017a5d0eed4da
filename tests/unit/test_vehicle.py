"""A vehicle does what each answer asks for, loses nothing, and a fleet changes without restarting anybody."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from telemetry.health import Health
from telemetry.record import Upload, parse_json
from telemetry.settings import VehicleSettings
from telemetry.spool import Spool, SpoolThread
from telemetry.vehicle import Answer, Fleet, Host, Metrics, Tools, Vehicle


def acknowledge(upload: Upload) -> Answer:
    body = {"vin": upload.vin, "epoch": upload.epoch, "acked_through": upload.last_seq, "records": len(upload.records)}
    return Answer(200, json.dumps(body).encode())


class World:
    """A clock that moves when somebody sleeps, a back end that answers as told, and what was sent to it."""

    def __init__(self, folder: Path, **changes: str) -> None:
        for name in ("spool", "counter"):
            (folder / name).mkdir(exist_ok=True)
        environment = {
            "TELEMETRY_NAME": "node1",
            "TELEMETRY_LISTEN": "127.0.0.1:5003",
            "VEHICLE_URLS": "http://a:1,http://b:1",
            "VEHICLE_FLEET_FILE": str(folder / "fleet.json"),
            "VEHICLE_FLEET_SEED": "seed",
            "VEHICLE_SPOOL_DIR": str(folder / "spool"),
            "VEHICLE_COUNTER_DIR": str(folder / "counter"),
        }
        self.settings = VehicleSettings.load(environment | changes)
        self.health = Health("vehicle", "node1", "1")
        self.health.clear("start")
        self.spool = SpoolThread(Spool(folder / "spool", folder / "counter"))
        self.time = 1_000_000.0
        self.slept: list[float] = []
        self.sent: list[tuple[str, Upload]] = []
        self.answer: Callable[[Upload], Answer] = acknowledge
        self.tools = Tools(
            self.settings,
            self.spool,
            self._post,
            self.health,
            Metrics(self.health),
            now=lambda: self.time,
            monotonic=lambda: self.time,
            sleep=self._sleep,
            rng=random.Random(1),
            acknowledged_at=self.time,
        )

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds
        await asyncio.sleep(0)

    async def _post(self, url: str, body: bytes) -> Answer:
        upload = parse_json(body)
        self.sent.append((url, upload))
        return self.answer(upload)

    async def loaded(self, records: int) -> Vehicle:
        """A vehicle with records in its spool, whose tasks do not run."""
        vehicle = Vehicle(1, self.tools)
        vehicle._epoch, vehicle._next_seq = await self.spool.run(lambda spool: spool.join(vehicle.vin))
        for _ in range(records):
            await vehicle._report()
        return vehicle

    async def unsent(self, vehicle: Vehicle) -> Upload | None:
        return await self.spool.run(lambda spool: spool.next_upload(vehicle.vin, 1000))


def play(folder: Path, scenario: Callable[[World], Awaitable[None]], **changes: str) -> None:
    async def whole() -> None:
        world = World(folder, **changes)
        try:
            await asyncio.wait_for(scenario(world), 10)
        finally:
            await world.spool.close()

    asyncio.run(whole())


async def deliver_once(world: World, vehicle: Vehicle) -> None:
    upload = await vehicle._next()
    assert upload is not None
    await vehicle._send(upload)


def test_acknowledged_records_are_forgotten(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        vehicle = await world.loaded(3)
        await deliver_once(world, vehicle)
        assert await world.unsent(vehicle) is None
        [(url, upload)] = world.sent
        assert url.endswith("/events")
        assert [record.seq for record in upload.records] == [1, 2, 3]
        times = [record.timestamp for record in upload.records]
        assert times == sorted(set(times))

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"vin": "X", "epoch": 1, "acked_through": 3}', b"<html>ok</html>"],
)
def test_a_200_that_is_not_about_what_was_sent_acknowledges_nothing(tmp_path: Path, body: bytes) -> None:
    async def scenario(world: World) -> None:
        vehicle = await world.loaded(3)
        world.answer = lambda upload: Answer(200, body)
        await deliver_once(world, vehicle)
        upload = await world.unsent(vehicle)
        assert upload is not None
        assert len(upload.records) == 3

    play(tmp_path, scenario)


def test_rejected_records_become_a_gap_and_the_rest_is_sent(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        vehicle = await world.loaded(4)
        rejected = {"rejected": [{"seq": 2, "field": "speed", "reason": "x"}, {"seq": 99, "field": "speed", "reason": "x"}]}
        world.answer = lambda upload: acknowledge(upload) if upload.gaps else Answer(422, json.dumps(rejected).encode())
        await deliver_once(world, vehicle)
        await deliver_once(world, vehicle)
        last = world.sent[-1][1]
        assert [record.seq for record in last.records] == [1, 3, 4]
        assert [(gap.from_seq, gap.to_seq, gap.reason) for gap in last.gaps] == [(2, 2, "rejected")]
        assert await world.unsent(vehicle) is None

    play(tmp_path, scenario)


def test_too_large_halves_and_a_single_record_is_set_aside(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        vehicle = await world.loaded(4)
        world.answer = lambda upload: Answer(413, b"{}") if upload.records else acknowledge(upload)
        for _ in range(3):
            await deliver_once(world, vehicle)
        assert [len(upload.records) for _, upload in world.sent] == [4, 2, 1]
        upload = await world.unsent(vehicle)
        assert upload is not None
        assert upload.gaps[0].reason == "too_large"
        assert [record.seq for record in upload.records] == [2, 3, 4]

    play(tmp_path, scenario)


@pytest.mark.parametrize("status", [400, 415])
def test_a_refused_upload_is_kept_and_tried_again_at_the_longest_interval(tmp_path: Path, status: int) -> None:
    async def scenario(world: World) -> None:
        vehicle = await world.loaded(1)
        world.answer = lambda upload: Answer(status, b'{"message": "because"}')
        await deliver_once(world, vehicle)
        assert world.slept == [world.settings.retry_max]
        assert "because" in world.health.readiness()["reasons"][0]
        world.answer = acknowledge
        await deliver_once(world, vehicle)
        assert world.health.readiness()["ready"]

    play(tmp_path, scenario)


def test_a_503_waits_as_asked_and_stays_with_its_nginx(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        vehicle = await world.loaded(1)
        world.answer = lambda upload: Answer(503, b"{}", 7.0)
        await deliver_once(world, vehicle)
        await deliver_once(world, vehicle)
        assert all(7.0 <= seconds <= 7.0 + world.settings.retry_max for seconds in world.slept)
        assert len({url for url, _ in world.sent}) == 1

    play(tmp_path, scenario)


def test_no_answer_goes_to_the_next_nginx_with_growing_bounded_jitter(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        vehicle = await world.loaded(1)
        world.answer = lambda upload: Answer(0)
        for _ in range(60):
            await deliver_once(world, vehicle)
        assert [url for url, _ in world.sent[:4]] == ["http://b:1/events", "http://a:1/events"] * 2
        assert max(world.slept) <= world.settings.retry_max
        assert max(world.slept[:2]) <= 2.0
        assert max(world.slept[20:]) > 15
        assert min(world.slept[20:]) < 10
        assert not world.health.readiness()["ready"]

    play(tmp_path, scenario)


def test_a_vehicle_makes_records_while_nothing_is_answered(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.answer = lambda upload: Answer(0)
        host = Host(world.tools)
        await host.change(Fleet(1, 0, 1))
        while len(world.sent) < 5:
            await asyncio.sleep(0.001)
        world.answer = acknowledge
        while world.sent[-1][1].last_seq < 20:
            await asyncio.sleep(0.001)
        await host.end()
        acknowledged = [record.seq for _, upload in world.sent for record in upload.records]
        assert set(acknowledged) >= set(range(1, 21))

    play(tmp_path, scenario)


def test_a_fleet_grows_shrinks_and_returns(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        host = Host(world.tools)
        await host.change(Fleet(9, 1, 3))
        first = host.state()["here"]
        assert len(first) == 3
        await host.change(Fleet(3, 1, 3))
        assert host.state()["here"] == first[:1]
        while host.state()["draining"]:
            await asyncio.sleep(0.001)
        assert host.state()["undrained"] == []
        await host.change(Fleet(9, 1, 3))
        assert host.state()["here"] == first
        await host.end()

    play(tmp_path, scenario)


def test_who_cannot_drain_in_time_is_named_and_keeps_its_spool(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.answer = lambda upload: Answer(0)
        host = Host(world.tools)
        await host.change(Fleet(1, 0, 1))
        [vin] = host.state()["here"]
        while not world.sent:
            await asyncio.sleep(0.001)
        await host.change(Fleet(0, 0, 1))
        while host.state()["draining"]:
            await asyncio.sleep(0.001)
        assert host.state()["undrained"] == [vin]
        world.answer = acknowledge
        world.sent.clear()
        await host.change(Fleet(1, 0, 1))
        while not world.sent:
            await asyncio.sleep(0.001)
        assert world.sent[0][1].first_seq == 1
        assert host.state()["undrained"] == []
        await host.end()

    play(tmp_path, scenario)


def test_records_wait_for_company(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        vehicle = await world.loaded(2)
        vehicle._driving = asyncio.create_task(asyncio.sleep(3600))
        delivering = asyncio.create_task(vehicle._deliver())
        while not world.sent:
            await asyncio.sleep(0.001)
        vehicle._delivering = delivering
        await vehicle.end()
        assert world.slept[0] == pytest.approx(10)
        assert [record.seq for record in world.sent[0][1].records] == [1, 2]

    play(tmp_path, scenario, VEHICLE_UPLOAD_WAIT="10")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"num_vehicles": "3", "host_index": 0, "host_count": 1}',
        '{"num_vehicles": 3, "host_index": 1, "host_count": 1}',
    ],
)
def test_a_bad_fleet_file_is_refused(content: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Fleet.parse(content.encode())


def test_vehicles_are_dealt_to_hosts_one_by_one() -> None:
    hosts: list[Any] = [Fleet(10, index, 3).here() for index in range(3)]
    assert hosts == [[1, 4, 7, 10], [2, 5, 8], [3, 6, 9]]
