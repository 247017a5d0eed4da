"""Group commit: each upload is answered by its own outcome, whatever happens to the others."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from contract.client import Client
from kafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError, NotEnoughReplicasError
from telemetry.health import Health, Reason
from telemetry.producer.outcomes import QUIET, Outcomes
from telemetry.producer.publisher import ANSWER_TIMEOUT, WEDGED, KafkaPublisher
from telemetry.record import MAX_BODY, Refused
from telemetry.settings import ProducerSettings
from telemetry.topic import MIN_MESSAGE_BYTES, Partition, Topic, faults, partition_of

SETTINGS = {
    "TELEMETRY_NAME": "node1",
    "TELEMETRY_LISTEN": "127.0.0.1:5001",
    "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
    "KAFKA_TOPIC": "telemetry",
    "KAFKA_TOPIC_PARTITIONS": "6",
    "KAFKA_TOPIC_REPLICATION_FACTOR": "3",
    "KAFKA_TOPIC_MIN_INSYNC_REPLICAS": "2",
    "KAFKA_TOPIC_RETENTION_MS": "3600000",
    "PRODUCER_COMMIT_WINDOW_MS": "0",
    "PRODUCER_QUEUE_UPLOADS": "5",
    "PRODUCER_QUEUE_BYTES": "1048576",
}


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


def test_every_upload_goes_at_once_though_the_watch_waits_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()

    def refuse(*_: Any, **__: Any) -> Any:
        asked.set()
        raise KafkaError("nobody is there")

    monkeypatch.setattr("telemetry.clients.make_client", refuse)

    async def scenario() -> None:
        with publisher(Client()) as one:
            one._threads[1].start()
            assert await asyncio.to_thread(asked.wait, 5)
            for number in range(6):
                assert await asyncio.wait_for(one.publish(b"key", b"%d" % number), 1) is None

    asyncio.run(scenario())


def test_one_refused_upload_leaves_the_others_alone() -> None:
    async def scenario() -> None:
        client = Client()
        client.outcome = lambda value: {b"big": MessageSizeTooLargeError(), b"bad": NotEnoughReplicasError()}.get(value, object())
        with publisher(client) as one:
            good, big, bad, last = await outcomes(one, [b"good", b"big", b"bad", b"last"])
        assert (good, last) == (None, None)
        assert one._suspect
        assert (big.status if big else 0, bad.status if bad else 0) == (503, 503)
        assert big is not None
        assert f"topic telemetry needs max.message.bytes={MIN_MESSAGE_BYTES}" in big.message

    asyncio.run(scenario())


def test_without_metadata_the_whole_commit_fails_at_once() -> None:
    async def scenario() -> None:
        client = Client()
        client.refused = lambda value: KafkaTimeoutError()
        with publisher(client) as one:
            # The first may go alone, the others wait for its commit and go together.
            answers = await outcomes(one, [b"1", b"2", b"3", b"4"])
        assert [answer.status if answer else 200 for answer in answers] == [503] * 4
        assert client.sent == []

    asyncio.run(scenario())


def test_beyond_its_bounds_nothing_is_taken() -> None:
    async def scenario() -> None:
        client = Client()
        client.hold = lambda partition: True
        with publisher(client) as one:
            waiting = [one.publish(b"key", b"x") for _ in range(5)]
            with pytest.raises(Refused) as full:
                one.publish(b"key", b"x")
            assert full.value.status == 503
            while len(client.held) < 5:
                await asyncio.sleep(0)
            client.release()
            assert await asyncio.wait_for(asyncio.gather(*waiting), 5) == [None] * 5
            with pytest.raises(Refused):
                one.publish(b"key", b"x" * 1_000_000)

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
        client.hold = lambda partition: True
        with publisher(client) as one:
            accepted = one.publish(b"key", b"x")
            one.drain()
            with pytest.raises(Refused):
                one.publish(b"key", b"x")
            while not client.held:
                await asyncio.sleep(0)
            client.release()
            assert await asyncio.wait_for(accepted, 5) is None

    asyncio.run(scenario())


HOUR = 3_600_000
CONFIG = {
    "min.insync.replicas": "2",
    "unclean.leader.election.enable": "false",
    "cleanup.policy": "delete",
    "message.timestamp.type": "LogAppendTime",
    "retention.ms": str(HOUR),
    "retention.bytes": "-1",
    "compression.type": "uncompressed",
    "max.message.bytes": str(MIN_MESSAGE_BYTES),
}


def well(*in_sync: int) -> Topic:
    """A topic whose partitions have so many replicas in sync."""
    partitions = tuple(Partition(number, 1, 3, count) for number, count in enumerate(in_sync))
    return Topic(uuid.UUID(int=1), partitions, CONFIG)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time as the publisher sees it."""
    now = [1000.0]
    monkeypatch.setattr("telemetry.producer.publisher.time.monotonic", lambda: now[0])
    return now


