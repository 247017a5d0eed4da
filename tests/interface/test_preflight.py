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
from ansible.errors import AnsibleError
from interface.roles import KINDS, ROLES, ROOT, all_options, defaults, module

preflight = module("roles/preflight/action_plugins/preflight.py")
settings = module("roles/settings/module_utils/tachograph_settings.py")
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
            **{f"{kind}_uid": defaults("settings")["settings_uid_base"] + line["user"] for kind, line in KINDS.items()},
            "kafka_bootstrap_servers": "127.0.0.11:9092,127.0.0.12:9092",
            "zookeeper_connect": "127.0.0.11:2181,127.0.0.12:2181/tachograph",
            "postgres_host": "127.0.0.11",
            "zookeeper_chroot": "/tachograph",
            "container_restart_kinds": "zookeeper,kafka",
            **{name: "tachograph/any:0123456789ab" for role in ROLES for name in defaults(role) if name.endswith("_image")},
            **{f"settings_{each}_dir": f"/any/{each}" for each in ("secrets", "build", "config")},
            "images_ca_file": "",
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


CUT = "\n"
CANNOT_WORK: dict[str, tuple[str, ...]] = {
    "kafka_topic": ("tele metry", "fleet/telemetry", "", ".", "..", "a" * 250, "télémétrie", "__consumer_offsets"),
    "consumer_group": ("", "a b", "a/b", "g" * 250),
    "postgres_database": ("", "d" * 64, "a b", "a'b", 'a"b', "all", "template1", "replication", "1a", "a;b"),
    "postgres_host": ("a b", "a,b"),
    "zookeeper_chroot": ("kafka", "/", "/a/", "//a", "/a b", "/./a", "/..", "/zookeeper"),
    "zookeeper_connect": ("127.0.0.11", "127.0.0.11:2181/", "127.0.0.11:2181,/a", "a b:1/c"),
    "kafka_bootstrap_servers": ("127.0.0.11", "127.0.0.11:9092,", "a b:9092"),
    "images_registry": ("https://reg.example:5000", "reg.example:5000:1", "reg example", "-reg", "reg.example/Team"),
    "images_base": ("https://reg.example/debian:13", "a b", "-debian"),
    "kafka_image": ("", "a b", "--privileged"),
    "producer_image": ("https://reg.example/a",),
    "nginx_server_name": ("", "a;b", "a; listen 80", "a{b", "a}b", 'a"b', "a'b", "a#b", "a  b", "~a\\", "~a;", "$host"),
    "container_restart_kinds": ("", "kafka;nginx", "broker", "kafka,"),
    "settings_config_dir": ("", "etc", "/etc:/var"),
    "settings_secrets_dir": ("secrets",),
    "verify_faults": ("broker;", "broker,,", "Broker"),
    "verify_seed": ("a b", "a/b", "s" * 65),
    "verify_dir": ("",),
    "remedy_accept_loss": ("3", "3:1", "3:1-", "a:1-2", "3:1-2 "),
    "remedy_read_again": ("-1", "x"),
    "remedy_redrive": ("3", "3:x"),
    "remedy_delete_stored": ("everything", "3:"),
    "vehicle_put_back": ("ALL", "1FAHP0000000000"),
}
CAN_WORK: dict[str, tuple[object, ...]] = {
    "kafka_topic": ("telemetry", "a" * 249, "a.b_c-1", "...", 7),
    "postgres_database": ("av_telemetry", "d" * 63, "A-b", "postgres"),
    "zookeeper_chroot": ("", "/a", "/a/b.c", "/a..b", "/zookeepers"),
    "zookeeper_connect": ("127.0.0.11:2181", "a:1,b:2/c/d"),
    "images_registry": ("", "reg.example:5000", "localhost:5000/team/sub", "reg.example/team/"),
    "images_base": ("debian:13", "reg.example:5000/a/b:1", "debian@sha256:0123abcd"),
    "nginx_server_name": ("_", "a.example b.example", "*.example", r"~^www\d+\.example$ a", "überall.example", ".example"),
    "container_restart_kinds": ("kafka", "kafka, nginx"),
    "verify_faults": ("", "broker, zookeeper,consumer_pause"),
    "remedy_accept_loss": ("3:1-2",),
    "remedy_delete_stored": ("all", "3", 3, "3:120"),
    "vehicle_put_back": ("", "all", "SELFCHECK00000000"),
    "kafka_config": ({"log.cleaner.enable": False, "a": "b, c=d", "e": "", "f": None, "g": 1.5},),
    "postgres_config": ({"work_mem": "'4MB'", "pg_stat_statements.track": "all", "log_line_prefix": "'%m ü '"},),
    "postgres_reader_networks": (["192.0.2.0/24", "192.0.2.7/32", "0.0.0.0/0"],),
    "nginx_extra_listen": (["[::1]:8080", "[::]:8081", "127.0.0.1:8080"],),
    "zookeeper_commands": (["*"], ["srvr", "ruok"]),
    "nginx_urls": (["https://fleet.example/", "http://127.0.0.11:8080"],),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in CAN_WORK.items() for value in values])
