"""Where replicas go: on brokers of the inventory alone, evenly, and no further than they must."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

PLUGIN = Path(__file__).resolve().parents[2] / "roles/kafka/filter_plugins/kafka.py"
spec = importlib.util.spec_from_file_location("kafka_filters", PLUGIN)
assert spec
assert spec.loader
kafka = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kafka)

Topics = dict[str, Any]


def topics(assignment: dict[tuple[str, int], list[int]]) -> Topics:
    """An assignment as if it had been described, all of it in sync."""
    result: Topics = {}
    for (name, number), replicas in assignment.items():
        topic = result.setdefault(name, {"configs": {}, "partitions": {}})
        well = {"isr": list(replicas), "adding": [], "moving": False}
        topic["partitions"][number] = {"leader": replicas[0], "replicas": replicas, **well}
    return result


def moved(before: Topics, brokers: list[int]) -> Topics:
    """The topics after the moves that are asked for."""
    return topics(kafka.kafka_target(before, brokers))


def spread(counts: Counter[int], brokers: list[int]) -> int:
    numbers = [counts[broker] for broker in brokers]
    return max(numbers) - min(numbers)


@st.composite
def clusters(draw: st.DrawFn, one_factor: bool = False) -> tuple[Topics, list[int]]:
    """Any assignment to some brokers, and the brokers that are wanted: others may join, some may leave."""
    old = draw(st.lists(st.integers(1, 12), min_size=1, max_size=6, unique=True))
    wanted = draw(st.lists(st.integers(1, 12), min_size=1, max_size=6, unique=True))
    highest = min(len(old), len(wanted))
    factor = draw(st.integers(1, highest))
    assignment = {}
    for name in ["telemetry", "__consumer_offsets", "other"][: draw(st.integers(1, 3))]:
        factor = factor if one_factor else draw(st.integers(1, highest))
        for number in range(draw(st.integers(1, 12))):
            assignment[name, number] = draw(st.permutations(old))[:factor]
    return topics(assignment), wanted


@given(clusters())
@settings(max_examples=150)
def test_replicas_are_on_wanted_brokers_evenly_and_keep_their_number(cluster: tuple[Topics, list[int]]) -> None:
    before, brokers = cluster
    after = moved(before, brokers)
    was, now = kafka.kafka_assignment(before), kafka.kafka_assignment(after)
    assert was.keys() == now.keys()
    for partition, replicas in now.items():
        assert len(set(replicas)) == len(replicas) == len(was[partition])
        assert set(replicas) <= set(brokers)
    for name in after:
        mine = [replicas for (topic, _), replicas in now.items() if topic == name]
        assert spread(Counter(broker for replicas in mine for broker in replicas), brokers) <= 1
        assert spread(Counter(replicas[0] for replicas in mine), brokers) <= 1
    assert spread(Counter(broker for replicas in now.values() for broker in replicas), brokers) <= 1


@given(clusters(one_factor=True))
@settings(max_examples=80)
def test_preferred_leaders_are_even_over_all_topics(cluster: tuple[Topics, list[int]]) -> None:
    before, brokers = cluster
    after = kafka.kafka_assignment(moved(before, brokers))
    assert spread(Counter(replicas[0] for replicas in after.values()), brokers) <= 1


@given(clusters())
@settings(max_examples=80)
def test_what_was_moved_stays(cluster: tuple[Topics, list[int]]) -> None:
    before, brokers = cluster
    assert kafka.kafka_moves(moved(before, brokers), brokers) == {}


@given(clusters(), st.randoms())
@settings(max_examples=80)
def test_of_one_topic_no_more_is_moved_than_has_to_be(cluster: tuple[Topics, list[int]], random: Any) -> None:
    before, brokers = cluster
    only = {"telemetry": before["telemetry"]}
    was, now = kafka.kafka_assignment(only), kafka.kafka_assignment(moved(only, brokers))
    moves = sum(len(set(now[partition]) - set(was[partition])) for partition in was)
    held = Counter(broker for replicas in was.values() for broker in replicas)
    least, extra = divmod(sum(held.values()), len(brokers))
    most_of_all = sorted((held[broker] for broker in brokers), reverse=True)
    surplus = sum(max(0, count - least - (place < extra)) for place, count in enumerate(most_of_all))
    leavers = sum(count for broker, count in held.items() if broker not in brokers)
    assert moves >= surplus + leavers or kafka.kafka_moves(only, brokers) == {}
    if not leavers:
        assert moves <= surplus
    else:
        # A partition that has all the brokers with room already sends the leaver's replica elsewhere, and another one there
        assert moves <= surplus + 2 * leavers


def cluster_of_three() -> Topics:
    """What Kafka makes for two topics of six partitions and factor 3 on three brokers."""
    orders = [[1, 3, 2], [2, 1, 3], [3, 2, 1], [1, 2, 3], [2, 3, 1], [3, 1, 2]]
    return topics({(name, number): orders[number] for name in ("__consumer_offsets", "telemetry") for number in range(6)})


def test_three_brokers_as_they_were_made_are_left_alone() -> None:
    assert kafka.kafka_moves(cluster_of_three(), [1, 2, 3]) == {}


def test_a_fourth_broker_takes_its_share_and_gives_it_back() -> None:
    four = moved(cluster_of_three(), [1, 2, 3, 4])
    held = Counter(broker for replicas in kafka.kafka_assignment(four).values() for broker in replicas)
    assert held == {1: 9, 2: 9, 3: 9, 4: 9}
    back = kafka.kafka_moves(four, [1, 2, 3])
    assert sum(4 in replicas for replicas in kafka.kafka_assignment(four).values()) == 9
    assert all(set(replicas) == {1, 2, 3} for replicas in back.values())


def test_a_lost_broker_is_replaced() -> None:
    assert kafka.kafka_leavers(cluster_of_three(), [1, 2, 7]) == [3]
    after = kafka.kafka_assignment(moved(cluster_of_three(), [1, 2, 7]))
    assert all(set(replicas) == {1, 2, 7} for replicas in after.values())


def test_too_few_brokers_are_refused() -> None:
    assert kafka.kafka_unheld(cluster_of_three(), [1, 2]) == ["__consumer_offsets (factor 3)", "telemetry (factor 3)"]
    assert kafka.kafka_unheld(cluster_of_three(), [1, 2, 3]) == []
    with pytest.raises(ValueError, match="2 brokers cannot hold"):
        kafka.kafka_moves(cluster_of_three(), [1, 2])


DESCRIBED = (
    "Topic: telemetry\tTopicId: ZyyzAEQcQ0qTuE3igRGmzQ\tPartitionCount: 3\tReplicationFactor: 3\t"
    "Configs: min.insync.replicas=2,cleanup.policy=compact,delete,retention.bytes=-1\n"
    "\tTopic: telemetry\tPartition: 0\tLeader: 2\tReplicas: 1,3,2\tIsr: 2,1,3\tElr: N/A\tLastKnownElr: N/A\n"
    "\tTopic: telemetry\tPartition: 1\tLeader: 2\tReplicas: 4,2,1,3\tIsr: 2,1\tAdding Replicas: 4\tRemoving Replicas: 3\t"
    "Elr: N/A\tLastKnownElr: N/A\n"
    "\tTopic: telemetry\tPartition: 2\tLeader: none\tReplicas: 1,2,3\tIsr: 3\tElr: N/A\tLastKnownElr: N/A\n"
)


def test_a_description_is_read() -> None:
    topic = kafka.kafka_topics(DESCRIBED)["telemetry"]
    assert topic["configs"] == {"min.insync.replicas": "2", "cleanup.policy": "compact,delete", "retention.bytes": "-1"}
    assert topic["partitions"] == {
        0: {"leader": 2, "replicas": [1, 3, 2], "isr": [2, 1, 3], "adding": [], "moving": False},
        1: {"leader": 2, "replicas": [4, 2, 1], "isr": [2, 1], "adding": [4], "moving": True},
        2: {"leader": None, "replicas": [1, 2, 3], "isr": [3], "adding": [], "moving": False},
    }


def test_what_is_behind_is_named_and_neither_a_leaver_nor_what_moves_is() -> None:
    read = kafka.kafka_topics(DESCRIBED)
    assert kafka.kafka_behind(read, [1, 2, 4]) == [
        "broker 1 lacks 1 partition (telemetry-2)",
        "broker 2 lacks 1 partition (telemetry-2)",
        "no broker leads 1 partition (telemetry-2)",
    ]
    assert kafka.kafka_behind(cluster_of_three(), [1, 2]) == []


def test_an_unfinished_move_is_seen_by_its_replicas_or_its_throttle() -> None:
    assert kafka.kafka_unfinished(kafka.kafka_topics(DESCRIBED))
    assert not kafka.kafka_unfinished(cluster_of_three())
    throttled = cluster_of_three()
    throttled["telemetry"]["configs"]["leader.replication.throttled.replicas"] = "0:1"
    assert kafka.kafka_unfinished(throttled)


def test_a_reassignment_is_in_the_words_of_kafka() -> None:
    assert kafka.reassignment({("telemetry", 0): [1, 2]}) == {
        "version": 1,
        "partitions": [{"topic": "telemetry", "partition": 0, "replicas": [1, 2]}],
    }
