"""Kafka's clients in memory, as far as the product uses them. What their arguments say is what they get."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

from kafka import TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.errors import (
    CorruptRecordError,
    KafkaConnectionError,
    KafkaTimeoutError,
    LogTruncationError,
    MessageSizeTooLargeError,
    NotLeaderForPartitionError,
    OffsetOutOfRangeError,
    UnknownTopicOrPartitionError,
)
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords

from simulation.clocks import Clock
from simulation.kafka import CONFIG, PARTITIONS, TOPIC, Cluster, Content, Entry, Message, OffsetAndTimestamp, Partition, Replica
from simulation.kernel import Process, Scheduler

Result = TypeVar("Result")

RETRY_BACKOFF = 0.1
"""Seconds between a client's requests for offsets."""
FOR_EVER = 1e9
LARGEST_BATCH = 1 << 20


def named(partition: Partition) -> TopicPartition:
    """As clients call it."""
    return TopicPartition(TOPIC, partition.number)


def fetched(number: int, offset: int, entry: Entry, damaged: bool) -> list[Message]:
    """What the client's own reader makes of the bytes that a broker sends for an entry. Raises what that raises."""
    builder = DefaultRecordBatchBuilder(2, 0, False, -1, -1, -1, LARGEST_BATCH)
    builder.append(0, entry.timestamp, entry.key, entry.value, entry.headers)
    batch = bytearray(builder.build())
    struct.pack_into("!q", batch, 0, offset)
    if damaged:
        batch[DefaultRecordBatch.CRC_OFFSET] ^= 1
    reader = Fetcher.PartitionRecords(offset, TopicPartition(TOPIC, number), MemoryRecords(bytes(batch)))
    return [Message(each.offset, each.timestamp, each.key, each.value, each.headers) for each in reader.take()]