def test_what_can_work_is_taken(name: str, value: object) -> None:
    inventory = Inventory()
    inventory.set(name, value)
    assert inventory.problems() == []


def test_each_text_has_a_rule() -> None:
    ruled = {*preflight.TEXTS, *preflight.PLAIN}
    texts = {
        name
        for name, spec in all_options().items()
        if spec["type"] in ("str", "path")
        and not (spec.get("choices") or preflight.SIZE_NAME.search(name) or preflight.LENGTH.search(spec["description"]))
    }
    assert texts == ruled
    # Passed from role to role
    inside = {
        "container_service",
        "container_leavers",
        "vehicle_leavers",
        "images_old",
        "kafka_going",
        "zookeeper_going",
        "preflight_confirm_what",
    }
    containers = {name for name, spec in all_options().items() if spec["type"] in ("list", "dict")} - inside
    looked_at = {"nginx_extra_listen", "nginx_balancers", "postgres_reader_networks"}
    assert containers == {*preflight.ELEMENT_TEXTS, *preflight.ENTRY_TEXTS, *looked_at}


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
    *(
        (
            lambda i, name=name, value=value: i.set("kafka_topic_config", {name: value}, "node1"),
            f"kafka_topic_config.{name} = {value!r} (node1) weakens the promise, so no producer would be ready. Remove it",
        )
        for name, value in {
            "retention.bytes": 1073741824,
            "cleanup.policy": "compact",
            "unclean.leader.election.enable": True,
            "message.timestamp.type": "CreateTime",
            "compression.type": "gzip",
        }.items()
    ),
    # Users
    (
        lambda i: i.set("kafka_uid", 20092),
        "kafka_uid = 20092 is not the user of our image, 10092. Remove it, set settings_uid_base for all of them, or name an "
        "image of your own in kafka_image.",
    ),
    (lambda i: i.set("settings_uid_base", 20000, "node1"), "settings_uid_base = 20000 on node1, 10000 on node2 node3 differs"),
    # Numbers of members
    (lambda i: i.set("zookeeper_id", 2, "node1"), "zookeeper_id = 2 belongs to node1, node2."),
    (lambda i: i.set("zookeeper_id", 256, "node1"), "zookeeper_id = 256 (node1) is out of range. Set an integer from 1 to 255"),
    (lambda i: i.set("zookeeper_id", 0, "node1"), "zookeeper_id = 0 (node1) is out of range."),
    (lambda i: i.set("zookeeper_id", "one", "node1"), "zookeeper_id = 'one' (node1) is not an integer."),
    (lambda i: i.unset("zookeeper_id", "node3"), "zookeeper_id (node3) is missing. Set an integer from 1 to 255"),
    (lambda i: i.set("kafka_broker_id", "2", "node1"), "kafka_broker_id = 2 belongs to node1, node2."),
    (lambda i: i.set("kafka_broker_id", 1001, "node1"), "kafka_broker_id = 1001 (node1) is out of range."),
    (lambda i: i.unset("kafka_broker_id", "node1"), "kafka_broker_id (node1) is missing."),
    (
        lambda i: i.set("kafka_rack", "a", "node1", "node3"),
        "kafka_rack (node2) is missing, and other brokers have one. Set it for all brokers or for none.",
    ),
    # Folders of data
    *(
        (
            lambda i, path=path: i.set("kafka_data", path, "node1"),
            f"kafka_data = '{path}' (node1) cannot work. Set an absolute path",
        )
        for path in ("/", "data", "/srv/../etc", "/tmp/kafka", "/run", "/srv/a b", "/srv/kafka/")
    ),
    (
        lambda i: i.set("kafka_data", "/srv/kafka"),
        "kafka_data = '/srv/kafka' of node1 and kafka_data = '/srv/kafka' of node2 are not apart, on machine local. Give "
        "each member a folder of its own, such as /srv/kafka/{{ inventory_hostname }}-kafka.",
    ),
    # Addresses and ports
    (lambda i: i.set("node_address", "127.0.0.12", "node1"), "node_address = '127.0.0.12' belongs to 2 nodes, node1, node2."),
    (lambda i: i.set("node_address", "db.example", "node1"), "node_address = 'db.example' (node1) is not an IPv4 address"),
    (lambda i: i.set("node_address", "0.0.0.0", "node1"), "node_address = '0.0.0.0' (node1) is not an IPv4 address"),
    (lambda i: i.set("node_address", "::1", "node1"), "node_address = '::1' (node1) is not an IPv4 address"),
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
    (lambda i: i.set("nginx_extra_listen", ["8080"], "node1"), "nginx_extra_listen = '8080' (node1) is not a place to listen on."),
    *(
        (
            lambda i, v=value: i.set("nginx_extra_listen", [v], "node1"),
            f"nginx_extra_listen = '{value}' (node1) is not a place to listen on.",
        )
        for value in ("::1:8080", "[::1]", "[::1]:0", "[127.0.0.1]:8080", "[::/0]:8080", "[x]:8080", "a;b:8080")
    ),
    (lambda i: i.set("nginx_extra_listen", 8080, "node1"), "nginx_extra_listen = 8080 (node1) is not a list."),
    # nginx
    (
        lambda i: i.set("nginx_balancers", ["192.0.2.7", "192.0.2.7/24"], "node1"),
        "nginx_balancers = '192.0.2.7/24' (node1) is neither an address nor a network. Use 192.0.2.7 or 192.0.2.0/24",
    ),
    (lambda i: i.set("nginx_balancers", ["balancer.example"]), "nginx_balancers = 'balancer.example' (node1, node2) is neither"),
    (lambda i: i.set("nginx_balancers", "192.0.2.7"), "nginx_balancers = '192.0.2.7' is not a list."),
    (
        lambda i: i.set("nginx_memory", "231m", "node1"),
        "nginx_memory = '231m' (node1) is too little for 1 x 4096 connections. Set 232m at least, or lower",
    ),
    (
        lambda i: i.set("nginx_worker_processes", "2", "node1"),
        "nginx_memory = '256m' (node1) is too little for 2 x 4096 connections. Set 400m at least",
    ),
    (lambda i: i.set("nginx_address_requests", -1), "nginx_address_requests = -1 is out of range. Set an integer from 0 to"),
    (lambda i: i.set("nginx_body_timeout", "25s"), "nginx_body_timeout = '25s' is not an integer. Set an integer from 0 to 3600."),
    # Postgres
    (
        lambda i: i.set("postgres_max_connections", 481, "node1"),
        "postgres_max_connections = 481 (node1) does not fit into container_pids_limit = 512: each connection is a process, "
        "and Postgres has up to 32 others. Set 480 at most, or raise container_pids_limit.",
    ),
    (
        lambda i: i.group("consumers", *["node1", "node2", "node3"] * 7),
        "postgres_max_connections = 50 (node1) is too few for 21 consumers, which take two each, and 10 others. Set 52 at least.",
    ),
    # A broker's session
    (
        lambda i: i.set("kafka_zookeeper_session_timeout_ms", 3999, "node1"),
        "kafka_zookeeper_session_timeout_ms = 3999 (node1) is not within 2 to 20 ticks of ZooKeeper "
        "(zookeeper_tick_time_ms = 2000), which would change it silently. Set 4000 to 40000.",
    ),
    (
        lambda i: i.set("zookeeper_tick_time_ms", 400, "node2"),
        "kafka_zookeeper_session_timeout_ms = 9000 is not within 2 to 20 ticks of ZooKeeper (zookeeper_tick_time_ms = 400)",
    ),
    # Numbers, choices and sizes
    (lambda i: i.set("kafka_uid", 0), "kafka_uid = 0 is out of range. Set an integer from 1 to 2147483647."),
    (lambda i: i.set("kafka_port", "abc"), "kafka_port = 'abc' is not an integer. Set an integer from 1 to 65535."),
    (lambda i: i.set("kafka_port", 70000), "kafka_port = 70000 is out of range. Set an integer from 1 to 65535."),
    (lambda i: i.set("nginx_worker_processes", "1.5"), "nginx_worker_processes = '1.5' is not an integer."),
    (lambda i: i.set("nginx_worker_processes", True), "nginx_worker_processes = True is not an integer."),
    (
        lambda i: i.set("container_healthy_timeout", 0),
        "container_healthy_timeout = 0 is out of range. Set an integer from 1 to 3600.",
    ),
    (lambda i: i.set("vehicle_report_delay", "fast"), "vehicle_report_delay = 'fast' is not a number."),
    (lambda i: i.set("vehicle_report_delay", 0), "vehicle_report_delay = 0 is out of range. Set a number from 0.001 to 86400."),
    (lambda i: i.set("vehicle_velocity_x", float("nan")), "vehicle_velocity_x = nan is not a number."),
    (lambda i: i.set("vehicle_auto_start", "maybe"), "vehicle_auto_start = 'maybe' is neither true nor false."),
    (
        lambda i: i.set("container_supervisor", "runit"),
        "container_supervisor = 'runit' is not among the choices. Set one of docker, systemd.",
    ),
    (lambda i: i.set("kafka_memory", "lots"), "kafka_memory = 'lots' is not a size. Set a number with a unit, such as 256m."),
    (lambda i: i.set("kafka_heap", "2g"), "kafka_heap = '2g' does not fit into kafka_memory = '768m'."),
    (lambda i: i.set("kafka_client", "ssl"), "kafka_client = 'ssl' is not a mapping."),
    (
        lambda i: i.set("kafka_client", {"sasl_plain_password": "hunter2"}),
        "kafka_client.sasl_plain_password is a secret, which would stand in the containers' environment and log. "
        "Move it to kafka_client_secrets.sasl_plain_password.",
    ),
    (
        lambda i: i.set("postgres_client", {"sslPassword": "hunter2"}),
        "postgres_client.sslPassword is a secret, which would stand in the containers' environment and log. "
        "Move it to postgres_client_secrets.sslPassword.",
    ),
    (
        lambda i: i.set("kafka_client", {"sasl_jaas": 'Login required username="a" password="hunter2";'}),
        "kafka_client.sasl_jaas is a secret,",
    ),
    (
        lambda i: i.set("kafka_client_secrets", {"ssl_cafile": "/ca"}),
        "kafka_client_secrets.ssl_cafile is not the name of a secret. Move it to kafka_client.ssl_cafile.",
    ),
    (
        lambda i: i.set("postgres_client_secrets", {"sslpassword": "hunter2\n"}),
        "postgres_client_secrets.sslpassword is not one line of text without spaces at its ends.",
    ),
    (
        lambda i: i.set("kafka_config", {"listener.name.x.sasl.jaas.config": "hunter2"}),
        "kafka_config['listener.name.x.sasl.jaas.config'] is a secret, which everybody on the host could read. "
        "Move it to kafka_config_secrets['listener.name.x.sasl.jaas.config'].",
    ),
    (
        lambda i: i.set("zookeeper_config", {"ssl.keyStore.password": "hunter2"}),
        "zookeeper_config['ssl.keyStore.password'] is a secret, which everybody on the host could read. Leave it out",
    ),
    (
        lambda i: i.set("postgres_config", {"primary_conninfo": "'host=a password=hunter2'"}),
        "postgres_config['primary_conninfo'] is a secret,",
    ),
    (lambda i: i.set("postgres_writer_password", "hunter2\t"), "postgres_writer_password is not one line of text"),
    (lambda i: i.set("zookeeper_super_password", 1234), "zookeeper_super_password is not one line of text"),
    (
        lambda i: i.set("postgres_reader_password", "hunter2", "node1"),
        "postgres_reader_password = *** on node1, *** on node2 node3 differs",
    ),
    (lambda i: i.set("kafka_client_secrets", "hunter2"), "kafka_client_secrets = *** is not a mapping."),
    (lambda i: i.set("kafka_topic", ["a"]), "kafka_topic = ['a'] is not a text."),
    # Texts that cannot work
    *(
        (lambda i, n=name, v=value: i.set(n, v), f"{name} = '{value}' cannot work. Set ")
        for name, values in CANNOT_WORK.items()
        for value in values
    ),
    *(
        (lambda i, n=name: i.set(n, f"a{CUT}b"), f"{name} = 'a\\nb' has a line break")
        for name in (
            "kafka_topic",
            "nginx_server_name",
            "postgres_host",
            "images_refresh",
            "vehicle_fleet_seed",
            "settings_config_dir",
        )
    ),
    (lambda i: i.set("images_ca_file", "/no/such/file"), "images_ca_file = '/no/such/file' is not a file of this controller."),
    (lambda i: i.set("zookeeper_commands", ["srvr", "srvr;"]), "zookeeper_commands = 'srvr;' cannot work."),
    (lambda i: i.set("nginx_urls", ["127.0.0.1:8080"]), "nginx_urls = '127.0.0.1:8080' cannot work."),
    *(
        (lambda i, n=name, v=value: i.set(n, {"a.b": v}), f"the value of {name}.a.b cannot stand in its file. Set ")
        for name in ("kafka_config", "kafka_topic_config", "zookeeper_config", "postgres_config")
        for value in ("1\nother=2", ["1"])
    ),
    (lambda i: i.set("kafka_config", {"a": "b\\"}), "the value of kafka_config.a cannot stand in its file."),
    (lambda i: i.set("kafka_config", {"a": "ä"}), "the value of kafka_config.a cannot stand in its file."),
    (lambda i: i.set("postgres_config", {"a": ""}), "the value of postgres_config.a cannot stand in its file."),
    *(
        (lambda i, n=name: i.set(n, {"a b": 1}), f"{name}.'a b' is not a name that can be set.")
        for name in ("kafka_config", "kafka_topic_config", "zookeeper_config", "postgres_config", "kafka_client", "postgres_client")
    ),
    # Networks of readers
    *(
        (lambda i, v=value: i.set("postgres_reader_networks", [v]), f"postgres_reader_networks = {value!r} is not an IPv4 network.")
        for value in ("nonsense", "10.0.0.0/33", "192.0.2.7/24", "2001:db8::/32", "samenet", "", "10.0.0.0/8 trust")
    ),
    (
        lambda i: i.set("postgres_reader_networks", ["192.0.2.7"]),
        "postgres_reader_networks = '192.0.2.7' has no mask. Use 192.0.2.7/32 for this address alone.",
    ),
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
        (lambda i, n=n: i.set("num_vehicles", n), f"num_vehicles = {n!r} is not a number of vehicles.")
        for n in ("abc", "0", "-3", "1.5", 0)
    ),
    # Names
    (
        lambda i: i.given["node1"].add("kafka_zookeeper_session_timeout"),
        "kafka_zookeeper_session_timeout (node1) is now kafka_zookeeper_session_timeout_ms. Rename it.",
    ),
    (
        lambda i: i.given["node1"].add("zookeeper_tick_time"),
        "zookeeper_tick_time (node1) is now zookeeper_tick_time_ms. Rename it.",
    ),
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
    assert not any("hunter2" in each for each in found)


