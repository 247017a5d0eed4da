"""Preflight names every problem, each with variable, value and remedy, and finds none where there is none."""

from __future__ import annotations

import copy
import ipaddress
import os
import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from interface.roles import ROLES, ROOT, all_options, defaults, module

preflight = module("roles/preflight/action_plugins/preflight.py")
machine = module("roles/preflight/library/preflight_machine.py")


class Inventory:
    """Three right nodes on one machine, to be made wrong."""

    def __init__(self) -> None:
        hosts = ["node1", "node2", "node3"]
        self.groups = {
            **{group: list(hosts) for group in ("zookeeper", "kafka", "producers", "vehicles")},
            "nginx": ["node1", "node2"],
            "consumers": ["node2", "node3"],
            "postgres": ["node1"],
        }
        resolved = {name: value for role in ROLES for name, value in defaults(role).items()} | {
            "machine": "local",
            "container_supervisor": "docker",
            "kafka_topic_replication_factor": 3,
            "kafka_topic_min_insync_replicas": 2,
            "nginx_urls": [],
        }
        self.given: dict[str, set[str]] = {host: {"node_address", "zookeeper_id", "kafka_broker_id"} for host in hosts}
        self.nodes = {
            host: copy.deepcopy(resolved) | {"node_address": f"127.0.0.1{n}", "zookeeper_id": n, "kafka_broker_id": n}
            for n, host in enumerate(hosts, 1)
        }

    def set(self, name: str, value: Any, *hosts: str) -> None:
        for host in hosts or self.nodes:
            self.nodes[host][name] = value
            self.given[host].add(name)

    def unset(self, name: str, host: str) -> None:
        self.nodes[host][name] = defaults(name.split("_")[0])[name]
        self.given[host].remove(name)

    def group(self, name: str, *hosts: str) -> None:
        self.groups[name] = list(hosts)

    def problems(self, **arguments: bool) -> list[str]:
        found: list[str] = preflight.problems(self.nodes, self.given, self.groups, all_options(), **arguments)
        return found


def test_a_right_inventory_has_no_problem() -> None:
    assert Inventory().problems(fleet=True) == []


