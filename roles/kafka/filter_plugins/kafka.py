"""Filters that decide about topics and replicas from what `kafka-topics --describe` tells. No I/O.

`kafka_moves` is the plan: which partitions have to get other replicas, or another order of them, so that the brokers of the
inventory hold everything, evenly. The first replica of a partition is its preferred leader.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Any

Assignment = dict[tuple[str, int], list[int]]
"""Topic and partition to the ids of the brokers that hold it."""


def kafka_topics(described: str) -> dict[str, Any]:
    """Topic to its configuration and partitions, from the text of `kafka-topics --describe`."""
    topics: dict[str, Any] = {}
    for line in described.splitlines():
        fields = dict(re.findall(r"(\w[\w ]*): ([^\t]*)", line))
        if "Topic" not in fields:
            continue
        if "Partition" not in fields:
            # A value may hold commas itself
            configs = dict(each.split("=", 1) for each in re.split(r",(?=[a-z][\w.]*=)", fields["Configs"]) if each)
            topics[fields["Topic"]] = {"configs": configs, "partitions": {}}
            continue
        adding, removing = ids(fields.get("Adding Replicas", "")), ids(fields.get("Removing Replicas", ""))
        topics[fields["Topic"]]["partitions"][int(fields["Partition"])] = {
            "leader": int(fields["Leader"]) if fields["Leader"].isdigit() else None,
            # While replicas move, those that will go still stand among them
            "replicas": [broker for broker in ids(fields["Replicas"]) if broker not in removing],
            "isr": ids(fields["Isr"]),
            "adding": adding,
            "moving": bool(adding or removing),
        }
    return topics


def ids(text: str) -> list[int]:
    """Broker ids out of "1,2,3"."""
    return [int(each) for each in text.split(",") if each.strip().isdigit()]


def kafka_behind(topics: Mapping[str, Any], brokers: Iterable[int]) -> list[str]:
    """What is not in sync: "broker 3 lacks 2 partitions (telemetry-0, telemetry-4)".

    Only `brokers` count, those of the inventory, and of what they hold not what is just being moved to them.
    """
    lacking: dict[int, list[str]] = {int(broker): [] for broker in brokers}
    leaderless = []
    for name, topic in topics.items():
        for number, partition in topic["partitions"].items():
            for broker in set(partition["replicas"]) - set(partition["isr"]) - set(partition["adding"]):
                if broker in lacking:
                    lacking[broker].append(f"{name}-{number}")
            if partition["leader"] is None:
                leaderless.append(f"{name}-{number}")
    found = [f"broker {broker} lacks {some(names)}" for broker, names in sorted(lacking.items()) if names]
    return found + ([f"no broker leads {some(leaderless)}"] if leaderless else [])


def some(names: list[str]) -> str:
    """How many partitions, and the first of them by name."""
    return f"{len(names)} partition{'s' if len(names) > 1 else ''} ({', '.join(names[:6])}{', ...' if len(names) > 6 else ''})"


def kafka_unheld(topics: Mapping[str, Any], brokers: Iterable[int]) -> list[str]:
    """Topics whose factor is more than the brokers, "telemetry (factor 3)"."""
    count = len(set(brokers))
    factors = {name: max(len(each["replicas"]) for each in topic["partitions"].values()) for name, topic in topics.items()}
    return [f"{name} (factor {factor})" for name, factor in sorted(factors.items()) if factor > count]


def kafka_leavers(topics: Mapping[str, Any], brokers: Iterable[int]) -> list[int]:
    """Brokers that hold something and are none of `brokers`."""
    holding = {broker for replicas in kafka_assignment(topics).values() for broker in replicas}
    return sorted(holding - {int(broker) for broker in brokers})


def kafka_unfinished(topics: Mapping[str, Any]) -> bool:
    """Tell whether replicas are moving, or a move's throttle was left by a run that was killed."""
    return any(
        any("throttled" in key for key in topic["configs"]) or any(each["moving"] for each in topic["partitions"].values())
        for topic in topics.values()
    )


def kafka_assignment(topics: Mapping[str, Any]) -> Assignment:
    """Where the replicas are, or will be once all moves are done."""
    return {
        (name, int(number)): list(each["replicas"])
        for name, topic in sorted(topics.items())
        for number, each in sorted(topic["partitions"].items())
    }


def kafka_moves(topics: Mapping[str, Any], brokers: Iterable[int]) -> Assignment:
    """The partitions that have to change, with their new replicas; nothing where all is even.

    Every replica comes to one of `brokers`, each partition keeps its factor, and in each topic and over all topics no broker holds
    or leads more than one partition more than another does. (Over all topics this is so for leaders if all have the same factor.)
    """
    wanted = sorted({int(broker) for broker in brokers})
    if unheld := kafka_unheld(topics, wanted):
        raise ValueError(f"{len(wanted)} brokers cannot hold {', '.join(unheld)}")
    before = kafka_assignment(topics)
    after = {partition: list(replicas) for partition, replicas in before.items()}
    if not even(after, wanted):
        spread_replicas(after, wanted)
        spread_leaders(after, wanted)
    return {partition: replicas for partition, replicas in after.items() if replicas != before[partition]}


def kafka_target(topics: Mapping[str, Any], brokers: Iterable[int]) -> Assignment:
    """All partitions, with their replicas as they are once everything has moved."""
    return kafka_assignment(topics) | kafka_moves(topics, brokers)


def reassignment(assignment: Mapping[tuple[str, int], list[int]]) -> dict[str, Any]:
    """An assignment as `kafka-reassign-partitions` reads it."""
    partitions = [{"topic": name, "partition": number, "replicas": each} for (name, number), each in sorted(assignment.items())]
    return {"version": 1, "partitions": partitions}


