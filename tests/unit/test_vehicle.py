"""A vehicle does what each answer asks for, loses nothing, and a fleet changes without restarting anybody.

Time is the event loop's own and passes only when everybody waits; a wait that nothing can end is an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import selectors
from bisect import bisect_left
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from operator import methodcaller
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from telemetry.health import Health
from telemetry.metrics import VehicleMetrics
from telemetry.record import Gap, Record, Refused, Upload, encode, parse_json
from telemetry.settings import VehicleSettings
from telemetry.vehicle import remedy
from telemetry.vehicle.host import Fleet, Host
from telemetry.vehicle.journey import make_vin
from telemetry.vehicle.service import make_post, watch
from telemetry.vehicle.spool import REJECTED, SPOOL_AGE, Bound, Made, Spool, SpoolError, perform
from telemetry.vehicle.vehicle import DRAIN_PACE, Answer, Tools, Vehicle

NOW = 1_700_000_000.0
NAMES = ("Ford", "F-150")


class Patience(selectors.SelectSelector):
    """Waits by letting the clock go on."""

    passed = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("everybody waits for ever")
        self.passed += max(0.0, timeout)
        return super().select(0)


class Loop(asyncio.SelectorEventLoop):
    """An event loop in which nobody has to wait for time to pass."""

    def __init__(self) -> None:
        self._patience = Patience()
        super().__init__(self._patience)

    def time(self) -> float:
        return self._patience.passed


class InlineSpool:
    """A spool without a thread.

    `broken` refuses everything, as a full disk does; `lying` does it and says that it did not; calls take `seconds`.
    """

    def __init__(self, spool: Spool) -> None:
        self.spool, self.broken, self.lying, self.seconds = spool, False, False, 0.0

    async def run(self, call: Callable[[Spool], Any]) -> Any:
        # What was asked is done, though who asked may have been cancelled
        return await asyncio.shield(self._run(call))

    async def _run(self, call: Callable[[Spool], Any]) -> Any:
        await asyncio.sleep(self.seconds)
        result = SpoolError("full") if self.broken else perform(self.spool, [call])[0]
        if self.lying:
            raise SpoolError("unknown")
        if isinstance(result, Exception):
            raise result
        return result


def acknowledge(upload: Upload) -> Answer:
    body = {"vin": upload.vin, "epoch": upload.epoch, "acked_through": upload.last_seq, "records": len(upload.records)}
    return Answer(200, json.dumps(body).encode())


def always(answer: Answer) -> Callable[[Upload], Answer]:
    return lambda upload: answer


def reject(*seqs: Any) -> Answer:
    return Answer(422, json.dumps({"rejected": [{"seq": seq, "field": "speed", "reason": "no"} for seq in seqs]}).encode())


def busiest(sent: list[tuple[float, str, Upload]]) -> int:
    """The most POSTs within any second."""
    times = sorted(when for when, _, _ in sent)
    return max(bisect_left(times, when + 1.0) - number for number, when in enumerate(times))


class World:
    """A host's vehicles, a back end that answers as told and keeps a ledger, and the clock's hours."""

    def __init__(self, folder: Path, **changes: str) -> None:
        for name in ("spool", "counter"):
            (folder / name).mkdir(exist_ok=True)
        self.file = folder / "fleet.json"
        environment = {
            "TELEMETRY_NAME": "node1",
            "TELEMETRY_LISTEN": "127.0.0.1:5003",
            "VEHICLE_URLS": "http://a:1,http://b:1",
            "VEHICLE_FLEET_FILE": str(self.file),
            "VEHICLE_FLEET_SEED": "seed",
            "VEHICLE_SPOOL_DIR": str(folder / "spool"),
            "VEHICLE_COUNTER_DIR": str(folder / "counter"),
        }
        self.settings = VehicleSettings.load(environment | changes)
        bound = Bound(self.settings.spool_max_bytes, self.settings.spool_max_hours)
        self.spool = InlineSpool(Spool(folder / "spool", folder / "counter", bound=bound, monotonic=lambda: self.time))
        self.ahead = 0.0
        self.travel = 0.05
        self.sent: list[tuple[float, str, Upload]] = []
        self.ledger: dict[tuple[str, int], dict[int, float]] = {}
        self.gaps: set[tuple[str, Gap]] = set()
        self.answer: Callable[[Upload], Answer] = acknowledge
        self.doubled: list[Upload] = []
        self._flying: set[tuple[str, int]] = set()
        self.restart()

    def restart(self) -> None:
        """A new process on the same spool."""
        self.health = Health("vehicle", "node1", "1")
        self.health.clear("start")
        self.metrics = VehicleMetrics(self.health.registry)
        self.tools = Tools(
            self.settings,
            self.spool,  # type: ignore[arg-type]  # does what the real one does, at once
            self.post,
            self.health,
            self.metrics,
            now=lambda: NOW + self.ahead + self.time,
            monotonic=lambda: self.time,
            sleep=asyncio.sleep,
            rng=random.Random(1),
        )
        self.host = Host(self.tools)

    @property
    def time(self) -> float:
        return asyncio.get_running_loop().time()

    async def post(self, url: str, body: bytes) -> Answer:
        upload = parse_json(body)
        self.sent.append((self.time, url, upload))
        key = (upload.vin, upload.epoch)
        if key in self._flying:
            self.doubled.append(upload)
        self._flying.add(key)
        try:
            await asyncio.sleep(self.travel)
        finally:
            self._flying.discard(key)
        answer = self.answer(upload)
        if answer.status == 200 and b"acked_through" in answer.body:
            mine = self.ledger.setdefault(key, {})
            for record in upload.records:
                assert mine.setdefault(record.seq, record.timestamp) == record.timestamp
            self.gaps |= {(upload.vin, gap) for gap in upload.gaps}
        return answer

    async def loaded(self, records: int) -> Vehicle:
        """A vehicle with records in its spool, whose tasks do not run."""
        vehicle = Vehicle(1, self.tools)
        for _ in range(records):
            await vehicle._report()
        return vehicle

    async def deliver(self, vehicle: Vehicle) -> float:
        """Let a vehicle send once and do what the answer asks for; the seconds it took."""
        upload = await vehicle._next()
        assert upload is not None
        begun = self.time
        await vehicle._send(upload)
        return self.time - begun - self.travel

    async def unsent(self, vehicle: Vehicle) -> list[int]:
        upload = await self.spool.run(lambda spool: spool.next_upload(vehicle.vin, NAMES, 1000))
        return [record.seq for record in upload.records] if upload else []

    @property
    def reasons(self) -> list[str]:
        return list(self.health.readiness()["reasons"])

    def seqs(self, vin: str) -> list[int]:
        """What the back end holds of a vehicle, in order of arrival."""
        [mine] = [seqs for key, seqs in self.ledger.items() if key[0] == vin]
        return list(mine)


def play(folder: Path, scenario: Callable[[World], Awaitable[None]], **changes: str) -> None:
    """Run a scenario; what still runs at its end is stopped."""

    async def whole() -> None:
        world = World(folder, **changes)
        try:
            await scenario(world)
            assert world.doubled == []
        finally:
            world.spool.spool.close()

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(whole())


def test_acknowledged_records_are_forgotten(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        vehicle = await world.loaded(3)
        await world.deliver(vehicle)
        assert await world.unsent(vehicle) == []
        assert world.seqs(vehicle.vin) == [1, 2, 3]
        assert world.sent[0][1].endswith("/events")

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    "change",
    [
        {"vin": "11111111111111111"},
        {"epoch": 1},
        {"acked_through": 2},
        {"acked_through": 4},
        {"acked_through": 3.0},
        {"acked_through": None},
    ],
)
def test_a_200_about_something_else_acknowledges_nothing(tmp_path: Path, change: dict[str, Any]) -> None:
    async def scenario(world: World) -> None:
        vehicle = await world.loaded(3)
        world.answer = lambda upload: Answer(200, json.dumps(json.loads(acknowledge(upload).body) | change).encode())
        await world.deliver(vehicle)
        assert await world.unsent(vehicle) == [1, 2, 3]

    play(tmp_path, scenario)


GARBAGE = [b"", b"null", b"[]", b"{}", b"<html>ok</html>", b"\xff\xfe", b'"\\ud800"', b'{"a":' + b"[" * 100_000]


@pytest.mark.parametrize(
    ("status", "body"), [*((status, body) for status in (200, 422) for body in GARBAGE), (502, b""), (302, b""), (404, b"{}")]
)
def test_an_answer_that_is_not_ours_changes_nothing_and_delivery_goes_on(tmp_path: Path, status: int, body: bytes) -> None:
    async def scenario(world: World) -> None:
        world.answer = lambda upload: Answer(status, body)
        world.host.change(Fleet(1, 0, 1))
        await asyncio.sleep(20)
        assert not world.ledger
        assert len({url for _, url, _ in world.sent}) == 2
        assert len(world.reasons) == 1
        world.answer = acknowledge
        await asyncio.sleep(40)
        [vin] = world.host.state()["here"]
        assert world.seqs(vin)[:15] == list(range(1, 16))
        assert world.reasons == []

    play(tmp_path, scenario)


def test_rejected_records_become_a_gap_and_the_rest_is_sent(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        vehicle = await world.loaded(4)
        world.answer = lambda upload: acknowledge(upload) if upload.gaps else reject(2, 99)
        assert await world.deliver(vehicle) == pytest.approx(0)
        await world.deliver(vehicle)
        assert world.seqs(vehicle.vin) == [1, 3, 4]
        assert world.gaps == {(vehicle.vin, Gap(2, 2, "rejected"))}
        assert await world.unsent(vehicle) == []

    play(tmp_path, scenario)


def too_fast(upload: Upload) -> Answer:
    """As a producer answers that takes no height above 1,000 m."""
    faults = [record.seq for record in upload.records if record.position_z > 1000]
    return reject(*faults) if faults else acknowledge(upload)


def test_what_is_rejected_is_told_and_what_is_put_back_fills_its_gap(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.answer = too_fast
        world.host.change(Fleet(1, 0, 1))
        [vin] = world.host.state()["here"]
        measuring = asyncio.create_task(world.host.measure())
        await asyncio.sleep(300)
        [degraded] = world.health.readiness()["degraded"]
        assert "set aside" in degraded
        assert world.reasons == []
        lost = {seq for _, gap in world.gaps for seq in range(gap.from_seq, gap.to_seq + 1)}
        assert len(lost) > 30
        assert world.metrics.set_aside._value.get() >= len(lost)

        # The bound is mended; they go on being made
        world.answer = acknowledge
        await asyncio.sleep(10)
        with contextlib.closing(remedy.connect(world.settings.spool_dir)) as database:
            assert remedy.put_back(database, vin) >= len(lost)
        await asyncio.sleep(100)
        measuring.cancel()
        assert sorted(world.seqs(vin)) == list(range(1, len(world.seqs(vin)) + 1))
        assert lost < set(world.seqs(vin))
        assert world.health.readiness()["degraded"] == []
        assert world.metrics.set_aside._value.get() == 0

    play(tmp_path, scenario, VEHICLE_VELOCITY_Z="40")


def test_what_is_put_back_of_a_vehicle_that_waits_for_its_next_record_is_sent_before_that(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.answer = lambda upload: reject(1) if 1 in [record.seq for record in upload.records] else acknowledge(upload)
        world.host.change(Fleet(1, 0, 1))
        measuring = asyncio.create_task(world.host.measure())
        while not any(6 in seqs for seqs in world.ledger.values()):
            await asyncio.sleep(1)
        world.answer = acknowledge
        with contextlib.closing(remedy.connect(world.settings.spool_dir)) as database:
            assert remedy.put_back(database, "all") == 1
        await asyncio.sleep(550)
        measuring.cancel()
        [vin] = world.host.state()["here"]
        assert world.seqs(vin) == [2, 3, 4, 5, 6, 1]

    play(tmp_path, scenario, VEHICLE_REPORT_DELAY="600")


def test_what_is_put_back_of_a_vehicle_that_leaves_is_drained(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.host.change(Fleet(1, 0, 1))
        [vin] = world.host.state()["here"]
        world.answer = lambda upload: reject(1) if upload.first_seq == 1 and upload.records[:1] else acknowledge(upload)
        await asyncio.sleep(10)
        world.answer = acknowledge
        with contextlib.closing(remedy.connect(world.settings.spool_dir)) as database:
            assert remedy.put_back(database, "all") == 1
        world.host.change(Fleet(0, 0, 1))
        await asyncio.sleep(5)
        assert world.host.state()["draining"] == []
        assert 1 in world.seqs(vin)

    play(tmp_path, scenario, VEHICLE_REPORT_DELAY="4")


def test_a_make_that_producers_refuse_goes_as_a_gap_and_what_is_made_after_it_was_corrected_is_delivered(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        vehicle = await world.loaded(60)
        # As an earlier version kept them
        bad = "Bayerische Motoren Werke AG"
        world.spool.spool._database.execute("UPDATE record SET make = ?", (bad,))
        answers = []

        async def post(url: str, body: bytes) -> Answer:
            try:
                upload = parse_json(body)
            except Refused as refused:
                sent = json.loads(body)
                assert sent["make"] == bad
                answers.append(refused.status)
                return Answer(
                    422, json.dumps({"rejected": [{"seq": each["seq"], "field": "make"} for each in sent["records"]]}).encode()
                )
            answers.append(200)
            return await World.post(world, url, encode(upload))

        world.tools.post = post
        for _ in range(3):
            await world.deliver(vehicle)
        await vehicle._report()
        await world.deliver(vehicle)
        assert world.seqs(vehicle.vin) == [61]
        assert {(gap.from_seq, gap.to_seq, gap.reason) for _, gap in world.gaps} == {(1, 60, REJECTED)}
        assert world.spool.spool.kept_aside() == {vehicle.vin: 60}

    play(tmp_path, scenario)


def test_a_storm_of_refusals_is_a_few_lines_of_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        world.answer = lambda upload: Answer(400, b'{"error": "invalid", "message": "no"}')
        world.host.change(Fleet(50, 0, 1))
        measuring = asyncio.create_task(world.host.measure())
        await asyncio.sleep(100)
        assert "vehicles: 50;" in world.reasons[0]
        world.answer = acknowledge
        await asyncio.sleep(60)
        assert world.reasons == []
        measuring.cancel()
        assert len(caplog.messages) < 40

    play(tmp_path, scenario)


NASTY = b'{"error": "invalid", "message": "a\\nb"}\n\r2026-01-01 CRITICAL forged \x1b[31m\xff' + b"x" * 10_000


@pytest.mark.parametrize("status", [400, 502])
def test_an_answer_writes_no_lines_of_its_own_into_log_or_readyz(
    tmp_path: Path, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        vehicle = await world.loaded(1)
        await asyncio.sleep(10)
        world.answer = lambda upload: Answer(status, NASTY)
        await world.deliver(vehicle)
        world.answer = lambda upload: Answer(422, json.dumps({"rejected": [{"seq": 1, "field": NASTY.decode("latin-1")}]}).encode())
        await world.deliver(vehicle)
        [reason] = world.reasons
        for text in (reason, *caplog.messages):
            assert text.isprintable()
            assert len(text) < 700

    play(tmp_path, scenario)


def test_a_spool_whose_thread_ends_or_hangs_ends_the_process() -> None:
    class Ended:
        def check(self, seconds: float) -> None:
            raise SpoolError("ended")

    async def process() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(watch(Ended()))  # type: ignore[arg-type]  # as much of it as is asked
            group.create_task(asyncio.sleep(1e9))

    with asyncio.Runner(loop_factory=Loop) as runner, pytest.raises(ExceptionGroup) as caught:
        runner.run(process())
    assert caught.group_contains(SpoolError, match="ended")


@pytest.mark.parametrize(
    "answer", [reject(), reject(5), reject(99), reject(True), reject("2"), reject(2.0), reject(None), reject([2])]
)
def test_a_422_that_names_no_record_sets_nothing_aside(tmp_path: Path, answer: Answer) -> None:
    async def scenario(world: World) -> None:
        vehicle = await world.loaded(5)
        world.answer = lambda upload: answer
        await world.deliver(vehicle)
        assert await world.unsent(vehicle) == [1, 2, 3, 4, 5]

    play(tmp_path, scenario, VEHICLE_UPLOAD_RECORDS="4")


def too_large(body: bytes = b'{"error": "too_large", "message": "Send fewer records."}') -> Answer:
    return Answer(413, body)


@pytest.mark.parametrize(
    "body", [b"", b"<html>413 Request Entity Too Large</html>", b'{"error": "too_large"}', b'{"error": "proxy", "message": "no"}']
)
def test_whoever_answers_413_to_everything_takes_no_record_and_is_told(tmp_path: Path, body: bytes) -> None:
    async def scenario(world: World) -> None:
        world.answer = lambda upload: too_large(body)
        world.host.change(Fleet(3, 0, 1))
        await asyncio.sleep(300)
        await world.host.measure_once()
        [reason] = world.reasons
        assert "413" in reason
        assert "vehicles: 3" in reason
        assert "\n" not in reason
        # At the longest interval
        assert len(world.sent) <= 3 * (1 + 300 / world.settings.retry_max)
        world.answer = acknowledge
        await asyncio.sleep(120)
        assert world.reasons == []
        assert world.gaps == set()
        for vin in world.host.state()["here"]:
            assert world.seqs(vin) == list(range(1, len(world.seqs(vin)) + 1))
            assert len(world.seqs(vin)) > 130

    play(tmp_path, scenario)


async def with_gaps(world: World, most: int) -> tuple[Vehicle, list[int]]:
    """A vehicle with 200 records, and then with every second of 200 set aside; and the seqs of the records."""
    vehicle = await world.loaded(400)
    odd = dict.fromkeys(range(200, 400, 2), "no")
    await world.spool.run(lambda spool: spool.set_aside(vehicle.vin, vehicle._epoch, odd, REJECTED))
    return vehicle, [seq for seq in range(1, 401) if seq not in odd]


def test_too_large_halves_records_and_gaps_until_it_fits_and_is_told_while_it_is_so(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        vehicle, records = await with_gaps(world, 1000)
        # A body has less than 140 bytes a record or gap, and more than 50
        world.answer = lambda upload: acknowledge(upload) if len(upload.records) + len(upload.gaps) <= 150 else too_large()
        await world.deliver(vehicle)
        assert "halved" in str(world.health.readiness()["degraded"])
        await world.deliver(vehicle)
        for _ in range(4):
            await world.deliver(vehicle)
            if await world.unsent(vehicle) == []:
                break
            assert "halved" in str(world.health.readiness()["degraded"])
        assert world.seqs(vehicle.vin) == records
        assert len(world.gaps) == 100
        assert world.reasons == []
        for _ in range(4):
            await vehicle._report()
            await world.deliver(vehicle)
        assert "halved" not in str(world.health.readiness()["degraded"])

    play(tmp_path, scenario, VEHICLE_UPLOAD_RECORDS="1000")


def test_an_upload_of_gaps_alone_is_halved_too(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        vehicle = await world.loaded(600)
        for seq in range(1, 601):
            # Reasons that differ, so that no gap grows
            reason = f"reason {seq % 2} of this seq"
            await world.spool.run(methodcaller("set_aside", vehicle.vin, vehicle._epoch, {seq: ""}, reason))
        world.answer = lambda upload: too_large() if len(upload.gaps) > 300 else acknowledge(upload)
        for _ in range(3):
            await world.deliver(vehicle)
        assert [len(upload.gaps) for _, _, upload in world.sent] == [600, 300, 300]
        assert await world.spool.run(lambda spool: spool.backlog()) == {}

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, "invalid"), (415, "type"), (413, "proxy"), (403, "wrong_vin"), (403, "revoked"), (403, "certificate")],
)
def test_a_refused_upload_is_kept_and_tried_again_at_the_longest_interval(tmp_path: Path, status: int, error: str) -> None:
    async def scenario(world: World) -> None:
        vehicle = await world.loaded(1)
        world.answer = lambda upload: Answer(status, json.dumps({"error": error, "message": "because"}).encode())
        assert await world.deliver(vehicle) == pytest.approx(world.settings.retry_max)
        assert await world.unsent(vehicle) == [1]
        assert "because" in world.reasons[0]
        vehicle.end()
        assert world.reasons == []
        await world.deliver(vehicle)
        assert "because" in world.reasons[0]
        world.answer = acknowledge
        await world.deliver(vehicle)
        assert world.reasons == []

    play(tmp_path, scenario)


def test_who_refuses_and_is_none_of_ours_may_stand_before_one_nginx_only(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        vehicle = await world.loaded(1)
        for body in (b"<html>", b"<html>", b'{"error": "invalid"}', b'{"error": "invalid"}'):
            world.answer = always(Answer(400, body))
            await world.deliver(vehicle)
        a, b = "http://a:1/events", "http://b:1/events"
        assert [url for _, url, _ in world.sent] == [b, a, b, b]

    play(tmp_path, scenario)


@pytest.mark.parametrize("body", [b"", b"<html>no</html>", b'{"error": "wrong"}'])
def test_a_403_of_somebody_else_is_sent_again_soon(tmp_path: Path, body: bytes) -> None:
    async def scenario(world: World) -> None:
        vehicle = await world.loaded(1)
        world.answer = lambda upload: Answer(403, body)
        assert await world.deliver(vehicle) <= 3.0
        assert await world.unsent(vehicle) == [1]

    play(tmp_path, scenario)


@pytest.mark.parametrize("status", [429, 503])
def test_a_503_waits_as_asked_with_jitter_and_stays_with_its_nginx(tmp_path: Path, status: int) -> None:
    async def scenario(world: World) -> None:
        vehicle = await world.loaded(1)
        world.answer = lambda upload: Answer(status, b"{}", 7.0)
        waits = [await world.deliver(vehicle) for _ in range(10)]
        assert all(7.0 <= seconds <= 7.0 + world.settings.retry_max for seconds in waits)
        assert len(set(waits)) == 10
        assert len({url for _, url, _ in world.sent}) == 1
        assert world.metrics.retries._value.get() == 10

    play(tmp_path, scenario)


def test_no_answer_goes_to_the_next_nginx_with_growing_bounded_jitter(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        vehicle = await world.loaded(1)
        world.answer = lambda upload: Answer(0)
        waits = [await world.deliver(vehicle) for _ in range(60)]
        assert [url for _, url, _ in world.sent[:4]] == ["http://b:1/events", "http://a:1/events"] * 2
        assert max(waits) <= world.settings.retry_max
        assert waits[0] <= 3.0
        assert waits[1] <= 6.0
        assert max(waits[20:]) > 15
        assert min(waits[20:]) < 10
        assert world.reasons
        world.answer = acknowledge
        await world.deliver(vehicle)
        last = world.sent[-1][1]
        await vehicle._report()
        await world.deliver(vehicle)
        assert world.sent[-1][1] == last
        assert world.reasons == []

    play(tmp_path, scenario)


def test_one_vehicle_that_fails_does_not_make_a_host_unready_while_others_deliver(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        unlucky = Vehicle(1, world.tools).vin
        world.answer = lambda upload: Answer(502) if upload.vin == unlucky else acknowledge(upload)
        world.host.change(Fleet(5, 0, 1))
        await asyncio.sleep(5)
        for _ in range(40):
            await asyncio.sleep(1)
            assert world.reasons == []

    play(tmp_path, scenario)


def test_records_are_made_while_nothing_is_answered_and_all_arrive_in_order(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.answer = lambda upload: Answer(0)
        world.host.change(Fleet(3, 0, 1))
        await asyncio.sleep(600)
        await world.host.measure_once()
        assert world.metrics.spooled._value.get() == pytest.approx(600, abs=6)
        assert world.metrics.oldest._value.get() == pytest.approx(600, abs=6)
        world.answer = acknowledge
        await asyncio.sleep(60)
        for vin in world.host.state()["here"]:
            assert world.seqs(vin) == list(range(1, len(world.seqs(vin)) + 1))
            assert len(world.seqs(vin)) == pytest.approx(220, abs=2)
        await world.host.measure_once()
        assert world.metrics.spooled._value.get() <= 3

    play(tmp_path, scenario)


def test_after_an_outage_a_fleet_does_not_return_as_a_herd(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        # All fail in the same instant
        world.answer = lambda upload: Answer(0)
        vehicles = [Vehicle(number, world.tools) for number in range(1, 51)]
        for vehicle in vehicles:
            await vehicle._report()
        delivering = [asyncio.create_task(vehicle._deliver()) for vehicle in vehicles]
        await asyncio.sleep(100)
        world.sent.clear()
        await asyncio.sleep(15)
        seconds = [int(when) for when, _, _ in world.sent]
        assert 15 < len(seconds) < 150
        assert max(seconds.count(second) for second in set(seconds)) < 12
        assert not any(task.done() for task in delivering)

    play(tmp_path, scenario)


def test_reports_are_spread_and_come_every_delay(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.host.change(Fleet(300, 1, 3))
        await asyncio.sleep(3.1)
        begun = {upload.vin: when for when, _, upload in world.sent}
        assert len(begun) == 100
        tenths = [int(when * 10) for when in begun.values()]
        assert max(tenths.count(tenth) for tenth in set(tenths)) <= 6
        await asyncio.sleep(6)
        for mine in world.ledger.values():
            times = list(mine.values())
            assert [b - a for a, b in pairwise(times)] == pytest.approx([3.0] * (len(times) - 1), abs=1e-3)

    play(tmp_path, scenario)


def test_a_host_that_was_held_up_keeps_its_vehicles_apart(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.host.change(Fleet(100, 0, 1))
        await asyncio.sleep(6)
        world.sent.clear()
        asyncio.get_running_loop()._patience.passed += 100.0  # type: ignore[attr-defined]  # as if the machine slept
        await asyncio.sleep(9)
        assert busiest(world.sent) <= 2 * 100 / 3
        world.sent.clear()
        await asyncio.sleep(3)
        tenths = [int(when * 10) for when, _, _ in world.sent]
        assert max(tenths.count(tenth) for tenth in set(tenths)) <= 6

    play(tmp_path, scenario)


@pytest.mark.parametrize("jump", [100.0, -100.0, 12 * 365.25 * 86_400, -40 * 365.25 * 86_400])
def test_records_have_the_time_that_the_clock_shows_whatever_it_showed_before(tmp_path: Path, jump: float) -> None:
    async def scenario(world: World) -> None:
        shown = []

        async def report(vehicle: Vehicle, ahead: float) -> None:
            world.ahead = ahead
            shown.append(NOW + ahead + world.time)
            await vehicle._report()

        first = Vehicle(1, world.tools)
        for ahead in (0.0, jump, 0.0):
            await report(first, ahead)
        world.restart()
        again = Vehicle(1, world.tools)
        await report(again, 0.0)
        await world.deliver(again)
        assert list(world.ledger[next(iter(world.ledger))].values()) == shown
        assert world.gaps == set()

    play(tmp_path, scenario)


@pytest.mark.parametrize("jump", [90 * 365.25 * 86_400, -60 * 365.25 * 86_400])
def test_a_time_that_no_record_may_have_is_set_aside_at_once_and_told_until_the_clock_is_set(tmp_path: Path, jump: float) -> None:
    async def scenario(world: World) -> None:
        world.host.change(Fleet(2, 0, 1))
        await asyncio.sleep(30)
        world.ahead = jump
        await asyncio.sleep(30)
        assert "clock" in str(world.health.readiness()["degraded"])
        assert world.reasons == []
        world.ahead = 0.0
        await asyncio.sleep(30)
        assert "clock" not in str(world.health.readiness()["degraded"])
        assert {gap.reason for _, gap in world.gaps} == {REJECTED}
        for vin in world.host.state()["here"]:
            lost = {seq for each, gap in world.gaps if each == vin for seq in range(gap.from_seq, gap.to_seq + 1)}
            assert len(lost) == 10
            assert sorted(lost | set(world.seqs(vin))) == list(range(1, len(world.seqs(vin)) + 11))
            assert len(world.seqs(vin)) >= 18
        # No producer was asked about them
        assert all(0 <= record.timestamp <= NOW * 2 for _, _, upload in world.sent for record in upload.records)

    play(tmp_path, scenario)


def test_a_vehicle_moves_and_a_standing_one_does_not(tmp_path: Path) -> None:
    async def drive(world: World) -> None:
        world.host.change(Fleet(1, 0, 1))
        await asyncio.sleep(31)
        last = world.sent[-1][2].records[-1]
        elapsed = world.sent[-1][0] - world.sent[0][0]
        assert last.position_z == pytest.approx(last.speed * elapsed, rel=0.01)
        assert 0 < last.speed < 101

    async def stand(world: World) -> None:
        world.host.change(Fleet(1, 0, 1))
        await asyncio.sleep(31)
        assert {(record.position_z, record.speed) for _, _, upload in world.sent for record in upload.records} == {(0.0, 0.0)}

    play(tmp_path, drive, VEHICLE_VELOCITY_X="0", VEHICLE_VELOCITY_Y="0")
    play(tmp_path, stand, VEHICLE_AUTO_START="false")


def test_a_fleet_grows_shrinks_and_returns(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.travel = 1.0
        world.host.change(Fleet(9, 1, 3))
        first = world.host.state()["here"]
        assert len(first) == 3
        await asyncio.sleep(6.5)
        world.host.change(Fleet(3, 1, 3))
        await asyncio.sleep(0)
        assert world.host.state()["here"] == first[:1]
        assert [each["vin"] for each in world.host.state()["draining"]] == first[1:]
        await asyncio.sleep(5)
        assert world.host.state()["draining"] == world.host.state()["undrained"] == []
        held = {vin: len(world.seqs(vin)) for vin in first[1:]}
        await asyncio.sleep(20)
        assert held == {vin: len(world.seqs(vin)) for vin in first[1:]}
        world.host.change(Fleet(9, 1, 3))
        assert world.host.state()["here"] == first
        await asyncio.sleep(20)
        for vin in first:
            assert len(world.seqs(vin)) > 6
            assert world.seqs(vin) == list(range(1, len(world.seqs(vin)) + 1))

    play(tmp_path, scenario)


def test_who_returns_while_draining_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        world.spool.seconds = 0.01
        world.answer = lambda upload: Answer(0)
        world.host.change(Fleet(1, 0, 1))
        await asyncio.sleep(10)
        for _ in range(20):
            world.host.change(Fleet(0, 0, 1))
            await asyncio.sleep(0.001)
            world.host.change(Fleet(1, 0, 1))
            # Long enough to be just keeping a record
            await asyncio.sleep(0.065)
        world.answer = acknowledge
        await asyncio.sleep(40)
        [vin] = world.host.state()["here"]
        assert world.host.state()["draining"] == []
        assert world.seqs(vin) == list(range(1, len(world.seqs(vin)) + 1))
        assert len(world.seqs(vin)) > 400
        assert "not the next" not in caplog.text

    play(tmp_path, scenario, VEHICLE_REPORT_DELAY="0.1")


def test_who_returns_after_a_drain_in_vain_has_one_upload_under_way(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.travel = 20.0
        world.host.change(Fleet(1, 0, 1))
        [vin] = world.host.state()["here"]
        await asyncio.sleep(10)
        world.host.change(Fleet(0, 0, 1))
        await asyncio.sleep(1.1)
        assert world.host.state()["undrained"] == [vin]
        world.host.change(Fleet(1, 0, 1))
        await asyncio.sleep(5)
        assert len(world.sent) == 2

    play(tmp_path, scenario, VEHICLE_DRAIN_TIMEOUT="1")


def test_who_cannot_drain_in_time_is_named_also_after_a_restart_and_goes_on_when_it_returns(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.answer = lambda upload: Answer(0)
        world.host.change(Fleet(2, 0, 1))
        first, second = world.host.state()["here"]
        await asyncio.sleep(10)
        world.host.change(Fleet(1, 0, 1))
        await world.host.measure_once()
        assert world.host.state()["draining"][0]["unsent"] >= 3
        assert world.host.state()["undrained"] == []
        await asyncio.sleep(world.settings.drain_timeout + 0.1)
        assert world.host.state()["draining"] == []
        assert world.host.state()["undrained"] == [second]
        sent = len([upload for _, _, upload in world.sent if upload.vin == second])
        await asyncio.sleep(100)
        assert sent == len([upload for _, _, upload in world.sent if upload.vin == second])
        await world.host.end()

        world.restart()
        world.host.change(Fleet(1, 0, 1))
        await world.host.measure_once()
        assert world.host.state()["undrained"] == [second]
        world.answer = acknowledge
        world.host.change(Fleet(2, 0, 1))
        assert world.host.state()["undrained"] == []
        await asyncio.sleep(60)
        for vin in (first, second):
            assert world.seqs(vin) == list(range(1, len(world.seqs(vin)) + 1))
        world.host.change(Fleet(0, 0, 1))
        await asyncio.sleep(5)
        await world.host.measure_once()
        assert world.host.state()["undrained"] == []

    play(tmp_path, scenario)


def test_a_record_that_was_on_its_way_into_the_spool_is_drained_too(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.spool.seconds, world.travel = 0.01, 0.0
        # Leaves at every moment of a report, also while it asks for what is unsent and just keeps a record
        for moment in range(35):
            world.host.change(Fleet(1, 0, 1))
            await asyncio.sleep(0.1 + moment / 1000)
            world.host.change(Fleet(0, 0, 1))
            await asyncio.sleep(1)
            assert world.host.state()["draining"] == []
            assert world.spool.spool.backlog() == {}

    play(tmp_path, scenario, VEHICLE_REPORT_DELAY="0.035")


def test_records_wait_for_company_no_longer_than_they_may(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.host.change(Fleet(1, 0, 1))
        await asyncio.sleep(100)
        assert len(world.sent) >= 6
        for when, _, upload in world.sent:
            assert len(upload.records) == 4
            assert when - (upload.records[0].timestamp - NOW) == pytest.approx(10, abs=1e-3)

    play(tmp_path, scenario, VEHICLE_UPLOAD_WAIT="10", VEHICLE_REPORT_DELAY="3")


def test_a_full_upload_does_not_wait(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.host.change(Fleet(1, 0, 1))
        await asyncio.sleep(100)
        assert {len(upload.records) for _, _, upload in world.sent} == {5}
        assert all(when - (upload.records[-1].timestamp - NOW) < 0.1 for when, _, upload in world.sent)

    play(tmp_path, scenario, VEHICLE_UPLOAD_WAIT="1000", VEHICLE_UPLOAD_RECORDS="5")


def test_who_leaves_does_not_wait_for_company(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.host.change(Fleet(1, 0, 1))
        await asyncio.sleep(10)
        world.host.change(Fleet(0, 0, 1))
        await world.host.measure_once()
        assert world.host.state()["draining"][0]["unsent"] == 3
        await asyncio.sleep(DRAIN_PACE + 0.1)
        assert world.host.state()["draining"] == world.host.state()["undrained"] == []
        assert [len(upload.records) for _, _, upload in world.sent] == [3]

    play(tmp_path, scenario, VEHICLE_UPLOAD_WAIT="1000")


@pytest.mark.parametrize("fault", ["broken", "lying"])
def test_a_spool_that_fails_makes_not_ready_and_no_seq_is_lost_or_used_twice(tmp_path: Path, fault: str) -> None:
    async def scenario(world: World) -> None:
        world.host.change(Fleet(3, 0, 1))
        await asyncio.sleep(10)
        setattr(world.spool, fault, True)
        await asyncio.sleep(30)
        assert len(world.reasons) == 1
        await world.host.measure_once()
        setattr(world.spool, fault, False)
        await asyncio.sleep(60)
        assert world.reasons == []
        for vin in world.host.state()["here"]:
            assert world.seqs(vin) == list(range(1, len(world.seqs(vin)) + 1))
            assert len(world.seqs(vin)) > 20

    play(tmp_path, scenario)


def test_an_upload_under_way_may_end_when_the_process_is_asked_to(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.travel = 2.0
        world.host.change(Fleet(1, 0, 1))
        while not world.sent:
            await asyncio.sleep(0.1)
        await world.host.end()
        assert len(world.ledger) == 1
        assert world.spool.spool.backlog() == {}

    play(tmp_path, scenario)


def test_uploads_that_hang_do_not_hold_up_the_end(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.travel = 1000.0
        world.host.change(Fleet(20, 0, 1))
        await asyncio.sleep(10)
        world.host.change(Fleet(10, 0, 1))
        await asyncio.sleep(1)
        begun = world.time
        await world.host.end()
        assert world.time - begun < 5
        await asyncio.sleep(0.1)
        assert len(asyncio.all_tasks()) == 1
        assert len(world.spool.spool.backlog()) == 20

    play(tmp_path, scenario)


def test_a_vehicle_whose_task_fails_is_noticed(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        async def post(url: str, body: bytes) -> Answer:
            raise ZeroDivisionError

        async def host() -> None:
            async with asyncio.TaskGroup() as group:
                world.tools.spawn = group.create_task
                world.host.change(Fleet(1, 0, 1))

        world.tools.post = post
        with pytest.raises(ExceptionGroup):
            await host()

    play(tmp_path, scenario)


def test_the_fleet_file_is_followed_and_a_bad_one_changes_nothing(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        async def put(content: str) -> list[str]:
            new = world.file.with_suffix(".new")
            new.write_text(content)
            new.replace(world.file)
            await asyncio.sleep(0.6)
            return list(world.host.state()["here"])

        watching = asyncio.create_task(world.host.watch())
        await asyncio.sleep(1)
        assert "fleet.json" in world.reasons[0]
        three = '{"num_vehicles": 3, "host_index": 0, "host_count": 1}'
        assert len(await put(three)) == 3
        assert world.reasons == []
        assert world.health.live == {"fleet.json": hashlib.sha256(three.encode()).hexdigest()}
        assert len(await put('{"num_vehicles": 4,')) == 3
        assert len(await put("[" * 100_000)) == 3
        assert "fleet.json" in world.reasons[0]
        assert world.health.live == {"fleet.json": hashlib.sha256(three.encode()).hexdigest()}
        world.file.unlink()
        await asyncio.sleep(0.6)
        assert "fleet.json" in world.reasons[0]
        assert len(await put('{"num_vehicles": 9, "host_index": 1, "host_count": 2}')) == 4
        assert world.reasons == []
        watching.cancel()

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"num_vehicles": "3", "host_index": 0, "host_count": 1}',
        '{"num_vehicles": true, "host_index": 0, "host_count": 1}',
        '{"num_vehicles": -1, "host_index": 0, "host_count": 1}',
        '{"num_vehicles": 3, "host_index": 1, "host_count": 1}',
        '{"num_vehicles": 3, "host_index": 0, "host_count": 0}',
    ],
)
def test_a_bad_fleet_file_is_refused(content: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Fleet.parse(content.encode())


def test_vehicles_are_dealt_to_hosts_one_by_one() -> None:
    hosts: list[Any] = [Fleet(10, index, 3).here() for index in range(3)]
    assert hosts == [[1, 4, 7, 10], [2, 5, 8], [3, 6, 9]]


class Session:
    """Stands for aiohttp's: answers in pieces, or not at all."""

    def __init__(self, pieces: list[bytes], headers: dict[str, str], error: Exception | None = None) -> None:
        self.status, self.content, self.headers, self._pieces, self._error = 422, self, headers, pieces, error

    @contextlib.asynccontextmanager
    async def post(self, url: str, **arguments: Any) -> AsyncIterator[Session]:
        if self._error:
            raise self._error
        yield self

    async def iter_any(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


@pytest.mark.parametrize(
    ("session", "answer"),
    [
        (Session([b"a", b"bc", b"d"], {}), Answer(422, b"abcd")),
        (Session([], {"Retry-After": "3"}), Answer(422, b"", 3.0)),
        (Session([], {"Retry-After": "9" * 400}), Answer(422, b"", 60.0)),
        (Session([], {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}), Answer(422)),
        (Session([], {"Retry-After": "-3"}), Answer(422)),
        (Session([], {}, aiohttp.ServerDisconnectedError()), Answer(0)),
        (Session([], {}, TimeoutError()), Answer(0)),
        (Session([], {}, ConnectionRefusedError()), Answer(0)),
    ],
)
def test_an_answer_is_read_whole_and_none_is_no_exception(session: Any, answer: Answer) -> None:
    assert asyncio.run(make_post(session)("http://a:1/events", b"{}")) == answer  # type: ignore[arg-type]  # awaitable


def test_records_dropped_at_the_bound_are_told_and_declared(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.answer = lambda upload: Answer(503)
        world.host.change(Fleet(1, 0, 1))
        await asyncio.sleep(100)
        assert "at its bound" in str(world.health.readiness()["degraded"])
        world.answer = acknowledge
        await asyncio.sleep(60)
        assert world.health.readiness()["degraded"] == []
        [gap] = {gap for _, gap in world.gaps}
        [vin] = {vin for vin, _ in world.gaps}
        assert gap.reason == SPOOL_AGE
        assert sorted([*range(gap.from_seq, gap.to_seq + 1), *world.seqs(vin)]) == list(range(1, max(world.seqs(vin)) + 1))
        [[dropped]] = [[sample.value for sample in each.samples][:1] for each in world.metrics.dropped.collect()]
        assert dropped == gap.to_seq - gap.from_seq + 1

    # 36 s
    play(tmp_path, scenario, VEHICLE_SPOOL_MAX_HOURS="0.01", VEHICLE_RETRY_MAX="5")


def test_a_host_is_degraded_until_the_last_vehicle_that_drops_is_acknowledged_or_gone(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        lucky, unlucky, leaving = (Vehicle(number, world.tools).vin for number in (1, 2, 3))
        world.answer = lambda upload: acknowledge(upload) if upload.vin == lucky else Answer(503)
        world.host.change(Fleet(3, 0, 1))
        measuring = asyncio.create_task(world.host.measure())
        await asyncio.sleep(100)
        for _ in range(20):
            await asyncio.sleep(0.5)
            assert "(vehicles: 2;" in str(world.health.readiness()["degraded"])
        world.answer = lambda upload: Answer(503) if upload.vin == leaving else acknowledge(upload)
        await asyncio.sleep(20)
        assert "(vehicles: 1;" in str(world.health.readiness()["degraded"])
        assert len(world.seqs(unlucky)) > 10
        world.host.change(Fleet(2, 0, 1))
        await asyncio.sleep(world.settings.drain_timeout + 1)
        assert world.health.readiness()["degraded"] == []
        measuring.cancel()

    # 36 s
    play(tmp_path, scenario, VEHICLE_SPOOL_MAX_HOURS="0.01", VEHICLE_RETRY_MAX="5")


async def come_back(world: World, vehicles: int, records: int, outage: float) -> tuple[float, float]:
    """Vehicles start with that many records in their spools, and an outage goes on for some seconds; then all is returned.

    The most POSTs within any second from the start to a while after the return, in units of the steady ones, and how many records
    are acknowledged until all are returned, in units of those that are made.
    """
    delay = world.settings.report_delay
    for number in range(1, vehicles + 1):
        vin = make_vin(world.settings.fleet_seed, number)
        epoch = (await world.spool.run(methodcaller("join", vin))).epoch
        with world.spool.spool.transaction():
            for seq in range(1, records + 1):
                reading = Record(seq, NOW - 1 + seq / (records + 1), 0.0, 0.0, 0.0, 0.0)
                world.spool.spool.append(Made(vin, epoch, *NAMES, reading))
    if outage:
        world.answer = lambda upload: Answer(503)
    world.host.change(Fleet(vehicles, 0, 1))
    await asyncio.sleep(outage)
    world.answer = acknowledge
    begun = world.time
    behind = True
    while behind:
        await asyncio.sleep(delay)
        backlog = await world.spool.run(lambda spool: spool.backlog())
        behind = any(each.unsent > 2 for each in backlog.values())
    seconds = world.time - begun
    speed = sum(map(len, world.ledger.values())) / seconds * delay / vehicles
    await asyncio.sleep(3 * delay)
    for seqs in world.ledger.values():
        assert list(seqs) == list(range(1, len(seqs) + 1))
        assert len(seqs) > records
    peak = busiest(world.sent) / vehicles * delay
    print(
        f"\n{records} records of each of {vehicles} vehicles, outage of {outage:.0f} s more: returned in {seconds:.0f} s, "
        f"{speed:.1f} times as fast as made; POSTs in any second: at most {peak:.2f} times the steady {vehicles / delay:.1f}"
    )
    return peak, speed


@pytest.mark.fleet
@pytest.mark.parametrize(("records", "outage", "fast"), [(30, 0, 3), (1, 0, 1), (20, 20, 2)])
def test_a_fleet_that_comes_back_is_no_flood(tmp_path: Path, records: int, outage: float, fast: float) -> None:
    async def scenario(world: World) -> None:
        peak, speed = await come_back(world, 60, records, outage)
        assert peak <= 2
        assert speed >= fast

    play(tmp_path, scenario, VEHICLE_UPLOAD_RECORDS="5")


@pytest.mark.long
@pytest.mark.parametrize("outage", [0, 60])
def test_an_hours_spool_of_200_vehicles_is_no_flood(tmp_path: Path, outage: float) -> None:
    async def scenario(world: World) -> None:
        peak, speed = await come_back(world, 200, 1200, outage)
        assert peak <= 2
        assert speed >= 3

    play(tmp_path, scenario)


@pytest.mark.fleet
def test_a_fleet_whose_uploads_fail_in_one_instant_is_no_flood(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.travel = 1000.0
        reset = asyncio.Event()

        async def hang(url: str, body: bytes) -> Answer:
            await reset.wait()
            return Answer(0)

        world.tools.post = hang
        world.host.change(Fleet(100, 0, 1))
        await asyncio.sleep(20)
        world.travel, world.tools.post = 0.05, world.post
        reset.set()
        await asyncio.sleep(20)
        assert len(world.ledger) == 100
        assert busiest(world.sent) <= 2 * 100 / 3

    play(tmp_path, scenario)


@pytest.mark.fleet
@pytest.mark.parametrize("changes", [{"VEHICLE_REPORT_DELAY": "60", "VEHICLE_UPLOAD_RECORDS": "5"}, {"VEHICLE_UPLOAD_WAIT": "60"}])
def test_who_uploads_seldom_catches_up_as_gently_and_leaves_in_time(tmp_path: Path, changes: dict[str, str]) -> None:
    async def scenario(world: World) -> None:
        world.answer = lambda upload: Answer(503)
        world.host.change(Fleet(3, 0, 1))
        await asyncio.sleep(1200)
        world.answer = acknowledge
        world.sent.clear()
        await asyncio.sleep(180)
        for vin in world.host.state()["here"]:
            starts = [when for when, _, upload in world.sent if upload.vin == vin]
            assert len(starts) >= 3
            assert all(b - a >= 30 for a, b in pairwise(starts))
        world.host.change(Fleet(0, 0, 1))
        await asyncio.sleep(world.settings.drain_timeout)
        assert world.host.state()["draining"] == world.host.state()["undrained"] == []

    play(tmp_path, scenario, **changes)