Wrong = Callable[[Inventory], None]
WRONG: list[tuple[Wrong, str]] = [
    # Groups
    (lambda i: i.group("zookeeper"), "group zookeeper has no host. Put at least one host into group zookeeper."),
    (lambda i: i.group("kafka"), "group kafka has no host."),
    (lambda i: i.group("postgres"), "group postgres has no host."),
    (lambda i: i.group("nginx"), "group nginx has no host."),
    (lambda i: i.group("producers"), "group producers has no host."),
    (lambda i: i.group("consumers"), "group consumers has no host."),
    (lambda i: i.group("zookeeper", "node1", "node2"), "group zookeeper = node1, node2 is an even ensemble of 2"),
    (lambda i: i.group("postgres", "node1", "node2"), "group postgres = node1, node2 has 2 hosts"),
    # The topic
    (
        lambda i: i.group("kafka", "node1", "node2"),
        "kafka_topic_replication_factor = 3 is more than the 2 of group kafka. Set 2 at most",
    ),
    (
        lambda i: i.set("kafka_topic_replication_factor", "4"),
        "kafka_topic_replication_factor = 4 is more than the 3 of group kafka",
    ),
    (
        lambda i: i.set("kafka_topic_min_insync_replicas", 4),
        "kafka_topic_min_insync_replicas = 4 is more than kafka_topic_replication_factor = 3. Set 3 at most.",
    ),
    (
        lambda i: i.set("kafka_topic_partitions", 1),
        "kafka_topic_partitions = 1 leaves some of the 2 consumers without work. Set 2 at least",
    ),
    # Numbers of members
    (lambda i: i.set("zookeeper_id", 2, "node1"), "zookeeper_id = 2 belongs to node1, node2."),
    (lambda i: i.set("zookeeper_id", 256, "node1"), "zookeeper_id = 256 (node1) is out of range. Set an integer from 1 to 255"),
    (lambda i: i.set("zookeeper_id", 0, "node1"), "zookeeper_id = 0 (node1) is out of range."),
    (lambda i: i.set("zookeeper_id", "one", "node1"), "zookeeper_id = 'one' (node1) is no integer."),
    (lambda i: i.unset("zookeeper_id", "node3"), "zookeeper_id (node3) is missing. Set an integer from 1 to 255"),
    (lambda i: i.set("kafka_broker_id", "2", "node1"), "kafka_broker_id = 2 belongs to node1, node2."),
    (lambda i: i.set("kafka_broker_id", 1001, "node1"), "kafka_broker_id = 1001 (node1) is out of range."),
    (lambda i: i.unset("kafka_broker_id", "node1"), "kafka_broker_id (node1) is missing."),
    # Addresses and ports
    (lambda i: i.set("node_address", "127.0.0.12", "node1"), "node_address = '127.0.0.12' belongs to 2 nodes, node1, node2."),
    (lambda i: i.set("node_address", "db.example", "node1"), "node_address = 'db.example' (node1) is no IPv4 address"),
    (lambda i: i.set("node_address", "0.0.0.0", "node1"), "node_address = '0.0.0.0' (node1) is no IPv4 address"),
    (lambda i: i.set("node_address", "::1", "node1"), "node_address = '::1' (node1) is no IPv4 address"),
    (lambda i: i.set("machine", "other", "node1"), "node_address = '127.0.0.11' (node1) is out of reach for the other machines."),
    (
        lambda i: i.set("kafka_port", 5001),
        "kafka_port and producer_port = 5001 are the same port of one node.",
    ),
    (lambda i: i.set("kafka_port", 9093, "node1"), "kafka_port = 9093 on node1, 9092 on node2 node3 differs between nodes"),
    (
        lambda i: i.set("consumer_group", "other", "node2"),
        "consumer_group = other on node2, telemetry on node3 differs between nodes",
    ),
    (lambda i: i.set("nginx_extra_listen", ["8080"], "node1"), "nginx_extra_listen = '8080' (node1) is no place to listen on."),
    (lambda i: i.set("nginx_extra_listen", 8080, "node1"), "nginx_extra_listen = 8080 (node1) is no list."),
    # nginx
    (
        lambda i: i.set("nginx_balancers", ["192.0.2.7", "192.0.2.7/24"], "node1"),
        "nginx_balancers = '192.0.2.7/24' (node1) is neither an address nor a network. Use 192.0.2.7 or 192.0.2.0/24",
    ),
    (lambda i: i.set("nginx_balancers", ["balancer.example"]), "nginx_balancers = 'balancer.example' (node1, node2) is neither"),
    (lambda i: i.set("nginx_balancers", "192.0.2.7"), "nginx_balancers = '192.0.2.7' is no list."),
    (
        lambda i: i.set("nginx_memory", "231m", "node1"),
        "nginx_memory = '231m' (node1) is too little for 1 x 4096 connections. Set 232m at least, or lower",
    ),
    (
        lambda i: i.set("nginx_worker_processes", "2", "node1"),
        "nginx_memory = '256m' (node1) is too little for 2 x 4096 connections. Set 400m at least",
    ),
    (lambda i: i.set("nginx_address_requests", -1), "nginx_address_requests = -1 is out of range. Set an integer from 0 to"),
    (lambda i: i.set("nginx_body_timeout", "25s"), "nginx_body_timeout = '25s' is no integer. Set an integer from 0 to 3600."),
    # Numbers, choices and sizes
    (lambda i: i.set("kafka_port", "abc"), "kafka_port = 'abc' is no integer. Set an integer from 1 to 65535."),
    (lambda i: i.set("kafka_port", 70000), "kafka_port = 70000 is out of range. Set an integer from 1 to 65535."),
    (lambda i: i.set("nginx_worker_processes", "1.5"), "nginx_worker_processes = '1.5' is no integer."),
    (lambda i: i.set("nginx_worker_processes", True), "nginx_worker_processes = True is no integer."),
    (lambda i: i.set("container_healthy_timeout", -1), "container_healthy_timeout = -1 is out of range. Set an integer from 0."),
    (lambda i: i.set("vehicle_report_delay", "fast"), "vehicle_report_delay = 'fast' is no number."),
    (lambda i: i.set("vehicle_report_delay", 0), "vehicle_report_delay = 0 is out of range. Set a number from 0.001 to 86400."),
    (lambda i: i.set("vehicle_velocity_x", float("nan")), "vehicle_velocity_x = nan is no number."),
    (lambda i: i.set("vehicle_auto_start", "maybe"), "vehicle_auto_start = 'maybe' is neither true nor false."),
    (
        lambda i: i.set("container_supervisor", "runit"),
        "container_supervisor = 'runit' is not among the choices. Set one of docker, systemd.",
    ),
    (lambda i: i.set("kafka_memory", "lots"), "kafka_memory = 'lots' is no size. Set a number with a unit, such as 256m."),
    (lambda i: i.set("kafka_heap", "2g"), "kafka_heap = '2g' does not fit into kafka_memory = '768m'."),
    (lambda i: i.set("kafka_client", "ssl"), "kafka_client = 'ssl' is no mapping."),
    (
        lambda i: i.set("kafka_client", {"sasl_plain_password": "hunter2"}),
        "kafka_client.sasl_plain_password is a secret, which would stand in the containers' environment and log. "
        "Name the file that holds it: sasl_plain_password_file.",
    ),
    (
        lambda i: i.set("postgres_client", {"sslPassword": "hunter2"}),
        "postgres_client.sslPassword is a secret, which would stand in the containers' environment and log. "
        "Name the file that holds it: sslPassword_file.",
    ),
    (lambda i: i.set("kafka_topic", ["a"]), "kafka_topic = ['a'] is no text."),
    (
        lambda i: i.set("vehicle_make", "Bayerische Motoren Werke AG"),
        "vehicle_make = 'Bayerische Motoren Werke AG' is not a text of that length. Set a text of 1 to 20 characters.",
    ),
    (lambda i: i.set("vehicle_make", ""), "vehicle_make = '' is not a text of that length."),
    (lambda i: i.set("vehicle_make", "F\0rd"), "vehicle_make = 'F\0rd' is not a text of that length."),
    (lambda i: i.set("vehicle_model", "F" * 21, "node1"), f"vehicle_model = '{'F' * 21}' (node1) is not a text of that length."),
    (lambda i: i.set("vehicle_model", "\ud800"), "vehicle_model = '\ud800' is not a text of that length."),
    (lambda i: i.set("instance", "my instance"), "instance = 'my instance' cannot begin a container's name."),
    *(
        (lambda i, n=n: i.set("num_vehicles", n), f"num_vehicles = {n!r} is no number of vehicles.")
        for n in ("abc", "0", "-3", "1.5", 0)
    ),
    # Names
    (
        lambda i: i.given["node1"].add("kafka_prot"),
        "kafka_prot (node1) is read by nothing. Did you mean kafka_port? Correct or remove it.",
    ),
    (lambda i: i.given["node1"].add("node_adress"), "node_adress (node1) is read by nothing. Did you mean node_address?"),
    (lambda i: i.given["node1"].add("num_vehicle"), "num_vehicle (node1) is read by nothing. Did you mean num_vehicles?"),
    (lambda i: i.given["node1"].add("producers_port"), "producers_port (node1) is read by nothing. Did you mean producer_port?"),
    (
        lambda i: i.given["node1"].add("settings_xyzzy_qqq"),
        "settings_xyzzy_qqq (node1) is read by nothing. Remove it; docs/settings.md",
    ),
]


