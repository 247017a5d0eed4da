"""One vehicle: makes records, spools them, posts what is unsent, and forgets what was answered.

A vehicle has two tasks. One makes records: it is never kept waiting by the network. The other delivers: one upload under way, sent
again with jitter until its answer is clear, to another nginx when one does not answer.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import msgspec

from telemetry.health import Health, Reason
from telemetry.metrics import VehicleMetrics
from telemetry.record import MAX_GAPS, MAX_TIMESTAMP, Record, Upload, encode
from telemetry.settings import VehicleSettings
from telemetry.vehicle.journey import Journey, make_model, make_vin, random_for, scaled
from telemetry.vehicle.spool import MAX_FAULT, REJECTED, Made, PutBack, Spool, SpoolError, SpoolThread

log = logging.getLogger(__name__)

T = TypeVar("T")

POST_TIMEOUT = 25.0
"""Seconds; longer than nginx takes for two tries."""
QUIET = 5.0
"""Seconds without any acknowledgement after which failing uploads make this host's vehicles not ready."""
CATCH_UP = 1.5
"""How many times more often than usual a vehicle may post, whatever it has to send: a fleet that comes back is not a flood."""
DRAIN_PACE = 2.0
"""Seconds between two uploads at most while a vehicle leaves, however seldom it reports: its time to deliver is bounded."""
GOLDEN_RATIO = 0.6180339887498949
"""Its multiples modulo 1 are spread evenly, however many they are."""
LEAST_TOO_LARGE = 16_384
"""Bytes of a body that may be too large for a producer. Whoever says so of a smaller one says nothing about the records."""
WRONG_SENDER = ("wrong_vin", "revoked", "certificate")
"""What a 403 of ours says in `error`."""
MAX_TOLD = 200
"""Bytes of an answer that the log and /readyz repeat."""


class Answer(NamedTuple):
    """What came back for an upload; status 0 means that nothing did."""

    status: int
    body: bytes = b""
    retry_after: float = 0.0


Post = Callable[[str, bytes], Awaitable[Answer]]
"""Sends a body to a URL; never raises for what a network or a server does."""


class Acknowledged(msgspec.Struct):
    """The body of a 200."""

    vin: str
    epoch: int
    acked_through: int


class Refusal(msgspec.Struct):
    """The body of every other answer that is ours."""

    error: str


class Fault(msgspec.Struct):
    """One invalid record, as a 422 names it."""

    seq: int
    field: str = ""
    reason: str = ""


class Rejected(msgspec.Struct):
    """The body of a 422."""

    rejected: list[Fault]


class Trouble:
    """Vehicles in the same trouble, in one sentence for all of them: a storm makes neither /readyz nor the log unreadable."""

    def __init__(self, tell: Callable[[str | None], None], sentence: str) -> None:
        """`tell` takes the sentence, or None when no vehicle is in it."""
        self._tell, self._sentence = tell, sentence
        self._vehicles: dict[str, str] = {}

    def note(self, vin: str, cause: str) -> None:
        """A vehicle is in it, and why."""
        self._vehicles[vin] = cause
        if len(self._vehicles) == 1:
            self.say()

    def end(self, vin: str) -> None:
        """A vehicle is not in it, or no longer."""
        if self._vehicles.pop(vin, None) is not None and not self._vehicles:
            self.say()

    def say(self) -> None:
        """Tell how many there are; to be called every few seconds, for what begins and ends is told at once."""
        if self._vehicles:
            vin, cause = next(reversed(self._vehicles.items()))
            self._tell(f"{self._sentence} (vehicles: {len(self._vehicles)}; {vin}: {cause})")
        else:
            self._tell(None)


