"""Which broker leads a partition whose brokers in sync have lost their data, and where that would lose records."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

PLUGIN = Path(__file__).resolve().parents[2] / "roles/kafka/filter_plugins/kafka.py"
spec = importlib.util.spec_from_file_location("kafka_filters", PLUGIN)
assert spec
assert spec.loader
kafka = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kafka)

DESCRIBED = """\
Topic: telemetry\tTopicId: x\tPartitionCount: 3\tReplicationFactor: 3\tConfigs: min.insync.replicas=2,retention.ms=604800000
\tTopic: telemetry\tPartition: 0\tLeader: none\tReplicas: 1,2,3\tIsr: 3\tElr: N/A\tLastKnownElr: N/A
\tTopic: telemetry\tPartition: 1\tLeader: 2\tReplicas: 2,3,1\tIsr: 2,3\tElr: N/A\tLastKnownElr: N/A
\tTopic: telemetry\tPartition: 2\tLeader: none\tReplicas: 3,1,2\tIsr: 1,3\tElr: N/A\tLastKnownElr: N/A
"""


def partition(isr: list[int], leader: int | None = None, configs: dict[str, str] | None = None) -> dict[str, Any]:
    """The topics with one partition of three replicas."""
    one = {"leader": leader, "replicas": [1, 2, 3], "isr": isr, "adding": [], "moving": False}
    return {"telemetry": {"configs": configs or {"min.insync.replicas": "2"}, "partitions": {0: one}}}


def elections(isr: list[int], ends: dict[int, tuple[int, int]], whole: list[int], insync: int = 2, accepted: str = "") -> Any:
    """Who is to lead the partition of `partition`."""
    topics = partition(isr, configs={"retention.ms": "1"})
    return kafka.kafka_elections(kafka.kafka_stuck(topics, ends), {"telemetry-0": ends}, whole, insync, accepted)


def test_partitions_wait_for_a_broker_that_serves() -> None:
    topics = kafka.kafka_topics(DESCRIBED)
    assert kafka.kafka_waiting(topics, [1, 2], [3]) == [
        "broker 3, which has no data, still counts as in sync in telemetry-1",
        "broker 1 does not lead telemetry-2 yet",
    ]
    assert kafka.kafka_waiting(partition([1, 2], leader=1), [1, 2], [3]) == []


def test_a_partition_is_stuck_where_nobody_who_serves_was_in_sync() -> None:
    assert list(kafka.kafka_stuck(kafka.kafka_topics(DESCRIBED), [1, 2])) == ["telemetry-0"]
    assert kafka.kafka_stuck(partition([2], leader=2), ["1", "2"]) == {}


def test_the_check_before_a_roll_leaves_out_what_the_run_brings_back() -> None:
    stuck = partition([3])
    assert kafka.kafka_behind(stuck, [1, 2]) == [
        "broker 1 lacks 1 partition (telemetry-0)",
        "broker 2 lacks 1 partition (telemetry-0)",
        "no broker leads 1 partition (telemetry-0)",
    ]
    assert kafka.kafka_behind(stuck, [1, 2], [3]) == []


def test_logs_end_where_brokers_say() -> None:
    said = {"1": "telemetry-0 7 1234\ntelemetry-1 -1 0\n", "2": "telemetry-0 8 1200\n", "3": ""}
    assert kafka.kafka_ends(said) == {"telemetry-0": {1: (7, 1234), 2: (8, 1200)}, "telemetry-1": {1: (-1, 0)}}


def test_the_later_epoch_leads_and_within_an_epoch_the_longer_log() -> None:
    assert elections([3], {1: (7, 1234), 2: (8, 1200)}, [1, 2]) == {"leaders": ["telemetry:0:2"], "losing": []}
    assert elections([3], {1: (8, 1234), 2: (8, 1200)}, [1, 2]) == {"leaders": ["telemetry:0:1"], "losing": []}


def test_as_many_lost_disks_as_have_to_have_a_record_are_refused_unless_accepted() -> None:
    assert elections([2, 3], {1: (7, 1)}, [1]) == {"leaders": [], "losing": ["telemetry-0"]}
    assert elections([3], {1: (7, 1), 2: (7, 1)}, [1, 2], insync=1) == {"leaders": [], "losing": ["telemetry-0"]}
    assert elections([2, 3], {1: (7, 1)}, [1], accepted="all") == {"leaders": ["telemetry:0:1"], "losing": []}
    assert elections([2, 3], {1: (7, 1)}, [1], accepted="other-1, telemetry-0")["leaders"] == ["telemetry:0:1"]
    assert elections([2, 3], {1: (7, 1)}, [1], accepted="telemetry-1")["losing"] == ["telemetry-0"]
    # Nobody is left to lead: the brokers without data may
    assert elections([2, 3], {}, [], accepted="all") == {"leaders": [], "losing": []}


def test_who_began_without_data_and_did_not_catch_up_counts_as_lost() -> None:
    assert elections([3], {1: (7, 1000), 2: (8, 1)}, [1]) == {"leaders": [], "losing": ["telemetry-0"]}


def test_the_topic_s_own_minimum_counts() -> None:
    stuck = kafka.kafka_stuck(partition([3], configs={"min.insync.replicas": "1"}), [1, 2])
    assert kafka.kafka_elections(stuck, {"telemetry-0": {1: (1, 1), 2: (1, 1)}}, [1, 2], 2, "")["losing"] == ["telemetry-0"]


class Replicas:
    """A partition of some brokers as Kafka has it: a record is acknowledged once all in sync have it, and they are enough."""

    def __init__(self, insync: int) -> None:
        self.insync, self.epoch = insync, 0
        self.logs: dict[int, list[tuple[int, int]]] = {1: [], 2: [], 3: []}
        self.up, self.isr, self.leader = {1, 2, 3}, {1, 2, 3}, 1
        self.acknowledged: list[tuple[int, int]] = []
        self.made = 0

    def write(self, reach: set[int]) -> None:
        """The leader appends a record, and some followers have it at once; without the others nobody is told."""
        if self.leader not in self.up or len(self.isr) < self.insync:
            return
        self.made += 1
        self.logs[self.leader].append((self.epoch, self.made))
        for broker in self.up & reach:
            self.logs[broker] = list(self.logs[self.leader])
        if all(self.logs[broker] == self.logs[self.leader] for broker in self.isr):
            self.acknowledged = list(self.logs[self.leader])

    def stop(self, broker: int) -> None:
        """A broker stops; the others go on without it, and the last in sync stays so."""
        self.up.discard(broker)
        if len(self.isr) > 1:
            self.isr.discard(broker)
        if self.leader == broker and self.isr & self.up:
            self.leader = min(self.isr & self.up)
            self.epoch += 1

    def start(self, broker: int) -> None:
        """A broker starts, follows who leads, and is in sync again."""
        self.up.add(broker)
        if self.leader not in self.up and self.isr & self.up:
            self.leader = min(self.isr & self.up)
            self.epoch += 1
        if self.leader in self.up:
            for other in self.up:
                self.logs[other] = list(self.logs[self.leader])
            self.isr |= self.up


STEPS = st.one_of(
    st.tuples(st.just("write"), st.sets(st.integers(1, 3))),
    st.tuples(st.just("stop"), st.integers(1, 3)),
    st.tuples(st.just("start"), st.integers(1, 3)),
)


@given(st.lists(STEPS, max_size=40), st.permutations([1, 2, 3]), st.integers(1, 3))
@settings(max_examples=400)
def test_whichever_disk_is_lost_after_a_full_stop_the_one_elected_has_all_that_was_acknowledged(
    history: list[tuple[str, Any]], order: list[int], lost: int
) -> None:
    replicas = Replicas(insync=2)
    for what, whom in history:
        getattr(replicas, what)(whom)
    for broker in order:
        replicas.stop(broker)
    if replicas.isr != {lost}:
        return
    survivors = [broker for broker in (1, 2, 3) if broker != lost]
    ends = {
        broker: (replicas.logs[broker][-1][0] if replicas.logs[broker] else -1, len(replicas.logs[broker])) for broker in survivors
    }
    found = elections([lost], ends, survivors)
    leader = int(found["leaders"][0].rpartition(":")[2])
    assert replicas.logs[leader][: len(replicas.acknowledged)] == replicas.acknowledged