@pytest.mark.parametrize(("wrong", "sentence"), WRONG, ids=[sentence.split(".")[0][:60] for _, sentence in WRONG])
def test_each_problem_is_named(wrong: Wrong, sentence: str) -> None:
    inventory = Inventory()
    wrong(inventory)
    found = inventory.problems()
    assert any(each.startswith(sentence) for each in found), found
    assert all(re.fullmatch(r".+\. [A-Z].+\.", each) for each in found), "a remedy follows each fault"


def test_nginx_needs_room_for_the_folder_that_role_container_gives() -> None:
    tasks = yaml.safe_load((ROOT / "roles/container/tasks/container.yml").read_text())
    [given] = re.findall(r"/tmp:[^']*size=(\w+)", tasks[0]["community.docker.docker_container"]["tmpfs"])
    assert preflight.size(given) == preflight.NGINX_TMP


def test_all_problems_are_named_at_once() -> None:
    inventory = Inventory()
    for wrong, _ in WRONG:
        wrong(inventory)
    assert len(inventory.problems()) > 20


def test_the_fleet_needs_a_host_and_the_rest_does_not() -> None:
    inventory = Inventory()
    inventory.group("vehicles")
    assert inventory.problems() == []
    assert inventory.problems(fleet=True) == ["group vehicles has no host. Put at least one host into group vehicles."]


