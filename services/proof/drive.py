"""A round of the proof's own fleet: posts its records through nginx, and keeps the ledger.

Beside it, it asks the database how far it is, and every service whether it is ready: what was seen while faults were injected. It
ends when it has made what was asked for and is told that the faults are over, or when nobody has asked for it for a while.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import time
from collections import deque
from pathlib import Path
from typing import Any

import aiohttp
import psycopg2

from proof.config import Config
from proof.ledger import Entry, Ledger
from proof.senders import UPLOAD_RECORDS, OnceIn, Sender, make_vin

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
MAX_BODIES = 200


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
        self.senders = [Sender(number, entry, config.seed) for number, entry in enumerate(self.ledger.entries)]
        self.counted = [sender for sender in self.senders if sender.entry.epoch]
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

    def make(self, sender: Sender) -> None:
        """Make one record of a sender. Forms have no gaps, so nothing is planted among them."""
        dropped = sender.entry.epoch > 0 and self.drops()
        invalid = sender.entry.epoch > 0 and not dropped and self.spoils()
        sender.make(time.time(), dropped, invalid)
        self.made += 1

    async def make_at_a_rate(self) -> None:
        """Make records evenly, whether or not they are acknowledged; what is left when the faults are over comes at once."""
        begun, turn = time.monotonic(), 0
        while not (self.folder / "finish").exists():
            due = int((time.monotonic() - begun) * self.config.rate)
            while self.made < due:
                self.make(self.senders[turn % len(self.senders)])
                turn += 1
            await asyncio.sleep(0.05)
        await self.make_as_acknowledged()

    async def make_as_acknowledged(self) -> None:
        """Make as many records as are taken."""
        while not self.finished_making():
            for sender in self.senders:
                wanted = 1 if sender.entry.epoch == 0 else UPLOAD_RECORDS
                while len(sender.queue) < wanted and self.made < self.config.records:
                    self.make(sender)
            await asyncio.sleep(0.005)
        self.making = False

    async def deliver(self, sender: Sender, session: aiohttp.ClientSession) -> None:
        """Send a sender's queue, one upload at a time, each until its answer is clear."""
        turn, failures = sender.number, 0
        while self.making or sender.queue:
            items = sender.upload()
            if not items:
                await asyncio.sleep(0.02)
                continue
            body, kind = sender.body(items)
            status, answer = await self.post(session, self.config.urls[turn % len(self.config.urls)], body, kind, sender)
            if status == 200 and sender.is_confirmed(answer, items):
                failures = 0
                sender.acknowledged(items, time.time())
                if self.repeats():
                    await self.post(session, self.config.urls[turn % len(self.config.urls)], body, kind, sender)
                continue
            if status == 422:
                sender.rejected(items, answer.get("rejected", []))
                continue
            if status in (400, 413, 415):
                sender.entry.unexpected.append({"status": status, **answer})
            turn, failures = turn + 1, failures + 1
            await asyncio.sleep(min(RETRY_MAX, RETRY_MIN * 2**failures) * (0.5 + sender.rng.random() / 2))

    async def post(
        self, session: aiohttp.ClientSession, url: str, body: bytes, kind: str, sender: Sender
    ) -> tuple[int, dict[str, Any]]:
        """POST once; status 0 is no answer."""
        posted, status, text = time.time(), 0, b""
        try:
            async with session.post(f"{url}/events", data=body, headers={"Content-Type": kind}) as response:
                text = await response.read()
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            text = f"{type(error).__name__}".encode()
        self.ledger.uploads.append((posted, time.time(), sender.number, status))
        if status != 200:
            shown = f"{status} {text[:500].decode(errors='replace')}"
            if shown not in self.ledger.bodies and len(self.ledger.bodies) < MAX_BODIES:
                self.ledger.bodies.append(shown)
        try:
            answer = json.loads(text)
        except ValueError:
            answer = {}
        return status, answer if isinstance(answer, dict) else {}

    # Looking

    def ask_database(self) -> dict[str, int] | None:
        """How far every sender is in the database; None if it does not answer."""
        try:
            if self._connection is None:
                self._connection = self.config.connect(LOOK)
                with self._connection.cursor() as cursor:
                    cursor.execute("SET statement_timeout = '2s'")
            with self._connection.cursor() as cursor:
                vins = [sender.entry.vin for sender in self.counted]
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
            snapshot = {sender.entry.vin: sender.acked_through for sender in self.counted}
            self._snapshots.append((asked, snapshot))
            found = await asyncio.to_thread(self.ask_database)
            acknowledged = sum(snapshot.values())
            self.ledger.stored.append((asked, None if found is None else sum(found.values()), acknowledged))
            if found is not None:
                self.stored = found
                while self._snapshots and all(found.get(vin, 0) >= last for vin, last in self._snapshots[0][1].items()):
                    self.stored_since = self._snapshots.popleft()[0]
            self.accepted_since = min(sender.acked_at for sender in self.senders)
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
            "acknowledged": sum(sender.acked_through for sender in self.counted),
            "stored": sum(self.stored.values()),
            "waiting": sum(len(sender.queue) for sender in self.senders),
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
            driving += [asyncio.create_task(self.deliver(sender, session)) for sender in self.senders]
            await self.until_done(driving, looking)
            for task in driving:
                task.cancel()
            self.ledger.undelivered = sum(len(sender.queue) for sender in self.senders)
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
            behind = any(self.stored.get(sender.entry.vin, 0) < sender.acked_through for sender in self.counted)
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