def test_nginx_needs_room_for_the_folder_that_role_container_gives() -> None:
    tasks = yaml.safe_load((ROOT / "roles/container/tasks/container.yml").read_text())
    [given] = re.findall(r"/tmp:[^']*size=(\w+)", tasks[0]["community.docker.docker_container"]["tmpfs"])
    assert settings.size(given) == preflight.NGINX_TMP


def test_the_topic_may_say_what_the_promise_needs_in_other_words() -> None:
    inventory = Inventory()
    inventory.set("kafka_topic_config", {"retention.bytes": "-1", "unclean.leader.election.enable": False, "segment.ms": 3600000})
    assert inventory.problems() == []


def test_an_own_image_may_have_another_user() -> None:
    inventory = Inventory()
    inventory.set("kafka_image", "kafka.example/kafka:3.9")
    inventory.set("kafka_uid", 1000)
    assert inventory.problems() == []


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


def test_an_ansible_that_lacks_what_resolving_needs_is_refused_in_words() -> None:
    with pytest.raises(AnsibleError, match=r"^Settings cannot be resolved with ansible-core .*, which has no raw_get; 2\.19 was"):
        settings.Inventory(None, None, {"hostvars": {}})


def test_what_a_playbook_before_has_left_is_no_problem() -> None:
    inventory = Inventory()
    for names in inventory.given.values():
        names |= {"preflight_data"}
    assert inventory.problems() == []