def test_a_controller_that_cannot_make_a_base_is_told_to_name_one() -> None:
    assert Inventory().problems(debian=False)[0].startswith("images_base = '' needs a controller with Debian or Ubuntu.")


def test_numbers_given_on_the_command_line_are_strings_and_right() -> None:
    inventory = Inventory()
    for name, value in {
        "num_vehicles": "30",
        "kafka_port": "9092",
        "vehicle_report_delay": "0.5",
        "vehicle_auto_start": "no",
    }.items():
        inventory.set(name, value)
    assert inventory.problems() == []


def test_a_group_alone_may_have_values_of_its_own() -> None:
    inventory = Inventory()
    inventory.set("consumer_group", "other", "node2", "node3")
    inventory.set("kafka_memory", "2g", "node2")
    assert inventory.problems() == []


def test_variables_of_others_are_left_alone() -> None:
    inventory = Inventory()
    for names in inventory.given.values():
        names |= {
            "ansible_user",
            "__kafka_topic_result",
            "monitoring_port",
            "environment_name",
            "group_names",
            "playbook_dir",
            "proxy",
        }
    assert inventory.problems() == []


def test_one_host_looks_for_all_that_share_its_machine() -> None:
    inventory = Inventory()
    looks = preflight.looks(["node2", "node3"], inventory.nodes, inventory.groups)
    assert list(looks) == ["node2"]
    assert {container["node"] for container in looks["node2"]["containers"]} == {"node2", "node3"}
    inventory.set("machine", "other", "node3")
    assert list(preflight.looks(["node1", "node2", "node3"], inventory.nodes, inventory.groups)) == ["node1", "node3"]


def test_what_the_inventory_has_on_a_machine_is_told_for_hosts_outside_the_play_too() -> None:
    inventory = Inventory()
    expected = preflight.looks(["node2"], inventory.nodes, inventory.groups)["node2"]["expected"]
    assert {"tachograph-kafka-node1", "tachograph-postgres-node1", "tachograph-vehicle-node3"} <= set(expected)
    assert "tachograph-postgres-node2" not in expected


def present(kind: str, node: str) -> dict[str, Any]:
    """A container, as the engine tells."""
    return {
        f"t-{kind}-{node}": {
            "Labels": {"tachograph.instance": "t", "tachograph.kind": kind},
            "Mounts": [{"Type": "volume", "Name": f"t-{kind}-{node}-data"}, {"Type": "bind", "Source": "/etc"}],
        }
    }


def test_what_the_inventory_has_no_more_is_found() -> None:
    there = present("kafka", "node1") | present("kafka", "node4")
    assert machine.leaving(there, ["t-kafka-node1", "t-kafka-node2"]) == [
        {"name": "t-kafka-node4", "kind": "kafka", "node": "node4", "volumes": ["t-kafka-node4-data"]}
    ]


def test_a_database_is_not_left_behind() -> None:
    [problem] = machine.check_database(machine.leaving(present("postgres", "node1"), ["t-postgres-node2"]))
    assert problem.startswith("t-postgres-node1 holds the database, and node1 is not in group postgres any more. Put it back.")
    assert machine.check_database(machine.leaving(present("kafka", "node1"), [])) == []


def test_values_that_are_wrong_are_not_looked_at() -> None:
    inventory = Inventory()
    inventory.set("kafka_port", "abc")
    inventory.set("nginx_extra_listen", 8080)
    inventory.set("kafka_memory", "lots")
    looks = preflight.looks(["node1"], inventory.nodes, inventory.groups)["node1"]
    assert next(each for each in looks["containers"] if each["name"] == "tachograph-kafka-node1")["places"] == []


