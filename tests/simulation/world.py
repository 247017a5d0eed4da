"""One run: vehicles, nginx, producers, Kafka, consumers and Postgres, what breaks among them, and whether the promise holds."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from socket import SHUT_RDWR
from types import SimpleNamespace
from typing import Any

import telemetry.consumer.batch
import telemetry.consumer.progress
import telemetry.consumer.service
import telemetry.consumer.store
import telemetry.consumer.watch
import telemetry.consumer.worker
import telemetry.producer.publisher
import telemetry.vehicle.spool
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from telemetry.consumer.batch import crc
from telemetry.consumer.store import PostgresStore
from telemetry.record import Gap, Refused, Upload, decode, salvage
from telemetry.settings import ConsumerSettings, ProducerSettings, VehicleSettings

from simulation.clients import AdminClient, ConsumerClient, ProducerClient
from simulation.clocks import BEFORE_MIDNIGHT, START, Clock, Time
from simulation.costs import Costs
from simulation.disk import OperatingSystem, Path, SQLite
from simulation.faults import CHAOS, Faults
from simulation.kafka import PARTITIONS, TOPIC, Cluster, Entry, Partition
from simulation.kernel import Queue, Scheduler, Threading
from simulation.ledger import Ledger, Violation
from simulation.network import Nginx, PostgresNetwork, Socket
from simulation.postgres import Database, Tables, day_of
from simulation.services import COUNT_INTERVAL, FORMS, FormClient, GappySender, Operator, Producer, Service, VehicleHost, Worker

BROKERS = 3
PATIENCE = 400.0
"""Seconds after the last fault within which all must be delivered."""
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


def uploads_in(entries: list[Entry]) -> Iterator[Upload]:
    """The uploads among records of a log; of one that is none, its range as one gap."""
    for entry in entries:
        try:
            yield decode(entry.value or b"")
        except Refused:
            if held := salvage(entry.value or b""):
                vin, epoch, first, last = held
                yield Upload(vin, epoch, "-", "-", (), (Gap(first, last, "-"),))


def who_has(name: str) -> list[Any]:
    """The product's modules that have a name of another one among theirs."""
    return [module for key, module in sorted(sys.modules.items()) if key.startswith("telemetry.") and hasattr(module, name)]