@contextmanager
def watched(client: Client) -> Iterator[tuple[KafkaPublisher, list[str]]]:
    """A publisher whose commits are made by hand, and what it gave up for."""
    reasons: list[str] = []
    one = KafkaPublisher(ProducerSettings.load(SETTINGS), Health("producer", "node1", "1"), lambda **_: client, reasons.append)
    one._partitions, one._client = 6, client
    yield one, reasons


def look(clock: list[float], since: float, topic: Topic, client: Client, uploads: int = 1) -> list[str]:
    """What a publisher gave up for that looks at its client `since` seconds after its first upload; one upload every 5 s."""

    async def scenario() -> list[str]:
        with watched(client) as (one, reasons):
            for _ in range(uploads):
                one.publish(b"key", b"x")
                one._commit()
                await asyncio.sleep(0)
                clock[0] += 5
            clock[0] = 1000.0 + since
            one._look_at_client(topic)
            await asyncio.sleep(0)
            assert ("client" in one._health._reasons) == bool(reasons)
            return reasons

    return asyncio.run(scenario())


def test_a_client_that_resolves_nothing_is_given_up(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("telemetry.producer.publisher.STRAGGLER_GRACE", 0.0)
    client = Client()
    client.hold = lambda partition: True
    assert look(clock, WEDGED - 1, well(3, 3), client) == []
    clock[0] = 1000.0
    assert "no outcome" in look(clock, WEDGED + 1, well(3, 3), client)[0]


@pytest.mark.parametrize(("seconds", "given_up"), [(WEDGED - 1, False), (WEDGED + 1, True)])
def test_a_client_that_never_connects_is_given_up(clock: list[float], seconds: float, given_up: bool) -> None:
    async def scenario() -> None:
        with watched(Client()) as (one, reasons):
            one._client = None
            one._connecting = clock[0]
            clock[0] += seconds
            one._look_at_client(well(3, 3))
            await asyncio.sleep(0)
            assert ["has been connecting for" in reason for reason in reasons] == [True] * given_up

    asyncio.run(scenario())


def test_a_client_that_fails_everything_is_given_up_only_if_kafka_can_be_written(clock: list[float]) -> None:
    client = Client()
    client.outcome = lambda value: NotEnoughReplicasError()
    assert "every upload has failed" in look(clock, 26, well(3, 3), client, uploads=6)[0]
    clock[0] = 1000.0
    assert look(clock, 26, well(1, 3), client, uploads=6) == []
    clock[0] = 1000.0
    # Nothing was sent for long: old failures say nothing of now
    assert look(clock, 60, well(3, 3), client, uploads=6) == []
    clock[0] = 1000.0
    assert look(clock, 16, well(3, 3), client, uploads=3) == []


def test_a_success_forgives_all_failures(clock: list[float]) -> None:
    client = Client()
    answers = iter([NotEnoughReplicasError()] * 5 + [object()])
    client.outcome = lambda value: next(answers)
    assert look(clock, 26, well(3, 3), client, uploads=6) == []


@pytest.mark.parametrize("live", [4, 8])
def test_another_number_of_partitions_is_a_fault_with_its_remedy(live: int) -> None:
    [fault] = faults(well(*[3] * live), "telemetry", 6, 3, 2, HOUR)
    assert f"has {live} partitions, kafka_topic_partitions is 6" in fault
    assert f"Set kafka_topic_partitions to {live}" in fault
    assert faults(well(*[3] * 6), "telemetry", 6, 3, 2, HOUR) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("min.insync.replicas", "1"),
        ("unclean.leader.election.enable", "true"),
        ("cleanup.policy", "compact"),
        ("cleanup.policy", "compact,delete"),
        ("message.timestamp.type", "CreateTime"),
        ("retention.ms", str(HOUR - 1)),
        ("retention.bytes", "1073741824"),
        ("compression.type", "producer"),
        ("max.message.bytes", str(MIN_MESSAGE_BYTES - 1)),
    ],
)
def test_a_setting_that_was_weakened_by_hand_is_named_with_its_remedy(key: str, value: str) -> None:
    topic = replace(well(*[3] * 6), config=CONFIG | {key: value})
    [fault] = faults(topic, "telemetry", 6, 3, 2, HOUR)
    assert f"has {key}={value}, not " in fault
    assert "run site.yml" in fault


def test_stronger_settings_and_a_longer_retention_are_no_fault() -> None:
    stronger = {"min.insync.replicas": "3", "retention.ms": "-1", "max.message.bytes": str(2 * MIN_MESSAGE_BYTES)}
    assert faults(replace(well(*[3] * 6), config=CONFIG | stronger), "telemetry", 6, 3, 2, HOUR) == []


