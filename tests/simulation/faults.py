"""What breaks in a run, and when: within what the promise allows, and all of it heals in the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from telemetry.record import Refused, Upload, decode, encode

from simulation.kafka import Partition

if TYPE_CHECKING:
    from simulation.world import Producer, VehicleHost, Worker, World

CHAOS = 12.0
"""Seconds within which faults begin, and vehicles make records."""
MOST_FAULTS = 7
MOST_STEPS = 40
"""A process that is to crash does so after at most so many steps."""


class Faults:
    """The faults of one run. Each kind is drawn or left out as a whole, so that runs differ in what they are about."""

    def __init__(self, world: World) -> None:
        self._world, self._scheduler, self._rng = world, world.scheduler, world.scheduler.rng
        self._losing_power = False
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
            self.pause_vehicles, self.pause_producer, self.pause_consumer, self.pause_consumer,
            self.crash_broker, self.crash_broker, self.cut_broker, self.stop_postgres, self.stop_nginx, self.strike_network,
            self.break_sensor, self.poison, self.lose_spool,
        ]  # fmt: skip

    def heal(self) -> None:
        """From now on nothing breaks, and what is broken returns."""
        world = self._world
        world.loss = world.doubled = world.cluster.loss = world.postgres_network.loss = 0.0
        for each in (*world.producers, *world.workers, world.host):
            each.process.fuse = None

    # Processes

    def _crash(self, service: Producer | Worker | VehicleHost) -> None:
        """Let a process die at some step soon; it starts anew some time later."""
        process = service.process
        if not process.alive or process.fuse is not None or self._world.healed:
            return
        process.fuse = self._rng.randrange(MOST_STEPS)
        process.on_death.append(lambda: self._scheduler.after(self._rng.uniform(0.1, 4.0), service.start) and None)

    def _pause(self, service: Producer | Worker | VehicleHost) -> None:
        seconds = self._rng.choice((1.0, 5.0, 12.0, 25.0)) * self._rng.random()
        if service.process.alive and not service.process.paused:
            self._scheduler.tell("%s is paused for %.1f s", service.name, seconds)
            service.pause(seconds)

    def crash_vehicles(self) -> None:
        """The vehicles' process, at times with its host's power."""
        host = self._world.host
        if host.process.alive and host.process.fuse is None:
            power = self._rng.random() < 0.5
            host.process.on_death.append(lambda: host.disk.crash(power))
            self._crash(host)

    def crash_producer(self) -> None:
        """One of them."""
        self._crash(self._rng.choice(self._world.producers))

    def crash_consumer(self) -> None:
        """One of them."""
        self._crash(self._rng.choice(self._world.workers))

    def pause_vehicles(self) -> None:
        """The vehicles' process."""
        self._pause(self._world.host)

    def pause_producer(self) -> None:
        """One of them."""
        self._pause(self._rng.choice(self._world.producers))

    def pause_consumer(self) -> None:
        """One of them, often for so long that another takes its partitions."""
        self._pause(self._rng.choice(self._world.workers))

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
        """Somebody writes what is no upload into the topic: garbage, or a vehicle's next upload with a broken value."""
        world, cluster = self._world, self._world.cluster
        able = [each for each in cluster.partitions if each.leader != -1 and len(each.in_sync) >= 2]
        if not able:
            return
        partition = self._rng.choice(able)
        headers, key, value = [("v", b"1")], b"poison", b"\xff\x00"
        vins = self._vins_of(partition)
        seen = [upload for upload in map(self._valid, world.uploads) if upload is not None and upload.vin in vins]
        if seen and self._rng.random() < 0.7:
            upload = self._rng.choice(seen)
            key = upload.vin.encode()
            value = encode(upload).replace(b'"speed":', b'"velocity":')
            if not upload.records:
                return
        elif self._rng.random() < 0.5:
            headers = [("v", b"2")]
        log = partition.replicas[partition.leader].log
        before = len(log)
        cluster.append(partition.number, partition.leader, (key, value, headers), "all", lambda error: None)
        if len(log) > before:
            world.cluster.poison.add(log[-1].name)

    def _vins_of(self, partition: Partition) -> set[str]:
        """Vehicles whose uploads are in a partition."""
        return {each.key.decode() for each in partition.replicas[partition.leader].log if each.key and each.key != b"poison"}

    def _valid(self, body: bytes) -> Upload | None:
        try:
            return decode(body)
        except Refused:
            return None

    def lose_spool(self) -> None:
        """The vehicles' volume is replaced by an empty one or by a backup."""
        host = self._world.host
        if not host.process.alive or host.process.fuse is not None or self._world.healed:
            return
        host.process.on_death.append(host.replace_volume)
        self._crash(host)
