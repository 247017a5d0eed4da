"""The processes of a run, each on a host with a clock of its own: the product's, and those who use it."""

from __future__ import annotations

import asyncio
import random
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import psycopg2
import telemetry.consumer.service
from kafka.errors import KafkaError
from telemetry import topic as topics
from telemetry.consumer import remedy
from telemetry.consumer.batch import values_of
from telemetry.consumer.store import PostgresStore, StoreError
from telemetry.consumer.watch import KafkaView, Watch
from telemetry.consumer.worker import Worker as ConsumerWorker
from telemetry.health import Health
from telemetry.metrics import ConsumerMetrics, VehicleMetrics
from telemetry.producer.app import make_app
from telemetry.producer.asgi import Adapter
from telemetry.producer.publisher import KafkaPublisher
from telemetry.record import VALUES, Gap, Record, Upload, encode
from telemetry.vehicle.spool import RECORD_BYTES, Bound, SpoolError, SpoolThread
from telemetry.vehicle.vehicle import Answer, Tools, Vehicle, confirms

from simulation.clocks import Clock, Time
from simulation.disk import Disk
from simulation.kafka import TOPIC
from simulation.kernel import Process
from simulation.ledger import LedgerSpool

if TYPE_CHECKING:
    from simulation.world import World

VEHICLES = 3
FORMS, FORM_VIN = 4, "FORMCLIENT0000000"
GAPPY_VIN, GAPPY_UPLOADS, GAPPY_RECORDS = "GAPPYSENDER000000", 20, 30
"""Who declares every second seq missing, in how many uploads, and how many records each has."""
COUNT_INTERVAL = 2.0
"""In place of the spool's own: a run is short. A backup is put back only if the spool was written to so long after it."""
SPOOL_HOURS = 168
RETAIN_INTERVAL = 4.0
"""In place of the consumer's own hour."""
WATCH_INTERVAL = 3.0


class Service:
    """A process that starts anew when it died."""

    def __init__(self, world: World, name: str) -> None:
        self._world, self.name = world, name
        self.clock = Clock(world.scheduler, world.begun)
        self.start()

    def start(self) -> None:
        """A new process."""
        self.process = Process(self._world.scheduler, self.name, self.clock)
        self._world.scheduler.tell("%s starts", self.name)
        self._begin()

    def pause(self, seconds: float) -> None:
        """Stop it for a while."""
        self._world.scheduler.happen(f"{self.process.kind} is paused", "%s is paused for %.1f s", self.name, seconds)
        self.process.pause()
        self._world.scheduler.after(seconds, self.process.resume)

    def _begin(self) -> None:
        """Let the new process do its work."""
        raise NotImplementedError


class Producer(Service):
    """A producer's process."""

    _adapter: Adapter | None = None

    def _begin(self) -> None:
        self._world.scheduler.after(0, self._main, process=self.process)

    def _main(self) -> None:
        health = Health("producer", "p", "0")
        publisher = KafkaPublisher(self._world.producer_settings, health, self._world.make_producer, self._give_up)
        publisher.start()
        self._adapter = Adapter(make_app(publisher, health), publisher.note_refused)

    def _give_up(self, why: str) -> None:
        """The client must not be used any longer: the process ends, and systemd or Docker starts it anew."""
        self._world.scheduler.tell("gives up: %s", why)
        if self.process.alive:
            self.process.on_death.append(lambda: self._world.scheduler.after(1.0, self.start))
            self.process.kill()

    def request(self, body: bytes, kind: bytes, answer: Callable[[int, bytes], None]) -> None:
        """A request has arrived; runs in the process."""
        assert self._adapter is not None
        scope = {"type": "http", "method": "POST", "path": "/events", "headers": [(b"content-type", kind)]}
        parts: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        async def send(message: dict[str, Any]) -> None:
            parts.append(message)

        async def handle(adapter: Adapter) -> None:
            await adapter(scope, receive, send)
            answer(parts[0]["status"], parts[1]["body"])

        self.process.loop.create_task(handle(self._adapter))


