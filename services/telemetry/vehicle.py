"""Many vehicles in one event loop: each makes records, spools them, posts what is unsent, and forgets what was answered.

A vehicle has two tasks. One makes records: it is never kept waiting by the network. The other delivers: one upload under way, sent
again with jitter until its answer is clear, to another nginx when one does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import random
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import uvloop
from prometheus_client import Counter, Gauge

from telemetry import health as healths
from telemetry.health import Health
from telemetry.journey import Journey, make_model, make_vin, random_for, scaled
from telemetry.record import MAX_BODY, Record, Upload, encode
from telemetry.settings import VehicleSettings
from telemetry.spool import Made, Spool, SpoolError, SpoolThread

log = logging.getLogger(__name__)

POST_TIMEOUT = 25.0
"""Seconds; longer than nginx takes for two tries."""
RETRY_MIN = 0.5
"""Seconds of the first back-off, before jitter."""
QUIET = 5.0
"""Seconds without any acknowledgement after which failing uploads make this host's vehicles not ready."""
FLEET_POLL = 0.5
CONNECTIONS = 100
END_TIMEOUT = 5.0
REJECTED, TOO_LARGE = "rejected", "too_large"


class Answer(NamedTuple):
    """What came back for an upload; status 0 means that nothing did."""

    status: int
    body: bytes = b""
    retry_after: float = 0.0


Post = Callable[[str, bytes], Awaitable[Answer]]
"""Sends a body to a URL; never raises for what a network or a server does."""


@dataclass(frozen=True)
class Fleet:
    """How many vehicles there are in all, and which of them live here: those n with (n - 1) % host_count == host_index."""

    num_vehicles: int
    host_index: int
    host_count: int

    @classmethod
    def parse(cls, content: bytes) -> Fleet:
        """Read the fleet file. Raises ValueError with what is wrong."""
        values = json.loads(content)
        if not isinstance(values, dict) or set(values) != {"num_vehicles", "host_index", "host_count"}:
            raise ValueError("must hold num_vehicles, host_index and host_count")
        if any(type(value) is not int for value in values.values()):
            raise ValueError("must hold integers")
        fleet = cls(**values)
        if fleet.num_vehicles < 0 or not 0 <= fleet.host_index < fleet.host_count:
            raise ValueError("num_vehicles must not be negative, host_index must be below host_count")
        return fleet

    def here(self) -> list[int]:
        """Numbers of the vehicles that live on this host."""
        return list(range(self.host_index + 1, self.num_vehicles + 1, self.host_count))


class Metrics:
    """What /metrics tells of a host's vehicles."""

    def __init__(self, health: Health) -> None:
        registry = health.registry
        self.made = Counter("telemetry_records_made", "Records made.", registry=registry)
        self.acknowledged = Counter("telemetry_records_acknowledged", "Records acknowledged.", registry=registry)
        self.rejected = Counter("telemetry_records_rejected", "Records set aside as gaps.", registry=registry)
        self.uploads = Counter("telemetry_uploads", "Uploads by answer; 0 is no answer.", ["status"], registry=registry)
        self.vehicles = Gauge("telemetry_vehicles", "Vehicles of this host.", ["state"], registry=registry)
        self.spooled = Gauge("telemetry_spool_records", "Records not yet acknowledged.", registry=registry)
        self.oldest = Gauge("telemetry_spool_oldest_seconds", "Age of the oldest unsent record.", registry=registry)


@dataclass
class Tools:
    """What all vehicles of a host share; clocks, sleep and randomness come from here."""

    settings: VehicleSettings
    spool: SpoolThread
    post: Post
    health: Health
    metrics: Metrics
    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    rng: random.Random = field(default_factory=random.Random)
    acknowledged_at: float = 0.0

    def delivered(self) -> None:
        """Some upload was acknowledged."""
        self.acknowledged_at = self.monotonic()
        self.health.clear("delivery")

    def failed(self, reason: str) -> None:
        """Some upload was not acknowledged; a matter of readiness when none is for a while."""
        if self.monotonic() - self.acknowledged_at > QUIET:
            self.health.set_reason("delivery", f"uploads are not acknowledged: {reason}")


