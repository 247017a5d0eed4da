"""One seed: vehicles, producers, a cluster, consumers and a store; faults for a while, then peace; and what has to be so.

The vehicles' delivery and spool (real SQLite), the producers' handlers, the consumer's loop, the walk and the plan of a batch are
the product's own. The network, Kafka, the disk under the spool and the database are in memory: the store is the fake that passes
the real one's tests. The expectation comes from the ledger alone, which is what vehicles made and what they were answered.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import selectors
import shutil
import uuid
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from telemetry import progress as walks
from telemetry.asgi import Adapter
from telemetry.consumer import Consumer
from telemetry.consumer import Metrics as ConsumerMetrics
from telemetry.health import Health
from telemetry.producer import make_app
from telemetry.record import Refused, parse_json
from telemetry.settings import ConsumerSettings, VehicleSettings
from telemetry.spool import Made, Spool, perform
from telemetry.store import FakeStore, Run, Unavailable, Written
from telemetry.topic import partition_of
from telemetry.vehicle import Answer, Fleet, Host, Metrics, Tools

from simulation.kafka import TOPIC, Client, Cluster

NOW = 1_700_000_000.0
FAULTS, PEACE = 12.0, 120.0
"""Seconds with faults, and seconds in which everything has to come right after them."""
VEHICLES, PRODUCERS, CONSUMERS = 2, 2, 2
TIMEOUT, LATE = 2.0, 4.0
"""Seconds that a sender waits for an answer, and that a copy may be on its way."""

Identity = tuple[str, int, int]


class Violation(Exception):
    """Something that must not be so; the text names the invariant."""


class Patience(selectors.SelectSelector):
    """Waits by letting the clock go on."""

    passed = 0.0

    def select(self, timeout: float | None = None) -> Any:
        """Return at once; nothing comes from outside."""
        if timeout is None:
            raise Violation("I6: everybody waits for ever")
        self.passed += max(0.0, timeout)
        return []


class Loop(asyncio.SelectorEventLoop):
    """An event loop in which nobody has to wait for time to pass."""

    def __init__(self) -> None:
        self.patience = Patience()
        super().__init__(self.patience)

    def time(self) -> float:
        """Virtual seconds."""
        return self.patience.passed


@dataclass
class Defects:
    """What a planted defect changes in the world; an undamaged one changes nothing."""

    acks: str = "all"
    answer_from_flush: bool = False
    store: type[SimStore] | None = None


@dataclass
class Ledger:
    """What senders know."""

    made: dict[Identity, float] = field(default_factory=dict)
    """Timestamp of each record whose spooling was confirmed."""
    sent: dict[Identity, float] = field(default_factory=dict)
    acknowledged: set[Identity] = field(default_factory=set)
    wiped: set[tuple[str, int]] = field(default_factory=set)
    """(vin, epoch) whose spool was destroyed: unsent records went with it."""


class SimStore(FakeStore):
    """The fake store with a network before it: a write may come to nothing, or its answer be lost; others may write first."""

    def __init__(self, world: World) -> None:
        super().__init__(now=lambda: datetime.fromtimestamp(world.now(), UTC))
        self.world = world

    def places(self, topic: str) -> Any:
        """See Store."""
        if self.world.trouble(0.02):
            raise Unavailable("gone")
        return super().places(topic)

    def write(self, topic_id: uuid.UUID, topic: str, runs: Sequence[Run]) -> Written:
        """See Store."""
        self.world.overtake()
        if self.world.trouble(0.04):
            raise Unavailable("gone before the commit")
        written = self.commit(topic_id, topic, runs)
        self.world.check_commit()
        if self.world.trouble(0.04):
            raise Unavailable("the outcome of the commit is unknown")
        return written

    def commit(self, topic_id: uuid.UUID, topic: str, runs: Sequence[Run]) -> Written:
        """The transaction."""
        return super().write(topic_id, topic, runs)


class Disk:
    """The spool of a host on a disk that keeps, when power goes, what was synced."""

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self.world, self.number = folder, world, 0
        self.image: bytes | None = None
        self.spool = self.open()

    def open(self) -> Spool:
        """A new life of the spool, from the image if there is one."""
        self.number += 1
        place, counter = self.folder / str(self.number), self.folder / "counter"
        place.mkdir(parents=True)
        counter.mkdir(exist_ok=True)
        if self.image is not None:
            (place / "spool.sqlite").write_bytes(self.image)
        spool = Spool(place, counter, lambda: int(self.world.now() * 1e6), random.Random(self.world.rng.random()))
        self.sync(spool)
        return spool

    def sync(self, spool: Spool) -> None:
        """What a commit makes durable: everything, if SQLite was told to sync; now and then what it was not told."""
        database = spool._database
        if database.execute("PRAGMA synchronous").fetchone()[0] >= 2 or self.world.rng.random() < 0.05:
            self.image = database.serialize()

    def run(self, call: Callable[[Spool], Any]) -> Any:
        """One call, in a transaction."""
        [result] = perform(self.spool, [call])
        self.sync(self.spool)
        if isinstance(result, Exception):
            raise result
        return result

    def end(self) -> None:
        """What a process that dies lets go of."""
        self.spool._database.close()
        os.close(self.spool._lock)

    def lose_power(self) -> None:
        """The process and what was not synced are gone."""
        self.end()
        self.spool = self.open()

    def wipe(self) -> None:
        """The disk is replaced by an empty one; the counter, elsewhere, stays."""
        self.end()
        self.image = None
        self.spool = self.open()


class AsyncSpool:
    """The spool's thread, as its callers see it: a call takes a moment, and a crash may come before or after its commit."""

    def __init__(self, disk: Disk, world: World) -> None:
        self.disk, self.world = disk, world

    async def run(self, call: Callable[[Spool], Any]) -> Any:
        """See SpoolThread."""
        await asyncio.sleep(self.world.rng.random() * 0.02)
        result = self.disk.run(call)
        await asyncio.sleep(self.world.rng.random() * 0.02)
        return result


