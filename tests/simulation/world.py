"""One run: vehicles, nginx, producers, Kafka, consumers and Postgres, what breaks among them, and whether the promise holds."""

from __future__ import annotations

import asyncio
import logging
import random
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import telemetry.consumer.worker
import telemetry.producer.publisher
import telemetry.vehicle.spool
from kafka.errors import KafkaConnectionError
from telemetry import topic as topics
from telemetry.clients import options
from telemetry.consumer.store import PostgresStore
from telemetry.consumer.worker import Worker as ConsumerWorker
from telemetry.health import Health
from telemetry.metrics import ConsumerMetrics, VehicleMetrics
from telemetry.producer.app import make_app
from telemetry.producer.asgi import Adapter
from telemetry.producer.publisher import KafkaPublisher
from telemetry.record import VALUES
from telemetry.settings import ConsumerSettings, ProducerSettings, VehicleSettings
from telemetry.vehicle.spool import SpoolThread
from telemetry.vehicle.vehicle import POST_TIMEOUT, Answer, Tools, Vehicle

from simulation.disk import Disk, OperatingSystem, Path, SQLite
from simulation.faults import CHAOS, Faults
from simulation.kafka import TOPIC, Cluster, ConsumerClient, ProducerClient
from simulation.kernel import START, Process, Queue, Scheduler, Threading, Time
from simulation.ledger import Ledger, LedgerSpool, Violation
from simulation.postgres import Connection, Database, Tables

VEHICLES, PARTITIONS, BROKERS = 3, 2, 3
FORMS, FORM_VIN = 4, "FORMCLIENT0000000"
PATIENCE = 400.0
"""Seconds after the last fault within which all must be delivered."""

NGINX_TIMEOUT = 10.0
COUNT_INTERVAL = 2.0
"""In place of the spool's own: a run is short. A backup is put back only if the spool was written to so long after it."""
IDLE_POLL = 2000
"""In place of the consumer's own, in ms: a poll ends when something comes, and an idle one costs as much as a busy one."""
SETTINGS = {
    "TELEMETRY_NAME": "simulated",
    "TELEMETRY_LISTEN": "127.0.0.1:1",
    "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
    "KAFKA_TOPIC": TOPIC,
    "KAFKA_TOPIC_PARTITIONS": str(PARTITIONS),
    "KAFKA_TOPIC_REPLICATION_FACTOR": str(BROKERS),
    "KAFKA_TOPIC_MIN_INSYNC_REPLICAS": "2",
    "KAFKA_TOPIC_RETENTION_MS": "604800000",
    "POSTGRES_HOST": "127.0.0.1",
    "POSTGRES_PASSWORD_FILE": "/nowhere",
    "VEHICLE_URLS": "http://0,http://1",
    "VEHICLE_FLEET_FILE": "/nowhere",
    "VEHICLE_FLEET_SEED": "simulation",
    "VEHICLE_SPOOL_DIR": "/nowhere",
    "VEHICLE_COUNTER_DIR": "/nowhere",
    "VEHICLE_REPORT_DELAY": "1",
    "VEHICLE_UPLOAD_RECORDS": "4",
    "VEHICLE_RETRY_MAX": "5",
    "CONSUMER_SESSION_TIMEOUT_MS": "6000",
}


class PostgresNetwork:
    """Between consumers and Postgres."""

    def __init__(self, world: World) -> None:
        self._world, self._scheduler, self._rng = world, world.scheduler, world.scheduler.rng
        self.loss = 0.0
        self.trap = ""
        """The consumer that sends a statement beginning so is paused."""
        self._committing: Connection | None = None
        self.break_commit = False
        """The next COMMIT of rows is lost, or its answer."""

    def now(self) -> float:
        """See postgres.Network."""
        return self._scheduler.now

    def travel(self, connection: Connection, what: str, answer: bool) -> bool:
        """See postgres.Network."""
        process = self._scheduler.current
        assert process is not None
        connection.client = process
        rng = self._rng
        if self.trap and what.startswith(self.trap) and not answer:
            self.trap = ""
            self._world.faults.trapped(process)
        if not answer or what == "COMMIT":
            process.sleep(rng.random() * (0.5 if rng.random() < 0.02 else 0.01))
        else:
            process.step()
        if self.break_commit and what == "COMMIT" and self._breaks(connection, answer):
            self._scheduler.tell("loses %s", "the answer to a COMMIT" if answer else "a COMMIT")
            return False
        if self.loss and rng.random() < self.loss:
            self._scheduler.tell("loses %s of Postgres at %s", "the answer" if answer else "its request", what[:50])
            return False
        return True

    def _breaks(self, connection: Connection, answer: bool) -> bool:
        """Whether this is the COMMIT to break: lost on its way, or its answer is."""
        if answer:
            broken = self._committing is connection
        else:
            changes = connection.session.changes
            broken = changes is not None and bool(changes.rows) and self._rng.random() < 0.5
            self._committing = connection if changes is not None and changes.rows else None
        if broken:
            self.break_commit = False
        return broken

    def lost(self, what: str, action: Callable[[], None]) -> None:
        """See postgres.Network: a request that its sender gave up may still come."""
        if what == "COMMIT" and self._rng.random() < 0.5:
            self._scheduler.after(self._rng.random() * 5, action)

    def wait(self, waiters: list[Callable[[], None]], timeout: float) -> bool:
        """See postgres.Network."""
        process = self._scheduler.current
        assert process is not None
        return process.wait(waiters, timeout)