@dataclass
class Tools:
    """What all vehicles of a host share; clocks, sleep and randomness come from here."""

    settings: VehicleSettings
    spool: SpoolThread
    post: Post
    health: Health
    metrics: VehicleMetrics
    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    rng: random.Random = field(default_factory=random.Random)
    spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]] = asyncio.create_task
    acknowledged_at: float = -math.inf
    _failing: bool = field(default=False, init=False)
    refused: Trouble = field(init=False)
    halved: Trouble = field(init=False)
    dropping: Trouble = field(init=False)

    def __post_init__(self) -> None:
        def degraded(key: Reason) -> Callable[[str | None], None]:
            return lambda text: self.health.set_degraded(key, text)

        def refused(text: str | None) -> None:
            if text is None:
                self.health.clear(Reason.REFUSED)
            else:
                self.health.set_reason(Reason.REFUSED, text)

        self.refused = Trouble(refused, "uploads are refused, and tried again")
        self.halved = Trouble(degraded(Reason.HALVED), "uploads are refused as too large, and halved")
        self.dropping = Trouble(degraded(Reason.DROPPED), "the spool is at its bound: the oldest records are dropped")

    def say(self) -> None:
        """Tell how many vehicles are in trouble."""
        for trouble in (self.refused, self.halved, self.dropping):
            trouble.say()

    def delivered(self) -> None:
        """Some upload was acknowledged."""
        self.acknowledged_at = self.monotonic()
        self._failing = False
        self.health.clear(Reason.DELIVERY)

    def failed(self, reason: str) -> None:
        """Some upload was not acknowledged; a matter of readiness when none is for a while. The first reason stands."""
        if not self._failing and self.monotonic() - self.acknowledged_at > QUIET:
            self._failing = True
            self.health.set_reason(Reason.DELIVERY, f"uploads are not acknowledged: {reason}")

    def clock_shows(self, now: float, valid: bool) -> None:
        """A record was made at this time, in s since 1970, and may have it or not."""
        text = f"this host's clock shows {now:.0f} s since 1970: what is made is set aside. Set the clock"
        self.health.set_degraded(Reason.CLOCK, None if valid else text)

    async def within(self, event: asyncio.Event, seconds: float) -> bool:
        """Wait for an event, at most some seconds; tell whether it came."""
        tasks = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(self.sleep(seconds))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        return event.is_set()