class Worker(Service):
    """A consumer's process."""

    def _begin(self) -> None:
        self.process.on_death.append(self._died)
        self.process.spawn(self._main, self.process)

    def _died(self) -> None:
        """Postgres hears of it soon, the group when the session ends."""
        world, process = self._world, self.process
        rng = world.scheduler.rng
        world.scheduler.after(rng.random() * 0.1, world.database.disconnect, lambda connection: connection.client is process)
        world.scheduler.after(world.consumer_settings.session_timeout_ms / 1000, world.cluster.group.expire, process)

    def pause(self, seconds: float) -> None:
        """Stop it for a while; its heartbeats stop too, if the last ones were not lost before."""
        world, process = self._world, self.process
        super().pause(seconds)
        session = world.consumer_settings.session_timeout_ms / 1000
        world.scheduler.after(session * world.scheduler.rng.random(), self._expire, process)

    def _expire(self, process: Process) -> None:
        if process.paused:
            self._world.cluster.group.expire(process)

    def _main(self, process: Process) -> None:
        world, time, settings = self._world, Time(self._world.scheduler), self._world.consumer_settings
        health = Health("consumer", "c", "0")
        metrics = ConsumerMetrics(health.registry)
        store = self._make_store()
        worker = ConsumerWorker(
            settings, store, lambda: telemetry.consumer.service.connect(settings), topics.describer(settings, "consumer-topic"),
            health, metrics, clock=time.monotonic, wall=time.time, sleep=time.sleep,
            rng=random.Random(world.scheduler.rng.random()),
        )  # fmt: skip
        watch = Watch(settings, worker, store.break_off, KafkaView(settings), health, metrics, clock=time.monotonic, wall=time.time)
        process.spawn(self._every, WATCH_INTERVAL, watch.look)
        process.spawn(self._every, WATCH_INTERVAL, watch.look_at_store)
        process.spawn(self._every, RETAIN_INTERVAL, self._retain)
        while True:
            worker.step()

    def _make_store(self) -> PostgresStore:
        world = self._world
        return world.store_class(
            lambda: {}, world.consumer_settings.topic_retention_ms, now=self.clock.moment, connect=world.database.connect
        )

    def _every(self, seconds: float, do: Callable[[], object]) -> None:
        """A thread of the process."""
        while True:
            do()
            self.process.sleep(seconds)

    def _retain(self) -> None:
        store = self._make_store()
        try:
            for name in store.retain().dropped:
                self._world.scheduler.happen("a day is dropped", "drops %s", name)
        except StoreError as error:
            self._world.scheduler.tell("cannot drop days: %s", error)
        store.close()


class FormClient(Service):
    """Somebody who sends records by the predecessor's form, one after the other, each until it is acknowledged."""

    def _begin(self) -> None:
        self._world.scheduler.after(0, lambda: self.process.loop.create_task(self._send()), process=self.process)

    async def _send(self) -> None:
        world = self._world
        rng = random.Random(world.scheduler.rng.random())
        for _ in range(FORMS):
            await asyncio.sleep(rng.random() * world.chaos / FORMS)
            values = (round(self.clock.time(), 6), *(float(rng.randrange(1000)) for _ in range(4)))
            spoken = (FORM_VIN, "Ford", "Edge", *values)
            body = urlencode(dict(zip(("vin", "make", "model", *VALUES), spoken, strict=True))).encode()
            world.ledger.forms[spoken] = False
            answer = Answer(0)
            while answer.status != 200 or FORM_VIN.encode() not in answer.body:
                answer = await world.nginx.post(self.process, rng.randrange(2), body, b"application/x-www-form-urlencoded")
                if answer.status != 200:
                    await asyncio.sleep(rng.random() * 3)
            world.ledger.forms[spoken] = True


class GappySender(Service):
    """Somebody whose every second record is missing: each upload of its one epoch declares as many gaps as it has records."""

    done = False

    def _begin(self) -> None:
        self._world.scheduler.after(0, lambda: self.process.loop.create_task(self._send()), process=self.process)

    async def _send(self) -> None:
        world, key = self._world, (GAPPY_VIN, 1)
        rng = random.Random(world.scheduler.rng.random())
        world.scheduler.happen("a sender piles up gaps", "a sender piles up gaps")
        for number in range(GAPPY_UPLOADS):
            first = 1 + 2 * GAPPY_RECORDS * number
            seqs = range(first, first + 2 * GAPPY_RECORDS, 2)
            records = tuple(Record(seq, round(self.clock.time(), 6), seq, 0.0, 0.0, 1.0) for seq in seqs)
            upload = Upload(*key, "Ford", "Edge", records, tuple(Gap(seq + 1, seq + 1, "sensor") for seq in seqs))
            for record in records:
                world.ledger.made[key][record.seq].append(("Ford", "Edge", *values_of(record)))
            answer = Answer(0)
            while answer.status != 200 or not confirms(answer.body, upload):
                answer = await world.nginx.post(self.process, rng.randrange(2), encode(upload), b"application/json")
                if answer.status != 200:
                    await asyncio.sleep(rng.random() * 3)
            world.ledger.acknowledges(*key, upload.last_seq)
            world.ledger.missing[key].update(dict.fromkeys((seq + 1 for seq in seqs), "sensor"))
        self.done = True