class Vehicle:
    """One vehicle."""

    def __init__(self, number: int, tools: Tools) -> None:
        settings = tools.settings
        self.vin = make_vin(settings.fleet_seed, number)
        self._number, self._tools = number, tools
        self._make = settings.make
        self._model = settings.model or make_model(settings.fleet_seed, number)
        velocity = scaled(
            (settings.velocity_x, settings.velocity_y, settings.velocity_z), random_for(settings.fleet_seed, number, "velocity")
        )
        self.journey = Journey(velocity)
        if settings.auto_start:
            self.journey = self.journey.start()
        self._epoch = self._next_seq = 0
        self._last_timestamp = 0.0
        self._unsent_since: float | None = None
        self._wake = asyncio.Event()
        self._url = number % len(settings.urls)
        self._most = settings.upload_records
        self._failures = 0
        self._driving: asyncio.Task[None] | None = None
        self._delivering: asyncio.Task[None] | None = None

    async def join(self) -> None:
        """Begin, or come back: the spool tells epoch and seq, and may hold unsent records."""
        if self._driving is not None:
            return
        self._epoch, self._next_seq = await self._tools.spool.run(lambda spool: spool.join(self.vin))
        self._unsent_since = self._tools.monotonic() - self._tools.settings.upload_wait
        self._wake.set()
        self._driving = asyncio.create_task(self._drive())
        if self._delivering is None:
            self._delivering = asyncio.create_task(self._deliver())

    async def leave(self) -> None:
        """Make no more records; what is unsent is still delivered."""
        if self._driving is not None:
            await _cancel(self._driving)
            self._driving = None
        self._unsent_since = -1e9
        self._wake.set()

    async def end(self) -> None:
        """End both tasks; the spool keeps what is unsent."""
        for task in (self._driving, self._delivering):
            if task is not None:
                await _cancel(task)
        self._driving = self._delivering = None

    async def _drive(self) -> None:
        """Make a record every report_delay. The phase spreads a fleet's reports over the delay."""
        delay = self._tools.settings.report_delay
        due = self._tools.monotonic() + delay * (self._number * 0.6180339887498949 % 1)
        while True:
            await self._tools.sleep(max(0.0, due - self._tools.monotonic()))
            try:
                await self._report()
                self._tools.health.clear("spool")
            except SpoolError as error:
                # The reading is not made: nothing that was made is lost, and its seq is not used.
                self._tools.health.set_reason("spool", str(error))
            self.journey = self.journey.advance(delay)
            due = max(due + delay, self._tools.monotonic())

    async def _report(self) -> None:
        """Make one record and spool it; it may be sent from then on."""
        timestamp = max(self._tools.now(), self._last_timestamp + 1e-6)
        x, y, z = self.journey.position
        record = Record(self._next_seq, timestamp, x, y, z, self.journey.speed)
        made = Made(self.vin, self._epoch, self._make, self._model, record)
        await self._tools.spool.run(lambda spool: spool.append(made, timestamp))
        self._next_seq, self._last_timestamp = self._next_seq + 1, timestamp
        self._tools.metrics.made.inc()
        if self._unsent_since is None:
            self._unsent_since = self._tools.monotonic()
        self._wake.set()

    async def _deliver(self) -> None:
        """Send what is unsent, one upload at a time."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._unsent_since is not None:
                company = self._unsent_since + self._tools.settings.upload_wait - self._tools.monotonic()
                if company > 0 and self._driving is not None:
                    await self._tools.sleep(company)
            # Records that come from here on are the next upload's, and wait for company of their own.
            self._unsent_since = None
            try:
                while (upload := await self._next()) is not None:
                    await self._send(upload)
                    if self._driving is not None and self._tools.settings.upload_wait and len(upload.records) < self._most:
                        break
            except SpoolError as error:
                self._tools.health.set_reason("spool", str(error))
                await self._back_off()
                self._wake.set()

    async def _next(self) -> Upload | None:
        most = self._most
        return await self._tools.spool.run(lambda spool: spool.next_upload(self.vin, most))

    async def _send(self, upload: Upload) -> None:
        """Send one upload and do what its answer asks for; returns when it is worth to look at the spool again."""
        body = encode(upload)
        if len(body) > MAX_BODY and len(upload.records) > 1:
            self._most = max(1, len(upload.records) // 2)
            return
        answer = await self._tools.post(f"{self._tools.settings.urls[self._url]}/events", body)
        self._tools.metrics.uploads.labels(str(answer.status)).inc()
        if answer.status == 200 and _confirms(answer.body, upload):
            await self._acknowledged(upload)
        elif answer.status == 422 and (seqs := _rejected(answer.body, upload)):
            await self._set_aside(upload, seqs, REJECTED, answer.body)
        elif answer.status == 413:
            await self._halve(upload, answer.body)
        elif answer.status in (400, 415):
            reason = answer.body[:300].decode(errors="replace").strip()
            self._tools.health.set_reason(f"refused {self.vin}", f"the upload of {self.vin} is refused: {reason}")
            await self._tools.sleep(self._tools.settings.retry_max)
        else:
            if answer.status != 503:
                self._url = (self._url + 1) % len(self._tools.settings.urls)
            self._tools.failed(f"HTTP {answer.status}" if answer.status else "no answer")
            await self._back_off(answer.retry_after)

    async def _acknowledged(self, upload: Upload) -> None:
        await self._tools.spool.run(lambda spool: spool.acknowledge(upload.vin, upload.epoch, upload.last_seq))
        self._tools.metrics.acknowledged.inc(len(upload.records))
        self._failures = 0
        self._most = min(self._tools.settings.upload_records, self._most * 2)
        self._tools.health.clear(f"refused {self.vin}")
        self._tools.delivered()

    async def _set_aside(self, upload: Upload, seqs: list[int], reason: str, detail: bytes) -> None:
        text = detail[:500].decode(errors="replace")
        log.warning("%s: seqs %s are set aside as a gap: %s", upload.vin, seqs[:20], text)
        await self._tools.spool.run(lambda spool: spool.set_aside(upload.vin, upload.epoch, seqs, reason, text))
        self._tools.metrics.rejected.inc(len(seqs))

    async def _halve(self, upload: Upload, detail: bytes) -> None:
        if len(upload.records) > 1:
            self._most = len(upload.records) // 2
        elif upload.records:
            await self._set_aside(upload, [upload.records[0].seq], TOO_LARGE, detail)
        else:
            await self._back_off()

    async def _back_off(self, at_least: float = 0.0) -> None:
        """Wait a random time, longer the more tries failed: a fleet that lost its back end does not return as a herd."""
        self._failures += 1
        longest = min(self._tools.settings.retry_max, RETRY_MIN * 2 ** min(self._failures, 16))
        await self._tools.sleep(at_least + self._tools.rng.uniform(0, longest))


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _confirms(body: bytes, upload: Upload) -> bool:
    """Tell whether a 200 is ours, and about what was sent."""
    try:
        answer = json.loads(body)
        said = (answer["vin"], answer["epoch"], answer["acked_through"])
    except (ValueError, TypeError, KeyError):
        return False
    return bool(said == (upload.vin, upload.epoch, upload.last_seq))


def _rejected(body: bytes, upload: Upload) -> list[int]:
    """The seqs that a 422 names, as far as they were sent."""
    try:
        named = {each["seq"] for each in json.loads(body)["rejected"]}
    except (ValueError, TypeError, KeyError):
        return []
    return sorted({record.seq for record in upload.records} & named)


class Host:
    """The vehicles of one host: which are here, which are leaving, which left with unsent records."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._here: dict[int, Vehicle] = {}
        self._leaving: dict[int, tuple[Vehicle, asyncio.Task[None]]] = {}
        self._undrained: dict[int, str] = {}
        self._unsent: dict[str, int] = {}
        self._content = b""
        self._fleet = Fleet(0, 0, 1)

    def state(self) -> dict[str, Any]:
        """The body of /fleet."""
        leaving = [vehicle.vin for vehicle, _ in list(self._leaving.values())]
        return {
            "num_vehicles": self._fleet.num_vehicles,
            "here": [vehicle.vin for vehicle in list(self._here.values())],
            "draining": [{"vin": vin, "unsent": self._unsent.get(vin, 0)} for vin in leaving],
            "undrained": sorted(self._undrained.values()),
        }

    async def watch(self) -> None:
        """Follow the fleet file, for ever."""
        path = Path(self._tools.settings.fleet_file)
        while True:
            try:
                content = path.read_bytes()
                if content != self._content:
                    await self.change(Fleet.parse(content))
                    self._content = content
                    self._tools.health.live = {path.name: hashlib.sha256(content).hexdigest()}
                self._tools.health.clear("fleet")
                self._tools.health.clear("start")
            except (OSError, ValueError) as error:
                self._tools.health.set_reason("fleet", f"{path}: {error}; the last good count stays")
            except SpoolError as error:
                self._tools.health.set_reason("spool", str(error))
            await self._measure()
            await self._tools.sleep(FLEET_POLL)

    async def _measure(self) -> None:
        unsent, oldest = await self._tools.spool.run(lambda spool: (spool.unsent(), spool.oldest()))
        self._unsent = unsent
        metrics = self._tools.metrics
        metrics.spooled.set(sum(unsent.values()))
        metrics.oldest.set(max(0.0, self._tools.now() - oldest) if oldest else 0)
        metrics.vehicles.labels("here").set(len(self._here))
        metrics.vehicles.labels("draining").set(len(self._leaving))

    async def change(self, fleet: Fleet) -> None:
        """Make the fleet be this one: who is new begins, who is not in it any more drains and ends."""
        wanted = set(fleet.here())
        for number in sorted(wanted - set(self._here)):
            if number in self._leaving:
                vehicle, draining = self._leaving.pop(number)
                await _cancel(draining)
            else:
                vehicle = Vehicle(number, self._tools)
            self._undrained.pop(number, None)
            await vehicle.join()
            self._here[number] = vehicle
        for number in sorted(set(self._here) - wanted):
            vehicle = self._here.pop(number)
            await vehicle.leave()
            self._leaving[number] = (vehicle, asyncio.create_task(self._drain(number, vehicle)))
        if fleet != self._fleet:
            log.info("the fleet has %d vehicles, %d of them here", fleet.num_vehicles, len(self._here))
        self._fleet = fleet

    async def _drain(self, number: int, vehicle: Vehicle) -> None:
        """Let a leaving vehicle deliver what it holds, but not for ever."""
        deadline = self._tools.monotonic() + self._tools.settings.drain_timeout
        while True:
            unsent = await self._tools.spool.run(lambda spool: spool.unsent([vehicle.vin])[vehicle.vin])
            if not unsent or self._tools.monotonic() >= deadline:
                break
            await self._tools.sleep(0.2)
        if unsent:
            self._undrained[number] = vehicle.vin
            log.warning("%s left with %d unsent records; the spool keeps them", vehicle.vin, unsent)
        await vehicle.end()
        del self._leaving[number]

    async def end(self) -> None:
        """End all vehicles; the spool keeps what is unsent."""
        for _, draining in self._leaving.values():
            await _cancel(draining)
        await asyncio.gather(*(vehicle.end() for vehicle in [*self._here.values(), *(each for each, _ in self._leaving.values())]))