class ConsumerClient:
    """As much of a KafkaConsumer as the consumer uses. One that has raised CorruptRecordError hangs at its next poll."""

    def __init__(self, cluster: Cluster, **configuration: Any) -> None:
        process = cluster.scheduler.current
        assert process is not None
        self.process: Process = process
        self._cluster = cluster
        assert configuration["auto_offset_reset"] == "none", "this client has no other"
        assert not configuration["enable_auto_commit"], "this client never commits"
        self._most, self._timeout = configuration.get("max_poll_records", 500), configuration["request_timeout_ms"]
        self.client_id = configuration["client_id"]
        self._positions: dict[int, int] = {}
        self._paused: set[int] = set()
        self._generation = 0
        self._listener: Any = None
        self._error: Exception | None = None
        """What the next poll raises: another partition's records were returned first."""
        self._broken = self._assigned = False
        process.step()
        if not cluster.answers(process):
            raise KafkaConnectionError("no broker answers")
        process.sleep(cluster.delay())

    def subscribe(self, topics: list[str], listener: Any) -> None:
        """See KafkaConsumer."""
        assert topics == [TOPIC]
        self._listener = listener

    def assign(self, partitions: list[TopicPartition]) -> None:
        """See KafkaConsumer: these partitions, without a group."""
        self._assigned = True
        self._positions = {each.partition: 0 for each in partitions}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """See KafkaConsumer."""
        self._positions[self._mine(partition)] = offset

    def pause(self, *partitions: TopicPartition) -> None:
        """See KafkaConsumer."""
        self._paused.update(map(self._mine, partitions))

    def resume(self, *partitions: TopicPartition) -> None:
        """See KafkaConsumer."""
        self._paused.difference_update(map(self._mine, partitions))

    def position(self, partition: TopicPartition, timeout_ms: int | None = None) -> int:
        """See KafkaConsumer: a position that was sought, or where the last poll ended, is known without a request."""
        return self._positions[self._mine(partition)]

    def highwater(self, partition: TopicPartition) -> int | None:
        """See KafkaConsumer."""
        if self._mine(partition) >= len(self._cluster.partitions):
            return None
        return max(int(replica.high) for replica in self._cluster.partitions[partition.partition].replicas.values())

    def beginning_offsets(self, partitions: list[TopicPartition], timeout_ms: int | None = None) -> dict[TopicPartition, int]:
        """See KafkaConsumer: a request to each leader. Raises KafkaTimeoutError for all when one does not answer in time.

        Where some have a leader and others have none, the real client forgets to ask for these and raises KeyError.
        """
        return self._offsets(partitions, timeout_ms, lambda partition, replica: partition.start, forgetful=True)

    def end_offsets(self, partitions: list[TopicPartition], timeout_ms: int | None = None) -> dict[TopicPartition, int]:
        """See beginning_offsets."""
        return self._offsets(partitions, timeout_ms, lambda partition, replica: replica.high, forgetful=True)

    def offsets_for_times(
        self, timestamps: dict[TopicPartition, int], timeout_ms: int | None = None
    ) -> dict[TopicPartition, OffsetAndTimestamp | None]:
        """See beginning_offsets: of each partition the first record that can be read and was appended at a time or later."""
        return self._offsets(
            list(timestamps), timeout_ms, lambda partition, replica: partition.first_since(replica, timestamps[named(partition)])
        )

    def _offsets(
        self,
        partitions: list[TopicPartition],
        timeout_ms: int | None,
        tell: Callable[[Partition, Replica], Result],
        forgetful: bool = False,
    ) -> dict[TopicPartition, Result]:
        end = self._cluster.scheduler.now + (self._timeout if timeout_ms is None else timeout_ms) / 1000
        while True:
            self.process.sleep(self._cluster.delay())
            found = {}
            for each in partitions:
                replica = self._leader(each.partition)
                if replica is not None and replica.high >= replica.begun_at:
                    found[each] = tell(self._cluster.partitions[each.partition], replica)
            if len(found) == len(partitions):
                return found
            missing = [each for each in partitions if each not in found]
            if forgetful and found and not any(map(self._is_led, missing)):
                raise KeyError(missing[0])
            left = end - self._cluster.scheduler.now
            if left <= 0:
                raise KafkaTimeoutError(f"Failed to get offsets by timestamps in {timeout_ms} ms")
            self.process.sleep(min(left, RETRY_BACKOFF))

    def poll(self, timeout_ms: int = 0, max_records: int | None = None) -> dict[TopicPartition, list[Message]]:
        """See KafkaConsumer: at most `max_records` of all partitions together; what a leader does not answer is not among them."""
        cluster, process = self._cluster, self.process
        process.step()
        if cluster.break_poll:
            cluster.break_poll = False
            cluster.scheduler.happen("a client breaks", "the client breaks")
            raise KafkaConnectionError("the client broke")
        if self._broken:
            process.sleep(FOR_EVER)
        end = cluster.scheduler.now + timeout_ms / 1000
        while True:
            self._meet()
            if self._error is not None:
                error, self._error = self._error, None
                self._broken = isinstance(error, CorruptRecordError)
                raise error
            if self._readable():
                process.sleep(cluster.delay())
                if found := self._take(self._most if max_records is None else max_records):
                    return found
            # Even a poll that does not wait takes time
            if not process.wait(cluster.readers, max(1e-4, end - cluster.scheduler.now)) or cluster.scheduler.now >= end:
                return {}

    def close(self, autocommit: bool = True, timeout_ms: int | None = None) -> None:
        """See KafkaConsumer."""
        self.process.step()
        self._cluster.group.leave(self)

    def truncated(self, number: int, end: int) -> None:
        """A partition's log ends at an offset now; the brokers tell a client that was beyond."""
        if self._positions.get(number, 0) > end:
            self._error = LogTruncationError({TopicPartition(TOPIC, number): None})

    def _mine(self, partition: TopicPartition) -> int:
        """A partition's number; the real client refuses one that is not assigned."""
        assert partition.topic == TOPIC
        assert partition.partition in self._positions
        return int(partition.partition)

    def _meet(self) -> None:
        """Do what the group asks for."""
        group = self._cluster.group
        if self._assigned or not self._cluster.answers(self.process):
            return
        if not group.knows(self):
            if self._generation:
                gone, self._positions = self._parts(self._positions), {}
                self._listener.on_partitions_lost(gone)
            group.ask(self)
        elif group.must_ask(self):
            self._listener.on_partitions_revoked(self._parts(self._positions))
            self._positions = {}
            group.ask(self)
        if group.settled and self._generation != group.generation:
            self._generation = group.generation
            self._positions = dict.fromkeys(group.share(self), 0)
            self._paused.clear()
            self._listener.on_partitions_assigned(self._parts(self._positions))

    def _parts(self, numbers: Iterable[int]) -> list[TopicPartition]:
        return [TopicPartition(TOPIC, number) for number in numbers]

    def _is_led(self, partition: TopicPartition) -> bool:
        """Whether the controller says so."""
        number = partition.partition
        return bool(number < len(self._cluster.partitions) and self._cluster.partitions[number].leader != -1)

    def _leader(self, number: int) -> Replica | None:
        """The replica that answers this client as the leader."""
        if number >= len(self._cluster.partitions):
            return None
        for broker, replica in self._cluster.partitions[number].replicas.items():
            if replica.leads and self._cluster.reaches(self.process, broker):
                return replica
        return None

    def _readable(self) -> list[tuple[int, Replica]]:
        found = []
        for number, position in self._positions.items():
            if number not in self._paused and (replica := self._leader(number)) is not None:
                if not self._cluster.partitions[number].start <= position <= len(replica.log):
                    raise OffsetOutOfRangeError({TopicPartition(TOPIC, number): position})
                if position < replica.high:
                    found.append((number, replica))
        return found

    def _take(self, most: int) -> dict[TopicPartition, list[Message]]:
        found: dict[TopicPartition, list[Message]] = {}
        rng = self._cluster.rng
        for number, replica in self._readable():
            # Bytes bound an answer too, and the next one begins where it ended
            left = most - sum(map(len, found.values()))
            position = self._positions[number]
            end = min(replica.high, position + min(left, most if rng.random() < 0.5 else rng.randint(1, 3)))
            try:
                messages = self._unpacked(number, position, replica.log[position:end])
            except CorruptRecordError as error:
                if not found:
                    self._broken = True
                    raise
                self._error = error
                break
            if messages:
                found[TopicPartition(TOPIC, number)] = messages
                self._positions[number] = position + len(messages)
        return found

    def _unpacked(self, number: int, position: int, entries: list[Entry]) -> list[Message]:
        """Records up to the first that cannot be read; raises CorruptRecordError if that is the first of all."""
        messages: list[Message] = []
        for offset, entry in enumerate(entries, position):
            try:
                damaged = entry.name in self._cluster.damaged
                if damaged or any(type(name) is not str for name, _ in entry.headers):
                    messages += fetched(number, offset, entry, damaged)
                else:
                    messages.append(Message(offset, *entry[1:]))
            except CorruptRecordError:
                if not messages:
                    raise
                break
        return messages