def test_one_host_looks_for_all_that_share_its_machine() -> None:
    inventory = Inventory()
    looks = settings.looks(["node2", "node3"], inventory.nodes, inventory.groups)
    assert list(looks) == ["node2"]
    assert {container["node"] for container in looks["node2"]["containers"]} == {"node2", "node3"}
    inventory.set("machine", "other", "node3")
    assert list(settings.looks(["node1", "node2", "node3"], inventory.nodes, inventory.groups)) == ["node1", "node3"]


def test_the_place_of_a_member_is_that_of_its_role() -> None:
    """As tests/render has it."""
    inventory = Inventory()
    inventory.set("zookeeper_chroot", "/tachograph")
    found = settings.looks(["node1"], inventory.nodes, inventory.groups)["node1"]["containers"]
    places = {each["kind"]: each["place"] for each in found}
    assert places["kafka"] == "127.0.0.11:9092/tachograph"
    assert places["zookeeper"] == "127.0.0.11:2181:2888:3888"
    assert places["nginx"] == places["postgres"] == ""


def test_what_the_inventory_has_on_a_machine_is_told_for_hosts_outside_the_play_too() -> None:
    inventory = Inventory()
    expected = settings.looks(["node2"], inventory.nodes, inventory.groups)["node2"]["expected"]
    assert {"tachograph-kafka-node1", "tachograph-postgres-node1", "tachograph-vehicle-node3"} <= set(expected)
    assert "tachograph-postgres-node2" not in expected


