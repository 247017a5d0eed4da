"""What breaks in a run, and when: within what the promise allows, and all of it heals in the end."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from telemetry.topic import partition_of

from simulation.clocks import AHEAD, BEHIND
from simulation.kafka import PARTITIONS, Content, RawName
from simulation.kernel import Process
from simulation.network import FOREIGN
from simulation.postgres import Session
from simulation.services import GappySender, Operator

if TYPE_CHECKING:
    from simulation.services import Producer, VehicleHost, Worker
    from simulation.world import World

CHAOS = 12.0
"""Seconds within which faults begin, and vehicles make records."""
TRAPS = ("SELECT make_day", "UPDATE stream_offset", "UPDATE stream_offset", "UPDATE stream_offset", "UPDATE progress", "COMMIT")
"""Statements before which a consumer may be paused: mostly where its transaction begins, with what it has read long before."""
MOST_FAULTS = 10
MOST_CLOCKS = 3
"""Clocks that are moved by one fault."""
SKEW = 0.5
"""Seconds that a clock may be wrong without any fault."""
WALL_PATIENCE = 100.0
"""Seconds after the last other fault within which all partitions are stored that do not lie behind a wall."""
SLOW = 1000.0
"""From this factor of costs on a machine needs 20 s for an upload, and is behind for long without any wall."""
MOST_STEPS = 40
"""A process that is to crash does so after at most so many steps."""


class Faults:
    """The faults of one run. Each kind is drawn or left out as a whole, so that runs differ in what they are about."""

    def __init__(self, world: World) -> None:
        self._world, self._scheduler, self._rng = world, world.scheduler, world.scheduler.rng
        self._losing_power = self._spoiling = False
        self._unfinished = 0
        """Faults of the topic that are not over."""
        self._wall: tuple[str, int] | None = None
        self.longest = 0.0
        """Seconds for which a fault lasts beyond all others."""
        rng, nginx = self._rng, world.nginx
        if rng.random() < 0.5:
            nginx.loss, nginx.doubled = rng.choice((0.0, 0.05, 0.2)), rng.choice((0.0, 0.1, 0.5))
        if rng.random() < 0.3:
            world.cluster.loss = rng.choice((0.02, 0.1))
        if rng.random() < 0.3:
            world.postgres_network.loss = rng.choice((0.01, 0.05))
        nginx.latency = rng.choice((0.01, 0.05, 0.3))
        world.cluster.latency = rng.choice((0.005, 0.02, 0.1))
        if rng.random() < 0.2:
            world.costs.factor = rng.choice((10.0, 100.0))
        kinds = [each for each in self._kinds() if rng.random() < 0.4]
        for _ in range(rng.randint(1, MOST_FAULTS) if kinds else 0):
            self._scheduler.after(rng.random() * CHAOS, rng.choice(kinds))
        # Faults of which a run has at most one
        for fault, share in ((self.pile_up_gaps, 0.06), (self.raise_wall, 0.06), (self.meddle, 0.12), (self.damage, 0.06)):
            if rng.random() < share:
                self._scheduler.after(rng.random() * CHAOS * 0.6, fault)
        for clock in world.clocks.values():
            clock.offset = rng.uniform(-SKEW, SKEW)

    def _kinds(self) -> list[Callable[[], None]]:
        return [
            self.crash_vehicles, self.crash_vehicles, self.crash_producer, self.crash_consumer, self.crash_consumer,
            self.pause_vehicles, self.pause_producer, self.pause_consumer, self.trap_consumer, self.trap_consumer,
            self.break_client, self.lose_commit, self.lose_commit,
            self.crash_broker, self.crash_broker, self.cut_broker, self.hang_broker, self.part, self.stop_postgres, self.lock_days,
            self.stop_nginx, self.answer_foreign, self.answer_foreign, self.answer_foreign, self.strike_network,
            self.break_sensor, self.break_half, self.poison, self.poison_name, self.poison_upload, self.poison_upload,
            self.lose_spool, self.lose_spool, self.break_disk, self.move_clocks, self.move_clocks, self.move_clocks,
        ]  # fmt: skip

    @property
    def over(self) -> bool:
        """Whether nothing is broken any more."""
        return not self._unfinished

    def heal(self) -> None:
        """From now on nothing breaks, and what is broken returns."""
        world = self._world
        nginx = world.nginx
        nginx.loss = nginx.doubled = world.cluster.loss = world.postgres_network.loss = 0.0
        nginx.foreign = [None, None]
        world.host.disk.failing = False
        world.cluster.hung.clear()
        world.cluster.walls.clear()
        world.cluster.damaging = False
        world.cluster.wake()
        for clock in world.clocks.values():
            clock.offset = 0.0
        for each in (*world.producers, *world.workers, world.host):
            each.process.fuse = None
        world.postgres_network.trap, world.postgres_network.break_commit = "", False
        if self._wall is not None:
            world.cluster.walls.add(self._wall)
            self.longest = WALL_PATIENCE * (4 if world.costs.factor >= SLOW else 1)
            self._scheduler.after(self.longest, self._end_wall)

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

    def break_disk(self) -> None:
        """The vehicles' disk refuses everything for a while."""
        disk = self._world.host.disk
        if not disk.failing:
            self._scheduler.happen("a disk fails", "the vehicles' disk fails")
            disk.failing = True
            self._scheduler.after(self._rng.uniform(0.2, 6.0), self._mend_disk)

    def _mend_disk(self) -> None:
        self._world.host.disk.failing = False

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

    def hang_broker(self) -> None:
        """One's listener takes what clients ask and answers nothing; the controller is content with it."""
        cluster = self._world.cluster
        broker = self._rng.choice(list(cluster.up))
        if broker not in cluster.hung:
            self._scheduler.happen("a listener hangs", "the listener of broker %d hangs", broker)
            cluster.hung.add(broker)
            self._scheduler.after(self._rng.uniform(0.5, 20.0), self._release, broker)

    def _release(self, broker: int) -> None:
        self._world.cluster.hung.discard(broker)
        self._world.cluster.wake()

    def part(self) -> None:
        """One process does not reach one broker for a while; all others do."""
        cluster = self._world.cluster
        wall = (self._rng.choice((*self._world.producers, *self._world.workers)).name, self._rng.choice(list(cluster.up)))
        self._scheduler.happen("a process does not reach a broker", "%s does not reach broker %d", *wall)
        cluster.walls.add(wall)
        self._scheduler.after(self._rng.uniform(0.5, 20.0), self._unite, wall)

    def _unite(self, wall: tuple[str, int]) -> None:
        if wall != self._wall:
            self._world.cluster.walls.discard(wall)
            self._world.cluster.wake()

    def raise_wall(self) -> None:
        """One consumer does not reach one broker, until long after everything else has healed."""
        self._wall = (self._rng.choice(self._world.workers).name, self._rng.choice(list(self._world.cluster.up)))
        self._unfinished += 1
        self._scheduler.happen("a wall before a broker", "%s does not reach broker %d for long", *self._wall)
        self._world.cluster.walls.add(self._wall)

    def _end_wall(self) -> None:
        assert self._wall is not None
        self._world.check_wall(self._wall[1])
        wall, self._wall = self._wall, None
        self._unfinished -= 1
        self._unite(wall)

    # The topic

    def meddle(self) -> None:
        """The topic loses records: all, the end of a log, or its begin. An operator does what has to be done."""
        self._unfinished += 1
        self._rng.choice((self._delete_topic, self._cut_log, self._delete_records))()

    def _call_operator(self) -> None:
        if self._world.operator is None:
            self._world.operator = Operator(self._world, "operator")

    def _delete_topic(self) -> None:
        cluster = self._world.cluster
        if not cluster.whole() or any(cluster.cut.values()):
            self._later(self._delete_topic)
            return
        cluster.delete_topic(self._world.stored)
        self._scheduler.after(self._rng.uniform(4.0, 9.0), self._make_topic)

    def _make_topic(self) -> None:
        cluster = self._world.cluster
        if not cluster.whole() or any(cluster.cut.values()):
            self._later(self._make_topic)
            return
        cluster.make_topic()
        self._call_operator()
        self._unfinished -= 1

    def _cut_log(self) -> None:
        cluster = self._world.cluster
        able = [each for each in cluster.partitions if each.readable]
        if not able or not cluster.whole():
            self._later(self._cut_log)
            return
        partition = self._rng.choice(able)
        cluster.cut_short(partition.number, self._rng.randint(1, 3), self._rng.uniform(0.5, 4.0), self._world.stored)
        self._call_operator()
        self._unfinished -= 1

    def _delete_records(self) -> None:
        cluster = self._world.cluster
        able = [each for each in cluster.partitions if each.readable]
        if not able:
            self._later(self._delete_records)
            return
        partition = self._rng.choice(able)
        cluster.delete_records(partition.number, self._rng.randint(max(1, partition.readable - 4), partition.readable))
        self._call_operator()
        self._unfinished -= 1

    def _later(self, fault: Callable[[], None]) -> None:
        self._scheduler.after(1.0, fault)

    def damage(self) -> None:
        """The next record is damaged on every broker's disk, as by one that had it in its memory."""
        self._world.cluster.damaging = True
        self._call_operator()

    def poison_name(self) -> None:
        """Somebody writes a record with a header whose name is no text."""
        headers = [("v", b"1"), (RawName(b"\xff\xfe"), b"x")]
        self._write("somebody writes a header name that is no text", self._any_number(), (b"somebody", b"{}", headers))

    # Clocks

    def move_clocks(self) -> None:
        """Some clocks are wrong, by minutes or decades, for a while or as long as things break."""
        clocks = self._world.clocks
        for name in self._rng.sample(sorted(clocks), self._rng.randint(1, MOST_CLOCKS)):
            offset = self._rng.choice((*AHEAD, *(-each for each in BEHIND)))
            kind = "a broker" if name.startswith("broker") else name.split()[0]
            self._scheduler.happen(f"clock of {kind}", "the clock of %s is %.0f s ahead", name, offset)
            clocks[name].offset = offset
            if self._rng.random() < 0.6:
                self._scheduler.after(self._rng.uniform(0.2, 5.0), self._put_right, name)

    def _put_right(self, name: str) -> None:
        self._world.clocks[name].offset = 0.0

    # The rest

    def pile_up_gaps(self) -> None:
        """Somebody sends uploads whose every second seq is missing, in a world where a walk is dear."""
        self._world.gappy = GappySender(self._world, "gappy")
        self._world.costs.factor = self._rng.choice((1.0, 100.0, 100.0, SLOW))

    def answer_foreign(self) -> None:
        """Whoever stands in the place of nginx, of one or of both, answers everything in its own way."""
        nginx = self._world.nginx
        kind = self._rng.choice(sorted(FOREIGN))
        self._scheduler.happen(kind, "a foreign answer to everything: %s", kind)
        seconds = self._rng.uniform(0.5, 6.0)
        for number in self._rng.choice(((0,), (1,), (0, 1))):
            nginx.foreign[number] = FOREIGN[kind]
            self._scheduler.after(seconds, nginx.foreign.__setitem__, number, None)

    def lock_days(self) -> None:
        """Somebody holds the lock that making a day needs, as ANALYZE of the table does."""
        session = Session(self._world.database)
        if ("days",) not in self._world.database.locks:
            self._scheduler.happen("a lock on the table", "somebody locks the table")
            session.lock(("days",))
            session.working = True
            self._scheduler.after(self._rng.uniform(1.0, 25.0), session.end)

    def stop_postgres(self) -> None:
        """It ends, and comes back."""
        database = self._world.database
        if database.up:
            self._scheduler.happen("Postgres stops", "Postgres stops")
            database.up = False
            database.disconnect()
            self._scheduler.after(self._rng.uniform(0.2, 8.0), self._start_postgres)

    def _start_postgres(self) -> None:
        self._world.database.up = True

    def stop_nginx(self) -> None:
        """One of them."""
        up, number = self._world.nginx.up, self._rng.randrange(2)
        self._scheduler.happen("an nginx stops", "nginx %d stops", number)
        up[number] = False
        self._scheduler.after(self._rng.uniform(0.5, 6.0), up.__setitem__, number, True)

    def strike_network(self) -> None:
        """For a while nothing arrives, here or there."""
        world, seconds = self._world, self._rng.uniform(0.2, 3.0)
        owner: Any = self._rng.choice((world.nginx, world.cluster, world.postgres_network))
        self._scheduler.happen("a network is struck", "nothing arrives by %s", type(owner).__name__)
        before, owner.loss = owner.loss, 1.0
        self._scheduler.after(seconds, self._end_strike, owner, before)

    def _end_strike(self, owner: Any, before: float) -> None:
        owner.loss = 0.0 if self._world.healed else min(before, 0.2)

    def break_sensor(self) -> None:
        """A vehicle reports positions that no producer accepts, for a few records."""
        vehicles = self._world.host.vehicles
        if vehicles:
            vehicle = self._rng.choice(vehicles)
            vehicle.journey = replace(vehicle.journey, origin=(2e9, 0.0, 0.0))
            self._scheduler.happen("a sensor fails", "a sensor fails")
            self._scheduler.after(self._rng.uniform(0.5, 3.0), self._set_origin, vehicle.vin, 0.0)

    def break_half(self) -> None:
        """A vehicle's sensor fails at every second record."""
        vehicles = self._world.host.vehicles
        if vehicles:
            vin, begin = self._rng.choice(vehicles).vin, self._rng.random()
            self._scheduler.happen("a sensor fails at every second record", "a sensor fails at every second record")
            for number in range(0, 8, 2):
                self._scheduler.after(begin + number, self._set_origin, vin, 2e9)
                self._scheduler.after(begin + number + 1, self._set_origin, vin, 0.0)

    def _set_origin(self, vin: str, origin: float) -> None:
        for vehicle in self._world.host.vehicles:
            if vehicle.vin == vin:
                vehicle.journey = replace(vehicle.journey, origin=(origin, 0.0, 0.0))

    def poison(self) -> None:
        """Somebody writes garbage into the topic, or what is of another version."""
        headers = [("v", self._rng.choice((b"1", b"2")))]
        self._write("somebody writes garbage", self._any_number(), (b"somebody", b"\xff\x00", headers))

    def _any_number(self) -> int:
        return self._rng.randrange(PARTITIONS)

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
                self._write("somebody writes a spoilt upload", partition_of(vin[1], PARTITIONS), (vin[1], spoilt, [("v", b"1")]))

    def _write(self, kind: str, number: int, content: Content) -> None:
        cluster = self._world.cluster
        if not cluster.there:
            return
        partition = cluster.partitions[number]
        if partition.leader != -1:
            log = partition.replicas[partition.leader].log
            before = len(log)
            cluster.append(number, partition.leader, content, "all", lambda error: None)
            if len(log) > before:
                self._scheduler.happen(kind, "%s into partition %d", kind, number)
                cluster.poison.add(log[-1].name)