class World:
    """Everything of one seed."""

    def __init__(self, seed: int, trace: Callable[[str], None] | None = None, **planted: Any) -> None:
        self.scheduler = Scheduler(seed)
        self.scheduler.trace = trace
        self.chaos = CHAOS
        rng = self.scheduler.rng
        self.begun = START + rng.choice((0.0, BEFORE_MIDNIGHT))
        self.ledger = Ledger()
        self.costs = Costs(self.scheduler)
        self.cluster = Cluster(
            self.scheduler, {number: Clock(self.scheduler, self.begun) for number in range(1, BROKERS + 1)}, PARTITIONS
        )
        self.nginx = Nginx(self)
        self.postgres_network = PostgresNetwork(self)
        self.true_clock = Clock(self.scheduler, self.begun)
        self.database_clock = Clock(self.scheduler, self.begun)
        self.database = Database(self.database_clock.moment, self.postgres_network)
        self.database.on_commit = self._committed
        self.database.on_refused = self._guard_refused
        self.database.on_limit = lambda what: self.scheduler.happen(what, "%s", what)
        self.database.retention_days = rng.choice((0, 3, 30))
        # 6 records of each vehicle, which an outage fills, or as many as a run makes
        self.spool_records = rng.choice((6, 1000, 1000))
        self.vehicle_settings = VehicleSettings.load(SETTINGS | {"VEHICLE_UPLOAD_WAIT": rng.choice(("0", "1.5"))})
        self.producer_settings = ProducerSettings.load(SETTINGS | {"PRODUCER_QUEUE_UPLOADS": rng.choice(("1", "2", "10000"))})
        self.consumer_settings = ConsumerSettings.load(SETTINGS | {"POSTGRES_RETENTION_DAYS": str(self.database.retention_days)})
        self.store_class: type[PostgresStore] = planted.get("store", PostgresStore)
        self._producer_client: Callable[..., Any] = planted.get("producer_client", ProducerClient)
        self.ages_by_wall_clock: bool = planted.get("ages_by_wall_clock", False)
        self.healed = self.drained = False

    def run(self) -> None:
        """All of it. Raises Violation."""
        scheduler, rng = self.scheduler, self.scheduler.rng
        with self._virtual():
            self.producers = [Producer(self, f"producer {number}") for number in range(2)]
            self.workers = [Worker(self, f"consumer {number}") for number in range(2)]
            self.host = VehicleHost(self)
            self.client = FormClient(self, "client")
            self.gappy: GappySender | None = None
            self.operator: Operator | None = None
            self.faults = Faults(self)
            for _ in range(2):
                scheduler.after(rng.random() * CHAOS / 2, self.host.backup)
            scheduler.run(CHAOS, lambda: bool(scheduler.faults))
            self._heal()
            scheduler.run(scheduler.now + PATIENCE + self.faults.longest, lambda: self.drained or bool(scheduler.faults))
            self._check_end()

    @property
    def services(self) -> list[Service]:
        """All that run."""
        others = [each for each in (self.gappy, self.operator) if each is not None]
        return [*self.producers, *self.workers, self.host, self.client, *others]

    @property
    def clocks(self) -> dict[str, Clock]:
        """All clocks, by whose they are."""
        named = {each.name: each.clock for each in (*self.producers, *self.workers, self.host)}
        brokers = {f"broker {number}": clock for number, clock in self.cluster.clocks.items()}
        return {**named, **brokers, "Postgres": self.database_clock}

    def make_client(self, kind: Callable[..., Any], **configuration: Any) -> Any:
        """See telemetry.clients: a Kafka client of a kind, with the product's own arguments."""
        made: dict[Any, Any] = {KafkaAdminClient: AdminClient, KafkaConsumer: ConsumerClient, KafkaProducer: self._producer_client}
        return made[kind](self.cluster, **configuration)

    def make_producer(self, **configuration: Any) -> Any:
        """See telemetry.producer.publisher."""
        return self.make_client(KafkaProducer, **configuration)

    def stored(self, number: int) -> int:
        """The offset up to which a partition is stored."""
        offset = self.database.tables.offsets.get((str(self.cluster.topic_id), number))
        return offset.next if offset else 0

    def _committed(self, changes: Tables) -> None:
        if changes.rows:
            self.scheduler.tell("commits %d rows", len(changes.rows))
        today, keep = day_of(self.true_clock.moment()), self.database.retention_days
        try:
            self.ledger.check_commit(self.database.tables, changes, self.cluster.poisoned, today, keep)
        except Violation as violation:
            # The product, which commits here, might take it for an error of its own
            self.scheduler.faults.append(violation)

    def _guard_refused(self, row: tuple[Any, ...]) -> None:
        self.scheduler.faults.append(Violation(f"progress took a row for new that the guard index has: {row}"))

    def _heal(self) -> None:
        self.healed = True
        self.faults.heal()
        for vehicle in self.host.vehicles:
            self.scheduler.enter(self.host.process)
            vehicle.leave()
        self.scheduler.enter(None)
        self._look()

    def behind(self) -> list[int]:
        """Partitions of which not all that can be read is stored, or something else: their log was cut short."""
        # By the highest mark that ever was: a new leader's may be behind what is stored, and would hide another partition's lag
        return [
            each.number for each in self.cluster.partitions if each.readable != self.stored(each.number) or self._was_another(each)
        ]

    def _was_another(self, partition: Partition) -> bool:
        """Whether the last record that was stored is not the one that can be read at its place: the log was written again."""
        offset = self.database.tables.offsets.get((str(self.cluster.topic_id), partition.number))
        if offset is None or offset.last_crc is None or offset.next <= partition.start:
            return False
        entry = partition.longest()[offset.next - 1]
        return (entry.timestamp, crc(entry.key, entry.value)) != (offset.last_timestamp, offset.last_crc)

    def _look(self) -> None:
        """Is everything delivered?"""
        told = len(self.ledger.forms) == FORMS and all(self.ledger.forms.values()) and (self.gappy is None or self.gappy.done)
        stored = self.cluster.there and not self.behind() and not self._parted()
        # The dearest question is last
        self.drained = told and stored and self.faults.over and not self.ledger.unacknowledged() and not self.host.kept()
        if not self.drained:
            self.scheduler.after(0.5, self._look)

    def _parted(self) -> bool:
        """Whether the store still has places of a topic that was deleted, which an operator has to do something about."""
        return any(
            offset.topic == TOPIC and topic_id != str(self.cluster.topic_id)
            for (topic_id, _), offset in self.database.tables.offsets.items()
        )

    def check_wall(self, broker: int) -> None:
        """What one consumer cannot reach of a broker keeps no other partition from being stored."""
        for number in self.behind():
            if self.cluster.partitions[number].leader != broker:
                raise Violation(f"partition {number} is not stored, though only broker {broker} does not answer one consumer")

    def _check_end(self) -> None:
        for process in self.scheduler.processes:
            if process.alive:
                process.look_at_tasks()
        if self.scheduler.faults:
            fault = self.scheduler.faults[0]
            raise fault if isinstance(fault, Violation) else Violation(f"a fault of the program: {fault!r}")
        if not self.drained:
            behind = {number: (self.stored(number), self.cluster.partitions[number].readable) for number in self.behind()}
            waiting = self.ledger.unacknowledged()[:5]
            raise Violation(f"not delivered after {PATIENCE:g} s: stored and readable {behind}, unacknowledged {waiting}")
        if kept := self.host.kept():
            raise Violation(f"the spool still holds {sorted(kept)[:5]}")
        lost, lost_poison = self._lost()
        self.ledger.check_end(self.database.tables, self.cluster.poisoned(), lost, lost_poison)

    def _lost(self) -> tuple[list[Upload], set[tuple[str, int, int]]]:
        """Uploads that the topic has lost, and their places: what lost_range names, and the end of a log that was cut short."""
        ranges = self.database.tables.lost
        entries = list(self.cluster.cut_away)
        places = set(self.cluster.unread)
        logs = {str(topic_id): logs for topic_id, logs in self.cluster.gone.items()}
        logs[str(self.cluster.topic_id)] = [each.longest() for each in self.cluster.partitions]
        for (topic_id, number, first), (last, _) in ranges.items():
            log = logs[topic_id][number]
            if topic_id == str(self.cluster.topic_id) and not self._may_be_lost(number, first, last):
                raise Violation(f"offsets {first} to {last} of partition {number} are given up, though they can be read")
            entries += log[first : last + 1]
            places |= {(topic_id, number, place) for place in range(first, min(len(log), last + 1))}
        for topic_id in map(str, self.cluster.gone):
            for number, log in enumerate(logs[topic_id]):
                # Of what nothing was stored nobody can know
                if (topic_id, number) not in self.database.tables.offsets:
                    entries += log
                    places |= {(topic_id, number, place) for place in range(len(log))}
        return list(uploads_in(entries)), places

    def _may_be_lost(self, number: int, first: int, last: int) -> bool:
        partition = self.cluster.partitions[number]
        log = partition.longest()
        return last < partition.start or all(each.name in self.cluster.damaged for each in log[first : last + 1])

    @contextmanager
    def _virtual(self) -> Iterator[None]:
        """The product's threads, clocks and disk are ours while this run lasts."""
        scheduler = self.scheduler
        system, time = OperatingSystem(scheduler), Time(scheduler)
        changes: list[tuple[Any, str, Any]] = [
            (telemetry.vehicle.spool, "threading", Threading(scheduler)),
            (telemetry.vehicle.spool, "queue", Queue(scheduler)),
            (telemetry.vehicle.spool, "time", time),
            (telemetry.vehicle.spool, "sqlite3", SQLite(scheduler, lambda: self.host.disk)),
            (telemetry.vehicle.spool, "os", system),
            (telemetry.vehicle.spool, "fcntl", system),
            (telemetry.vehicle.spool, "Path", Path),
            (telemetry.vehicle.spool, "COUNT_INTERVAL", COUNT_INTERVAL),
            (telemetry.consumer.worker, "IDLE_POLL", IDLE_POLL),
            (telemetry.consumer.worker, "JOIN_POLL", IDLE_POLL),
            *((module, "make_client", self.make_client) for module in who_has("make_client")),
            (telemetry.consumer.batch, "walk", self.costs.walked(telemetry.consumer.progress.walk)),
            (telemetry.consumer.store, "os", SimpleNamespace(dup=lambda connection: connection)),
            (telemetry.consumer.store, "socket", SimpleNamespace(socket=Socket, SHUT_RDWR=SHUT_RDWR)),
            (telemetry.producer.publisher, "threading", Threading(scheduler)),
            (telemetry.producer.publisher, "time", time),
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
            for each in self.services:
                each.process.end()
            for module, name, value in before:
                setattr(module, name, value)
            logging.disable(level)
            scheduler.enter(None)
