"""The proof's own fleet: makes records, posts them through nginx, and keeps the ledger.

Beside it, it asks the database how far it is, and every service whether it is ready: what was seen while faults were injected. It
ends when it has made what was asked for and is told that the faults are over, or when nobody has asked for it for a while.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import re
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import aiohttp
import psycopg2

from verify.ledger import MAKE, MODEL, PLANTED, REJECTED, Entry, Ledger, Reading

UPLOAD_RECORDS = 50
POST_TIMEOUT = 25.0
RETRY_MIN, RETRY_MAX = 0.1, 1.0
"""Seconds between two tries: short, so that the end of an outage is seen when it comes."""
DROPPED, INVALID, REPEATED = 300, 500, 50
"""One record of so many is dropped on purpose, one is invalid, and one acknowledged upload of so many is sent again."""
READY_TIMEOUT = 5.0
"""Seconds that a service may take to say whether it is ready, as those who probe it usually allow."""
LOOK = 2
"""Seconds that a look at the database may take: a longer one says that it does not answer."""
SAMPLE, POLL = 0.5, 1.0
"""Seconds between looks at the database, and at the services."""
DRAIN = 180.0
"""Seconds that the last records may take to be acknowledged, and then to be stored."""
UNASKED = 300.0
"""Seconds without a question after which the fleet ends by itself."""
ALPHABET = "ABCDEFGHJKLMNPRSTUVWXYZ0123456789"
MAX_BODIES = 200


class Gap(NamedTuple):
    """Seqs that will never come."""

    first: int
    last: int
    reason: str


@dataclass
class Config:
    """What the playbook tells; DIR/config.json."""

    instance: str
    seed: str
    records: int
    rate: float
    vehicles: int
    forms: int
    urls: list[str]
    services: list[str]
    consumers: list[str]
    topic: str
    postgres: dict[str, Any]
    password_file: str
    vehicle_hosts: list[str] = field(default_factory=list)
    changes: bool = False
    """Whether hosts and services come and go meanwhile."""

    def connect(self, seconds: int = 30) -> Any:
        """The database, as its reader. A round is not lost because a machine under load takes some seconds to let somebody in."""
        password = Path(self.password_file).read_text().strip()
        limits = {"connect_timeout": seconds, "tcp_user_timeout": 2000 * seconds, "options": "-c statement_timeout=20s"}
        connection = psycopg2.connect(**{**limits, **self.postgres}, password=password, application_name="verify")
        connection.autocommit = True
        return connection


def make_vin(seed: str, number: int) -> str:
    """The VIN of a vehicle: a function of the seed."""
    digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
    return "VF" + "".join(ALPHABET[byte % len(ALPHABET)] for byte in digest[:15])


class OnceIn:
    """True once in `mean` calls, at irregular distances of which none is as long as two means: no round is without it by chance."""

    def __init__(self, mean: int, rng: random.Random) -> None:
        self._mean, self._rng = mean, rng
        self._left = rng.randrange(1, 2 * mean)

    def __call__(self) -> bool:
        self._left -= 1
        if self._left:
            return False
        self._left = self._rng.randrange(1, 2 * self._mean)
        return True


class Vehicle:
    """One sender with one upload under way. Memory is its spool: it does not survive its process, and need not."""

    def __init__(self, number: int, entry: Entry, seed: str) -> None:
        self.number, self.entry = number, entry
        self.rng = random.Random(f"{seed} {number}")
        self.queue: deque[Reading | Gap] = deque()
        self.acked_at = 0.0
        self.acked_through = 0
        self._next, self._last_timestamp = 1, 0.0

    def make(self, now: float, dropped: bool = False, invalid: bool = False) -> None:
        """Make one record: one to be sent, one that is dropped, or one that the server has to refuse."""
        rng, entry = self.rng, self.entry
        timestamp = self._last_timestamp = max(now, self._last_timestamp + 2e-6)
        seq = round(timestamp * 1e6) if entry.epoch == 0 else self._next
        self._next += 1
        speed = -1.0 if invalid else rng.random() * 40
        reading = Reading(seq, timestamp, rng.uniform(-1e5, 1e5), rng.uniform(-1e5, 1e5), rng.random(), speed)
        entry.made.append(reading)
        if dropped:
            entry.gaps.append((seq, seq, PLANTED))
            self.queue.append(Gap(seq, seq, PLANTED))
        else:
            self.queue.append(reading)

    def upload(self) -> list[Reading | Gap]:
        """What is sent next: the first items of the queue."""
        return list(self.queue)[: 1 if self.entry.epoch == 0 else UPLOAD_RECORDS]

    def body(self, items: Sequence[Reading | Gap]) -> tuple[bytes, str]:
        """The items as the wire has them, and their content type."""
        entry = self.entry
        if entry.epoch == 0:
            [reading] = items
            assert isinstance(reading, Reading)
            fields = {**reading._asdict(), "vin": entry.vin, "make": MAKE, "model": MODEL}
            del fields["seq"]
            return urlencode(fields).encode(), "application/x-www-form-urlencoded"
        document = {
            "vin": entry.vin, "epoch": entry.epoch, "make": MAKE, "model": MODEL,
            "records": [item._asdict() for item in items if isinstance(item, Reading)],
            "gaps": [
                {"from_seq": item.first, "to_seq": item.last, "reason": item.reason} for item in items if isinstance(item, Gap)
            ],
        }  # fmt: skip
        return json.dumps(document).encode(), "application/json"

    def acknowledged(self, items: Sequence[Reading | Gap], now: float) -> None:
        """Forget what was answered 200."""
        first, last = items[0][0], items[-1].seq if isinstance(items[-1], Reading) else items[-1].last
        self.entry.acknowledged.append((first, last))
        for _ in items:
            self.queue.popleft()
        self.acked_at = now
        self.acked_through = last

    def rejected(self, items: Sequence[Reading | Gap], faults: Sequence[dict[str, Any]]) -> None:
        """Set aside what was refused; a good record among it is a finding."""
        refused = {fault.get("seq"): fault for fault in faults}
        for index, item in enumerate(items):
            if isinstance(item, Reading) and item.seq in refused:
                if item.speed >= 0:
                    self.entry.unexpected.append(refused[item.seq])
                self.entry.gaps.append((item.seq, item.seq, REJECTED))
                self.queue[index] = Gap(item.seq, item.seq, REJECTED)


class Drive:
    """One round."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.config, self.folder = config, folder
        now = time.time()
        # The epoch is the round's name: the same seed may be driven again
        epoch = int(now * 1e6)
        self.ledger = Ledger(config.instance, config.seed, epoch, now, rate=config.rate)
        for number in range(config.vehicles + config.forms):
            self.ledger.entries.append(Entry(make_vin(config.seed, number), epoch if number < config.vehicles else 0))
        self.vehicles = [Vehicle(number, entry, config.seed) for number, entry in enumerate(self.ledger.entries)]
        self.counted = [vehicle for vehicle in self.vehicles if vehicle.entry.epoch]
        rng = random.Random(config.seed)
        self.drops, self.spoils, self.repeats = (OnceIn(mean, rng) for mean in (DROPPED, INVALID, REPEATED))
        self.made = 0
        self.making = True
        self.stored: dict[str, int] = {}
        self.accepted_since = self.stored_since = 0.0
        self.unready = dict.fromkeys(config.services, "was not asked yet")
        self._snapshots: deque[tuple[float, dict[str, int]]] = deque()
        self._connection: Any = None

    # Making and sending

    def finished_making(self) -> bool:
        """Whether all that was asked for is made, and the faults are over."""
        return self.made >= self.config.records and (self.folder / "finish").exists()

    def make(self, vehicle: Vehicle) -> None:
        """Make one record of a vehicle. Forms have no gaps, so nothing is planted among them."""
        dropped = vehicle.entry.epoch > 0 and self.drops()
        invalid = vehicle.entry.epoch > 0 and not dropped and self.spoils()
        vehicle.make(time.time(), dropped, invalid)
        self.made += 1

    async def make_at_a_rate(self) -> None:
        """Make records evenly, whether or not they are acknowledged; what is left when the faults are over comes at once."""
        begun, turn = time.monotonic(), 0
        while not (self.folder / "finish").exists():
            due = int((time.monotonic() - begun) * self.config.rate)
            while self.made < due:
                self.make(self.vehicles[turn % len(self.vehicles)])
                turn += 1
            await asyncio.sleep(0.05)
        await self.make_as_acknowledged()

    async def make_as_acknowledged(self) -> None:
        """Make as many records as are taken."""
        while not self.finished_making():
            for vehicle in self.vehicles:
                wanted = 1 if vehicle.entry.epoch == 0 else UPLOAD_RECORDS
                while len(vehicle.queue) < wanted and self.made < self.config.records:
                    self.make(vehicle)
            await asyncio.sleep(0.005)
        self.making = False

    async def deliver(self, vehicle: Vehicle, session: aiohttp.ClientSession) -> None:
        """Send a vehicle's queue, one upload at a time, each until its answer is clear."""
        turn, failures = vehicle.number, 0
        while self.making or vehicle.queue:
            items = vehicle.upload()
            if not items:
                await asyncio.sleep(0.02)
                continue
            body, kind = vehicle.body(items)
            status, answer = await self.post(session, self.config.urls[turn % len(self.config.urls)], body, kind, vehicle)
            if status == 200 and self.confirms(answer, vehicle, items):
                failures = 0
                vehicle.acknowledged(items, time.time())
                if self.repeats():
                    await self.post(session, self.config.urls[turn % len(self.config.urls)], body, kind, vehicle)
                continue
            if status == 422:
                vehicle.rejected(items, answer.get("rejected", []))
                continue
            if status in (400, 413, 415):
                vehicle.entry.unexpected.append({"status": status, **answer})
            turn, failures = turn + 1, failures + 1
            await asyncio.sleep(min(RETRY_MAX, RETRY_MIN * 2**failures) * (0.5 + vehicle.rng.random() / 2))

    async def post(
        self, session: aiohttp.ClientSession, url: str, body: bytes, kind: str, vehicle: Vehicle
    ) -> tuple[int, dict[str, Any]]:
        """POST once; status 0 is no answer."""
        posted, status, text = time.time(), 0, b""
        try:
            async with session.post(f"{url}/events", data=body, headers={"Content-Type": kind}) as response:
                text = await response.read()
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            text = f"{type(error).__name__}".encode()
        self.ledger.uploads.append((posted, time.time(), vehicle.number, status))
        if status != 200:
            shown = f"{status} {text[:500].decode(errors='replace')}"
            if shown not in self.ledger.bodies and len(self.ledger.bodies) < MAX_BODIES:
                self.ledger.bodies.append(shown)
        try:
            answer = json.loads(text)
        except ValueError:
            answer = {}
        return status, answer if isinstance(answer, dict) else {}

    @staticmethod
    def confirms(answer: dict[str, Any], vehicle: Vehicle, items: Sequence[Reading | Gap]) -> bool:
        """Whether a 200 names exactly what was sent."""
        last = items[-1].seq if isinstance(items[-1], Reading) else items[-1].last
        wanted = (vehicle.entry.vin, vehicle.entry.epoch, last)
        return (answer.get("vin"), answer.get("epoch"), answer.get("acked_through")) == wanted

    # Looking

    def ask_database(self) -> dict[str, int] | None:
        """How far every vehicle is in the database; None if it does not answer."""
        try:
            if self._connection is None:
                self._connection = self.config.connect(LOOK)
                with self._connection.cursor() as cursor:
                    cursor.execute("SET statement_timeout = '2s'")
            with self._connection.cursor() as cursor:
                vins = [vehicle.entry.vin for vehicle in self.counted]
                cursor.execute("SELECT vin, last FROM progress WHERE epoch = %s AND vin = ANY(%s)", (self.ledger.epoch, vins))
                return dict(cursor.fetchall())
        except psycopg2.Error:
            if self._connection is not None:
                self._connection.close()
            self._connection = None
            return None

    async def sample(self) -> None:
        """Note how far the database is, and since when everything acknowledged is stored."""
        while True:
            asked = time.time()
            snapshot = {vehicle.entry.vin: vehicle.acked_through for vehicle in self.counted}
            self._snapshots.append((asked, snapshot))
            found = await asyncio.to_thread(self.ask_database)
            acknowledged = sum(snapshot.values())
            self.ledger.stored.append((asked, None if found is None else sum(found.values()), acknowledged))
            if found is not None:
                self.stored = found
                while self._snapshots and all(found.get(vin, 0) >= last for vin, last in self._snapshots[0][1].items()):
                    self.stored_since = self._snapshots.popleft()[0]
            self.accepted_since = min(vehicle.acked_at for vehicle in self.vehicles)
            self.write_status()
            if self.unasked():
                raise TimeoutError("nobody has asked for this fleet any more")
            await asyncio.sleep(SAMPLE)

    def unasked(self) -> bool:
        """Whether the playbook is gone."""
        heartbeat = self.folder / "heartbeat"
        return (self.folder / "stop").exists() or time.time() - heartbeat.stat().st_mtime > UNASKED

    async def poll(self, session: aiohttp.ClientSession, url: str) -> None:
        """Ask a service again and again whether it is ready."""
        while True:
            asked = time.time()
            ready, why = await self.ask_ready(session, url)
            self.ledger.polls.append((asked, time.time(), url, ready, why))
            if ready:
                self.unready.pop(url, None)
            else:
                self.unready[url] = why or "no answer"
            await asyncio.sleep(max(0.0, asked + POLL - time.time()))

    @staticmethod
    async def ask_ready(session: aiohttp.ClientSession, url: str) -> tuple[bool | None, str]:
        """One service's /readyz."""
        try:
            async with session.get(f"{url}/readyz", timeout=aiohttp.ClientTimeout(total=READY_TIMEOUT)) as response:
                body = await response.json(content_type=None)
                return bool(body["ready"]) and response.status == 200, "; ".join(body["reasons"])
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError):
            return None, ""

    async def ask_fleet(self, session: aiohttp.ClientSession) -> None:
        """Note the product's own vehicles; those of a host that does not answer are not watched."""
        for url in self.config.vehicle_hosts:
            try:
                async with session.get(f"{url}/fleet", timeout=aiohttp.ClientTimeout(total=5)) as response:
                    self.ledger.fleet += (await response.json(content_type=None))["here"]
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError):
                continue

    async def ask_lag(self, session: aiohttp.ClientSession) -> int | None:
        """Kafka records that all consumers are behind, by their own word."""
        total = 0
        for url in self.config.consumers:
            try:
                async with session.get(f"{url}/metrics", timeout=aiohttp.ClientTimeout(total=5)) as response:
                    text = await response.text()
            except (aiohttp.ClientError, TimeoutError, OSError):
                return None
            total += sum(int(float(value)) for value in re.findall(r"^telemetry_lag\{.*\} (\S+)$", text, re.MULTILINE))
        return total

    def write_status(self, finished: bool = False) -> None:
        """Tell the playbook how it goes."""
        status = {
            "made": self.made,
            "acknowledged": sum(vehicle.acked_through for vehicle in self.counted),
            "stored": sum(self.stored.values()),
            "waiting": sum(len(vehicle.queue) for vehicle in self.vehicles),
            "accepted_since": self.accepted_since,
            "stored_since": self.stored_since,
            "unready": [f"{url} to be ready: {why}" for url, why in self.unready.items()],
            "finished": finished,
        }
        new = self.folder / "status.new"
        new.write_text(json.dumps(status))
        os.replace(new, self.folder / "status.json")

    # The round

    async def run(self) -> None:
        """Drive to the end, and save the ledger."""
        timeout = aiohttp.ClientTimeout(total=POST_TIMEOUT, sock_connect=5)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            await self.ask_fleet(session)
            looking = [asyncio.create_task(self.sample())]
            looking += [asyncio.create_task(self.poll(session, url)) for url in self.config.services]
            driving = [asyncio.create_task(self.make_at_a_rate() if self.config.rate else self.make_as_acknowledged())]
            driving += [asyncio.create_task(self.deliver(vehicle, session)) for vehicle in self.vehicles]
            await self.until_done(driving, looking)
            for task in driving:
                task.cancel()
            self.ledger.undelivered = sum(len(vehicle.queue) for vehicle in self.vehicles)
            await self.drain(session, looking)
            for task in looking:
                task.cancel()
        self.ledger.ended = time.time()
        with self.config.connect() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT DISTINCT topic_id::text FROM stream_offset WHERE topic = %s", (self.config.topic,))
            self.ledger.topic_ids = sorted(row[0] for row in cursor.fetchall())
        self.ledger.save(self.folder / f"{self.ledger.epoch}.json")
        self.write_status(finished=True)

    async def until_done(self, driving: list[asyncio.Task[None]], looking: list[asyncio.Task[None]]) -> None:
        """Wait until everything is made and acknowledged, or until it took too long after the last was made."""
        deadline: float | None = None
        while not all(task.done() for task in driving):
            if not self.making and deadline is None:
                deadline = time.monotonic() + DRAIN
            if deadline is not None and time.monotonic() > deadline:
                return
            self.raise_what_failed([*driving, *looking])
            await asyncio.sleep(0.1)
        self.raise_what_failed([*driving, *looking])

    async def drain(self, session: aiohttp.ClientSession, looking: list[asyncio.Task[None]]) -> None:
        """Wait until everything acknowledged is stored and the consumers are not behind."""
        deadline = time.monotonic() + DRAIN
        while time.monotonic() < deadline:
            self.raise_what_failed(looking)
            behind = any(self.stored.get(vehicle.entry.vin, 0) < vehicle.acked_through for vehicle in self.counted)
            self.ledger.lag = await self.ask_lag(session)
            if not behind and self.ledger.lag == 0:
                return
            await asyncio.sleep(SAMPLE)

    @staticmethod
    def raise_what_failed(tasks: list[asyncio.Task[None]]) -> None:
        """A task that failed ends the round."""
        for task in tasks:
            if task.done() and not task.cancelled() and task.exception() is not None:
                task.result()


def drive(folder: Path) -> None:
    """Drive one round as DIR/config.json says."""
    config = Config(**json.loads((folder / "config.json").read_text()))
    asyncio.run(Drive(config, folder).run())
