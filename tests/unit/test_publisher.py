"""Group commit: each upload is answered by its own outcome, whatever happens to the others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from kafka.errors import KafkaTimeoutError, MessageSizeTooLargeError, NotEnoughReplicasError
from kafka.future import Future
from telemetry.health import Health
from telemetry.publisher import KafkaPublisher
from telemetry.record import Refused
from telemetry.settings import ProducerSettings

SETTINGS = {
    "TELEMETRY_NAME": "node1",
    "TELEMETRY_LISTEN": "127.0.0.1:5001",
    "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
    "KAFKA_TOPIC": "telemetry",
    "KAFKA_TOPIC_REPLICATION_FACTOR": "3",
    "KAFKA_TOPIC_MIN_INSYNC_REPLICAS": "2",
    "PRODUCER_COMMIT_WINDOW_MS": "0",
    "PRODUCER_QUEUE_UPLOADS": "5",
    "PRODUCER_QUEUE_BYTES": "100",
}


class Client:
    """A Kafka client that answers as told: `outcome` gives a result or an exception for a value."""

    def __init__(self) -> None:
        self.outcome: Callable[[bytes], Any] = lambda value: object()
        self.sent: list[dict[str, Any]] = []
        self.held: list[tuple[Future, Any]] = []
        self.hold = threading.Event()

    def send(self, topic: str, **what: Any) -> Future:
        self.sent.append({"topic": topic} | what)
        outcome = self.outcome(what["value"])
        if isinstance(outcome, (KafkaTimeoutError, MessageSizeTooLargeError)):
            raise outcome
        future = Future()
        if self.hold.is_set():
            self.held.append((future, outcome))
        elif isinstance(outcome, BaseException):
            future.failure(outcome)
        else:
            future.success(outcome)
        return future

    def close(self, timeout: float) -> None:
        """Nothing to close."""


@contextmanager
def publisher(client: Client, **changes: str) -> Iterator[KafkaPublisher]:
    settings = ProducerSettings.load(SETTINGS | changes)
    one = KafkaPublisher(settings, Health("producer", "node1", "1"), lambda **_: client)
    # The watch on the live topic needs brokers; what it would have found is put in its place.
    one._partitions = 6
    one._client = client
    one._threads[0].start()
    try:
        yield one
    finally:
        one.close()


async def outcomes(one: KafkaPublisher, values: list[bytes]) -> list[Refused | None]:
    return await asyncio.wait_for(asyncio.gather(*(one.publish(b"key", value) for value in values)), 5)


def test_what_kafka_holds_is_acknowledged() -> None:
    async def scenario() -> None:
        client = Client()
        with publisher(client) as one:
            assert await outcomes(one, [b"1", b"2"]) == [None, None]
            assert one.waiting == 0
        assert {(each["topic"], each["key"], each["headers"][0]) for each in client.sent} == {("telemetry", b"key", ("v", b"1"))}
        assert len({each["partition"] for each in client.sent}) == 1

    asyncio.run(scenario())


def test_one_refused_upload_leaves_the_others_alone() -> None:
    async def scenario() -> None:
        client = Client()
        client.outcome = lambda value: {b"big": MessageSizeTooLargeError(), b"bad": NotEnoughReplicasError()}.get(value, object())
        with publisher(client) as one:
            good, big, bad, last = await outcomes(one, [b"good", b"big", b"bad", b"last"])
        assert (good, last) == (None, None)
        assert (big.status if big else 0, bad.status if bad else 0) == (413, 503)

    asyncio.run(scenario())


def test_without_metadata_the_whole_commit_fails_at_once() -> None:
    async def scenario() -> None:
        client = Client()
        client.outcome = lambda value: KafkaTimeoutError()
        with publisher(client) as one:
            # The first may go alone, the others wait for its commit and go together.
            answers = await outcomes(one, [b"1", b"2", b"3", b"4"])
        assert [answer.status if answer else 200 for answer in answers] == [503] * 4
        assert len(client.sent) < 4

    asyncio.run(scenario())


def test_beyond_its_bounds_nothing_is_taken() -> None:
    async def scenario() -> None:
        client = Client()
        client.hold.set()
        with publisher(client) as one:
            waiting = [one.publish(b"key", b"x") for _ in range(5)]
            with pytest.raises(Refused) as full:
                one.publish(b"key", b"x")
            assert full.value.status == 503
            while len(client.held) < 5:
                await asyncio.sleep(0)
            for future, outcome in client.held:
                future.success(outcome)
            assert await asyncio.wait_for(asyncio.gather(*waiting), 5) == [None] * 5
            with pytest.raises(Refused):
                one.publish(b"key", b"x" * 101)

    asyncio.run(scenario())


def test_readiness_follows_the_answers() -> None:
    async def scenario() -> None:
        client = Client()
        with publisher(client) as one:
            health = one._health
            health.clear("start")
            client.outcome = lambda value: NotEnoughReplicasError()
            await outcomes(one, [b"1"])
            assert not health.readiness()["ready"]
            assert "NotEnoughReplicas" in health.readiness()["reasons"][0]
            client.outcome = lambda value: object()
            await outcomes(one, [b"1"])
            assert health.readiness() == {"ready": True, "reasons": [], "degraded": []}

    asyncio.run(scenario())


def test_a_draining_publisher_takes_nothing_and_finishes_the_rest() -> None:
    async def scenario() -> None:
        client = Client()
        client.hold.set()
        with publisher(client) as one:
            accepted = one.publish(b"key", b"x")
            one.drain()
            with pytest.raises(Refused):
                one.publish(b"key", b"x")
            while not client.held:
                await asyncio.sleep(0)
            client.held[0][0].success(object())
            assert await asyncio.wait_for(accepted, 5) is None

    asyncio.run(scenario())
