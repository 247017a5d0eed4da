"""What the roles would run, as data, for clusters of 1, 3 and 5 hosts."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
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


def test_services_that_work_through_others_say_whether_they_can(rendered: Rendered) -> None:
    assert {kind for _, kind, service in every(rendered) if service.get("ready")} == {"producer", "consumer", "nginx"}


def test_what_is_reloaded_is_tried_first_and_is_live(rendered: Rendered) -> None:
    assert {kind for _, kind, service in every(rendered) if service.get("reload")} == {"postgres", "nginx"}
    for _, _, service in every(rendered):
        assert not service.get("reload") or (service["trial"] and service["live"])


def test_a_heap_leaves_room_in_its_container(rendered: Rendered) -> None:
    for kind in ("zookeeper", "kafka"):
        for service in services(rendered, kind).values():
            [heap] = re.findall(r"-Xmx(\d+)m", " ".join(service["command"]))
            assert int(heap) * 2 <= int(service["memory"].removesuffix("m"))


def test_a_unit_starts_after_those_of_its_node_that_it_needs(rendered: Rendered) -> None:
    for host, kinds in rendered.items():
        assert kinds["units"]["kafka"] == [f"tachograph-zookeeper-{host}.service"]
        assert kinds["units"]["zookeeper"] == []


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


def settings(text: str) -> dict[str, str]:
    """The settings of a file of Postgres."""
    lines = [line.split(" = ") for line in text.splitlines() if not line.startswith("#")]
    return {key: value.strip("'") for key, value in lines}


def test_a_setting_of_postgres_goes_where_its_change_takes_effect(render: Render) -> None:
    given = {"work_mem": "'8MB'", "Max_Connections": 60, "pg_stat_statements.track": "all", "shared_preload_libraries": "''"}
    service = render(3, "-e", json.dumps({"postgres_config": given}))["node1"]["postgres"]
    started, live = settings(service["files"]["postgresql.conf"]), settings(service["live"]["live/postgresql.conf"])
    assert {"Max_Connections", "shared_preload_libraries"} <= set(started)
    assert {"work_mem", "pg_stat_statements.track"} <= set(live)


def test_postgres_keeps_what_it_commits(rendered: Rendered, size: int) -> None:
    [(host, service)] = services(rendered, "postgres").items()
    started, live = (
        settings(service[part][name]) for part, name in (("files", "postgresql.conf"), ("live", "live/postgresql.conf"))
    )
    # What no reload takes is in the file whose change restarts the server
    assert {"listen_addresses", "port", "hba_file", "shared_buffers", "max_connections"} <= set(started)
    assert {"fsync", "max_wal_size", "jit", "timezone"} <= set(live)
    assert started.pop("include") == "live/postgresql.conf"
    assert not set(started) & set(live)
    config = started | live
    assert config["listen_addresses"] == address(size, host)
    assert config["fsync"] == config["synchronous_commit"] == config["full_page_writes"] == "on"
    assert config["password_encryption"] == "scram-sha-256"
    assert config["shared_buffers"] == "128MB"
    assert (config["effective_cache_size"], config["maintenance_work_mem"]) == ("576MB", "48MB")
    # KiB that one session may use, which is less than the container has
    assert 300 * 1024 < int(service["environment"]["POSTGRES_SESSION"]) < 768 * 1024
    assert 'ulimit -v "$POSTGRES_SESSION"' in service["files"]["start.sh"]
    assert (service["stop_signal"], service["stop_timeout"]) == ("SIGINT", 60)


def test_only_known_hosts_log_in_and_only_with_a_password(rendered: Rendered, size: int) -> None:
    [service] = services(rendered, "postgres").values()
    lines = [line.split() for line in service["live"]["live/pg_hba.conf"].splitlines() if line and not line.startswith("#")]
    local = [line for line in lines if line[0] == "local"]
    assert local == [["local", "all", "postgres", "peer"], ["local", "av_telemetry", "telemetry_reader", "peer", "map=reader"]]
    # Nobody but the container's own user is anybody
    assert service["files"]["pg_ident.conf"] == "reader postgres telemetry_reader\n"
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
    return str(service["live"]["live/nginx.conf"])


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
        assert "<html" in service["live"]["live/html/index.html"]


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
    hosts = list(services(rendered, "vehicle"))
    assert fleets == [{"num_vehicles": 30, "host_index": index, "host_count": size, "hosts": hosts} for index in range(size)]


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


LEVELS = {
    "zookeeper": ("logback.xml", '<root level="{}">', ("WARN", "DEBUG", "ERROR")),
    "kafka": ("log4j.properties", "log4j.rootLogger={}, stdout", ("WARN", "DEBUG", "ERROR")),
    "postgres": ("live/postgresql.conf", "log_min_messages = {}\n", ("warning", "debug1", "error")),
    "nginx": ("live/nginx.conf", "error_log stderr {};", ("error", "debug", "error")),
}


@pytest.mark.parametrize(("place", "level"), [(0, ""), (1, "debug"), (2, "error")], ids=["default", "debug", "error"])
def test_a_log_level_reaches_its_service_in_its_own_words(render: Render, place: int, level: str) -> None:
    given = ["-e", json.dumps({f"{kind}_log_level": level for kind in KINDS})] if level else []
    kinds = render(1, *given)["host1"]
    for kind, (file, line, words) in LEVELS.items():
        assert line.format(words[place]) in {**kinds[kind].get("files", {}), **kinds[kind].get("live", {})}[file], kind
    for kind in ("producer", "consumer", "vehicle"):
        assert kinds[kind]["environment"]["TELEMETRY_LOG_LEVEL"] == (level or "info")
    # What the controller decides is logged unless nothing but errors is wanted
    assert ("KafkaController=INFO" in kinds["kafka"]["files"]["log4j.properties"]) is (level == "")


def test_a_rack_is_told_to_the_broker_alone(render: Render) -> None:
    assert "broker.rack" not in render(1)["host1"]["kafka"]["files"]["server.properties"]
    broker = render(1, "-e", json.dumps({"kafka_rack": "a"}))["host1"]["kafka"]
    assert properties(broker["files"]["server.properties"])["broker.rack"] == "a"


def test_data_lies_in_volumes_or_in_folders_of_the_host(render: Render) -> None:
    plain = render(1)["host1"]
    assert plain["mounts"]["kafka"] == ["tachograph-kafka-host1-data:/var/lib/kafka"]
    assert not any(plain["paths"].values())
    names = {"zookeeper": "zookeeper_data", "kafka": "kafka_data", "postgres": "postgres_data", "vehicle": "vehicle_spool"}
    given = {name: f"/srv/{kind}" for kind, name in names.items()}
    moved = render(1, "-e", json.dumps(given))["host1"]
    for kind, folder in (("zookeeper", "data"), ("kafka", "data"), ("postgres", "data"), ("vehicle", "spool")):
        assert moved["paths"][kind] == {f"tachograph-{kind}-host1-{folder}": f"/srv/{kind}"}
        place = plain["mounts"][kind][0]
        # What the image holds there is not copied into the folder
        assert moved["mounts"][kind] == [f"{place}:nocopy", *plain["mounts"][kind][1:]]


def test_a_member_notes_the_place_that_preflight_compares(rendered: Rendered, size: int) -> None:
    for host, service in services(rendered, "kafka").items():
        assert service["place"] == f"{address(size, host)}:9092/tachograph"
    for host, service in services(rendered, "zookeeper").items():
        assert service["place"] == f"{address(size, host)}:2181:2888:3888"


# Secrets of clients


SECRET_SETTINGS = {
    "kafka_client": {"security_protocol": "SASL_PLAINTEXT"},
    "kafka_client_secrets": {"sasl_plain_password": "clients-secret-word"},
    "postgres_client_secrets": {"sslpassword": "connections-secret-word"},
    "kafka_config_secrets": {"sasl.jaas.config": "brokers-secret-word"},
    "postgres_writer_password": "own:'secret\\word",
    "zookeeper_super_password": "own-super-word",
}


def test_secrets_of_clients_and_passwords_in_variables_stand_in_files_of_the_service_alone(render: Render) -> None:
    rendered = render(3, "-e", json.dumps(SECRET_SETTINGS))
    consumer, producer = services(rendered, "consumer")["node2"], services(rendered, "producer")["node1"]
    kafka = services(rendered, "kafka")["node1"]
    named = {"security_protocol": "SASL_PLAINTEXT", "sasl_plain_password_file": "/etc/tachograph/kafka_client/sasl_plain_password"}
    assert json.loads(consumer["environment"]["KAFKA_CLIENT"]) == json.loads(producer["environment"]["KAFKA_CLIENT"]) == named
    assert json.loads(consumer["environment"]["POSTGRES_CLIENT"]) == {
        "sslpassword_file": "/etc/tachograph/postgres_client/sslpassword"
    }
    assert consumer["secrets"] == {
        "postgres_writer": "own:'secret\\word",
        "kafka_client/sasl_plain_password": "clients-secret-word",
        "postgres_client/sslpassword": "connections-secret-word",
    }
    assert producer["secrets"] == {"kafka_client/sasl_plain_password": "clients-secret-word"}
    assert "server.properties" not in kafka["files"]
    assert properties(kafka["secrets"]["server.properties"])["sasl.jaas.config"] == "brokers-secret-word"
    for _, kind, service in every(rendered):
        shown = json.dumps({key: value for key, value in service.items() if key != "secrets"})
        assert not [word for word in re.findall(r"[a-z-]*secret.word|own-super-word", shown) if word], kind
    script = rendered["node1"]["passwords"]
    assert "'own:'\"'\"'secret\\word'" in script


def test_the_password_script_takes_any_text(render: Render, tmp_path: Path) -> None:
    script = render(3, "-e", json.dumps(SECRET_SETTINGS))["node1"]["passwords"]
    # A database that lets nobody in
    (tmp_path / "psql").write_text('#!/bin/bash\ncat "$PGPASSFILE" >> "$0.files"\nexit 1\n')
    (tmp_path / "psql").chmod(0o755)
    subprocess.run(["bash", "-s"], input=script, text=True, check=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert "*:*:*:telemetry_writer:own\\:'secret\\\\word\n" in (tmp_path / "psql.files").read_text()
