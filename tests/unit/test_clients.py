"""What Kafka clients are made with."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from telemetry import clients
from telemetry.__main__ import main
from telemetry.settings import ConsumerSettings, KafkaSettings, SettingsError

SERVICES = Path(__file__).parents[2] / "services" / "telemetry"
ENVIRONMENT = {
    "TELEMETRY_NAME": "node1",
    "TELEMETRY_LISTEN": "127.0.0.1:5002",
    "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9092",
    "KAFKA_TOPIC": "telemetry",
    "KAFKA_TOPIC_PARTITIONS": "6",
    "KAFKA_TOPIC_REPLICATION_FACTOR": "3",
    "KAFKA_TOPIC_MIN_INSYNC_REPLICAS": "2",
    "KAFKA_TOPIC_RETENTION_MS": "604800000",
    "POSTGRES_HOST": "127.0.0.1",
    "POSTGRES_PASSWORD_FILE": "/nowhere",
}


def set_by_the_services() -> set[str]:
    """Every option that a call of ours gives a client."""
    found = {"client_id"}
    for path in SERVICES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("make_client"):
                found |= {each.arg for each in node.keywords if each.arg}
    return found | clients.options(settings(), "x").keys()


def settings() -> KafkaSettings:
    return ConsumerSettings.load(ENVIRONMENT)


def test_every_option_that_the_services_set_is_named_as_ours() -> None:
    assert len(set_by_the_services()) > 10
    assert set_by_the_services() <= clients.OURS
    known = KafkaConsumer.DEFAULT_CONFIG.keys() | KafkaProducer.DEFAULT_CONFIG.keys() | KafkaAdminClient.DEFAULT_CONFIG.keys()
    assert known >= clients.OURS


def test_kafka_client_adds_options_and_replaces_none() -> None:
    more = replace(settings(), kafka_client={"security_protocol": "SSL"})
    assert clients.options(more, "x") == {**clients.options(settings(), "x"), "security_protocol": "SSL"}
    with pytest.raises(SettingsError, match=r"KAFKA_CLIENT may not have acks, client_id: .* Take it out of kafka_client"):
        clients.options(replace(more, kafka_client={"client_id": "y", "acks": 1, "ssl_cafile": "z"}), "x")


@pytest.mark.parametrize(
    ("service", "module"),
    [("producer", "producer.service"), ("consumer", "consumer.service"), ("remedy", "consumer.remedy"), ("topic", "topic")],
)
def test_a_service_with_such_a_setting_does_not_start(
    service: str, module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {**ENVIRONMENT, "KAFKA_CLIENT": '{"acks": 1}'}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(f"telemetry.{module}.run", lambda *_: 0)
    assert main([service]) == 2
    assert "KAFKA_CLIENT may not have acks" in capsys.readouterr().err