def present(kind: str, node: str, **labels: str) -> dict[str, Any]:
    """A container, as the engine tells."""
    return {
        f"t-{kind}-{node}": {
            "Labels": {"tachograph.instance": "t", "tachograph.kind": kind, **labels},
            "Mounts": [{"Type": "volume", "Name": f"t-{kind}-{node}-data"}, {"Type": "bind", "Source": "/etc"}],
        }
    }


def kept(kind: str, node: str) -> dict[str, Any]:
    """A volume, as the engine tells; one that was made before there was a label for its node."""
    return {f"t-{kind}-{node}-data": {"Labels": {"tachograph.instance": "t", "tachograph.kind": kind}}}


def test_what_the_inventory_has_no_more_is_found() -> None:
    there = present("kafka", "node1") | present("kafka", "node4")
    assert machine.leaving(there, ["t-kafka-node1", "t-kafka-node2"]) == [
        {"name": "t-kafka-node4", "kind": "kafka", "node": "node4", "volumes": ["t-kafka-node4-data"]}
    ]


def test_the_node_of_a_container_and_of_a_volume_follows_from_a_label_or_the_name() -> None:
    labels = {"tachograph.instance": "t", "tachograph.kind": "kafka"}
    assert machine.node_of("t-kafka-a-b", labels) == "a-b"
    assert machine.node_of("t-kafka-a-b-data", labels, volume=True) == "a-b"
    assert machine.node_of("t-kafka-a-b", labels | {"tachograph.node": "c"}) == "c"


def owners(monkeypatch: pytest.MonkeyPatch, there: dict[str, Any], volumes: dict[str, Any], **arguments: Any) -> list[str]:
    """What is said about a machine that has these containers and volumes, in an inventory of node1 and node2."""
    monkeypatch.setattr(machine, "volumes", lambda instance: volumes)
    given: dict[str, Any] = {"instance": "t", "machine": "local", "expected": ["t-postgres-node1"], "nodes": ["node1", "node2"]}
    foreign, others = machine.check_owners(given | {"former": [], "missing_secrets": []} | arguments, there)
    return [*foreign, *others]


