"""What lies between the services: nginx and its two ways to producers, and the connections to Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from greenlet import GreenletExit
from telemetry.record import Refused, parse_json
from telemetry.vehicle.vehicle import POST_TIMEOUT, Answer

from simulation.kernel import Process
from simulation.postgres import Connection

if TYPE_CHECKING:
    from simulation.services import Producer
    from simulation.world import World

NGINX_TIMEOUT = 10.0
HTML = b"<html><head><title>Something else</title></head><body><center><h1>nginx</h1></center></body></html>"
FOREIGN = {
    "413 with HTML": Answer(413, HTML),
    "413 of a small body": Answer(413, b'{"error": "too_large", "message": "An upload has at most 262144 bytes."}\n'),
    "200 with HTML": Answer(200, HTML),
    "an empty 200": Answer(200),
    "200 of another service": Answer(200, b'{"status": "ok"}'),
    "200 for another upload": Answer(200, b'{"vin": "WVWZZZ1JZXW000001", "epoch": 1, "acked_through": 4, "records": 4}\n'),
    "422 with HTML": Answer(422, HTML),
    "429": Answer(429, b'{"error": "too_many", "message": "Too many requests. Send it again."}\n', 1.0),
    "502 with HTML": Answer(502, HTML),
}
"""Answers of whoever stands in nginx' place, or in its way."""


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
        if process is None:
            # The run is over, and ends what was under way
            raise GreenletExit
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
            lost = "the answer to a COMMIT" if answer else "a COMMIT"
            self._scheduler.happen(f"Postgres loses {lost}", "loses %s", lost)
            return False
        if self.loss and rng.random() < self.loss:
            self._scheduler.happen("Postgres loses a message", "loses %s at %s", "an answer" if answer else "a request", what[:50])
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

    def cost(self, rows: int) -> float:
        """See postgres.Network."""
        return self._world.costs.rows(rows)

    def work(self, seconds: float) -> None:
        """See postgres.Network. The client waits for its answer all the while."""
        process = self._scheduler.current
        assert process is not None
        process.work(seconds)


class Socket:
    """A second socket of a connection to Postgres, as the store makes one to cut a call off that hangs."""

    def __init__(self, fileno: Connection) -> None:
        self._connection = fileno

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def shutdown(self, how: int) -> None:
        """See socket."""
        self._connection.cut = True


class Nginx:
    """Two hosts of it: each gives an upload to a producer, and to the other one when the first answers nothing of ours or 503."""

    def __init__(self, world: World) -> None:
        self._world, self._scheduler = world, world.scheduler
        self.up = [True, True]
        self.foreign: list[Answer | None] = [None, None]
        """What whoever stands in its place answers to everything."""
        self.loss, self.doubled, self.latency = 0.0, 0.0, 0.02

    def delay(self) -> float:
        """How long a message takes: nearly always little."""
        rng = self._scheduler.rng
        return rng.random() * self.latency * (100 if rng.random() < 0.02 else 1)

    def _lost(self) -> bool:
        return self.loss > 0 and self._scheduler.rng.random() < self.loss

    async def post(self, process: Process, url: int, body: bytes, kind: bytes) -> Answer:
        """An upload's way there and back."""
        future: asyncio.Future[Answer] = process.loop.create_future()

        def back(answer: Answer) -> None:
            if not future.done():
                self._scheduler.happen(f"answer {answer.status}", "is answered %d", answer.status)
                future.set_result(answer)

        def reply(answer: Answer) -> None:
            if not self._lost():
                self._scheduler.after(self.delay(), back, answer, process=process)

        self._scheduler.tell("posts %d bytes", len(body))
        if kind == b"application/json":
            # One that is refused is never acknowledged
            with suppress(Refused):
                self._world.ledger.sends(parse_json(body))
            self._world.faults.posted(body)
        self._scheduler.after(POST_TIMEOUT, back, Answer(0), process=process)
        for _ in range(2 if self._scheduler.rng.random() < self.doubled else 1):
            if not self._lost():
                self._scheduler.after(self.delay(), self._forward, url, body, kind, reply)
        return await future

    def _forward(self, url: int, body: bytes, kind: bytes, reply: Callable[[Answer], None]) -> None:
        """Two tries at producers."""
        if not self.up[url]:
            reply(Answer(0))
            return
        foreign = self.foreign[url]
        if foreign is not None:
            reply(foreign)
            return
        producers = self._world.producers.copy()
        self._scheduler.rng.shuffle(producers)

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
            self._scheduler.after(NGINX_TIMEOUT, done, 504, b"")
            self._scheduler.after(self.delay(), self._serve, producers[number], body, kind, done, process=process)

        attempt(0)

    def _serve(self, producer: Producer, body: bytes, kind: bytes, done: Callable[[int, bytes], None]) -> None:
        producer.process.step()
        producer.request(body, kind, lambda status, content: self._answered(status, content, done))

    def _answered(self, status: int, content: bytes, done: Callable[[int, bytes], None]) -> None:
        self._scheduler.after(self.delay(), done, status, content)
