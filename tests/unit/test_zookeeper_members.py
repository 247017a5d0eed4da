"""How an ensemble comes from the members it has to those of the inventory."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

PLUGIN = Path(__file__).resolve().parents[2] / "roles/zookeeper/filter_plugins/zookeeper.py"
spec = importlib.util.spec_from_file_location("zookeeper_filters", PLUGIN)
assert spec
assert spec.loader
zookeeper = importlib.util.module_from_spec(spec)
spec.loader.exec_module(zookeeper)


def line(number: int, host: int) -> str:
    return f"server.{number}=192.0.2.{host}:2888:3888:participant;192.0.2.{host}:2181"


ENSEMBLES = st.dictionaries(st.integers(1, 9), st.integers(1, 3), min_size=1)


@given(ENSEMBLES, ENSEMBLES)
def test_steps_lead_to_the_inventory_one_member_at_a_time(live: dict[int, int], wanted: dict[int, int]) -> None:
    now = dict(live)
    lines = [line(number, host) for number, host in live.items()]
    for step in zookeeper.zookeeper_steps([*lines, "version=100000000"], [line(*each) for each in wanted.items()]):
        what, _, whom = step.partition(" ")
        if what == "-remove":
            del now[int(whom)]
        else:
            number = int(whom.split("=")[0].removeprefix("server."))
            now[number] = wanted[number]
        # Who stays is never taken out meanwhile
        assert live.keys() & wanted.keys() <= now.keys()
    assert now == wanted


def test_an_ensemble_as_it_should_be_is_left_alone() -> None:
    lines = [line(1, 11), line(2, 12), line(10, 13)]
    assert zookeeper.zookeeper_steps([*lines, "version=0"], lines[::-1]) == []


def test_who_joins_comes_before_who_leaves() -> None:
    live, wanted = [line(1, 11), line(2, 12), line(3, 13)], [line(1, 11), line(2, 12), line(4, 14)]
    assert zookeeper.zookeeper_steps(live, wanted) == [f"-add {line(4, 14)}", "-remove 3"]


def test_who_is_new_is_taken_in_and_nobody_else_touched() -> None:
    live = [line(1, 11), line(2, 12)]
    assert zookeeper.zookeeper_joins(live, [line(3, 13)]) == [f"-add {line(3, 13)}"]
    assert zookeeper.zookeeper_joins(live, [line(2, 12)]) == []


def test_only_members_that_begin_anew_are_taken_out_first() -> None:
    live = [line(1, 11), line(2, 12), line(3, 13)]
    assert zookeeper.zookeeper_lost(live, [3, 4, "5"]) == ["-remove 3"]
    assert zookeeper.zookeeper_lost(live, ["2"]) == ["-remove 2"]
    assert zookeeper.zookeeper_lost([], [1, 2, 3]) == []


def test_the_digest_is_that_of_zookeeper() -> None:
    # printf super:super | openssl sha1 -binary | base64
    assert zookeeper.zookeeper_digest("super") == "super:gG7s8t3oDEtIqF6DM9LlI/R+9Ss="


def seen(*members: int, **states: str) -> dict[str, dict[str, object]]:
    """What preflight saw: n1="whole" is the state of member 1, and those that are whole know `members`."""
    known = [*(line(number, number) for number in members), "version=100000000"]
    return {
        name[1:]: {
            "state": state, "cluster": "", "members": known if state == "whole" else [], "host": f"node{name[1:]}",
            "place": f"/data/{name}", "name": f"t-zookeeper-node{name[1:]}",
        }
        for name, state in states.items()
    }  # fmt: skip


def test_members_without_data_begin_beside_a_majority_that_has_it() -> None:
    assert zookeeper.zookeeper_refusal(seen(1, 2, 3, n1="whole", n2="none", n3="whole"), ["abc"]) == ""
    assert zookeeper.zookeeper_refusal(seen(1, 2, 3, n1="whole", n2="new", n3="whole"), []) == ""
    # The first install, and one that was killed
    assert zookeeper.zookeeper_refusal(seen(n1="none", n2="none", n3="none"), []) == ""
    assert zookeeper.zookeeper_refusal(seen(n1="new", n2="new", n3="none"), []) == ""


def test_two_that_join_one_have_no_seat_and_are_not_counted() -> None:
    assert zookeeper.zookeeper_refusal(seen(1, n1="whole", n2="none", n3="none"), ["abc"]) == ""


def test_a_member_that_the_run_leaves_out_may_have_its_data() -> None:
    assert zookeeper.zookeeper_refusal(seen(1, 2, 3, n1="none", n2="whole"), []) == ""
    assert zookeeper.zookeeper_refusal(seen(1, 2, 3, n1="none", n2="none", n3="whole"), []) != ""


def test_a_minority_with_data_is_refused_and_told_how_one_becomes_the_seed() -> None:
    refusal = zookeeper.zookeeper_refusal(seen(1, 2, 3, n1="none", n2="whole", n3="new"), ["abc"])
    assert "ZooKeeper lost the data of node1 (/data/n1), node3 (/data/n3)" in refusal
    assert "node2 (/data/n2) alone cannot decide for an ensemble of 3" in refusal
    assert "touch /data/n2/seed-alone" in refusal
    alone = seen(1, 2, 3, n1="none", n2="whole", n3="none")
    alone["2"]["members"] = [line(2, 2), "alone"]
    assert zookeeper.zookeeper_refusal(alone, ["abc"]) == ""


def test_the_latest_membership_counts() -> None:
    five = seen(1, 2, 3, 4, 5, n1="whole", n2="whole", n3="whole", n4="none", n5="none")
    assert zookeeper.zookeeper_refusal(five, []) == ""
    older = seen(1, 2, 3, n1="whole")["1"] | {"members": [line(1, 1), line(4, 4), line(5, 5), "version=ff"]}
    assert zookeeper.zookeeper_refusal(five | {"1": older}, []) == ""
    newer = older | {"members": [line(1, 1), line(4, 4), line(5, 5), "version=200000000"]}
    assert "ensemble of 3" in zookeeper.zookeeper_refusal(five | {"1": newer}, [])


def test_all_data_gone_while_brokers_have_theirs_is_refused_by_the_clusters_id() -> None:
    refusal = zookeeper.zookeeper_refusal(seen(n1="none", n2="none", n3="new"), ["9XbQ"])
    assert "No ZooKeeper has data, but brokers hold the Kafka cluster 9XbQ." in refusal
    assert "/data/n1" in refusal


def test_what_preflight_saw_is_found_by_the_members_id() -> None:
    data = {"t-zookeeper-a": {"state": "whole"}, "t-kafka-a": {"state": "none"}}
    found = zookeeper.zookeeper_seen(["a", "b"], {"a": {"zookeeper_id": 7}, "b": {"zookeeper_id": 8}}, data, "t")
    assert found == {"7": {"state": "whole", "host": "a", "name": "t-zookeeper-a"}}
