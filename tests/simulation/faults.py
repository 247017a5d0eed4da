"""What breaks in a run, and when: within what the promise allows, and all of it heals in the end."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kafka.partitioner.default import murmur2

from simulation.kafka import Content
from simulation.kernel import Process

if TYPE_CHECKING:
    from simulation.world import Producer, VehicleHost, Worker, World

CHAOS = 9.0
"""Seconds within which faults begin, and vehicles make records."""
TRAPS = ("SELECT make_day", "UPDATE stream_offset", "UPDATE stream_offset", "UPDATE stream_offset", "UPDATE progress", "COMMIT")
"""Statements before which a consumer may be paused: mostly where its transaction begins, with what it has read long before."""
MOST_FAULTS = 7
MOST_STEPS = 40
"""A process that is to crash does so after at most so many steps."""


class Faults:
    """The faults of one run. Each kind is drawn or left out as a whole, so that runs differ in what they are about."""

    def __init__(self, world: World) -> None:
        self._world, self._scheduler, self._rng = world, world.scheduler, world.scheduler.rng
        self._losing_power = self._spoiling = False
        rng = self._rng
        if rng.random() < 0.5:
            world.loss, world.doubled = rng.choice((0.0, 0.05, 0.2)), rng.choice((0.0, 0.1, 0.5))
        if rng.random() < 0.3:
            world.cluster.loss = rng.choice((0.02, 0.1))
        if rng.random() < 0.3:
            world.postgres_network.loss = rng.choice((0.01, 0.05))
        world.latency = rng.choice((0.01, 0.05, 0.3))
        world.cluster.latency = rng.choice((0.005, 0.02, 0.1))
        kinds = [each for each in self._kinds() if rng.random() < 0.4]
        for _ in range(rng.randint(1, MOST_FAULTS) if kinds else 0):
            self._scheduler.after(rng.random() * CHAOS, rng.choice(kinds))

    def _kinds(self) -> list[Callable[[], None]]:
        return [
            self.crash_vehicles, self.crash_vehicles, self.crash_producer, self.crash_consumer, self.crash_consumer,
            self.pause_vehicles, self.pause_producer, self.pause_consumer, self.trap_consumer, self.trap_consumer,
            self.break_client, self.lose_commit, self.lose_commit,
            self.crash_broker, self.crash_broker, self.cut_broker, self.stop_postgres, self.stop_nginx, self.strike_network,
            self.break_sensor, self.poison, self.poison_upload, self.poison_upload, self.lose_spool, self.lose_spool,
        ]  # fmt: skip

    def heal(self) -> None:
        """From now on nothing breaks, and what is broken returns."""
        world = self._world
        world.loss = world.doubled = world.cluster.loss = world.postgres_network.loss = 0.0
        for each in (*world.producers, *world.workers, world.host):
            each.process.fuse = None
        world.postgres_network.trap, world.postgres_network.break_commit = "", False

    def _crash(self, service: Producer | Worker | VehicleHost) -> None:
        """Let a process die at some step soon; it starts anew some time later."""
        process = service.process
        process.fuse, process.fault = self._rng.randrange(MOST_STEPS), process.kill
        process.on_death.append(lambda: self._restart(service))

    def _restart(self, service: Producer | Worker | VehicleHost) -> None:
        self._scheduler.after(self._rng.uniform(0.1, 4.0), service.start)

    def _pause(self, service: Producer | Worker | VehicleHost) -> None:
        """Let a process stand still from some step on, for a while."""
        service.process.fuse, service.process.fault = self._rng.randrange(MOST_STEPS), lambda: service.pause(self._long())

    def _long(self) -> float:
        """Shorter or longer than a consumer's session, and than Postgres waits within a transaction."""
        return self._rng.uniform(0.5, 1.0) * self._rng.choice((1.0, 9.0, 15.0, 25.0))

    def _sound(self, service: Producer | Worker | VehicleHost) -> bool:
        """Whether a process runs, and nothing else is to befall it."""
        return service.process.alive and not service.process.paused and service.process.fuse is None

    # Processes

    def crash_vehicles(self) -> None:
        """The vehicles' process, at times with its host's power."""
        host = self._world.host
        if self._sound(host):
            power = self._rng.random() < 0.5
            host.process.on_death.append(lambda: host.disk.crash(power))
            self._crash(host)

    def lose_spool(self) -> None:
        """The vehicles' volume is replaced by an empty one or by a backup."""
        host = self._world.host
        if self._sound(host):
            host.process.on_death.append(host.replace_volume)
            self._crash(host)

    def pause_vehicles(self) -> None:
        """The vehicles' process."""
        if self._sound(self._world.host):
            self._pause(self._world.host)

    def crash_producer(self) -> None:
        """One of them."""
        self._any(self._world.producers, self._crash)

    def pause_producer(self) -> None:
        """One of them."""
        self._any(self._world.producers, self._pause)

    def crash_consumer(self) -> None:
        """One of them."""
        self._any(self._world.workers, self._crash)

    def pause_consumer(self) -> None:
        """One of them, often for so long that another takes its partitions."""
        self._any(self._world.workers, self._pause)

    def break_client(self) -> None:
        """A consumer's Kafka client ends in an error."""
        self._world.cluster.break_poll = True

    def trap_consumer(self) -> None:
        """The next consumer that sends a certain statement stands still before it arrives."""
        self._world.postgres_network.trap = self._rng.choice(TRAPS)

    def lose_commit(self) -> None:
        """The next COMMIT of rows is lost, or what Postgres says to it: its outcome is unknown."""
        self._world.postgres_network.break_commit = True

    def trapped(self, process: Process) -> None:
        """A consumer has sent it."""
        for worker in self._world.workers:
            if worker.process is process and self._sound(worker):
                worker.pause(self._rng.uniform(4.0, 16.0))

    def _any(self, services: Sequence[Any], befall: Callable[[Any], None]) -> None:
        able = [each for each in services if self._sound(each)]
        if able:
            befall(self._rng.choice(able))

    # Brokers

    def crash_broker(self) -> None:
        """One of them. With its host's power only while all others have all that it has."""
        cluster = self._world.cluster
        if cluster.whole():
            self._losing_power = False
        able = [each for each, up in cluster.up.items() if up and not cluster.cut[each]]
        if self._losing_power or not able:
            return
        broker = self._rng.choice(able)
        power = cluster.whole() and not any(cluster.cut.values()) and self._rng.random() < 0.5
        self._losing_power = power
        cluster.crash(broker, power)
        self._scheduler.after(self._rng.uniform(0.5, 12.0), cluster.restart, broker)

    def cut_broker(self) -> None:
        """Cut one off from the others and from the controller."""
        cluster = self._world.cluster
        if cluster.whole():
            self._losing_power = False
        able = [each for each, up in cluster.up.items() if up and not cluster.cut[each]]
        if self._losing_power or not able:
            return
        broker = self._rng.choice(able)
        cluster.cut_off(broker)
        self._scheduler.after(self._rng.uniform(0.5, 15.0), cluster.heal, broker)

    # The rest

    def stop_postgres(self) -> None:
        """It ends, and comes back."""
        database = self._world.database
        if database.up:
            self._scheduler.tell("Postgres stops")
            database.up = False
            database.disconnect()
            self._scheduler.after(self._rng.uniform(0.2, 8.0), self._start_postgres)

    def _start_postgres(self) -> None:
        self._world.database.up = True

    def stop_nginx(self) -> None:
        """One of them."""
        up, number = self._world.nginx_up, self._rng.randrange(2)
        up[number] = False
        self._scheduler.after(self._rng.uniform(0.5, 6.0), up.__setitem__, number, True)

    def strike_network(self) -> None:
        """For a while nothing arrives, here or there."""
        world, seconds = self._world, self._rng.uniform(0.2, 3.0)
        owner = self._rng.choice((world, world.cluster, world.postgres_network))
        before, owner.loss = owner.loss, 1.0
        self._scheduler.after(seconds, self._end_strike, owner, before)

    def _end_strike(self, owner: World, before: float) -> None:
        owner.loss = 0.0 if self._world.healed else min(before, 0.2)

    def break_sensor(self) -> None:
        """A vehicle reports positions that no producer accepts, for a few records."""
        vehicles = self._world.host.vehicles
        if vehicles:
            vehicle = self._rng.choice(vehicles)
            vehicle.journey = replace(vehicle.journey, origin=(2e9, 0.0, 0.0))
            self._scheduler.after(self._rng.uniform(0.5, 3.0), self._mend_sensor, vehicle.vin)

    def _mend_sensor(self, vin: str) -> None:
        for vehicle in self._world.host.vehicles:
            if vehicle.vin == vin:
                vehicle.journey = replace(vehicle.journey, origin=(0.0, 0.0, 0.0))

    def poison(self) -> None:
        """Somebody writes garbage into the topic, or what is of another version."""
        headers = [("v", self._rng.choice((b"1", b"2")))]
        self._write(self._rng.randrange(len(self._world.cluster.partitions)), (b"somebody", b"\xff\x00", headers))

    def poison_upload(self) -> None:
        """The next upload comes into the topic twice: first with a field that no record has, then as it is."""
        self._spoiling = True

    def posted(self, body: bytes) -> None:
        """A vehicle posts an upload."""
        if self._spoiling:
            spoilt = body.replace(b'"speed":', b'"velocity":')
            vin = re.search(rb'"vin":"(\w+)"', body)
            if vin and spoilt != body:
                self._spoiling = False
                number = (murmur2(vin[1]) & 0x7FFFFFFF) % len(self._world.cluster.partitions)
                self._write(number, (vin[1], spoilt, [("v", b"1")]))

    def _write(self, number: int, content: Content) -> None:
        cluster = self._world.cluster
        partition = cluster.partitions[number]
        if partition.leader != -1:
            log = partition.replicas[partition.leader].log
            before = len(log)
            cluster.append(number, partition.leader, content, "all", lambda error: None)
            if len(log) > before:
                self._scheduler.tell("somebody writes poison to partition %d", number)
                cluster.poison.add(log[-1].name)
