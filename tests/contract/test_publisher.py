"""What a publisher promises: the one in memory, the one that speaks with Kafka, on a client that answers as told and, where
TACHOGRAPH_TEST_KAFKA names one (address:port), on a real broker.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from typing import Any, Protocol

import pytest
from kafka.admin import NewTopic
from kafka.errors import KafkaTimeoutError, MessageSizeTooLargeError, NotEnoughReplicasError, RecordListTooLargeError
from telemetry import clients
from telemetry.health import Health
from telemetry.producer.publisher import ANSWER_TIMEOUT, BYTES_PER_BYTE, UPLOAD_OVERHEAD, FakePublisher, KafkaPublisher
from telemetry.record import MAX_BODY, Refused
from telemetry.settings import ProducerSettings
from telemetry.topic import MIN_MESSAGE_BYTES

from contract.client import Client

UPLOADS = 5
BYTES = 2 * 2**20
KINDS = ("fake", "client")
EVERYWHERE = (*KINDS, "broker")


class Subject(Protocol):
    """A publisher, and how its Kafka is told what to answer."""

    publisher: Any
    health: Health

    def fail(self, error: Callable[[bytes], Exception | None]) -> None:
        """Answer an upload so."""

    def silence(self) -> None:
        """Answer nothing."""


class Fake:
    """The publisher in memory."""

    def __init__(self) -> None:
        self.health = Health("producer", "node1", "1")
        self.publisher = FakePublisher(self.health, UPLOADS, BYTES)

    def fail(self, error: Callable[[bytes], Exception | None]) -> None:
        self.publisher.answer = error

    def silence(self) -> None:
        self.publisher.silent = True


class Kafka:
    """The publisher that speaks with Kafka, on a client of ours."""

    def __init__(self, publisher: KafkaPublisher, health: Health, client: Client) -> None:
        self.publisher, self.health, self._client = publisher, health, client

    def fail(self, error: Callable[[bytes], Exception | None]) -> None:
        self._client.outcome = lambda value: error(value) or object()

    def silence(self) -> None:
        self._client.hold = lambda partition: True


def settings(topic: str, bootstrap: str) -> ProducerSettings:
    return ProducerSettings.load(
        {
            "TELEMETRY_NAME": "node1", "TELEMETRY_LISTEN": "127.0.0.1:5001", "KAFKA_BOOTSTRAP_SERVERS": bootstrap,
            "KAFKA_TOPIC": topic, "KAFKA_TOPIC_PARTITIONS": "2", "KAFKA_TOPIC_REPLICATION_FACTOR": "1",
            "KAFKA_TOPIC_MIN_INSYNC_REPLICAS": "1", "KAFKA_TOPIC_RETENTION_MS": "3600000",
            "PRODUCER_QUEUE_UPLOADS": str(UPLOADS), "PRODUCER_QUEUE_BYTES": str(BYTES),
        }
    )  # fmt: skip


@contextmanager
def on_client() -> Iterator[Kafka]:
    client, health = Client(), Health("producer", "node1", "1")
    publisher = KafkaPublisher(settings("telemetry", "127.0.0.1:1"), health, lambda **_: client)
    # The watch on the live topic needs brokers; what it would have found is put in its place
    publisher._partitions, publisher._client = 2, client
    publisher._threads[0].start()
    try:
        yield Kafka(publisher, health, client)
    finally:
        publisher.close()


@asynccontextmanager
async def on_broker() -> AsyncIterator[Kafka]:
    chosen = settings(f"test-{uuid.uuid4().hex}", os.environ["TACHOGRAPH_TEST_KAFKA"])
    config = {
        "min.insync.replicas": "1", "cleanup.policy": "delete", "message.timestamp.type": "LogAppendTime",
        "retention.ms": "3600000", "compression.type": "uncompressed", "max.message.bytes": str(2 * MIN_MESSAGE_BYTES),
        "unclean.leader.election.enable": "false",
    }  # fmt: skip
    with closing(clients.connect_admin(chosen, "test")) as admin:
        admin.create_topics([NewTopic(chosen.topic, 2, 1, topic_configs=config)])
        health = Health("producer", "node1", "1")
        publisher = KafkaPublisher(chosen, health)
        publisher.start()
        try:
            async with asyncio.timeout(30):
                while publisher._obstacle() or not health.readiness()["ready"]:
                    await asyncio.sleep(0.05)
            yield Kafka(publisher, health, Client())
        finally:
            await asyncio.to_thread(publisher.close)
            admin.delete_topics([chosen.topic])


@asynccontextmanager
async def subject(kind: str) -> AsyncIterator[Subject]:
    """A publisher of the kind."""
    if kind == "fake":
        yield Fake()
    elif kind == "client":
        with on_client() as found:
            yield found
    else:
        async with on_broker() as found:
            yield found


def run(kind: str, scenario: Callable[[Subject], Any]) -> None:
    """Run a scenario on a publisher of the kind, within some seconds."""

    async def main() -> None:
        async with asyncio.timeout(60), subject(kind) as found:
            await scenario(found)

    asyncio.run(main())


@pytest.mark.parametrize("kind", EVERYWHERE)
def test_what_is_held_is_promised_and_nothing_is_waiting_after(kind: str) -> None:
    async def scenario(on: Subject) -> None:
        promises = [on.publisher.publish(b"key %d" % number, b"value") for number in range(UPLOADS)]
        assert await asyncio.gather(*promises) == [None] * UPLOADS
        while on.publisher.waiting:
            await asyncio.sleep(0)

    run(kind, scenario)


@pytest.mark.parametrize("kind", EVERYWHERE)
def test_the_largest_upload_is_taken(kind: str) -> None:
    async def scenario(on: Subject) -> None:
        assert await on.publisher.publish(b"key", b"x" * MAX_BODY) is None

    run(kind, scenario)


@pytest.mark.parametrize("kind", EVERYWHERE)
def test_one_that_drains_takes_nothing_more(kind: str) -> None:
    async def scenario(on: Subject) -> None:
        taken = on.publisher.publish(b"key", b"value")
        on.publisher.drain()
        with pytest.raises(Refused) as refused:
            on.publisher.publish(b"key", b"value")
        assert (refused.value.status, refused.value.error) == (503, "unavailable")
        assert await taken is None

    run(kind, scenario)


@pytest.mark.parametrize("kind", EVERYWHERE)
def test_beyond_its_bounds_it_refuses_and_says_so(kind: str) -> None:
    async def scenario(on: Subject) -> None:
        with pytest.raises(Refused) as refused:
            on.publisher.publish(b"key", b"x" * (BYTES // BYTES_PER_BYTE - UPLOAD_OVERHEAD // BYTES_PER_BYTE + 1))
        assert refused.value.status == 503
        assert "too many wait for Kafka" in on.health.readiness()["degraded"][0]
        on.silence()
        # Not one of them can have an answer before the event loop comes round
        for _ in range(UPLOADS):
            on.publisher.publish(b"key", b"value")
        with pytest.raises(Refused):
            on.publisher.publish(b"key", b"value")
        assert on.publisher.waiting == UPLOADS

    run(kind, scenario)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [NotEnoughReplicasError(), KafkaTimeoutError(), AttributeError("of the client's own")])
def test_what_kafka_does_not_confirm_is_503_and_the_others_are_promised(kind: str, error: Exception) -> None:
    async def scenario(on: Subject) -> None:
        on.fail(lambda value: error if value == b"bad" else None)
        good, bad, last = await asyncio.gather(*(on.publisher.publish(b"key", value) for value in (b"good", b"bad", b"last")))
        assert (good, last) == (None, None)
        assert (bad.status, bad.error) == (503, "unavailable")

    run(kind, scenario)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [MessageSizeTooLargeError(), RecordListTooLargeError()])
def test_a_size_that_kafka_refuses_is_503_and_names_the_setting(kind: str, error: Exception) -> None:
    async def scenario(on: Subject) -> None:
        on.fail(lambda value: error)
        refused = await on.publisher.publish(b"key", b"value")
        assert (refused.status, refused.error) == (503, "unavailable")
        assert f"max.message.bytes={MIN_MESSAGE_BYTES}" in refused.message

    run(kind, scenario)


@pytest.mark.parametrize("kind", KINDS)
def test_a_promise_ends_in_time_though_kafka_says_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("telemetry.producer.publisher.time.monotonic", lambda: now[0])
    monkeypatch.setattr("telemetry.producer.publisher.STRAGGLER_GRACE", 0.0)

    async def scenario(on: Subject) -> None:
        on.silence()
        first = on.publisher.publish(b"key", b"value")
        now[0] += 5
        second = on.publisher.publish(b"key", b"value")
        now[0] += ANSWER_TIMEOUT - 5 - 0.001
        for _ in range(3):
            await asyncio.sleep(0)
        assert (first.done(), second.done()) == (False, False)
        now[0] += 0.002
        for _ in range(3):
            await asyncio.sleep(0)
        assert (first.done(), second.done()) == (True, False)
        assert (first.result().status, first.result().error) == (503, "timeout")
        # Its memory is still needed: Kafka may answer yet
        assert on.publisher.waiting == 2
        now[0] += 5
        for _ in range(3):
            await asyncio.sleep(0)
        assert second.done()

    async def main() -> None:
        async with subject(kind) as found:
            await scenario(found)

    asyncio.run(main())
