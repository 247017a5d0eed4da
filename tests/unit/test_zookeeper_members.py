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