def test_a_port_that_is_roots_is_named() -> None:
    place = {"variable": "nginx_extra_listen", "address": "127.0.0.1", "port": 80}
    [problem] = machine.check_places({"name": "t-nginx-node1", "node": "node1", "places": [place]})
    assert problem.startswith("nginx_extra_listen = 80 (node1): its host keeps ports below 1024 for root")


def test_a_taken_port_is_named() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.1.21", 0))
        holder.listen()
        port = holder.getsockname()[1]
        place = {"variable": "kafka_port", "address": "127.0.1.21", "port": port}
        [problem] = machine.check_places({"name": "t-kafka-node1", "node": "node1", "places": [place]})
    assert problem.startswith(f"kafka_port = {port} (node1) is taken on 127.0.1.21, and not by t-kafka-node1. Stop it")
    assert machine.check_places({"name": "t-kafka-node1", "node": "node1", "places": [place]}) == []


def test_an_address_of_another_host_is_named() -> None:
    places = [{"variable": "kafka_port", "address": "192.0.2.1", "port": port} for port in (9092, 9093)]
    [problem] = machine.check_places({"name": "t-kafka-node1", "node": "node1", "places": places})
    assert problem.startswith("node_address = '192.0.2.1' (node1) is not an address of its host.")


def test_short_memory_and_disk_are_named() -> None:
    containers = [{"memory": 2**50}, {"memory": 2**50}]
    [problem] = machine.check_memory("local", containers, 60)
    assert "is too little for 2 containers with limits of 2147483648 MiB in all" in problem
    assert machine.check_memory("local", containers, 0) == []
    [problem] = machine.check_disk("local", 2**60)
    assert "is less than preflight_disk_free" in problem
    assert machine.check_disk("local", 0) == []


def test_a_supervisor_that_is_not_there_is_named() -> None:
    assert machine.check_systemd([]) == []
    named = machine.check_systemd(["node1"])
    assert bool(named) is not os.path.isdir("/run/systemd/system")


@pytest.mark.parametrize(
    ("tags", "limit", "words"),
    [
        (["all"], "", []),
        (["kafka", "images", "never"], "node1,node2:!kafka:&all,web*,@file,~a.c", []),
        (["kafak"], "", ["tag kafak is known to no play. Did you mean kafka? Correct it."]),
        (["xyz"], "", ["tag xyz is known to no play. Use one of images, zookeeper, kafka, "]),
        (["all"], "node1,nod2", ["limit nod2 is neither a host nor a group of the inventory. Did you mean node2? Correct it."]),
        (["all"], "node1:!kafak", ["limit kafak is neither a host nor a group of the inventory. Did you mean kafka? Correct it."]),
    ],
)
def test_tags_and_limits_that_ansible_passes_by_are_named(tags: list[str], limit: str, words: list[str]) -> None:
    groups = {"all": ["node1", "node2", "node3"], **Inventory().groups}
    found = preflight.check_arguments(tags, limit, groups)
    assert len(found) == len(words)
    assert all(sentence.startswith(word) for sentence, word in zip(found, words, strict=True))


# Through Ansible

PLAY = [{"hosts": "all", "gather_facts": False, "roles": ["preflight"], "vars": {"ansible_become": False}}]


def play(folder: Path, inventory: dict[str, Any], *arguments: str) -> str:
    """Run preflight alone; what it says, or nothing if all is well."""
    (folder / "play.yml").write_text(yaml.safe_dump(PLAY))
    (folder / "inventory.yml").write_text(yaml.safe_dump(inventory))
    done = subprocess.run(
        [str(ROOT / ".venv/bin/ansible-playbook"), "-i", str(folder / "inventory.yml"), str(folder / "play.yml"), *arguments],
        cwd=folder,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode == 0) is ("nothing was touched" not in done.stdout), done.stdout + done.stderr
    return done.stdout if done.returncode else ""


def local() -> dict[str, Any]:
    """The default inventory, on addresses of its own."""
    inventory: dict[str, Any] = yaml.safe_load((ROOT / "inventory/local.yml").read_text())
    inventory["all"]["vars"]["instance"] = "preflight"
    for number, values in enumerate(inventory["all"]["hosts"].values(), 21):
        values["node_address"] = f"127.0.1.{number}"
    inventory["all"]["children"]["nginx"]["hosts"]["node1"]["nginx_extra_listen"] = ["127.0.1.21:18081"]
    return inventory