def even(assignment: Assignment, brokers: list[int]) -> bool:
    """Tell whether the brokers hold and lead all that there is, each as much as any other."""
    if any(set(replicas) - set(brokers) for replicas in assignment.values()):
        return False
    parts = [[each for each in assignment.items() if each[0][0] == name] for name in topic_names(assignment)]
    for part in [*parts, list(assignment.items())]:
        held = Counter(broker for _, replicas in part for broker in replicas)
        led = Counter(replicas[0] for _, replicas in part)
        if any(max(count[b] for b in brokers) - min(count[b] for b in brokers) > 1 for count in (held, led)):
            return False
    return True


def topic_names(assignment: Assignment) -> list[str]:
    """All topics, sorted."""
    return sorted({name for name, _ in assignment})


def spread_replicas(assignment: Assignment, brokers: list[int]) -> None:
    """Move as few replicas as will do, topic by topic."""
    total: Counter[int] = Counter()
    for name in topic_names(assignment):
        parts = [replicas for (topic, _), replicas in assignment.items() if topic == name]
        held = Counter(broker for replicas in parts for broker in replicas)
        # What does not divide goes to brokers that have less of the topics before, then to those that hold it already
        least, extra = divmod(sum(map(len, parts)), len(brokers))
        order = sorted(brokers, key=lambda broker: (total[broker], -held[broker], broker))
        target = {broker: least + (place < extra) for place, broker in enumerate(order)}
        total.update(target)
        settle(parts, held, target)


def settle(parts: list[list[int]], held: Counter[int], target: Mapping[int, int]) -> None:
    """Give the brokers of one topic what they should hold. A leader is moved last: its partition would have to change it, too."""

    def move(replicas: list[int], giver: int, taker: int) -> None:
        replicas[replicas.index(giver)] = taker
        held[giver] -= 1
        held[taker] += 1

    for replicas in parts:
        for leaver in [broker for broker in replicas if broker not in target]:
            move(replicas, leaver, max(target, key=lambda b: (b not in replicas, target[b] - held[b], -b)))
    while any(held[broker] > target[broker] for broker in target):
        giver = max(target, key=lambda b: (held[b] - target[b], -b))
        taker = max(target, key=lambda b: (target[b] - held[b], -b))
        # There is one, because the giver holds more than the taker
        candidates = (replicas for replicas in parts if giver in replicas and taker not in replicas)
        move(max(candidates, key=lambda replicas: replicas.index(giver)), giver, taker)


def spread_leaders(assignment: Assignment, brokers: list[int]) -> None:
    """Choose preferred leaders among the replicas: first evenly in each topic, then over all topics without undoing that."""
    names = topic_names(assignment)
    for name in names:
        part = {key: replicas for key, replicas in assignment.items() if key[0] == name}
        while shift(part, brokers, {name: (0, len(part))}):
            pass
    bounds = {}
    for name in names:
        count = sum(topic == name for topic, _ in assignment)
        bounds[name] = (count // len(brokers), -(-count // len(brokers)))
    while shift(assignment, brokers, bounds):
        pass


def shift(assignment: Assignment, brokers: list[int], bounds: Mapping[str, tuple[int, int]]) -> bool:
    """Take one partition from a broker that leads two more than another, to that other, if need be through brokers in between.

    Within a topic a broker goes on leading from `bounds[topic][0]` to `bounds[topic][1]` partitions. False if nothing is left.
    """
    led = Counter(replicas[0] for replicas in assignment.values())
    in_topic = Counter((name, replicas[0]) for (name, _), replicas in assignment.items())
    for giver in sorted(brokers, key=lambda broker: (-led[broker], broker)):
        # A breadth-first search: brokers, and brokers within one topic, where a partition may change its leader
        came: dict[Any, tuple[Any, Any]] = {giver: (None, None)}
        queue: deque[Any] = deque([giver])
        while queue:
            place = queue.popleft()
            if not isinstance(place, tuple) and led[place] <= led[giver] - 2:
                while place is not None:
                    earlier, partition = came[place]
                    if partition is not None:
                        replicas, leader = assignment[partition], place[1]
                        replicas.insert(0, replicas.pop(replicas.index(leader)))
                    place = earlier
                return True
            for following, partition in steps(place, assignment, in_topic, bounds):
                if following not in came:
                    came[following] = (place, partition)
                    queue.append(following)
    return False


def steps(
    place: Any, assignment: Assignment, in_topic: Mapping[tuple[str, int], int], bounds: Mapping[str, tuple[int, int]]
) -> Iterable[tuple[Any, tuple[str, int] | None]]:
    """From a broker into the topics where it may lead less; in a topic to another replica; out where that may lead more."""
    if not isinstance(place, tuple):
        yield from (((name, place), None) for name, (low, _) in bounds.items() if in_topic.get((name, place), 0) > low)
        return
    name, broker = place
    for partition, replicas in assignment.items():
        if partition[0] == name and replicas[0] == broker:
            yield from (((name, other), partition) for other in replicas[1:])
    if in_topic.get(place, 0) < bounds[name][1]:
        yield broker, None


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Name to function."""
        return {
            "kafka_topics": kafka_topics,
            "kafka_behind": kafka_behind,
            "kafka_unheld": kafka_unheld,
            "kafka_leavers": kafka_leavers,
            "kafka_unfinished": kafka_unfinished,
            "kafka_moves": lambda topics, brokers: reassignment(kafka_moves(topics, brokers)),
            "kafka_target": lambda topics, brokers: reassignment(kafka_target(topics, brokers)),
        }