class RecordMetadata(NamedTuple):
    """Where a record went."""

    topic: str
    partition: int
    offset: int


class Future:
    """What send() returns: see FutureRecordMetadata."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._callbacks: list[Callable[[Any], None]] = []
        self._waiters: list[Callable[[], None]] = []
        self.result: Any = None
        """A RecordMetadata, or an exception."""
        self.done = False

    def add_both(self, callback: Callable[[Any], None]) -> None:
        """See kafka.future: called at once if it is done, and with what it is done with."""
        if self.done:
            callback(self.result)
        else:
            self._callbacks.append(callback)

    def get(self, timeout: float | None = None) -> RecordMetadata:
        """See FutureRecordMetadata; for threads."""
        if not self.done and not self._process.wait(self._waiters, timeout):
            raise KafkaTimeoutError(f"Timeout after waiting for {timeout} secs.")
        if isinstance(self.result, BaseException):
            raise self.result
        metadata: RecordMetadata = self.result
        return metadata

    def resolve(self, result: RecordMetadata | Exception) -> None:
        """Tell it."""
        if not self.done:
            self.done, self.result = True, result
            for call in self._waiters:
                call()
            for callback in self._callbacks:
                callback(result)


class ProducerClient:
    """As much of a KafkaProducer as the publisher uses. What is not confirmed is sent again until its time is over.

    Records that are under way together have no order; the real one's have one while nothing is sent again.
    """

    def __init__(self, cluster: Cluster, **configuration: Any) -> None:
        process = cluster.scheduler.current
        assert process is not None
        self.process: Process = process
        self._cluster, self._scheduler = cluster, cluster.scheduler
        self._acks = configuration["acks"]
        assert not configuration["enable_idempotence"], "this client has none"
        self._request, self._delivery = configuration["request_timeout_ms"] / 1000, configuration["delivery_timeout_ms"] / 1000
        self._backoff = configuration["retry_backoff_ms"] / 1000
        self._largest = configuration["max_request_size"]
        self._leaders: dict[int, int] = {}
        process.step()
        if not cluster.answers(process):
            raise KafkaConnectionError("no broker answers")

    def send(
        self,
        topic: str,
        value: bytes | None = None,
        key: bytes | None = None,
        headers: list[tuple[str, bytes]] | None = None,
        partition: int | None = None,
    ) -> Future:
        """See KafkaProducer. Outcomes come later, in the client's own thread; a size or a partition that is wrong raises."""
        assert topic == TOPIC
        assert partition is not None, "this client does not choose partitions"
        self.process.step()
        if len(value or b"") > self._largest:
            raise MessageSizeTooLargeError(f"The message is {len(value or b'')} bytes, which is larger than {self._largest}")
        if self._cluster.there and partition >= len(self._cluster.partitions):
            raise ValueError("Unrecognized partition")
        future = Future(self.process)
        timeout = KafkaTimeoutError("not delivered in time")
        self._scheduler.after(self._delivery, future.resolve, timeout, process=self.process)
        self._try(future, partition, (key, value, headers or []))
        return future

    def close(self, timeout: float | None = None) -> None:
        """See KafkaProducer: what is under way is given up."""

    def _try(self, future: Future, number: int, content: Content) -> None:
        """Send a request to whom this client takes for the leader, and look what comes of it."""
        if future.done:
            return
        cluster, scheduler = self._cluster, self._scheduler
        if not cluster.there:
            scheduler.after(self._backoff, self._try, future, number, content, process=self.process)
            return
        broker = self._leaders.setdefault(number, cluster.partitions[number].leader)
        over = False

        def settle(outcome: Exception | int) -> None:
            nonlocal over
            if over:
                return
            over = True
            if isinstance(outcome, int):
                future.resolve(RecordMetadata(TOPIC, number, outcome))
            else:
                self._leaders.pop(number, None)
                scheduler.after(self._backoff, self._try, future, number, content, process=self.process)

        def answer(outcome: Exception | int) -> None:
            if not cluster.lost() and not cluster.silent(self.process, broker):
                scheduler.after(cluster.delay(), settle, outcome, process=self.process)

        if broker == -1:
            settle(NotLeaderForPartitionError())
            return
        if not cluster.lost() and not cluster.silent(self.process, broker):
            scheduler.after(cluster.delay(), cluster.append, number, broker, content, self._acks, answer)
        scheduler.after(self._request, settle, KafkaTimeoutError("no answer"), process=self.process)


