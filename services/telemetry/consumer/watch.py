"""What is seen from beside the worker's loop, also while that loop waits for Postgres.

Whether Kafka answers, whether a call of the store takes long, how much is unread and since when, and who else is in the group.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError

from telemetry import topic as topics
from telemetry.clients import client_errors, connect_admin, error_text, make_client, options
from telemetry.consumer.resume import Stored, oldest_unread
from telemetry.consumer.worker import Worker
from telemetry.health import Health, Reason
from telemetry.metrics import ConsumerMetrics
from telemetry.settings import ConsumerSettings

log = logging.getLogger(__name__)

SLOW_CALL, HUNG_CALL = 5.0, 30.0
"""Seconds after which a call of the store is told in /readyz, and is broken off."""
OFFSETS_TIMEOUT = 2.0
"""Seconds that one leader may take to say what its logs hold."""
FAILED_LOOKS = 3
"""Looks in a row without an answer before /readyz says that Kafka cannot be reached. Each asks some broker."""
MEMBERS_INTERVAL = 15.0
"""Seconds between two looks at who is in the group."""
CLIENT_ID = "consumer-"
"""How the client ids of consumers begin; members of the group with other ids are not consumers."""


class Member(NamedTuple):
    """A member of the consumer group, and the partitions of our topic that it was assigned."""

    client_id: str
    host: str
    partitions: tuple[int, ...]


class View(Protocol):
    """What can be asked of Kafka. Every method raises KafkaError or OSError."""

    def describe(self) -> topics.Topic | None:
        """The topic; None if there is none."""

    def end_offsets(self, partitions: list[int]) -> dict[int, int]:
        """Where logs of one leader end."""

    def first_since(self, times: dict[int, int]) -> dict[int, tuple[int, int]]:
        """Offset and append time (ms since 1970) of the first records appended at or after the times, where there are any."""

    def members(self) -> list[Member]:
        """Of the consumer group."""


class KafkaView:
    """By clients of its own: one asks any broker, and is made again after an error, for it would ask the same again.

    The other asks leaders, one of which may be silent while the others answer.
    """

    def __init__(self, settings: ConsumerSettings) -> None:
        self._settings = settings
        self._clients: dict[Callable[[], Any], Any] = {}

    def _make_admin(self) -> Any:
        return connect_admin(self._settings, f"{CLIENT_ID}{self._settings.name}-admin", topics.ASK_TIMEOUT)

    def _make_reader(self) -> Any:
        return make_client(
            KafkaConsumer, enable_auto_commit=False, auto_offset_reset="none", metadata_max_age_ms=5_000, metrics_enabled=False,
            reconnect_backoff_max_ms=1000, **options(self._settings, f"{CLIENT_ID}{self._settings.name}-offsets"),
        )  # fmt: skip

    @contextlib.contextmanager
    def _client(self, make: Callable[[], Any]) -> Iterator[Any]:
        try:
            with client_errors():
                if make not in self._clients:
                    self._clients[make] = make()
                yield self._clients[make]
        except (KafkaError, OSError) as error:
            if make == self._make_reader and isinstance(error, KafkaTimeoutError):
                raise
            if (client := self._clients.pop(make, None)) is not None:
                with contextlib.suppress(KafkaError, OSError, RuntimeError):
                    client.close()
            raise

    def _partition(self, number: int) -> TopicPartition:
        return TopicPartition(self._settings.topic, number)

    def describe(self) -> topics.Topic | None:
        """See View."""
        with self._client(self._make_admin) as admin:
            return topics.describe(admin, self._settings.topic, {})

    def end_offsets(self, partitions: list[int]) -> dict[int, int]:
        """See View."""
        with self._client(self._make_reader) as reader:
            ends = reader.end_offsets([self._partition(each) for each in partitions], timeout_ms=int(OFFSETS_TIMEOUT * 1000))
        return {each.partition: end for each, end in ends.items()}

    def first_since(self, times: dict[int, int]) -> dict[int, tuple[int, int]]:
        """See View."""
        wanted = {self._partition(number): timestamp for number, timestamp in times.items()}
        with self._client(self._make_reader) as reader:
            firsts = reader.offsets_for_times(wanted, timeout_ms=int(OFFSETS_TIMEOUT * 1000))
        return {each.partition: (first.offset, first.timestamp) for each, first in firsts.items() if first is not None}

    def members(self) -> list[Member]:
        """See View."""
        group = self._settings.group
        with self._client(self._make_admin) as admin:
            described = admin.describe_groups([group])[group]
            if described["error"]:
                raise KafkaError(described["error"])
            return [self._member(each) for each in described["members"]]

    def _member(self, described: dict[str, Any]) -> Member:
        # While the group assigns, there is no assignment
        assigned = (described["member_assignment"] or {}).get("assigned_partitions", [])
        numbers = [number for each in assigned if each["topic"] == self._settings.topic for number in each["partitions"]]
        return Member(described["client_id"], described["client_host"].lstrip("/"), tuple(sorted(numbers)))


class Watch:
    """Looks at one worker and its surroundings; look() is called every few seconds, by a thread of its own."""

    def __init__(  # noqa: PLR0913  # clocks are arguments
        self,
        settings: ConsumerSettings,
        worker: Worker,
        break_off: Callable[[], object],
        view: View,
        health: Health,
        metrics: ConsumerMetrics,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`break_off` ends a call of the store that is under way in the worker."""
        self._settings, self._worker, self._break_off, self._view = settings, worker, break_off, view
        self._health, self._metrics, self._clock, self._wall = health, metrics, clock, wall
        self._known: dict[int, tuple[Stored, float | None]] = {}
        """Of each partition: what was stored, and when the oldest unread record was appended (ms since 1970).

        None where that is not known; infinity where nothing was unread.
        """
        self._shown: set[int] = set()
        self._failed_looks = 0
        self._members_due = -math.inf

    def look(self) -> None:
        """One look at Kafka."""
        topic = self._look_at_topic()
        stored = dict(self._worker.stored)
        if topic is not None:
            self._look_at_logs(topic, stored)
            self._look_at_members()
        self._show_ages(stored)

    def look_at_store(self) -> None:
        """Tell of a call of the store that takes long, and break it off at last. Asks nobody, and may be called often."""
        since = self._worker.store_call_since
        if since is not None and self._clock() - since > SLOW_CALL:
            self._worker.doubt_store("Postgres does not answer")
            if self._clock() - since > HUNG_CALL:
                self._break_off()

    def _look_at_topic(self) -> topics.Topic | None:
        try:
            topic = self._view.describe()
        except (KafkaError, OSError) as error:
            # One broker that is silent may be asked by chance
            self._failed_looks += 1
            if self._failed_looks >= FAILED_LOOKS:
                servers = ",".join(self._settings.bootstrap_servers)
                self._health.set_reason(Reason.KAFKA, f"Kafka cannot be reached at {servers}: {error_text(error)}")
            return None
        self._failed_looks = 0
        if topic is None:
            self._health.set_reason(Reason.KAFKA, topics.missing(self._settings.topic))
            return None
        self._health.clear(Reason.KAFKA)
        self._worker.live_topic_id = topic.topic_id
        return topic

    # What is unread

    def _look_at_logs(self, topic: topics.Topic, stored: dict[int, Stored]) -> None:
        """Ask how much of each assigned partition is unread, and since when. Where no leader answers, lag stays and age grows."""
        led: dict[int, list[int]] = {}
        for each in topic.partitions:
            if each.number in stored and each.leader >= 0:
                led.setdefault(each.leader, []).append(each.number)
        for leader, numbers in sorted(led.items()):
            try:
                self._ask_unread({number: stored[number] for number in numbers})
            except (KafkaError, OSError) as error:
                log.info("broker %d does not say what its logs hold: %s", leader, error_text(error))

    def _show_ages(self, stored: dict[int, Stored]) -> None:
        for number, place in stored.items():
            known = self._known.get(number)
            # What was stored since Kafka was last asked may have been the oldest
            if known is not None and known[0] == place:
                self._show_age(number, known[1])
        for number in self._shown - self._worker.stored.keys():
            self._forget(number)
        self._shown = set(stored)

    def _ask_unread(self, stored: dict[int, Stored]) -> None:
        ends = self._view.end_offsets(sorted(stored))
        times: dict[int, int] = {}
        for number, place in stored.items():
            known = self._known.get(number)
            self._metrics.lag.labels(str(number)).set(max(0, ends[number] - place.next))
            if ends[number] <= place.next:
                self._known[number] = (place, math.inf)
            elif known is None or known == (place, math.inf) or known[0] != place:
                times[number] = 0 if place.timestamp is None else place.timestamp + 1
        if times:
            firsts = self._view.first_since(times)
            for number in times:
                self._known[number] = (stored[number], oldest_unread(stored[number], firsts.get(number)))

    def _show_age(self, number: int, appended: float | None) -> None:
        if appended is None:
            self._health.set_degraded(Reason.UNREAD.of(number), None)
            with contextlib.suppress(KeyError):
                self._metrics.oldest_unread.remove(str(number))
            return
        age, retention = max(0.0, self._wall() - appended / 1000), self._settings.topic_retention_ms / 1000
        self._metrics.oldest_unread.labels(str(number)).set(age)
        text = (
            f"partition {number} of {self._settings.topic}: its oldest unread record is {age / 3600:.1f} h old, and Kafka deletes "
            f"records that are {retention / 3600:.1f} h old. See why it is not read, or raise kafka_topic_retention_hours"
        )
        self._health.set_degraded(Reason.UNREAD.of(number), text if age > retention / 2 else None)

    def _forget(self, number: int) -> None:
        """A partition that is not ours any more."""
        self._known.pop(number, None)
        self._health.set_degraded(Reason.UNREAD.of(number), None)
        for each in (self._metrics.lag, self._metrics.oldest_unread):
            with contextlib.suppress(KeyError):
                each.remove(str(number))

    # Who else is in the group

    def _look_at_members(self) -> None:
        if self._clock() < self._members_due:
            return
        self._members_due = self._clock() + MEMBERS_INTERVAL
        try:
            members = self._view.members()
        except (KafkaError, OSError) as error:
            log.info("the coordinator of group %s does not say who is in it: %s", self._settings.group, error_text(error))
            return
        foreign = [each for each in members if each.partitions and not each.client_id.startswith(CLIENT_ID)]
        where = "; ".join(f"{list(each.partitions)} by {each.client_id} at {each.host}" for each in foreign)
        text = (
            f"partitions of {self._settings.topic} are assigned to others than consumers, and not stored: {where}. "
            f"Give them another group than {self._settings.group}, or set consumer_group to another name"
        )
        self._health.set_degraded(Reason.MEMBERS, text if foreign else None)
        self._metrics.foreign_partitions.set(sum(len(each.partitions) for each in foreign))