class Vehicle:
    """One vehicle. `join`, `leave` and `end` take effect at once; what its tasks were doing in the spool is still done there."""

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
        # Epoch 0: the spool has not told yet
        self._epoch = self._next_seq = 0
        self._waiting_since: float | None = None
        self._news, self._idle = asyncio.Event(), asyncio.Event()
        self._url = number % len(settings.urls)
        self._most_records, self._most_gaps = settings.upload_records, MAX_GAPS
        self._failures = 0
        self._driving: asyncio.Task[None] | None = None
        self._delivering: asyncio.Task[None] | None = None
        self._posting = self._ending = False
        # Vehicles of consecutive numbers are far apart
        self._phase = number * GOLDEN_RATIO % 1
        self._usual = max(settings.report_delay, min(settings.upload_wait, settings.report_delay * settings.upload_records))
        self._turn = -math.inf

    def join(self) -> None:
        """Begin, or come back while leaving: the spool tells epoch and seq, and may hold unsent records."""
        self._epoch = 0
        self._driving = self._tools.spawn(self._drive())
        if self._delivering is None:
            # A fleet that was started together, with full spools, does not post together
            self._turn = self._tools.monotonic() + self._pace() * self._phase
            self._delivering = self._tools.spawn(self._deliver())

    def leave(self) -> None:
        """Make no more records; what is unsent is still delivered."""
        if self._driving is not None:
            self._driving.cancel()
            self._driving = None
            self._turn = min(self._turn, self._tools.monotonic() + self._pace() * self._phase)
        self._idle.clear()
        self._news.set()

    async def drained(self, seconds: float) -> bool:
        """Wait until nothing is unsent after `leave`, at most some seconds; tell whether it is so."""
        return await self._tools.within(self._idle, seconds)

    def look(self) -> None:
        """Ask the spool again: records that were set aside have been put back."""
        self._news.set()

    def end(self) -> asyncio.Task[None] | None:
        """End; the spool keeps what is unsent. An upload under way may still be answered in the task that is returned."""
        self.leave()
        self._ending = True
        for trouble in (self._tools.refused, self._tools.halved, self._tools.dropping):
            trouble.end(self.vin)
        task, self._delivering = self._delivering, None
        if task is not None and not self._posting:
            task.cancel()
        return task

    async def _drive(self) -> None:
        """Make a record every report_delay. The phase spreads a fleet's reports over the delay."""
        tools, delay = self._tools, self._tools.settings.report_delay
        due = last = tools.monotonic() + delay * self._phase
        while True:
            await tools.sleep(max(0.0, due - tools.monotonic()))
            if tools.monotonic() - due > delay:
                # The host was held up, and all its vehicles wake in this instant
                await tools.sleep(delay * self._phase)
            now = tools.monotonic()
            self.journey, last = self.journey.advance(max(0.0, now - last)), now
            try:
                await self._report()
            except SpoolError as error:
                # The reading is not made: nothing that was made is lost. What the disk holds decides the next seq.
                self._epoch = 0
                tools.health.set_reason(Reason.SPOOL, str(error))
            # A host that was held up misses reports but keeps its vehicles apart.
            due += delay * max(1, math.ceil((tools.monotonic() - due) / delay))

    async def _report(self) -> None:
        """Make one record and spool it; it may be sent from then on. Raises SpoolError."""
        tools = self._tools
        if self._epoch == 0:
            self._epoch, self._next_seq = await tools.spool.run(lambda spool: spool.join(self.vin))
        # What the clock shows, whatever it showed before: the order of records is that of their seqs
        now = tools.now()
        valid = 0 <= now <= MAX_TIMESTAMP
        x, y, z = self.journey.position
        record = Record(self._next_seq, now, x, y, z, self.journey.speed)
        made = Made(self.vin, self._epoch, self._make, self._model, record)

        def keep(spool: Spool) -> int:
            dropped = spool.append(made)
            if not valid:
                # No producer takes it, and it has its seq
                spool.set_aside(made.vin, made.epoch, {record.seq: f"timestamp: must be from 0 to {MAX_TIMESTAMP:.0f}"}, REJECTED)
            return dropped

        dropped = await tools.spool.run(keep)
        if not valid:
            tools.metrics.rejected.inc()
        tools.clock_shows(now, valid)
        self._next_seq += 1
        tools.metrics.made.inc()
        tools.health.clear(Reason.SPOOL)
        if dropped:
            tools.metrics.dropped.inc(dropped)
            tools.dropping.note(self.vin, f"{dropped} of them just now")
        if self._waiting_since is None:
            self._waiting_since = tools.monotonic()
        self._news.set()

    async def _deliver(self) -> None:
        """Send what is unsent, one upload at a time."""
        while not self._ending:
            self._news.clear()
            try:
                upload = await self._next()
                if upload is None:
                    # News since then may be a record that the spool had not kept yet.
                    if not self._news.is_set():
                        self._idle.set()
                    await self._news.wait()
                elif not await self._waited(upload):
                    await self._send(upload)
            except SpoolError as error:
                self._tools.health.set_reason(Reason.SPOOL, str(error))
                await self._back_off()

    def _pace(self) -> float:
        """Seconds from the begin of one upload to that of the next, at least."""
        pace = self._usual / CATCH_UP
        return pace if self._driving is not None else min(pace, DRAIN_PACE)

    async def _next(self) -> Upload | None:
        vin, names, records, gaps = self.vin, (self._make, self._model), self._most_records, self._most_gaps

        def ask(spool: Spool) -> Upload | None:
            return spool.next_put_back(vin, records) or spool.next_upload(vin, names, records, gaps)

        return await self._tools.spool.run(ask)

    async def _waited(self, upload: Upload) -> bool:
        """Wait for the vehicle's turn, and while an upload may grow; tell whether it waited, so that the spool is asked again."""
        waited = False
        while (left := max(self._turn - self._tools.monotonic(), self._company(upload))) > 0:
            waited = True
            # Which may also be that the vehicle leaves, and has its turn sooner
            self._news.clear()
            await self._tools.within(self._news, left)
        return waited

    def _company(self, upload: Upload) -> float:
        """Seconds that an upload may still wait for more records."""
        if self._driving is None or self._waiting_since is None or upload.epoch != self._epoch:
            return 0.0
        if self._next_seq - upload.first_seq >= self._most_records:
            return 0.0
        return self._waiting_since + self._tools.settings.upload_wait - self._tools.monotonic()

    async def _send(self, upload: Upload) -> None:
        """Send one upload and do what its answer asks for; returns when it is worth to look at the spool again."""
        body = encode(upload)
        # At no fixed step, for all vehicles have had the same outage; always sooner than the usual next one
        self._turn = self._tools.monotonic() + self._pace() * self._tools.rng.uniform(0.75, 1.25)
        if upload.epoch == self._epoch and upload.last_seq == self._next_seq - 1:
            # Records that come from here on are the next upload's, and wait for company of their own.
            self._waiting_since = None
        tools, self._posting = self._tools, True
        try:
            answer = await tools.post(f"{tools.settings.urls[self._url]}/events", body)
            tools.metrics.answers.labels(str(answer.status)).inc()
            if answer.status == 200 and confirms(answer.body, upload):
                return await self._acknowledged(upload)
            if answer.status == 422 and (faults := rejected(answer.body, upload)):
                return await self._set_aside(upload, faults)
        finally:
            self._posting = False
        refusal = parse(answer.body, Refusal)
        word = refusal.error if refusal else None
        if answer.status == 413 and word == "too_large" and len(body) >= LEAST_TOO_LARGE:
            self._halve(upload, len(body))
        elif answer.status in (400, 413, 415) or (answer.status == 403 and word in WRONG_SENDER):
            tools.metrics.retries.inc()
            tools.refused.note(self.vin, f"HTTP {answer.status} {told(answer.body)}")
            if word is None:
                # The answer is not ours, and whoever gave it may stand before one nginx only
                self._ask_another()
            await self._pause(tools.settings.retry_max)
        else:
            tools.metrics.retries.inc()
            if answer.status not in (429, 503):
                self._ask_another()
            tools.failed(f"HTTP {answer.status} {told(answer.body)}" if answer.status else "no answer")
            await self._back_off(answer.retry_after)

    def _ask_another(self) -> None:
        """The next upload goes to another nginx, if there is one."""
        self._url = (self._url + 1) % len(self._tools.settings.urls)

    async def _acknowledged(self, upload: Upload) -> None:
        tools = self._tools

        def forget(spool: Spool) -> None:
            if isinstance(upload, PutBack):
                spool.acknowledge_put_back(upload)
            else:
                spool.acknowledge(upload.vin, upload.epoch, upload.last_seq)

        await tools.spool.run(forget)
        tools.metrics.acknowledged.inc(len(upload.records))
        self._failures = 0
        most = tools.settings.upload_records
        if self._most_records == most and self._most_gaps == MAX_GAPS:
            # Not while it is halved and doubled in turn
            tools.halved.end(self.vin)
        self._most_records = min(most, self._most_records * 2)
        self._most_gaps = min(MAX_GAPS, self._most_gaps * 2)
        tools.refused.end(self.vin)
        tools.dropping.end(self.vin)
        tools.health.clear(Reason.SPOOL)
        tools.delivered()

    async def _set_aside(self, upload: Upload, faults: dict[int, str]) -> None:
        log.warning("%s: records are set aside as a gap (%s): %s", upload.vin, REJECTED, dict(list(faults.items())[:20]))
        await self._tools.spool.run(lambda spool: spool.set_aside(upload.vin, upload.epoch, faults, REJECTED))
        self._tools.metrics.rejected.inc(len(faults))

    def _halve(self, upload: Upload, size: int) -> None:
        """The next upload has half as many records and gaps. None is ever given up: the smallest is far below any bound."""
        self._tools.metrics.retries.inc()
        self._tools.halved.note(self.vin, f"one of {size} bytes")
        self._most_records = max(1, len(upload.records) // 2)
        self._most_gaps = max(1, len(upload.gaps) // 2)

    async def _back_off(self, at_least: float = 0.0) -> None:
        """Wait a random time, longer the more tries failed: a fleet that lost its back end does not return as a herd.

        The first is drawn from the usual interval: a fleet whose uploads failed in one instant tries again at its usual rate.
        """
        longest = min(self._tools.settings.retry_max, self._usual * 2 ** min(self._failures, 16))
        self._failures += 1
        await self._pause(at_least + self._tools.rng.uniform(0, longest))

    async def _pause(self, seconds: float) -> None:
        if not self._ending:
            await self._tools.sleep(seconds)


def parse(body: bytes, kind: type[T]) -> T | None:
    """The body of an answer, None if it is not one of ours."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def confirms(body: bytes, upload: Upload) -> bool:
    """Tell whether a 200 is ours, and about what was sent."""
    return parse(body, Acknowledged) == Acknowledged(upload.vin, upload.epoch, upload.last_seq)


def rejected(body: bytes, upload: Upload) -> dict[int, str]:
    """The seqs that a 422 names, as far as they were sent, and what it says of each."""
    answer = parse(body, Rejected)
    sent = {record.seq for record in upload.records}
    faults = answer.rejected if answer else []
    return {each.seq: told(f"{each.field}: {each.reason}".encode())[:MAX_FAULT] for each in faults if each.seq in sent}


def told(body: bytes) -> str:
    """The start of what somebody answered, in one line of plain characters: no answer writes lines of its own into a log."""
    return body[:MAX_TOLD].decode(errors="replace").strip().encode("unicode_escape").decode()