def test_a_factor_that_was_lowered_by_hand_is_named() -> None:
    topic = replace(well(*[2] * 6), partitions=(Partition(0, 1, 2, 2), *well(*[3] * 6).partitions[1:]))
    [fault] = faults(topic, "telemetry", 6, 3, 2, HOUR)
    assert "factor 2, not 3" in fault


def test_the_client_is_made_as_the_promise_needs() -> None:
    made: list[dict[str, Any]] = []

    async def scenario() -> None:
        KafkaPublisher(ProducerSettings.load(SETTINGS), Health("producer", "node1", "1"), lambda **how: made.append(how))._connect()

    asyncio.run(scenario())
    [how] = made
    assert (how["acks"], how["enable_idempotence"], how["allow_auto_create_topics"]) == ("all", False, False)
    waits = [how["max_block_ms"], how["request_timeout_ms"], how["delivery_timeout_ms"], ANSWER_TIMEOUT * 1000]
    assert waits == [2000, 4000, 8000, 9000]
    assert how["metadata_max_age_ms"] == 5000
    assert how["max_request_size"] >= 4 * MAX_BODY
    assert how["batch_size"] <= 4 * MAX_BODY
    assert how["bootstrap_servers"] == ["127.0.0.1:1"]
    assert "linger_ms" not in how


@pytest.mark.parametrize("error", [ValueError("Unrecognized partition 7"), AssertionError(), RuntimeError()])
def test_whatever_send_raises_fails_its_upload_alone(error: Exception) -> None:
    async def scenario() -> None:
        client = Client()
        client.refused = lambda value: error if value == b"bad" else None
        with publisher(client) as one:
            good, bad, last = await outcomes(one, [b"good", b"bad", b"last"])
            assert (good, bad.status if bad else 0, last) == (None, 503, None)
            assert await outcomes(one, [b"later"]) == [None]
            assert one._threads[0].is_alive()

    asyncio.run(scenario())


def test_what_was_answered_before_it_was_sent_is_not_sent(clock: list[float]) -> None:
    async def scenario() -> None:
        client = Client()
        with watched(client) as (one, _):
            promise = one.publish(b"key", b"old")
            clock[0] += ANSWER_TIMEOUT
            for _ in range(3):
                await asyncio.sleep(0)
            refused = promise.result()
            assert refused is not None
            assert refused.error == "timeout"
            one._commit()
            await asyncio.sleep(0)
            assert (client.sent, one.waiting) == ([], 0)

    asyncio.run(scenario())


def test_a_partition_that_does_not_answer_delays_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    sick, well_key = b"0", next(b"%d" % n for n in range(99) if partition_of(b"%d" % n, 6) != partition_of(b"0", 6))

    async def scenario() -> None:
        client = Client()
        client.hold = lambda partition: partition == partition_of(sick, 6)
        with watched(client) as (one, _):
            monkeypatch.setattr("telemetry.producer.publisher.STRAGGLER_GRACE", 0.0)
            one.publish(sick, b"x")
            one._commit()
            # A commit that waited for it would not end
            monkeypatch.setattr("telemetry.producer.publisher.STRAGGLER_GRACE", 1e6)
            one.publish(sick, b"x")
            promise = one.publish(well_key, b"x")
            one._commit()
            await asyncio.sleep(0)
            assert promise.result() is None
            assert one.waiting == 2
            client.hold = lambda partition: False
            client.release()
            one._commit()
            await asyncio.sleep(0)
            assert one.waiting == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("min.insync.replicas", "1"),
        ("unclean.leader.election.enable", "true"),
        ("cleanup.policy", "compact"),
        ("message.timestamp.type", "CreateTime"),
        ("retention.ms", "1"),
        ("retention.bytes", "1"),
    ],
)
def test_nothing_is_acknowledged_while_the_topic_is_weaker_than_the_promise(key: str, value: str) -> None:
    async def scenario() -> None:
        with publisher(Client()) as one:
            assert not one._check(replace(well(*[3] * 6), config=CONFIG | {key: value}))
            with pytest.raises(Refused) as refused:
                one.publish(b"key", b"x")
            assert refused.value.status == 503
            assert f"{key}={value}, not " in refused.value.message
            assert one._check(well(*[3] * 6))
            assert await outcomes(one, [b"x"]) == [None]
            factor = replace(well(*[3] * 6), partitions=(Partition(0, 1, 2, 2), *well(*[3] * 6).partitions[1:]))
            assert not one._check(factor)
            with pytest.raises(Refused, match="factor 2, not 3"):
                one.publish(b"key", b"x")

    asyncio.run(scenario())