class SimPublisher:
    """A producer's group commit: each upload goes to its partition and waits for its replicas."""

    def __init__(self, world: World) -> None:
        self.world, self.waiting = world, 0

    def drain(self) -> None:
        """Nothing to do: producers end by being killed here."""

    def publish(self, key: bytes, value: bytes) -> asyncio.Future[Refused | None]:
        """See Publisher."""
        future: asyncio.Future[Refused | None] = asyncio.get_running_loop().create_future()
        self.world.spawn(self.send(key, value, future))
        if self.world.defects.answer_from_flush:
            future.set_result(None)
        return future

    async def send(self, key: bytes, value: bytes, future: asyncio.Future[Refused | None]) -> None:
        """Write, sometimes twice as a client that retries does, sometimes after bytes that are no upload; wait for the replicas."""
        world = self.world
        await asyncio.sleep(world.rng.random() * 0.05)
        number = partition_of(key, len(world.cluster.logs))
        if world.trouble(0.03):
            document = json.loads(value)
            for record in document["records"]:
                record["speed"] = "fast"
            world.cluster.append(number, key, json.dumps(document).encode())
        acks = [world.cluster.append(number, key, value) for _ in range(2 if world.trouble(0.05) else 1)]
        done, late = await asyncio.wait(acks, timeout=4.0)
        if not future.done():
            good = not late and all(each.result() for each in done)
            future.set_result(None if good else Refused(503, "unavailable", "not confirmed"))