class VehicleHost(Service):
    """A process with vehicles, and its disk."""

    def __init__(self, world: World) -> None:
        self.disk = Disk(world.scheduler.rng)
        self.backups: list[tuple[float, bytes]] = []
        """When each was made, and the spool's image."""
        self.shown: set[float] = set()
        """All times that the clock has shown to vehicles."""
        super().__init__(world, "vehicles")

    def now(self) -> float:
        """The time that a vehicle reads from the clock."""
        self.shown.add(shown := self.clock.time())
        return shown

    def _begin(self) -> None:
        self.vehicles: list[Vehicle] = []
        self._world.scheduler.after(0, self._main, process=self.process)

    def _main(self) -> None:
        world, process = self._world, self.process
        rng = random.Random(world.scheduler.rng.random())
        health, time = Health("vehicle", "v", "0"), Time(world.scheduler)
        bound = Bound(world.spool_records * RECORD_BYTES * VEHICLES, SPOOL_HOURS)
        ages = self.clock.time if world.ages_by_wall_clock else time.monotonic
        try:
            spool = LedgerSpool(world.ledger, self.disk, self.shown, world.scheduler, rng=rng, bound=bound, monotonic=ages)
        except SpoolError as error:
            world.scheduler.tell("cannot start: %s", error)
            process.on_death.append(lambda: world.scheduler.after(1.0, self.start))
            process.kill()
            return

        async def post(url: str, body: bytes) -> Answer:
            return await world.nginx.post(process, int(url[7]), body, b"application/json")

        tools = Tools(
            world.vehicle_settings, SpoolThread(spool), post, health, VehicleMetrics(health.registry),
            now=self.now, monotonic=time.monotonic, rng=rng,
        )  # fmt: skip
        self.vehicles = [Vehicle(number, tools) for number in range(1, VEHICLES + 1)]
        for vehicle in self.vehicles:
            vehicle.join()
            if world.healed:
                vehicle.leave()

    def replace_volume(self) -> None:
        """The spool's volume is lost: an empty one takes its place, or a backup. What only it had is destroyed."""
        # One that is made before a count fails passes for this spool until the next, as the product says
        refused, written = self.disk.refused_at, self.disk.written_at
        old = [image for when, image in self.backups if written > when + COUNT_INTERVAL and refused < when]
        image = self._world.scheduler.rng.choice([b"", *old])
        before = self.kept()
        self.disk.restore(image)
        for vin, epoch, seq in before - self.kept():
            self._world.ledger.destroyed[vin, epoch].add(seq)
        kind = "a backup" if image else "an empty one"
        self._world.scheduler.happen(f"a spool replaced by {kind}", "the spool is replaced by %s", kind)

    def backup(self) -> None:
        """Keep a copy of the spool."""
        if self.process.alive:
            self.backups.append((self._world.scheduler.now, self.disk.images[-1]))

    def kept(self) -> set[tuple[str, int, int]]:
        """What the spool's file holds unsent: records, and seqs of gaps."""
        if not self.disk.images[-1]:
            return set()
        database = sqlite3.connect(":memory:")
        database.deserialize(self.disk.images[-1])
        found = set(database.execute("SELECT vin, epoch, seq FROM record"))
        for vin, epoch, first, last in database.execute("SELECT vin, epoch, from_seq, to_seq FROM gap"):
            found |= {(vin, epoch, seq) for seq in range(first, last + 1)}
        database.close()
        return found


class Operator(Service):
    """Who does what the remedy says of each partition that stands, exactly as it says it."""

    INTERVAL = 3.0

    def _begin(self) -> None:
        self.process.spawn(self._main)

    def _main(self) -> None:
        world, rng = self._world, self._world.scheduler.rng
        self.process.sleep(rng.uniform(0.5, 6.0))
        while True:
            try:
                self._look(remedy.LiveLog(world.consumer_settings))
            except (remedy.RemedyError, StoreError, KafkaError, IndexError, psycopg2.Error) as error:
                world.scheduler.tell("is refused: %s", error)
            self.process.sleep(self.INTERVAL)

    def _look(self, log: remedy.LiveLog) -> None:
        database = self._world.database
        store = PostgresStore(lambda: {}, 0, connect=database.connect)
        places = store.places(TOPIC)
        store.close()
        for each in remedy.partitions(log, places, TOPIC):
            if not each["do"]:
                continue
            self._world.scheduler.happen("a remedy", "does: %s", each["do"])
            with closing(database.connect()) as connection:
                numbers = [int(number) for number in re.findall(r"\d+", each["do"])]
                if "accept_loss=" in each["do"]:
                    remedy.accept_loss(connection, log, TOPIC, *numbers)
                else:
                    remedy.rewind(connection, log, TOPIC, *numbers)