@pytest.mark.parametrize("arguments", [(), ("--limit", "node2"), ("--check",)], ids=" ".join)
def test_the_default_inventory_passes(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert play(tmp_path, local(), "-e", "num_vehicles=30", *arguments) == ""


def test_arguments_are_looked_at_first(tmp_path: Path) -> None:
    assert "- limit nod2 is neither a host" in play(tmp_path, local(), "--limit", "node1,nod2")


@pytest.mark.parametrize("arguments", [(), ("--limit", "node2", "--check")], ids=" ".join)
def test_everything_is_said_in_one_run(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    inventory = local()
    inventory["all"]["vars"] |= {
        "kafka_prot": 9092,
        "kafka_topic_partitions": "{{ 2 - 1 }}",
        "vehicle_make": "{{ no_such_variable }}",
        "preflight_disk_free": "900000g",
    }
    del inventory["all"]["children"]["zookeeper"]["hosts"]["node3"]
    inventory["all"]["hosts"]["node3"] |= {
        "node_address": "127.0.1.22",
        "ansible_connection": "ssh",
        "ansible_host": "127.0.1.23",
        "machine": "away",
    }
    said = play(tmp_path, inventory, "-e", "num_vehicles=abc", *arguments)
    expected = [
        "kafka_prot is read by nothing. Did you mean kafka_port?",
        "kafka_topic_partitions = 1 leaves some of the 2 consumers without work.",
        "vehicle_make = '{{ no_such_variable }}' cannot be computed: 'no_such_variable' is undefined.",
        "disk of local = ",
        "group zookeeper = node1, node2 is an even ensemble of 2",
        "node_address = '127.0.1.22' belongs to 2 nodes, node2, node3.",
        "num_vehicles = 'abc' is no number of vehicles.",
    ]
    # A host out of reach is a problem among the others, where the run is about it
    expected += ["node3 cannot be asked: "] if not arguments else []
    assert [sentence for sentence in expected if f"- {sentence}" not in said] == []


@pytest.mark.parametrize("name", ["example", "lab"])
def test_an_inventory_of_several_machines_has_no_problem_but_that_they_are_away(tmp_path: Path, name: str) -> None:
    inventory = yaml.safe_load((ROOT / f"inventory/{name}.yml").read_text())
    inventory["all"]["vars"]["ansible_ssh_common_args"] = "-o ConnectTimeout=1"
    # An address where nothing answers at once, in place of one that may take long to fail, or of a lab that is up
    for host in inventory["all"]["hosts"].values():
        host |= {"node_address": host["ansible_host"], "ansible_host": "127.0.1.29"}
    said = play(tmp_path, inventory)
    assert "3 problems; nothing was touched" in said
    assert all(f"- {host} cannot be asked: " in said for host in inventory["all"]["hosts"])


def test_the_lab_is_the_default_cluster_on_other_hosts() -> None:
    lab, here = (yaml.safe_load((ROOT / f"inventory/{name}.yml").read_text())["all"] for name in ("lab", "local"))
    # Only here is there an address for people, and vehicles on every node
    here["children"]["nginx"]["hosts"]["node1"] = None
    del here["children"]["vehicles"]["hosts"]["node1"]
    assert lab["children"] == here["children"]
    network = ipaddress.ip_network(lab["vars"]["lab_subnet"])
    assert all(ipaddress.ip_address(host["ansible_host"]) in network for host in lab["hosts"].values())


def test_what_is_in_force_is_shown_without_secrets() -> None:
    inventory = Inventory()
    inventory.set("kafka_client", {"sasl_plain_password": "hidden", "client_dns_lookup": "x"})
    shown = preflight.in_force(inventory.nodes, all_options())
    assert shown["settings"]["kafka_client"] == {"sasl_plain_password": "***", "client_dns_lookup": "x"}
    assert shown["zookeeper"]["zookeeper_id"] == {"node1": 1, "node2": 2, "node3": 3}
    assert shown["settings"]["kafka_port"] == 9092