class World:
    """All of it."""

    def __init__(self, seed: int, folder: Path, defects: Defects | None = None) -> None:
        self.rng, self.folder, self.defects = random.Random(seed), folder, defects or Defects()
        self.loop = asyncio.get_running_loop()
        self.ledger = Ledger()
        self.trace: list[str] = []
        self.peace = False
        self.tasks: set[asyncio.Task[Any]] = set()
        self.host_tasks: set[asyncio.Task[Any]] = set()
        self.failure: BaseException | None = None
        self.cluster = Cluster(self.rng, self.now, acks=self.defects.acks)
        self.store = (self.defects.store or SimStore)(self)
        self.producers = [Adapter(make_app(SimPublisher(self), Health("producer", str(n), "0"))) for n in range(PRODUCERS)]
        self.consumers = [Worker(self, number) for number in range(CONSUMERS)]
        self.disk = Disk(folder / "spool", self)
        self.host: Host
        self.start_host()
        for worker in self.consumers:
            self.spawn(worker.live())

    def now(self) -> float:
        """Seconds since 1970."""
        return NOW + self.loop.time()

    def say(self, what: str) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{self.loop.time():8.3f} {what}")

    def trouble(self, likely: float) -> bool:
        """Whether something goes wrong now."""
        return not self.peace and self.rng.random() < likely

    def spawn(self, coroutine: Coroutine[Any, Any, Any], tasks: set[asyncio.Task[Any]] | None = None) -> asyncio.Task[Any]:
        """A task whose failure ends the run."""
        task = asyncio.create_task(coroutine)
        kept = self.tasks if tasks is None else tasks
        kept.add(task)

        def ended(done: asyncio.Task[Any]) -> None:
            kept.discard(done)
            if not done.cancelled() and done.exception() is not None and self.failure is None:
                self.failure = done.exception()

        task.add_done_callback(ended)
        return task

    # Vehicles

    def start_host(self) -> None:
        """A vehicle host's process begins."""
        health = Health("vehicle", "v", "0")
        settings = VehicleSettings.load(
            {
                "TELEMETRY_NAME": "v", "TELEMETRY_LISTEN": "127.0.0.1:1", "VEHICLE_URLS": "http://a:1,http://b:1",
                "VEHICLE_FLEET_FILE": "/nowhere", "VEHICLE_FLEET_SEED": "seed", "VEHICLE_SPOOL_DIR": "/nowhere",
                "VEHICLE_COUNTER_DIR": "/nowhere", "VEHICLE_REPORT_DELAY": "1",
                "VEHICLE_UPLOAD_RECORDS": "4", "VEHICLE_RETRY_MAX": "2",
            }
        )  # fmt: skip
        spool = Recorded(self.disk, self)
        tools = Tools(
            settings, spool, self.post, health, Metrics(health),  # type: ignore[arg-type]  # a spool's thread, as its callers see it
            now=self.now, monotonic=self.loop.time, rng=random.Random(self.rng.random()),
            spawn=lambda coroutine: self.spawn(coroutine, self.host_tasks),
        )  # fmt: skip
        self.host = Host(tools)
        self.host.change(Fleet(VEHICLES, 0, 1))

    def end_host(self) -> None:
        """The process is killed: nothing of it runs on."""
        for task in list(self.host_tasks):
            task.cancel()

    async def post(self, url: str, body: bytes) -> Answer:
        """The network and nginx: requests and answers are late, lost, doubled."""
        upload = parse_json(body)
        for record in upload.records:
            identity = (upload.vin, upload.epoch, record.seq)
            if self.ledger.sent.setdefault(identity, record.timestamp) != record.timestamp:
                raise Violation(f"I5: {identity} was sent with two values")
        await asyncio.sleep(self.rng.random() * 0.1)
        if self.trouble(0.05):
            await asyncio.sleep(TIMEOUT)
            return Answer(0)
        if self.trouble(0.05):
            self.spawn(self.later(body))
        status, answer = await self.call(self.rng.choice(self.producers), body)
        if self.trouble(0.08):
            await asyncio.sleep(TIMEOUT)
            return Answer(0)
        if status == 200:
            self.ledger.acknowledged |= {(upload.vin, upload.epoch, record.seq) for record in upload.records}
        return Answer(status, answer)

    async def later(self, body: bytes) -> None:
        """A copy that comes when nobody expects it any more."""
        await asyncio.sleep(self.rng.random() * LATE)
        await self.call(self.rng.choice(self.producers), body)

    @staticmethod
    async def call(producer: Adapter, body: bytes) -> tuple[int, bytes]:
        """One request to a producer, by ASGI."""
        sent: list[dict[str, Any]] = []
        scope = {"type": "http", "method": "POST", "path": "/events", "headers": [(b"content-type", b"application/json")]}

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await producer(scope, receive, send)
        return sent[0]["status"], sent[1]["body"]

    # Consumers

    def overtake(self) -> None:
        """In the middle of a worker's write the group may give its partitions away, and the others may write first."""
        busy = [worker for worker in self.consumers if worker.writing]
        if len(busy) == 1 and self.trouble(0.1):
            self.say(f"consumer {busy[0].number} is paused before its transaction, and replaced")
            if busy[0].client is not None:
                busy[0].client.leave()
            for worker in self.consumers:
                if worker is not busy[0]:
                    for _ in range(self.rng.randrange(1, 8)):
                        worker.step()

    # Faults

    async def faults(self) -> None:
        """What goes wrong beside the network."""
        actions = [self.kill_broker, self.kill_broker, self.kill_vehicles, self.power_off, self.wipe, self.kill_consumer]
        while self.loop.time() < FAULTS:
            await asyncio.sleep(self.rng.random() * 2)
            await self.rng.choice(actions)()

    async def kill_broker(self) -> None:
        """One broker dies and comes back; never two at once."""
        broker = self.rng.randrange(3)
        self.say(f"broker {broker} dies")
        self.cluster.crash(broker)
        await asyncio.sleep(self.rng.random() * 3)
        self.cluster.start(broker)
        # It is in sync again before the next may die
        while any(len(log.in_sync) < 3 for log in self.cluster.logs):
            await asyncio.sleep(0.1)

    async def kill_vehicles(self) -> None:
        """The vehicles' process dies; the machine's memory keeps what was written."""
        self.say("vehicles are killed")
        self.end_host()
        await asyncio.sleep(self.rng.random())
        self.disk.image = self.disk.spool._database.serialize()
        self.disk.lose_power()
        self.start_host()

    async def power_off(self) -> None:
        """The vehicles' machine loses power: only what was synced is left."""
        self.say("the vehicles' machine loses power")
        self.end_host()
        await asyncio.sleep(self.rng.random())
        self.disk.lose_power()
        self.start_host()

    async def wipe(self) -> None:
        """The vehicles' disk is replaced."""
        if self.rng.random() < 0.7:
            return
        self.say("the vehicles' spool is wiped")
        self.end_host()
        rows = self.disk.spool._database.execute("SELECT vin, epoch FROM vehicle").fetchall()
        self.ledger.wiped |= set(rows)
        self.disk.wipe()
        self.start_host()

    async def kill_consumer(self) -> None:
        """A consumer dies, or is paused for so long that the group gives it up."""
        worker = self.rng.choice(self.consumers)
        if self.rng.random() < 0.5:
            self.say(f"consumer {worker.number} dies")
            worker.restart()
        else:
            self.say(f"consumer {worker.number} is paused")
            worker.paused = True
            await asyncio.sleep(self.rng.random() * 3)
            if worker.client is not None:
                worker.client.leave()
            await asyncio.sleep(self.rng.random() * 3)
            worker.paused = False

    # What has to be so

    def check_commit(self) -> None:
        """At every commit rows ever inserted and open gaps are exactly 1..last, and none is in both."""
        rows: dict[tuple[str, int], list[int]] = {}
        for row in self.store.rows:
            rows.setdefault((row.upload.vin, row.upload.epoch), []).append(row.record.seq)
        for key, progress in self.store.progress.items():
            there = rows.get(key, [])
            opened = [
                seq
                for span in self.store.gaps.get(key, {}).values()
                if span.state != walks.FILLED
                for seq in range(span.first, span.last + 1)
            ]
            if sorted([*there, *opened]) != list(range(1, progress.last + 1)):
                raise Violation(f"I2: {key}: rows {sorted(there)} and gaps {sorted(opened)} are not 1..{progress.last}")
        if len(set(rows)) > len(self.store.progress):
            raise Violation("I2: rows without progress")

    def check_end(self) -> None:
        """After peace: acknowledged is there, once, as it was made, in order; and nothing is left on the way."""
        seen: dict[Identity, float] = {}
        last: dict[tuple[str, int], int] = {}
        for row in self.store.rows:
            key = (row.upload.vin, row.upload.epoch)
            identity = (*key, row.record.seq)
            if identity in seen:
                raise Violation(f"I3: {identity} has two rows")
            seen[identity] = row.record.timestamp
            if self.ledger.sent.get(identity) != row.record.timestamp:
                raise Violation(f"I5: {identity} is not as it was sent")
            filled = any(
                span.first <= row.record.seq <= span.last and span.state == walks.FILLED
                for span in self.store.gaps.get(key, {}).values()
            )
            if not filled:
                if row.record.seq <= last.get(key, 0):
                    raise Violation(f"I4: {identity} is stored out of order")
                last[key] = row.record.seq
        if missing := self.ledger.acknowledged - set(seen):
            raise Violation(f"I1: {len(missing)} acknowledged records are not there, such as {min(missing)}")
        lost = [identity for identity in self.ledger.made if identity not in seen and identity[:2] not in self.ledger.wiped]
        if lost:
            raise Violation(f"I2: {len(lost)} records that were made never came, such as {min(lost)}")
        if self.store.conflicts:
            raise Violation(f"I5: {len(self.store.conflicts)} conflicts that nobody planted")
        for number, log in enumerate(self.cluster.logs):
            stored = self.store.offsets.get((self.cluster.topic_id, number))
            if (stored[1] if stored else 0) != len(log.messages):
                raise Violation(f"I6: partition {number} is at {stored} of {len(log.messages)}")

    async def run(self) -> None:
        """Faults, peace, and the end. Raises Violation."""
        replicating = self.spawn(self.replicate())
        try:
            await self.until(FAULTS, self.spawn(self.faults()))
            self.peace = True
            for broker, alive in enumerate(self.cluster.alive):
                if not alive:
                    self.cluster.start(broker)
            self.say("peace")
            # No more records are made; what is unsent is delivered
            await asyncio.sleep(2)
            self.host.change(Fleet(0, 0, 1))
            deadline = self.loop.time() + PEACE
            while self.loop.time() < deadline and not self.settled():
                self.raise_failure()
                await asyncio.sleep(1)
            self.check_commit()
            self.check_end()
        finally:
            replicating.cancel()
            for task in [*self.tasks, *self.host_tasks]:
                task.cancel()
            await asyncio.gather(*self.tasks, *self.host_tasks, return_exceptions=True)
            self.disk.end()

    async def until(self, seconds: float, task: asyncio.Task[Any]) -> None:
        """Let a task run to its end, however little time it needs."""
        while not task.done() or self.loop.time() < seconds:
            self.raise_failure()
            await asyncio.sleep(0.5)
        self.raise_failure()

    def raise_failure(self) -> None:
        """Whatever a task ended with ends the run."""
        if self.failure is not None:
            raise self.failure

    def settled(self) -> bool:
        """Whether nothing is on its way any more."""
        behind = any(
            self.store.offsets.get((self.cluster.topic_id, number), ("", 0))[1] != len(log.messages)
            for number, log in enumerate(self.cluster.logs)
        )
        return not behind and not self.disk.spool.backlog() and self.loop.time() > FAULTS + LATE + TIMEOUT

    async def replicate(self) -> None:
        """Followers fetch."""
        while True:
            await asyncio.sleep(0.02 + self.rng.random() * 0.3)
            self.cluster.replicate()


