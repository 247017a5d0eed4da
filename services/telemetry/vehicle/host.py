"""The vehicles of one host, in one event loop: who is here, who leaves, and what is unsent."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from telemetry.health import Reason
from telemetry.vehicle.spool import Backlog, SpoolError
from telemetry.vehicle.vehicle import Tools, Vehicle

log = logging.getLogger(__name__)

FLEET_POLL = 0.5
MEASURE_DELAY = 2.0
END_TIMEOUT = 3.0
"""Seconds that uploads under way get to be answered when the process is asked to end."""


@dataclass(frozen=True)
class Fleet:
    """How many vehicles there are in all, and which of them live here: those n with (n - 1) % host_count == host_index."""

    num_vehicles: int
    host_index: int
    host_count: int

    @classmethod
    def parse(cls, content: bytes) -> Fleet:
        """Read the fleet file. Raises ValueError with what is wrong."""
        values = json.loads(content)
        if not isinstance(values, dict) or set(values) != {"num_vehicles", "host_index", "host_count"}:
            raise ValueError("must hold num_vehicles, host_index and host_count")
        if any(type(value) is not int for value in values.values()):
            raise ValueError("must hold integers")
        fleet = cls(**values)
        if fleet.num_vehicles < 0 or not 0 <= fleet.host_index < fleet.host_count:
            raise ValueError("num_vehicles must not be negative, host_index must be below host_count")
        return fleet

    def here(self) -> list[int]:
        """Numbers of the vehicles that live on this host."""
        return list(range(self.host_index + 1, self.num_vehicles + 1, self.host_count))


class Host:
    """The vehicles of one host: which are here, which are leaving, which left with unsent records."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._here: dict[int, Vehicle] = {}
        self._leaving: dict[int, tuple[Vehicle, asyncio.Task[None]]] = {}
        self._backlog: dict[str, Backlog] = {}
        self._content = b""
        self._fleet = Fleet(0, 0, 1)

    def state(self) -> dict[str, Any]:
        """The body of /fleet."""
        here = [vehicle.vin for vehicle in list(self._here.values())]
        leaving = [vehicle.vin for vehicle, _ in list(self._leaving.values())]
        backlog = self._backlog.copy()
        return {
            "num_vehicles": self._fleet.num_vehicles,
            "here": here,
            "draining": [{"vin": vin, "unsent": backlog[vin].unsent if vin in backlog else 0} for vin in leaving],
            "undrained": sorted(set(backlog) - set(here) - set(leaving)),
        }

    async def watch(self) -> None:
        """Follow the fleet file, for ever."""
        while True:
            self.poll()
            await self._tools.sleep(FLEET_POLL)

    def poll(self) -> None:
        """Look at the fleet file once. One that is bad or away changes nothing, and readiness says so."""
        path, health = Path(self._tools.settings.fleet_file), self._tools.health
        try:
            content = path.read_bytes()
            if content != self._content:
                self.change(Fleet.parse(content))
                self._content = content
                health.live = {path.name: hashlib.sha256(content).hexdigest()}
            health.clear(Reason.FLEET)
            health.clear(Reason.START)
        except (OSError, ValueError, RecursionError) as error:
            health.set_reason(Reason.FLEET, f"{path}: {error}; the last good count stays")

    async def measure(self) -> None:
        """Follow what is unsent, for ever."""
        while True:
            await self.measure_once()
            await self._tools.sleep(MEASURE_DELAY)

    async def measure_once(self) -> None:
        """Find what is unsent and what is set aside, for /metrics, /fleet and /readyz."""
        tools, metrics = self._tools, self._tools.metrics
        try:
            self._backlog, aside = await tools.spool.run(lambda spool: (spool.backlog(), spool.kept_aside()))
        except SpoolError as error:
            tools.health.set_reason(Reason.SPOOL, str(error))
        else:
            count = sum(aside.values())
            text = f"records were rejected, and are set aside (records: {count}; vehicles: {len(aside)}); put_back.yml says why"
            tools.health.set_degraded(Reason.REJECTED, text if count else None)
            metrics.set_aside.set(count)
        tools.say()
        metrics.spooled.set(sum(each.unsent for each in self._backlog.values()))
        metrics.oldest.set(max((each.age for each in self._backlog.values() if each.age is not None), default=0.0))
        for vehicle in [*self._here.values(), *(vehicle for vehicle, _ in self._leaving.values())]:
            if vehicle.vin in self._backlog and self._backlog[vehicle.vin].put_back:
                vehicle.look()
        metrics.vehicles.labels("here").set(len(self._here))
        metrics.vehicles.labels("draining").set(len(self._leaving))

    def change(self, fleet: Fleet) -> None:
        """Make the fleet be this one: new vehicles begin, and those that are no longer in it drain and end."""
        wanted = set(fleet.here())
        for number in sorted(wanted - set(self._here)):
            if number in self._leaving:
                vehicle, draining = self._leaving.pop(number)
                draining.cancel()
            else:
                vehicle = Vehicle(number, self._tools)
            vehicle.join()
            self._here[number] = vehicle
        for number in sorted(set(self._here) - wanted):
            vehicle = self._here.pop(number)
            vehicle.leave()
            self._leaving[number] = (vehicle, self._tools.spawn(self._drain(number, vehicle)))
        if fleet != self._fleet:
            log.info("the fleet has %d vehicles, %d of them here", fleet.num_vehicles, len(self._here))
        self._fleet = fleet

    async def _drain(self, number: int, vehicle: Vehicle) -> None:
        """Let a leaving vehicle deliver what it holds, but not for ever."""
        if await vehicle.drained(self._tools.settings.drain_timeout):
            self._backlog.pop(vehicle.vin, None)
        else:
            self._backlog.setdefault(vehicle.vin, Backlog(1))
            log.warning("%s left with unsent records; the spool keeps them", vehicle.vin)
        if task := vehicle.end():
            # It may be back before an answer comes, and would have two uploads under way.
            task.cancel()
        del self._leaving[number]

    async def end(self) -> None:
        """End all vehicles; uploads under way get a moment to be answered, and the spool keeps what is unsent."""
        for _, draining in self._leaving.values():
            draining.cancel()
        vehicles = [*self._here.values(), *(vehicle for vehicle, _ in self._leaving.values())]
        tasks = [task for vehicle in vehicles if (task := vehicle.end()) is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=END_TIMEOUT)
            for task in late:
                task.cancel()