class Service:
    """A process that starts anew when it died."""

    def __init__(self, world: World, name: str) -> None:
        self._world, self.name = world, name
        self.start()

    def start(self) -> None:
        """A new process."""
        self.process = Process(self._world.scheduler, self.name)
        self._world.scheduler.tell("%s starts", self.name)
        self._begin()

    def pause(self, seconds: float) -> None:
        """Stop it for a while."""
        self._world.scheduler.tell("%s is paused for %.1f s", self.name, seconds)
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
        publisher = KafkaPublisher(self._world.producer_settings, health, self._world.make_producer_client, self._give_up)
        publisher.start()
        self._adapter = Adapter(make_app(publisher, health))

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
        world, scheduler = self._world, self._world.scheduler
        health = Health("consumer", "c", "0")
        store = world.store_class(
            lambda: {}, world.consumer_settings.topic_retention_ms, now=world.clock, connect=world.database.connect
        )
        time = Time(scheduler)
        consumer = ConsumerWorker(
            world.consumer_settings, store, lambda: ConsumerClient(world.cluster), self._describe, health,
            ConsumerMetrics(health.registry), clock=time.monotonic, wall=time.time, sleep=time.sleep,
            rng=random.Random(scheduler.rng.random()),
        )  # fmt: skip
        while True:
            consumer.step()

    def _describe(self) -> topics.Topic:
        process = self.process
        process.sleep(self._world.cluster.delay())
        if not any(self._world.cluster.up.values()):
            raise KafkaConnectionError("no broker answers")
        return self._world.cluster.describe()


class FormClient(Service):
    """Somebody who sends records by the predecessor's form, one after the other, each until it is acknowledged."""

    def _begin(self) -> None:
        self._world.scheduler.after(0, lambda: self.process.loop.create_task(self._send()), process=self.process)

    async def _send(self) -> None:
        world = self._world
        rng = random.Random(world.scheduler.rng.random())
        for _ in range(FORMS):
            await asyncio.sleep(rng.random() * CHAOS / FORMS)
            values = (round(START + world.scheduler.now, 6), *(float(rng.randrange(1000)) for _ in range(4)))
            spoken = (FORM_VIN, "Ford", "Edge", *values)
            body = urlencode(dict(zip(("vin", "make", "model", *VALUES), spoken, strict=True))).encode()
            world.ledger.forms[spoken] = False
            while (await world.post(self.process, rng.randrange(2), body, b"application/x-www-form-urlencoded")).status != 200:
                await asyncio.sleep(rng.random() * 3)
            world.ledger.forms[spoken] = True


class VehicleHost(Service):
    """A process with vehicles, and its disk."""

    def __init__(self, world: World) -> None:
        self.disk = Disk(world.scheduler.rng)
        self.backups: list[tuple[float, bytes]] = []
        """When each was made, and the spool's image."""
        super().__init__(world, "vehicles")

    def _begin(self) -> None:
        self.vehicles: list[Vehicle] = []
        self._world.scheduler.after(0, self._main, process=self.process)

    def _main(self) -> None:
        world, process = self._world, self.process
        rng = random.Random(world.scheduler.rng.random())
        spool = LedgerSpool(world.ledger, self.disk, rng=rng)
        health, time = Health("vehicle", "v", "0"), Time(world.scheduler)

        async def post(url: str, body: bytes) -> Answer:
            return await world.post(process, int(url[7]), body, b"application/json")

        tools = Tools(
            world.vehicle_settings, SpoolThread(spool), post, health, VehicleMetrics(health.registry),
            now=time.time, monotonic=time.monotonic, rng=rng,
        )  # fmt: skip
        self.vehicles = [Vehicle(number, tools) for number in range(1, VEHICLES + 1)]
        for vehicle in self.vehicles:
            vehicle.join()
            if world.healed:
                vehicle.leave()

    def replace_volume(self) -> None:
        """The spool's volume is lost: an empty one takes its place, or a backup. What only it had is destroyed."""
        old = [image for when, image in self.backups if self.disk.written_at > when + COUNT_INTERVAL]
        image = self._world.scheduler.rng.choice([b"", *old])
        before = self._world.ledger.unacknowledged()
        self.disk.restore(image)
        kept = self.kept()
        for vin, epoch, seq in before:
            if (vin, epoch, seq) not in kept:
                self._world.ledger.destroyed[vin, epoch].add(seq)
        self._world.scheduler.tell("the spool is replaced by %s", "a backup" if image else "an empty one")

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


