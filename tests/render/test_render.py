"""What the roles would run, as data, for clusters of 1, 3 and 5 hosts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from telemetry.producer.publisher import ANSWER_TIMEOUT
from telemetry.record import MAX_BODY
from telemetry.vehicle.vehicle import POST_TIMEOUT

SIZES = [1, 3, 5]
Rendered = dict[str, Any]
Render = Callable[..., Rendered]
KINDS = {"zookeeper", "kafka", "postgres", "nginx", "producer", "consumer", "vehicle"}


@pytest.fixture(params=SIZES, ids=lambda size: f"{size} hosts")
def size(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def rendered(render: Render, size: int) -> Rendered:
    return render(size)


def services(rendered: Rendered, kind: str) -> dict[str, Any]:
    """Host to its service of that kind."""
    return {host: kinds[kind] for host, kinds in rendered.items() if kind in kinds}


def every(rendered: Rendered) -> list[tuple[str, str, Any]]:
    return [(host, kind, kinds[kind]) for host, kinds in rendered.items() for kind in kinds if kind in KINDS]


def address(size: int, host: str) -> str:
    return f"127.0.0.1{host.removeprefix('node')}" if size == 3 else f"192.0.2.{10 + int(host.removeprefix('host'))}"


def properties(text: str) -> dict[str, str]:
    """A properties file as the program would read it; nothing stands in it twice."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    values = dict(line.split("=", 1) for line in lines)
    assert len(values) == len(lines)
    return values


def seconds(text: str) -> float:
    return float(text.removesuffix("ms")) / 1000 if text.endswith("ms") else float(text.removesuffix("s"))


# All services


def test_every_host_runs_what_its_groups_say(rendered: Rendered, size: int) -> None:
    assert {kind for _, kind, _ in every(rendered)} == KINDS
    assert len(services(rendered, "postgres")) == 1
    assert len(services(rendered, "kafka")) == len(services(rendered, "zookeeper")) == size


def test_numbers_for_the_engine_are_numbers_and_texts_are_texts(rendered: Rendered) -> None:
    for _, kind, service in every(rendered):
        assert isinstance(service["uid"], int), kind
        assert re.fullmatch(r"\d+m", service["memory"]), kind
        assert all(isinstance(value, str) for value in service.get("environment", {}).values()), kind
        assert all(isinstance(content, str) for content in service.get("files", {}).values()), kind
        assert re.fullmatch(r"tachograph/[a-z]+:[0-9a-f]{12}", service["image"]), kind


def test_nothing_listens_wider_than_its_node(rendered: Rendered, size: int) -> None:
    for host, kind, service in every(rendered):
        text = json.dumps(service)
        assert "0.0.0.0" not in text, kind
        assert "[::]" not in text, kind
        # Every address in it is its own node's or another's; a wildcard or a name would show here
        if kind in ("producer", "consumer", "vehicle"):
            assert service["environment"]["TELEMETRY_LISTEN"].startswith(f"{address(size, host)}:")


def test_secrets_stand_in_secrets_alone(rendered: Rendered) -> None:
    for _, kind, service in every(rendered):
        rest = {key: value for key, value in service.items() if key != "secrets"}
        assert "secret-word" not in json.dumps(rest), kind
        of_kind = {"consumer": {"postgres_writer"}, "zookeeper": {"super.cfg"}}
        assert set(service.get("secrets", {})) == of_kind.get(kind, set())


def test_every_service_has_time_to_stop_and_a_health_check(rendered: Rendered) -> None:
    for _, kind, service in every(rendered):
        assert 10 <= service.get("stop_timeout", 30) <= 120, kind
        assert service["health"], kind


def test_a_heap_leaves_room_in_its_container(rendered: Rendered) -> None:
    for kind in ("zookeeper", "kafka"):
        for service in services(rendered, kind).values():
            [heap] = re.findall(r"-Xmx(\d+)m", " ".join(service["command"]))
            assert int(heap) * 2 <= int(service["memory"].removesuffix("m"))


def test_a_host_alone_is_rendered_as_among_all(render: Render) -> None:
    assert render(5, "--limit", "host2")["host2"] == render(5)["host2"]


# ZooKeeper