def test_nodes_that_the_inventory_does_not_know_are_named_with_the_ways_on(monkeypatch: pytest.MonkeyPatch) -> None:
    there, volumes = present("kafka", "alpha"), kept("kafka", "alpha") | kept("zookeeper", "beta") | kept("kafka", "node2")
    alpha, beta = owners(monkeypatch, there, volumes)
    assert alpha.startswith("local has t-kafka-alpha, t-kafka-alpha-data of instance t, but node alpha is not in this inventory.")
    assert beta.startswith("local has t-zookeeper-beta-data of instance t, but node beta is not in this inventory.")
    for way in ("give it its old name back", "set another instance", "set settings_former_nodes to alpha"):
        assert way in alpha
    assert owners(monkeypatch, there, volumes, former=["alpha", "beta"]) == []


def test_a_member_that_runs_keeps_its_address_ports_and_chroot() -> None:
    wanted = {"name": "t-kafka-node1", "place": "127.0.0.11:9092/t"}
    for now, problems in {"": 0, "127.0.0.11:9092/t": 0, "127.0.0.11:9093/t": 1, "127.0.0.11:9092/u": 1}.items():
        there = present("kafka", "node1", **({"tachograph.place": now} if now else {}))
        found = machine.check_member(wanted, there)
        assert len(found) == problems
        assert all(each.startswith(f"t-kafka-node1 runs at {now}, and the inventory says 127.0.0.11:9092/t.") for each in found)
    assert machine.check_member({"name": "t-nginx-node1", "place": ""}, {}) == []


def test_several_nodes_that_lose_containers_at_once_are_listed() -> None:
    machines = module("roles/settings/filter_plugins/machines.py")
    leavers = [{"name": f"t-{kind}-{node}", "kind": kind, "node": node} for kind, node in
               [("nginx", "n1"), ("kafka", "n2"), ("consumer", "n2"), ("vehicle", "n3"), ("kafka", "idle")]]  # fmt: skip
    groups = {"all": ["n1", "n2", "n3", "idle"], "ungrouped": ["idle"], "producers": ["n1", "n2", "n3"]}
    answers = {"n1": {"leavers": leavers[:2]}, "n2": {"leavers": leavers[2:]}, "n3": {"msg": "no answer"}}
    assert machines.leaving(answers, groups, False) == ["n1: t-nginx-n1", "n2: t-kafka-n2, t-consumer-n2"]
    assert machines.leaving(answers, groups, True) == ["n3: t-vehicle-n3"]


def test_a_known_node_may_keep_the_data_of_a_kind_that_left_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert owners(monkeypatch, {}, kept("kafka", "node2") | kept("vehicle", "node1")) == []


def test_a_database_is_not_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    assert owners(monkeypatch, present("postgres", "node1"), kept("postgres", "node1")) == []
    [problem] = owners(monkeypatch, present("postgres", "node2"), kept("postgres", "node2"))
    assert problem.startswith(
        "t-postgres-node2 and t-postgres-node2-data hold the database, and node2 is not in group postgres any more. Put it back."
    )
    assert "(`docker rm -f t-postgres-node2 && docker volume rm t-postgres-node2-data`)" in problem
    # After a full stop there is the volume alone
    [problem] = owners(monkeypatch, {}, kept("postgres", "node2"))
    assert problem.startswith("t-postgres-node2-data holds the database, and node2 is not in group postgres any more.")
    [problem] = owners(monkeypatch, {}, kept("postgres", "gone"), former=["gone"])
    assert problem.startswith("t-postgres-gone-data holds the database")


def test_an_instance_whose_secrets_are_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    run = preflight.Controller(
        kinds={"zookeeper", "postgres", "consumer"}, missing=["postgres_writer", "postgres_reader"], folder="/secrets/t"
    )
    lost = preflight.lost_secrets(run, "t")
    assert owners(monkeypatch, {}, kept("zookeeper", "node1"), missing_secrets=lost) == []
    [problem] = owners(monkeypatch, {}, kept("postgres", "node1"), missing_secrets=lost)
    assert problem.startswith(
        "Instance t is there already, but its secrets postgres_writer, postgres_reader are neither in /secrets/t nor"
    )
    for way in ("copy its secrets/t to /secrets/t", "set the variables", "-e settings_secrets_new=true"):
        assert way in problem
    assert preflight.lost_secrets(run._replace(renew=True), "t") == []
    assert preflight.lost_secrets(run._replace(missing=[]), "t") == []
    assert preflight.lost_secrets(run._replace(kinds={"nginx"}), "t") == []


def test_a_secret_is_made_only_where_its_owner_is_told() -> None:
    run = preflight.Controller(
        kinds={"consumer"}, missing=["zookeeper_super", "postgres_writer", "postgres_reader"], folder="/secrets/t", renew=True
    )
    [problem] = preflight.check_secrets(run)
    assert problem.startswith("secret postgres_writer is neither in the folder of secrets nor in postgres_writer_password")
    assert preflight.check_secrets(run._replace(kinds={"consumer", "postgres"})) == []
    assert preflight.check_secrets(run._replace(kinds={"nginx"})) == []