class World:
    """Everything of one seed."""

    def __init__(self, seed: int, trace: Callable[[str], None] | None = None, **planted: Any) -> None:
        self.scheduler = Scheduler(seed)
        self.scheduler.trace = trace
        rng = self.scheduler.rng
        self.ledger = Ledger()
        self.cluster = Cluster(self.scheduler, BROKERS, PARTITIONS)
        self.postgres_network = PostgresNetwork(self)
        self.database = Database(self.clock, self.postgres_network)
        self.database.on_commit = self._committed
        self.vehicle_settings = VehicleSettings.load(SETTINGS | {"VEHICLE_UPLOAD_WAIT": rng.choice(("0", "1.5"))})
        self.producer_settings = ProducerSettings.load(SETTINGS | {"PRODUCER_QUEUE_UPLOADS": rng.choice(("1", "2", "10000"))})
        self.consumer_settings = ConsumerSettings.load(SETTINGS)
        self.store_class: type[PostgresStore] = planted.get("store", PostgresStore)
        self._producer_client: Callable[..., Any] = planted.get("producer_client", ProducerClient)
        self.healed = self.drained = False
        self.nginx_up = [True, True]
        self.loss, self.doubled, self.latency = 0.0, 0.0, 0.02

    def clock(self) -> datetime:
        """The time of every host."""
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=START + self.scheduler.now)

    def make_producer_client(self, **configuration: Any) -> Any:
        """The publisher's Kafka client, with its own arguments."""
        return self._producer_client(self.cluster, **configuration)

    def run(self) -> None:
        """All of it. Raises Violation."""
        with self._virtual():
            self.producers = [Producer(self, f"producer {number}") for number in range(2)]
            self.workers = [Worker(self, f"consumer {number}") for number in range(2)]
            self.host = VehicleHost(self)
            self.client = FormClient(self, "client")
            self.faults = Faults(self)
            for _ in range(2):
                self.scheduler.after(self.scheduler.rng.random() * CHAOS / 2, self.host.backup)
            self.scheduler.run(CHAOS)
            self._heal()
            self.scheduler.run(self.scheduler.now + PATIENCE, lambda: self.drained)
            self._check_end()

    def _committed(self, changes: Tables) -> None:
        self.scheduler.tell("commits %d rows", len(changes.rows))
        self.ledger.check_commit(self.database.tables, changes, self.cluster.poisoned)

    def _heal(self) -> None:
        self.healed = True
        self.faults.heal()
        for vehicle in self.host.vehicles:
            self.scheduler.enter(self.host.process)
            vehicle.leave()
        self.scheduler.enter(None)
        self._look()

    def _look(self) -> None:
        """Is everything delivered?"""
        offsets = {number: each.next for (_, number), each in self.database.tables.offsets.items()}
        # By the highest mark that ever was: a new leader's may be behind what is stored, and would hide another partition's lag
        lag = any(each.readable > offsets.get(each.number, 0) for each in self.cluster.partitions)
        told = len(self.ledger.forms) == FORMS and all(self.ledger.forms.values())
        self.drained = told and not lag and not self.ledger.unacknowledged() and not self.host.kept()
        if not self.drained:
            self.scheduler.after(0.5, self._look)

    def _check_end(self) -> None:
        if self.scheduler.faults:
            raise Violation(f"a fault of the program: {self.scheduler.faults[0]!r}")
        if not self.drained:
            raise Violation(f"not delivered after {PATIENCE:g} s: {self.ledger.unacknowledged()[:5]}")
        if kept := self.host.kept():
            raise Violation(f"the spool still holds {sorted(kept)[:5]}")
        self.ledger.check_end(self.database.tables, self.cluster.poisoned())

    # Between vehicles and producers

    def delay(self) -> float:
        """How long a message takes: nearly always little."""
        rng = self.scheduler.rng
        return rng.random() * self.latency * (100 if rng.random() < 0.02 else 1)

    async def post(self, process: Process, url: int, body: bytes, kind: bytes) -> Answer:
        """An upload's way to nginx and back."""
        future: asyncio.Future[Answer] = process.loop.create_future()

        def back(answer: Answer) -> None:
            if not future.done():
                self.scheduler.tell("is answered %d", answer.status)
                future.set_result(answer)

        def reply(answer: Answer) -> None:
            if not self._lost():
                self.scheduler.after(self.delay(), back, answer, process=process)

        self.scheduler.tell("posts %d bytes", len(body))
        self.faults.posted(body)
        self.scheduler.after(POST_TIMEOUT, back, Answer(0), process=process)
        for _ in range(2 if self.scheduler.rng.random() < self.doubled else 1):
            if not self._lost():
                self.scheduler.after(self.delay(), self._forward, url, body, kind, reply)
        return await future

    def _lost(self) -> bool:
        return self.loss > 0 and self.scheduler.rng.random() < self.loss

    def _forward(self, url: int, body: bytes, kind: bytes, reply: Callable[[Answer], None]) -> None:
        """nginx: two tries at producers, whatever the first said that was none of ours or a 503."""
        if not self.nginx_up[url]:
            reply(Answer(0))
            return
        producers = self.producers.copy()
        self.scheduler.rng.shuffle(producers)

        def attempt(number: int) -> None:
            if number == len(producers):
                reply(Answer(502))
                return
            process = producers[number].process
            over = False

            def done(status: int, content: bytes) -> None:
                nonlocal over
                if not over:
                    over = True
                    if status in (502, 503, 504) and number + 1 < len(producers):
                        attempt(number + 1)
                    else:
                        reply(Answer(status, content, 1.0 if status == 503 else 0.0))

            if not process.alive:
                done(502, b"")
                return
            process.on_death.append(lambda: done(502, b""))
            self.scheduler.after(NGINX_TIMEOUT, done, 504, b"")
            self.scheduler.after(self.delay(), self._serve, producers[number], body, kind, done, process=process)

        attempt(0)

    def _serve(self, producer: Producer, body: bytes, kind: bytes, done: Callable[[int, bytes], None]) -> None:
        producer.process.step()
        producer.request(body, kind, lambda status, content: self._answered(status, content, done))

    def _answered(self, status: int, content: bytes, done: Callable[[int, bytes], None]) -> None:
        self.scheduler.after(self.delay(), done, status, content)

    @contextmanager
    def _virtual(self) -> Iterator[None]:
        """The product's threads, clocks and disk are ours while this run lasts."""
        scheduler = self.scheduler
        system = OperatingSystem(scheduler)
        cluster = self.cluster
        changes: list[tuple[Any, str, Any]] = [
            (telemetry.vehicle.spool, "threading", Threading(scheduler)),
            (telemetry.vehicle.spool, "queue", Queue(scheduler)),
            (telemetry.vehicle.spool, "time", Time(scheduler)),
            (telemetry.vehicle.spool, "sqlite3", SQLite(scheduler, lambda: self.host.disk)),
            (telemetry.vehicle.spool, "os", system),
            (telemetry.vehicle.spool, "fcntl", system),
            (telemetry.vehicle.spool, "Path", Path),
            (telemetry.vehicle.spool, "COUNT_INTERVAL", COUNT_INTERVAL),
            (telemetry.consumer.worker, "IDLE_POLL", IDLE_POLL),
            (telemetry.consumer.worker, "JOIN_POLL", IDLE_POLL),
            (telemetry.producer.publisher, "threading", Threading(scheduler)),
            (telemetry.producer.publisher, "time", Time(scheduler)),
            (telemetry.producer.publisher, "clients", SimpleNamespace(connect_admin=lambda *_: None, options=options)),
            (telemetry.producer.publisher, "topics", SimpleNamespace(**vars(topics) | {"describe": lambda *_: cluster.describe()})),
        ]
        before = [(module, name, getattr(module, name)) for module, name, _ in changes]
        level = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            for module, name, value in changes:
                setattr(module, name, value)
            with warnings.catch_warnings():
                # A process that dies leaves what it was about to do
                warnings.simplefilter("ignore", RuntimeWarning)
                yield
        finally:
            for each in (*self.producers, *self.workers, self.host, self.client):
                each.process.end()
            for module, name, value in before:
                setattr(module, name, value)
            logging.disable(level)
            scheduler.enter(None)