def test_members_know_each_other_by_their_pinned_ids(rendered: Rendered, size: int) -> None:
    members = services(rendered, "zookeeper")
    ids = {host: service["command"][2] for host, service in members.items()}
    lines = {f"server.{ids[host]}={address(size, host)}:2888:3888:participant;{address(size, host)}:2181" for host in members}
    for service in members.values():
        assert set(service["live"]["live/members"].splitlines()) == lines
        # Live alone: a change of the ensemble replaces no member
        assert "3888" not in json.dumps(service["files"])
    assert len(set(ids.values())) == size


def test_the_ensemble_changes_by_reconfiguration_alone(rendered: Rendered) -> None:
    for service in services(rendered, "zookeeper").values():
        config = properties(service["files"]["zoo.cfg"])
        assert (config["reconfigEnabled"], config["standaloneEnabled"]) == ("true", "false")
        # By whom: openssl's sha1 of super:supers-secret-word in base64
        assert service["secrets"]["super.cfg"] == "DigestAuthenticationProvider.superDigest=super:x2pRZevASyu7Zv9kLuQMrSktJ8c=\n"


def test_members_listen_on_their_address_and_serve_no_admin_page(rendered: Rendered, size: int) -> None:
    for service in services(rendered, "zookeeper").values():
        config = properties(service["files"]["zoo.cfg"])
        assert "clientPort" not in config
        assert config["quorumListenOnAllIPs"] == "false"
        assert config["admin.enableServer"] == "false"
        assert int(config["autopurge.purgeInterval"]) > 0
        # The health check asks it
        assert {"srvr", "conf"} <= set(config["4lw.commands.whitelist"].split(","))


# Kafka


def test_brokers_keep_the_promise_of_their_number(rendered: Rendered, size: int) -> None:
    factor, insync = {1: ("1", "1"), 3: ("3", "2"), 5: ("3", "2")}[size]
    for service in services(rendered, "kafka").values():
        config = properties(service["files"]["server.properties"])
        assert config["default.replication.factor"] == config["offsets.topic.replication.factor"] == factor
        assert config["transaction.state.log.replication.factor"] == factor
        assert config["min.insync.replicas"] == config["transaction.state.log.min.isr"] == insync
        assert config["unclean.leader.election.enable"] == "false"
        assert config["auto.create.topics.enable"] == "false"


def test_brokers_have_their_ids_and_addresses(rendered: Rendered, size: int) -> None:
    brokers = services(rendered, "kafka")
    ids = [properties(service["files"]["server.properties"])["broker.id"] for service in brokers.values()]
    assert len(set(ids)) == size
    assert "0" not in ids
    for host, service in brokers.items():
        config = properties(service["files"]["server.properties"])
        assert config["listeners"] == config["advertised.listeners"] == f"PLAINTEXT://{address(size, host)}:9092"
        members = ",".join(f"{address(size, member)}:2181" for member in services(rendered, "zookeeper"))
        assert config["zookeeper.connect"] == f"{members}/tachograph"


def test_a_broker_has_time_to_hand_over(rendered: Rendered) -> None:
    assert all(service["stop_timeout"] == 120 for service in services(rendered, "kafka").values())


def test_the_topic_is_made_as_promised(rendered: Rendered, size: int) -> None:
    script = next(iter(services(rendered, "topic").values()))
    factor, insync = {1: (1, 1), 3: (3, 2), 5: (3, 2)}[size]
    assert f"topic=telemetry partitions=6 factor={factor}\n" in script
    [wanted] = re.findall(r"^wanted=\((.*)\)$", script, re.MULTILINE)
    config = properties("\n".join(wanted.split()))
    assert config["min.insync.replicas"] == str(insync)
    assert config["message.timestamp.type"] == "LogAppendTime"
    assert config["cleanup.policy"] == "delete"
    assert config["retention.ms"] == str(168 * 3600 * 1000)
    assert config["compression.type"] == "uncompressed"
    for kind in ("producer", "consumer"):
        for service in services(rendered, kind).values():
            assert service["environment"]["KAFKA_TOPIC_RETENTION_MS"] == config["retention.ms"]
    assert config["unclean.leader.election.enable"] == "false"
    assert int(config["max.message.bytes"]) == 5 * MAX_BODY
    # A request may hold as much for each partition, and no more is made room for
    for service in services(rendered, "kafka").values():
        broker = properties(service["files"]["server.properties"])
        assert int(broker["socket.request.max.bytes"]) == 6 * int(config["max.message.bytes"])
    assert "flush.messages" not in config