def test_the_trials_name_is_refused_on_other_machines() -> None:
    inventory = Inventory()
    assert preflight.check_name(inventory.nodes, "tachograph", []) == []
    [problem] = preflight.check_name(inventory.nodes, "tachograph", list(inventory.nodes))
    assert problem.startswith("instance = 'tachograph' is the name of the trial, and this inventory reaches other machines")
    assert problem.endswith("If the cluster already runs under this name, keep it: set settings_instance_kept: true.")
    inventory.set("settings_instance_kept", "yes")
    assert preflight.check_name(inventory.nodes, "tachograph", list(inventory.nodes)) == []
    inventory = Inventory()
    inventory.set("instance", "fleet")
    assert preflight.check_name(inventory.nodes, "tachograph", list(inventory.nodes)) == []


def test_the_secrets_are_those_that_roles_make() -> None:
    assert {name for name in preflight.SECRETS if name.startswith("postgres")} == set(
        yaml.safe_load((ROOT / "roles/postgres/vars/main.yml").read_text())["__postgres_secrets"]
    )
    options = all_options()
    assert all(options[f"{name}_password"]["no_log"] and options[f"{name}_password"]["default"] == "" for name in preflight.SECRETS)


def test_values_that_are_wrong_are_not_looked_at() -> None:
    inventory = Inventory()
    inventory.set("kafka_port", "abc")
    inventory.set("nginx_extra_listen", 8080)
    inventory.set("kafka_memory", "lots")
    looks = settings.looks(["node1"], inventory.nodes, inventory.groups)["node1"]
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


def test_a_taken_port_of_ipv6_is_named() -> None:
    with socket.socket(socket.AF_INET6) as holder:
        holder.bind(("::1", 0))
        holder.listen()
        place = {"variable": "nginx_extra_listen", "address": "::1", "port": holder.getsockname()[1]}
        [problem] = machine.check_places({"name": "t-nginx-node1", "node": "node1", "places": [place]})
    assert problem.startswith(f"nginx_extra_listen = {place['port']} (node1) is taken on ::1")
    assert machine.check_places({"name": "t-nginx-node1", "node": "node1", "places": [place]}) == []


def test_an_address_of_another_host_is_named() -> None:
    places = [{"variable": "kafka_port", "address": "192.0.2.1", "port": port} for port in (9092, 9093)]
    [problem] = machine.check_places({"name": "t-kafka-node1", "node": "node1", "places": places})
    assert problem.startswith("node_address = '192.0.2.1' (node1) is not an address of its host.")


def test_short_memory_and_disk_are_named() -> None:
    containers = [{"memory": 2**50}, {"memory": 2**50}]
    [problem] = machine.check_memory("local", containers, 60)
    assert "is too little for 2 containers with limits of 2147483648 MiB in all" in problem
    assert machine.check_memory("local", containers, 0) == []
    [problem] = machine.check_disk("local", 2**60, "/")
    assert "is less than preflight_disk_free" in problem
    assert machine.check_disk("local", 0, "/") == []


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
    inventory["all"]["vars"] |= {"instance": "preflight", "postgres_writer_password": "word"}
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
        "num_vehicles = 'abc' is not a number of vehicles.",
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
    inventory.set("kafka_config", {"x.sasl.jaas.config": "hidden", "y": 'a required password="hidden";'})
    inventory.set("kafka_config_secrets", {"z": "hidden"})
    inventory.set("zookeeper_super_password", "hidden")
    shown = settings.in_force(inventory.nodes, all_options())
    assert shown["settings"]["kafka_client"] == {"sasl_plain_password": "***", "client_dns_lookup": "x"}
    assert shown["zookeeper"]["zookeeper_super_password"] == "***"
    assert shown["settings"]["postgres_reader_password"] == ""
    assert "hidden" not in str(shown)
    assert shown["zookeeper"]["zookeeper_id"] == {"node1": 1, "node2": 2, "node3": 3}
    assert shown["settings"]["kafka_port"] == 9092


def of_path(path: Path | str, uid: int) -> dict[str, Any]:
    place = {"variable": "kafka_data", "volume": "t-kafka-a-data", "path": str(path)}
    return {"name": "t-kafka-a", "node": "a", "uid": uid, "paths": [place]}


def volume(name: str, path: Path | str) -> dict[str, dict[str, Any]]:
    options = {"type": "none", "o": "bind", "device": str(path)} if path else None
    return {name: {"Name": name, "Options": options, "Mountpoint": f"/var/lib/docker/volumes/{name}/_data"}}


def test_a_folder_of_data_is_missing_or_empty_or_has_the_data_of_its_member(tmp_path: Path) -> None:
    mine, other = os.getuid(), os.getuid() + 1
    assert machine.check_paths(of_path("", mine), {}) == []
    assert machine.check_paths(of_path(tmp_path / "missing/too", mine), {}) == []
    (tmp_path / "lost+found").mkdir()
    assert machine.check_paths(of_path(tmp_path, other), {}) == []
    (tmp_path / "photos").touch()
    assert machine.check_paths(of_path(tmp_path, mine), {}) == []
    [problem] = machine.check_paths(of_path(tmp_path, other), {})
    assert problem.startswith(f"kafka_data = '{tmp_path}' (a) holds something already (photos), and its owner is not {other}")
    assert machine.check_paths(of_path(tmp_path, other), volume("t-kafka-a-data", tmp_path)) == []
    [problem] = machine.check_paths(of_path(tmp_path / "photos", mine), {})
    assert problem == f"kafka_data = '{tmp_path}/photos' (a) is not a folder. Set another path."


