"""Settings: all errors at once, and nothing secret in what is printed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from telemetry import clients
from telemetry.clients import options
from telemetry.consumer import service
from telemetry.health import Health
from telemetry.producer.publisher import KafkaPublisher
from telemetry.record import Gap, Upload, decode, encode
from telemetry.settings import SET_BY_US, ConsumerSettings, ProducerSettings, SettingsError, VehicleSettings

COMMON = {"TELEMETRY_NAME": "node1", "TELEMETRY_LISTEN": "127.0.0.1:5001"}
KAFKA = COMMON | {
    "KAFKA_BOOTSTRAP_SERVERS": "a:9092,b:9092",
    "KAFKA_TOPIC": "telemetry",
    "KAFKA_TOPIC_PARTITIONS": "6",
    "KAFKA_TOPIC_REPLICATION_FACTOR": "3",
    "KAFKA_TOPIC_MIN_INSYNC_REPLICAS": "2",
    "KAFKA_TOPIC_RETENTION_MS": "3600000",
}
VEHICLE = COMMON | {
    "VEHICLE_URLS": "http://127.0.0.1:8080/,http://127.0.0.2:8080",
    "VEHICLE_FLEET_FILE": "/f",
    "VEHICLE_FLEET_SEED": "s",
    "VEHICLE_SPOOL_DIR": "/s",
    "VEHICLE_COUNTER_DIR": "/c",
}


def test_values_are_read_and_have_defaults() -> None:
    settings = ProducerSettings.load(KAFKA)
    assert settings.listen == ("127.0.0.1", 5001)
    assert settings.bootstrap_servers == ("a:9092", "b:9092")
    assert settings.commit_window_ms == 10
    assert VehicleSettings.load(VEHICLE).urls == ("http://127.0.0.1:8080", "http://127.0.0.2:8080")


def test_every_error_is_named_at_once() -> None:
    wrong = KAFKA | {
        "TELEMETRY_LISTEN": "5001",
        "KAFKA_CLIENT": "[]",
        "PRODUCER_QUEUE_UPLOADS": "many",
        "PRODUCER_COMMIT_WINDOW_MS": "nan",
        "KAFKA_BOOTSTRAP_SERVERS": "a",
    }
    del wrong["KAFKA_TOPIC"]
    with pytest.raises(SettingsError) as caught:
        ProducerSettings.load(wrong)
    lines = str(caught.value).splitlines()
    assert len(lines) == 6
    for name in (
        "TELEMETRY_LISTEN",
        "KAFKA_CLIENT",
        "PRODUCER_QUEUE_UPLOADS",
        "PRODUCER_COMMIT_WINDOW_MS",
        "KAFKA_TOPIC",
        "KAFKA_BOOTSTRAP",
    ):
        assert any(line.startswith(name) for line in lines)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VEHICLE_AUTO_START", "yes"),
        ("VEHICLE_REPORT_DELAY", "0"),
        ("VEHICLE_REPORT_DELAY", "inf"),
        ("VEHICLE_URLS", "127.0.0.1:8080"),
        ("VEHICLE_UPLOAD_RECORDS", "1001"),
        ("VEHICLE_MAKE", ""),
        ("VEHICLE_MAKE", "Bayerische Motoren Werke AG"),
        ("VEHICLE_MAKE", "F\0rd"),
        ("VEHICLE_MODEL", "F" * 21),
        # What os.environ makes of a byte that is not UTF-8
        ("VEHICLE_MODEL", b"Caf\xe9".decode(errors="surrogateescape")),
    ],
)
def test_what_makes_no_sense_is_refused(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        VehicleSettings.load(VEHICLE | {name: value})


@pytest.mark.parametrize("name", ["F", "F" * 20, "Škoda", "日本の車"])
def test_a_make_and_a_model_that_records_may_have_are_taken(name: str) -> None:
    settings = VehicleSettings.load(VEHICLE | {"VEHICLE_MAKE": name, "VEHICLE_MODEL": name})
    upload = Upload("1M8GDM9AXKP042788", 1, settings.make, settings.model, gaps=(Gap(1, 1, "rejected"),))
    assert decode(encode(upload)) == upload


def test_the_password_comes_from_its_file_and_is_not_described(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("geheim\n")
    settings = ConsumerSettings.load(KAFKA | {"POSTGRES_HOST": "h", "POSTGRES_PASSWORD_FILE": str(file)})
    assert settings.postgres_arguments()["password"] == "geheim"
    assert "geheim" not in settings.describe() + repr(settings)
    file.unlink()
    with pytest.raises(SettingsError, match="POSTGRES_PASSWORD_FILE"):
        settings.postgres_arguments()


CONSUMER = KAFKA | {"POSTGRES_HOST": "h", "POSTGRES_PASSWORD_FILE": "/p"}


NAMES = ["password", "sasl_plain_password", "sslpassword", "SASL_OAUTH_TOKEN", "client_secret", "dsn", "passphrase"]


@pytest.mark.parametrize("variable", ["KAFKA_CLIENT", "POSTGRES_CLIENT"])
@pytest.mark.parametrize("name", NAMES)
def test_a_secret_among_the_arguments_is_refused_with_its_remedy_and_not_repeated(variable: str, name: str) -> None:
    with pytest.raises(SettingsError, match=f"{variable} must not hold a secret .{name}.: .*{name}_file") as caught:
        ConsumerSettings.load(CONSUMER | {variable: json.dumps({name: "hunter2"})})
    assert "hunter2" not in str(caught.value)
    with pytest.raises(SettingsError) as caught:
        ConsumerSettings.load(CONSUMER | {variable: f'{{"{name}": "hunter2"'})
    assert "hunter2" not in str(caught.value)


def test_secrets_come_from_the_files_that_arguments_name(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("hunter2\n")
    (tmp_path / "password").write_text("geheim")
    variables = {
        "KAFKA_CLIENT": json.dumps({"sasl_plain_password_file": str(file), "ssl_keyfile": "/key", "security_protocol": "SSL"}),
        "POSTGRES_CLIENT": json.dumps({"sslpassword_file": str(file), "passfile": "/f", "sslmode": "require"}),
        "POSTGRES_PASSWORD_FILE": str(tmp_path / "password"),
    }
    settings = ConsumerSettings.load(CONSUMER | variables)
    assert settings.kafka_arguments() == {"sasl_plain_password": "hunter2", "ssl_keyfile": "/key", "security_protocol": "SSL"}
    assert options(settings, "me")["sasl_plain_password"] == "hunter2"
    arguments = settings.postgres_arguments()
    assert (arguments["password"], arguments["sslpassword"], arguments["passfile"]) == ("geheim", "hunter2", "/f")
    assert "sslpassword_file" not in arguments
    assert "hunter2" not in settings.describe() + repr(settings)
    file.unlink()
    with pytest.raises(SettingsError, match=r"KAFKA_CLIENT: sasl_plain_password_file=.* cannot be read: No such file"):
        settings.kafka_arguments()


def test_what_the_services_set_themselves_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"KAFKA_CLIENT must not hold what the services set themselves \(acks, group_id\)"):
        ConsumerSettings.load(CONSUMER | {"KAFKA_CLIENT": '{"acks": 1, "group_id": "x", "ssl_keyfile": "/k"}'})


def test_every_argument_that_a_service_sets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[set[str]] = []

    def remember(*kind: Any, **arguments: Any) -> Any:
        made.append(set(arguments))

    async def produce() -> None:
        KafkaPublisher(ProducerSettings.load(KAFKA), Health("producer", "node1", "1"), remember)._connect()

    monkeypatch.setattr("telemetry.clients.make_client", remember)
    monkeypatch.setattr("telemetry.consumer.service.make_client", remember)
    asyncio.run(produce())
    clients.connect_admin(ProducerSettings.load(KAFKA), "me")
    service.connect(ConsumerSettings.load(CONSUMER))
    assert len(made) == 3
    assert set.union(*made) <= SET_BY_US
    known = KafkaConsumer.DEFAULT_CONFIG.keys() | KafkaProducer.DEFAULT_CONFIG.keys() | KafkaAdminClient.DEFAULT_CONFIG.keys()
    assert known >= SET_BY_US