def test_what_does_not_weaken_the_promise_stops_no_upload() -> None:
    async def scenario() -> None:
        with publisher(Client()) as one:
            for changes in ({"compression.type": "producer"}, {"max.message.bytes": "1"}):
                assert not one._check(replace(well(*[3] * 6), config=CONFIG | changes))
                assert next(iter(changes)) in "".join(one._health.readiness()["reasons"])
                assert await outcomes(one, [b"x"]) == [None]

    asyncio.run(scenario())


def test_a_full_queue_is_degraded_while_some_are_taken_and_not_ready_when_none_is(clock: list[float]) -> None:
    async def pass_time(seconds: float) -> None:
        clock[0] += seconds
        for _ in range(3):
            await asyncio.sleep(0)

    async def scenario() -> None:
        client = Client()
        with watched(client) as (one, _):
            health = one._health
            health.clear("start")

            def refuse() -> None:
                with pytest.raises(Refused):
                    one.publish(b"key", b"x")

            for _ in range(5):
                one.publish(b"key", b"x")
            refuse()
            full = {"ready": True, "reasons": [], "degraded": health.readiness()["degraded"]}
            assert "too many wait" in full["degraded"][0]
            await pass_time(QUIET - 0.5)
            refuse()
            assert health.readiness() == full
            await pass_time(1)
            assert health.readiness()["reasons"] == ["no upload is taken: too many wait for Kafka"]
            # No timer and no refusal is needed to see that there is room again
            one._commit()
            await pass_time(1)
            assert health.readiness() == full
            await pass_time(QUIET)
            assert health.readiness() == {"ready": True, "reasons": [], "degraded": []}
            # Some are taken, some refused: degraded all the time, and never more
            for _ in range(30):
                for _ in range(5):
                    one.publish(b"key", b"x")
                refuse()
                one._commit()
                await pass_time(1)
                assert health.readiness() == full
            await pass_time(QUIET)
            assert health.readiness()["degraded"] == []

    asyncio.run(scenario())


def test_outcomes_are_told_by_two_threads_at_once() -> None:
    health = Health("producer", "node1", "1")
    outcomes = Outcomes(health, 8.0)

    def tell(first: int) -> None:
        for number in range(3000):
            outcomes.failed(first + number % 50, "Error", 1.0)
            outcomes.succeeded(first + number % 50, 2.0)
            outcomes.forget((), 20.0)

    threads = [threading.Thread(target=tell, args=(first,)) for first in (0, 25)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(75):
        outcomes.succeeded(number, 3.0)
    assert outcomes.failing == frozenset()
    assert outcomes.failures is None
    health.clear("start")
    assert health.readiness() == {"ready": True, "reasons": [], "degraded": []}


def test_arguments_that_the_client_does_not_take_are_named_and_end_no_thread() -> None:
    async def scenario() -> None:
        tried = threading.Event()
        client = Client()

        def make(**_: Any) -> Client:
            if not tried.is_set():
                tried.set()
                raise TypeError("unexpected keyword argument: secret")
            return client

        one = KafkaPublisher(ProducerSettings.load(SETTINGS), Health("producer", "node1", "1"), make)
        one._threads[0].start()
        try:
            while Reason.CLIENT not in one._health._reasons:
                await asyncio.sleep(0)
            text = one._health._reasons[Reason.CLIENT]
            assert "see kafka_client: TypeError at " in text
            assert "secret" not in text
            with one._condition:
                one._condition.notify()
            one._partitions = 6
            while one._client is None:
                await asyncio.sleep(0)
            assert await outcomes(one, [b"x"]) == [None]
        finally:
            one.close()

    asyncio.run(scenario())


def test_a_size_that_kafka_refuses_lets_the_settings_be_looked_at_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    weak = {"max.message.bytes": "1000"}
    live = [CONFIG]

    def describe(admin: Any, name: str, known: Any) -> Topic:
        asked.append(known is None)
        return replace(well(*[3] * 6), config=live[0] if known is None else known)

    class Admin:
        def close(self) -> None:
            """Nothing to close."""

    monkeypatch.setattr("telemetry.producer.publisher.PARTITION_CHECK_INTERVAL", 0.001)
    monkeypatch.setattr("telemetry.producer.publisher.topics.describe", describe)
    monkeypatch.setattr("telemetry.clients.connect_admin", lambda *_: Admin())

    async def scenario() -> None:
        client = Client()
        client.outcome = lambda value: MessageSizeTooLargeError()
        with publisher(client) as one:
            one._threads[1].start()
            while len(asked) < 3:
                await asyncio.sleep(0)
            assert asked[:3] == [True, False, False]
            live[0] = CONFIG | weak
            [refused] = await outcomes(one, [b"x"])
            assert refused is not None
            while not any("max.message.bytes=1000" in reason for reason in one._health.readiness()["reasons"]):
                await asyncio.sleep(0)

    asyncio.run(scenario())