def make_post(session: aiohttp.ClientSession) -> Post:
    """Posting by aiohttp."""

    async def post(url: str, body: bytes) -> Answer:
        try:
            async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as response:
                content = await response.content.read(MAX_BODY)
                after = response.headers.get("Retry-After", "0")
                return Answer(response.status, content, min(60.0, float(after)) if after.isdecimal() else 0.0)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.debug("POST %s: %s", url, error)
            return Answer(0)

    return post


async def drive(settings: VehicleSettings) -> int:
    """Run this host's vehicles until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    health = Health("vehicle", settings.name, settings.version)
    try:
        spool = Spool(settings.spool_dir, settings.counter_dir)
    except SpoolError as error:
        log.error("%s", error)
        return 1
    spool_thread = SpoolThread(spool)
    timeout = aiohttp.ClientTimeout(total=POST_TIMEOUT, connect=5.0)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=CONNECTIONS, keepalive_timeout=60), timeout=timeout
    ) as session:
        host = Host(Tools(settings, spool_thread, make_post(session), health, Metrics(health)))
        app = healths.make_app(health)
        app.route("/fleet", "GET", lambda: healths.as_json(200, host.state()))
        try:
            healths.serve(app, *settings.listen)
        except OSError as error:
            log.error("%s:%d cannot be listened on: %s", *settings.listen, error.strerror)
            return 1
        asked = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, asked.set)
        watching = asyncio.create_task(host.watch())
        waiting = asyncio.create_task(asked.wait())
        await asyncio.wait({watching, waiting}, return_when=asyncio.FIRST_COMPLETED)
        failed = watching.done() and watching.exception()
        if failed:
            log.error("cannot go on: %s", failed)
        watching.cancel()
        waiting.cancel()
        await asyncio.wait_for(host.end(), END_TIMEOUT)
        await spool_thread.close()
    return 1 if failed else 0


def run(settings: VehicleSettings) -> int:
    """Drive; the process's exit status."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(drive(settings))