class AdminClient:
    """As much of a KafkaAdminClient as topic.describe uses. Any broker that answers tells what the controller knows."""

    def __init__(self, cluster: Cluster, **_: Any) -> None:
        self._cluster = cluster
        self._ask()

    def _ask(self) -> None:
        process = self._cluster.scheduler.current
        assert process is not None
        process.sleep(self._cluster.delay())
        if not self._cluster.answers(process):
            raise KafkaConnectionError("no broker answers")

    def describe_topics(self, topics: list[str]) -> list[dict[str, Any]]:
        """See KafkaAdminClient."""
        self._ask()
        cluster = self._cluster
        if topics != [TOPIC] or not cluster.there:
            unknown = UnknownTopicOrPartitionError.errno
            return [{"error_code": unknown, "name": name, "topic_id": uuid.UUID(int=0), "partitions": []} for name in topics]
        partitions = [
            {
                "error_code": 0,
                "partition_index": each.number,
                "leader_id": each.leader,
                "replica_nodes": list(each.replicas),
                "isr_nodes": sorted(each.in_sync),
            }
            for each in cluster.partitions
        ]
        return [{"error_code": 0, "name": TOPIC, "topic_id": cluster.topic_id, "partitions": partitions}]

    def describe_configs(self, resources: list[Any], config_filter: str) -> dict[str, dict[str, dict[str, Any]]]:
        """See KafkaAdminClient."""
        self._ask()
        return {"topic": {each.name: {key: {"value": value} for key, value in CONFIG.items()} for each in resources}}

    def describe_groups(self, group_ids: list[str]) -> dict[str, dict[str, Any]]:
        """See KafkaAdminClient. There is one group, whatever it is called."""
        self._ask()
        group = self._cluster.group
        members = [
            {"client_id": each.client_id, "client_host": f"/{each.process.name}", "member_assignment": group.assignment(each)}
            for each in group.members()
        ]
        return {name: {"error": None, "members": members} for name in group_ids}

    def close(self) -> None:
        """See KafkaAdminClient."""


class Bench:
    """A cluster alone, for tests: what a thread does with its clients is done to its end, in virtual time."""

    def __init__(self, brokers: int = 3, partitions: int = PARTITIONS, seed: int = 0) -> None:
        self.scheduler = Scheduler(seed)
        clocks = {number: Clock(self.scheduler) for number in range(1, brokers + 1)}
        self.cluster = Cluster(self.scheduler, clocks, partitions)
        self.process = Process(self.scheduler, "bench", Clock(self.scheduler))

    def run(self, call: Callable[[], Result], seconds: float = 600.0) -> Result:
        """The result of a call, which may make clients and use them; raises what it raises, and TimeoutError when it hangs."""
        done: list[tuple[Any, Exception | None]] = []

        def perform() -> None:
            try:
                done.append((call(), None))
            except Exception as error:
                done.append((None, error))

        self.process.spawn(perform)
        self.scheduler.run(self.scheduler.now + seconds, lambda: bool(done))
        if not done:
            raise TimeoutError(f"the call has not returned for {seconds:g} s")
        result, error = done[0]
        if error is not None:
            raise error
        returned: Result = result
        return returned
