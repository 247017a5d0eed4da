"""What roles compute over all hosts at once: topology, images, answers of machines, and the fleet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from ansible.errors import AnsibleError
from hypothesis import given
from hypothesis import strategies as st
from interface.roles import module

settings = module("roles/settings/filter_plugins/settings.py")
images = module("roles/images/filter_plugins/images.py")
preflight = module("roles/preflight/filter_plugins/preflight.py")
vehicle = module("roles/vehicle/filter_plugins/vehicle.py")


class Hostvars(Mapping[str, Any]):
    """Stands for Ansible's, and counts how often a host's variables are read."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values, self.reads = values, Counter[str]()

    def __getitem__(self, host: str) -> Any:
        self.reads[host] += 1
        return self._values[host]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class Broken(dict[str, Any]):
    """Variables one of which cannot be computed."""

    def get(self, name: str, default: Any = None) -> Any:
        """Fail as Ansible does."""
        raise AnsibleError(f"{name} is undefined {default}")


def test_all_addresses_take_one_pass() -> None:
    hosts = Hostvars({f"h{n}": {"ansible_host": f"192.0.2.{n}", "machine": f"m{n % 2}"} for n in range(9)})
    topology = settings.topology(list(hosts), hosts)
    assert sum(hosts.reads.values()) == 18
    hosts.reads.clear()
    assert settings.addresses(["h3", "h1"], hosts, 9, topology) == ["192.0.2.3:9", "192.0.2.1:9"]
    assert [host for host in hosts if settings.first_of_machine(host, hosts, topology)] == ["h0", "h1"]
    assert not hosts.reads


def test_the_first_host_of_a_machine_is_the_first_of_the_run() -> None:
    hosts = {name: {"machine": machine} for name, machine in {"a": "one", "b": "two", "c": "one", "d": "two"}.items()}
    topology = settings.topology(list(hosts), hosts)
    run = ["b", "c", "d"]
    assert [host for host in run if settings.first_of_machine(host, run, topology)] == ["b", "c"]
    assert settings.machine_hosts("c", topology) == ["a", "c"]


def test_a_host_whose_address_cannot_be_computed_is_left_to_preflight() -> None:
    hosts: dict[str, Any] = {"a": {"node_address": "192.0.2.1"}, "b": Broken()}
    topology = settings.topology(list(hosts), hosts)
    assert topology["addresses"] == {"a": "192.0.2.1"}
    assert topology["machines"] == {"a": ["a"], "b": ["b"]}
    with pytest.raises(AnsibleError):
        settings.addresses(["b"], hosts, 1, topology)


KINDS = {"kafka": {"group": "kafka", "image": "kafka"}, "vehicle": {"group": "vehicles", "image": "telemetry"}}
OURS = {"kafka": "tachograph/kafka:1", "telemetry": "tachograph/telemetry:2"}


def test_a_machine_wants_the_images_of_all_its_hosts_once() -> None:
    hosts: dict[str, Any] = {"a": {}, "b": {"vehicle_image": "mine:3"}, "c": {}}
    groups = {"kafka": ["a"], "vehicles": ["a", "b"]}
    assert images.images_wanted(hosts, groups, hosts, KINDS, OURS) == ["tachograph/kafka:1", "tachograph/telemetry:2", "mine:3"]
    assert images.images_wanted(["c"], groups, hosts, KINDS, OURS) == []


def test_one_host_of_those_that_lack_the_same_makes_the_archive() -> None:
    hosts = {
        "here": {"__images_missing": ["tachograph/a:1", "tachograph/b:1"], "ansible_connection": "local"},
        "a": {"__images_missing": ["tachograph/b:1", "tachograph/a:1"]},
        "b": {"__images_missing": ["tachograph/a:1", "tachograph/b:1", "other:1"]},
        "c": {"__images_missing": ["tachograph/b:1"]},
        "d": {"__images_missing": ["other:1"]},
        "e": {},
    }
    assert images.images_plan(hosts, hosts, "^tachograph/") == {"build": ["tachograph/a:1", "tachograph/b:1"], "savers": ["a", "c"]}


def test_a_machine_that_does_not_answer_is_silent_only_if_the_run_can_do_without_all_its_hosts() -> None:
    topology = {"machine": {"a": "one", "b": "one", "c": "c"}, "machines": {"one": ["a", "b"], "c": ["c"]}}
    answers = {"a": {"unreachable": True, "msg": "no route "}, "c": {"problems": ["full", "full"]}}
    assert preflight.silent(answers, topology, "abc", "abc") == ["a", "b"]
    assert preflight.silent(answers, topology, "ac", "a") == ["a"]
    assert preflight.silent(answers, topology, "abc", "a") == []
    # One that answers, but not with an answer, is no host that is away
    assert preflight.silent({"c": {"msg": "sudo: no"}}, topology, "abc", "abc") == []


HOSTS = "abcdef"
GROUP = st.lists(st.sampled_from(HOSTS), min_size=1, unique=True)


def drive(fleet: dict[str, Any]) -> range:
    """The vehicles that a host with that fleet file drives."""
    return range(fleet["host_index"] + 1, fleet["num_vehicles"] + 1, fleet["host_count"])


@given(GROUP, GROUP, st.sets(st.sampled_from(HOSTS)), st.integers(1, 20), st.booleans(), st.sampled_from(["", "5", "12"]))
def test_no_vehicle_drives_on_two_hosts(
    before: list[str], after: list[str], away: set[str], count: int, whole: bool, asked: str
) -> None:
    """From any group to any other, with any hosts that do not answer or are not part of the run."""
    fleets: dict[str, dict[str, Any]] = {
        host: {"num_vehicles": count, "host_index": n, "host_count": len(before), "hosts": before} for n, host in enumerate(before)
    }
    told = {host: fleets.get(host, {}) for host in after if host not in away}
    left = [host for host in before if host not in after and host not in away]
    plan = vehicle.fleet_plan(told, [], after, left if whole else [], [] if whole else left, asked)
    # Hosts none of which had been part of the group cannot know of it
    if plan["problems"] or not any(host in before for host in told):
        return
    for index, host in enumerate(after):
        if host in told:
            fleets[host] = {"num_vehicles": int(plan["num_vehicles"]), "host_index": index, "host_count": len(after)}
    for host in left if whole else []:
        del fleets[host]
    drives = Counter(number for fleet in fleets.values() for number in drive(fleet))
    assert max(drives.values(), default=0) <= 1


def test_an_unchanged_fleet_goes_on_without_those_that_are_away() -> None:
    fleet = {"num_vehicles": 7, "hosts": ["a", "b", "c"]}
    assert vehicle.fleet_plan({"a": fleet, "c": fleet}, [], ["a", "b", "c"], [], [], "") == {"num_vehicles": "7", "problems": []}


def test_a_new_fleet_has_thirty_vehicles() -> None:
    assert vehicle.fleet_plan({"a": {}, "b": {}}, [], ["a", "b"], [], [], "") == {"num_vehicles": "30", "problems": []}


def test_what_others_told_is_the_count() -> None:
    assert vehicle.fleet_plan({"b": {}}, [{"num_vehicles": 9, "hosts": ["a", "b"]}], ["a", "b"], [], [], "")["num_vehicles"] == "9"


def test_names_of_many_hosts_are_cut_short() -> None:
    group = [f"h{n}" for n in range(40)]
    fleet = {"num_vehicles": 7, "hosts": group[:1]}
    [problem] = vehicle.fleet_plan({"h0": fleet}, [], group, [], [], "")["problems"]
    assert "h1, h2, h3, h4, h5 and 34 more would not hear of it" in problem