# Postgres


def test_postgres_keeps_what_it_commits(rendered: Rendered, size: int) -> None:
    [(host, service)] = services(rendered, "postgres").items()
    config = {
        key: value.strip("'") for key, value in (line.split(" = ") for line in service["files"]["postgresql.conf"].splitlines())
    }
    assert config["listen_addresses"] == address(size, host)
    assert config["fsync"] == config["synchronous_commit"] == config["full_page_writes"] == "on"
    assert config["password_encryption"] == "scram-sha-256"
    assert config["shared_buffers"] == "128MB"
    assert (service["stop_signal"], service["stop_timeout"]) == ("SIGINT", 60)


def test_only_known_hosts_log_in_and_only_with_a_password(rendered: Rendered, size: int) -> None:
    [service] = services(rendered, "postgres").values()
    lines = [line.split() for line in service["files"]["pg_hba.conf"].splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if line[0] == "local"] == [["local", "all", "postgres", "peer"]]
    remote = [line for line in lines if line[0] == "host"]
    assert {line[4] for line in remote} == {"scram-sha-256"}
    assert {line[1] for line in remote} == {"av_telemetry"}
    writers = {line[3] for line in remote if line[2] == "telemetry_writer"}
    assert writers == {"samehost"} | {f"{address(size, host)}/32" for host in services(rendered, "consumer")}
    assert {line[3] for line in remote if line[2] == "telemetry_reader"} == {"samehost"}


def test_the_script_that_sets_passwords_has_both(rendered: Rendered) -> None:
    assert {"readers-secret-word", "writers-secret-word"} <= set(next(iter(services(rendered, "passwords").values())).split())


# nginx


def nginx(service: Any) -> str:
    return str(service["files"]["nginx.conf"])


def test_nginx_knows_every_producer_and_gives_none_up(rendered: Rendered, size: int) -> None:
    for service in services(rendered, "nginx").values():
        upstream = re.findall(r"^\s+server (\S+:5001)(.*);$", nginx(service), re.MULTILINE)
        assert upstream == [(f"{address(size, host)}:5001", " max_fails=0") for host in services(rendered, "producer")]


def test_nginx_listens_on_its_node_and_where_else_it_was_told(rendered: Rendered, size: int) -> None:
    for host, service in services(rendered, "nginx").items():
        extra = ["127.0.0.1:8080"] if (size, host) == (3, "node1") else []
        assert re.findall(r"^\s+listen (\S+);$", nginx(service), re.MULTILINE) == [f"{address(size, host)}:8080", *extra]


def test_nginx_waits_longer_than_a_producer_and_shorter_than_a_vehicle(rendered: Rendered) -> None:
    for service in services(rendered, "nginx").values():
        values = dict(re.findall(r"^\s+(proxy_\w+) ([^;]+);$", nginx(service), re.MULTILINE))
        tries = int(values["proxy_next_upstream_tries"])
        # The connection to a host that vanished is given up soon: none is ever taken out
        assert seconds(values["proxy_connect_timeout"]) <= 0.3
        longest = seconds(values["proxy_next_upstream_timeout"])
        read = seconds(values["proxy_read_timeout"])
        assert read > ANSWER_TIMEOUT
        assert read * tries <= longest < POST_TIMEOUT
        # A POST is tried elsewhere only when this is said
        assert "non_idempotent" in values["proxy_next_upstream"].split()
        assert "http_503" in values["proxy_next_upstream"].split()


def test_nginx_takes_the_largest_upload_and_its_own_answers_are_json(rendered: Rendered) -> None:
    for service in services(rendered, "nginx").values():
        assert f"client_max_body_size {MAX_BODY};" in nginx(service)
        answers = re.findall(r"return (\d+) '(.*)\\n';", nginx(service))
        assert {int(status) for status, _ in answers} == {400, 404, 405, 412, 413, 414, 416, 429, 431, 501, 502, 503, 504, 505}
        assert all(set(json.loads(body)) == {"error", "message"} for _, body in answers)
        # Each is reached by a path, for a request without a URI reaches no named location
        pages = re.findall(r"error_page [\d ]+=(\d+) /answer/(\d+);", nginx(service))
        assert pages == [(status, status) for status, _ in answers]
        assert "<html" in service["files"]["html/index.html"]