def test_a_folder_of_data_is_that_of_no_other_member(tmp_path: Path) -> None:
    [problem] = machine.check_paths(of_path(tmp_path, 1), volume("u-kafka-a-data", tmp_path))
    assert problem == f"kafka_data = '{tmp_path}' (a) is the folder of volume u-kafka-a-data. Set another one."


@pytest.mark.parametrize(("before", "after"), [("", "/srv/kafka"), ("/srv/old", "/srv/kafka"), ("/srv/old", "")])
def test_data_is_not_left_behind_when_its_place_changes(before: str, after: str) -> None:
    [problem] = machine.check_paths(of_path(after, 1), volume("t-kafka-a-data", before))
    assert problem.startswith(
        f"kafka_data = '{after}' (a): t-kafka-a-data keeps its data {f'in {before}' if before else 'as a volume'}"
    )
    assert f"Set kafka_data back to '{before}'." in problem
    assert f"copy {before or '/var/lib/docker/volumes/t-kafka-a-data/_data'} with its owners" in problem


def test_each_disk_is_looked_at_once(tmp_path: Path) -> None:
    containers = [of_path(tmp_path / "a/b", 1), of_path("", 1), of_path("/dev/shm", 1)]
    assert len(machine.check_disks("local", 2**60, containers)) == len(
        {os.stat(each).st_dev for each in (machine.data_root(), tmp_path, "/dev/shm")}
    )
    assert machine.check_disks("local", 0, containers) == []


def test_folders_of_data_do_not_lie_within_each_other() -> None:
    inventory = Inventory()
    inventory.set("kafka_data", "/srv/data", "node1")
    inventory.set("vehicle_spool", "/srv/data/spool", "node1")
    [problem] = inventory.problems()
    assert problem.startswith("kafka_data = '/srv/data' of node1 and vehicle_spool = '/srv/data/spool' of node1 are not apart")
    inventory.set("vehicle_spool", "/srv/database", "node1")
    assert inventory.problems() == []


def test_a_machine_of_which_little_is_used_is_told_and_refused_nothing() -> None:
    small = [{"name": "t-kafka-a", "memory": 2**20}]
    [notice] = machine.notices("alpha", small, ["t-kafka-a"])
    assert notice.startswith("The containers of alpha may use 1 MiB, which is 0 percent of its memory.")
    assert machine.notices("alpha", [{"name": "t-kafka-a", "memory": 2**50}], ["t-kafka-a"]) == []
    # A run with --limit looks at a part
    assert machine.notices("alpha", small, ["t-kafka-a", "t-kafka-b"]) == []
    assert machine.notices("bastion", [], []) == []


def sizes() -> dict[str, dict[str, Any]]:
    """The blocks of group_vars/README.md: the machine's memory to settings."""
    blocks = re.findall(r"```yaml\n# A machine of (\d+ GB).*?\n(.*?)```", (ROOT / "group_vars/README.md").read_text(), re.DOTALL)
    return {memory: yaml.safe_load(text) for memory, text in blocks}


@pytest.mark.parametrize("memory", ["16 GB", "64 GB"])
def test_the_sizes_that_are_shown_fit_and_use_the_machine(memory: str) -> None:
    inventory = Inventory()
    for name, value in sizes()[memory].items():
        inventory.set(name, value)
    assert inventory.problems(fleet=True) == []
    # One container of each kind, as on the first host of the example
    limits = sum(preflight.size(inventory.nodes["node1"][f"{kind}_memory"]) for kind in KINDS)
    assert 0.7 < limits / (int(memory.split()[0]) * 2**30) < 0.9


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("postgres_writer", b"it's a:b\\c $d \xc3\xbc %", ""),
        ("postgres_writer", b"one line\n", ""),
        ("postgres_writer", b"", "is empty. Remove it, and a password is made"),
        ("postgres_writer", b" \n\n", "is empty."),
        ("postgres_reader", b"one\ntwo\n", "is not one line of text."),
        ("postgres_reader", b"tab\tin it", "is not one line of text."),
        ("postgres_reader", b"Latin-1 \xfc", "is not one line of text."),
        ("zookeeper_super", b"Abc123:%$", ""),
        ("zookeeper_super", b"two words", "is not a word that ZooKeeper's client takes."),
        ("zookeeper_super", b"it's", "is not a word that ZooKeeper's client takes."),
    ],
)
def test_a_file_of_the_folder_of_secrets_is_named_if_nobody_could_log_in_by_it(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    values = {f"{secret}_password": "" for secret in preflight.SECRETS}
    found = preflight.check_secret_files(tmp_path, values)
    assert [each.startswith(f"{tmp_path / name} {words}") for each in found] == ([True] if words else [])
    # It is not shown
    text = content.decode(errors="replace").strip()
    assert not (text and any(text in each for each in found))
    # A variable stands in place of the file
    assert preflight.check_secret_files(tmp_path, values | {f"{name}_password": "x"}) == []