class Recorded(AsyncSpool):
    """Notes in the ledger what a vehicle was told to be spooled."""

    async def run(self, call: Callable[[Spool], Any]) -> Any:
        """See SpoolThread."""
        made = next((cell.cell_contents for cell in call.__closure__ or () if isinstance(cell.cell_contents, Made)), None)
        result = await super().run(call)
        if made is not None:
            self.world.ledger.made[made.vin, made.epoch, made.record.seq] = made.record.timestamp
        return result


class Worker:
    """A consumer's process."""

    def __init__(self, world: World, number: int) -> None:
        self.world, self.number = world, number
        self.paused = self.writing = False
        self.client: Client | None = None
        self.pause = 0.0
        self.consumer = self.make()

    def make(self) -> Consumer:
        """A new process."""
        world = self.world
        health = Health("consumer", str(self.number), "0")
        settings = ConsumerSettings.load(
            {
                "TELEMETRY_NAME": str(self.number), "TELEMETRY_LISTEN": "127.0.0.1:1", "POSTGRES_HOST": "127.0.0.1",
                "POSTGRES_PASSWORD_FILE": "/nowhere", "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1", "KAFKA_TOPIC": TOPIC,
                "KAFKA_TOPIC_PARTITIONS": "2", "KAFKA_TOPIC_REPLICATION_FACTOR": "3", "KAFKA_TOPIC_MIN_INSYNC_REPLICAS": "2",
            }
        )  # fmt: skip
        return Consumer(
            settings, world.store, self.connect, world.cluster.describe, health, ConsumerMetrics(health),
            clock=world.loop.time, wall=world.now, sleep=self.sleep, rng=random.Random(world.rng.random()),
        )  # fmt: skip

    def connect(self) -> Client:
        """The Kafka client."""
        self.client = Client(self.world.cluster)
        return self.client

    def sleep(self, seconds: float) -> None:
        """What the loop sleeps passes between two steps."""
        self.pause = max(self.pause, seconds)

    def restart(self) -> None:
        """The process dies; the group notices, and another begins."""
        if self.client is not None:
            self.client.leave()
        self.consumer = self.make()

    def step(self) -> None:
        """One step, within which others may be let in."""
        self.writing = True
        try:
            self.consumer.step()
        finally:
            self.writing = False

    async def live(self) -> None:
        """Step after step."""
        while True:
            await asyncio.sleep(0.05 + self.world.rng.random() * 0.4 + self.pause)
            self.pause = 0.0
            if not self.paused:
                self.step()


def simulate(seed: int, folder: Path, defects: Defects | None = None) -> tuple[str, list[str]]:
    """Run one seed; returns the violation, empty if there is none, and the trace."""
    trace: list[str] = []
    folder.mkdir(parents=True, exist_ok=True)

    async def whole() -> None:
        world = World(seed, folder, defects)
        try:
            await world.run()
        finally:
            trace.extend(world.trace)

    try:
        with asyncio.Runner(loop_factory=Loop) as runner:
            runner.run(whole())
    except Violation as violation:
        return str(violation), trace
    finally:
        shutil.rmtree(folder)
    return "", trace