def test_nginx_bounds_addresses_but_balancers_and_the_time_of_a_body(render: Render) -> None:
    config = nginx(render(3, "-e", '{"nginx_balancers": ["192.0.2.0/24"]}')["node1"]["nginx"])
    assert "limit_conn clients 256;" in config
    assert "192.0.2.0/24 0;" in config
    assert "ngx.sleep(25)" in config
    # A value of its own is told in the answer
    assert "has 256 requests" in config


def test_nginx_without_bounds_needs_no_lua(render: Render) -> None:
    config = nginx(render(3, "-e", '{"nginx_address_requests": "0", "nginx_body_timeout": "0"}')["node1"]["nginx"])
    assert "limit_conn clients" not in config
    assert "lua" not in config


# Our services


def test_producers_and_consumers_know_every_broker_and_the_promise(rendered: Rendered, size: int) -> None:
    brokers = ",".join(f"{address(size, host)}:9092" for host in services(rendered, "kafka"))
    for kind in ("producer", "consumer"):
        for host, service in services(rendered, kind).items():
            environment = service["environment"]
            assert environment["TELEMETRY_NAME"] == host
            assert environment["KAFKA_BOOTSTRAP_SERVERS"] == brokers
            assert environment["KAFKA_TOPIC_REPLICATION_FACTOR"] == {1: "1", 3: "3", 5: "3"}[size]
            assert environment["KAFKA_TOPIC_MIN_INSYNC_REPLICAS"] == {1: "1", 3: "2", 5: "2"}[size]
            assert json.loads(environment["KAFKA_CLIENT"]) == {}


def test_consumers_find_the_database_and_their_password(rendered: Rendered, size: int) -> None:
    [host] = services(rendered, "postgres")
    for service in services(rendered, "consumer").values():
        assert service["environment"]["POSTGRES_HOST"] == address(size, host)
        assert service["environment"]["POSTGRES_PASSWORD_FILE"] == "/etc/tachograph/postgres_writer"
        assert service["secrets"] == {"postgres_writer": "writers-secret-word"}


def test_services_accept_what_roles_set(rendered: Rendered) -> None:
    from telemetry.settings import ConsumerSettings, ProducerSettings, Settings, VehicleSettings

    kinds: dict[str, type[Settings]] = {"producer": ProducerSettings, "consumer": ConsumerSettings, "vehicle": VehicleSettings}
    for kind, settings in kinds.items():
        for service in services(rendered, kind).values():
            settings.load(service["environment"])


def test_vehicles_know_every_nginx_and_share_the_fleet(rendered: Rendered, size: int) -> None:
    urls = ",".join(f"http://{address(size, host)}:8080" for host in services(rendered, "nginx"))
    fleets = []
    for service in services(rendered, "vehicle").values():
        assert service["environment"]["VEHICLE_URLS"] == urls
        fleets.append(json.loads(service["live"]["live/fleet.json"]))
        # The count is live: no change of it may replace a container
        assert "30" not in json.dumps(service.get("files", {}))
        assert "NUM_VEHICLES" not in json.dumps(service["environment"])
    assert fleets == [{"num_vehicles": 30, "host_index": index, "host_count": size} for index in range(size)]


def test_operators_values_replace_ours(render: Render) -> None:
    extra = {
        "kafka_config": {"num.io.threads": 8, "num.network.threads": ""},
        "kafka_flush_every_record": "true",
        "zookeeper_config": {"syncLimit": 9},
        "nginx_port": "80",
        "kafka_topic_partitions": "64",
        "kafka_topic_config": {"max.message.bytes": "1572864"},
    }
    kinds = render(1, "-e", json.dumps(extra))["host1"]
    broker = properties(kinds["kafka"]["files"]["server.properties"])
    assert broker["num.io.threads"] == "8"
    assert "num.network.threads" not in broker
    assert "flush.messages=1" in kinds["topic"]
    assert "max.message.bytes=1572864" in kinds["topic"]
    assert int(broker["socket.request.max.bytes"]) == 64 * 1_572_864
    assert properties(kinds["zookeeper"]["files"]["zoo.cfg"])["syncLimit"] == "9"
    assert "listen 192.0.2.11:80;" in nginx(kinds["nginx"])
    assert kinds["vehicle"]["environment"]["VEHICLE_URLS"] == "http://192.0.2.11:80"
