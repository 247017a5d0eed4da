"""The page of settings is what the specs say, and every setting of the predecessor has a line."""

from __future__ import annotations

import pytest
from interface.roles import ROOT, all_options, load, module

KEYS = """
CONSUMER_CLIENT_ID CONSUMER_CLIENT_ID_SEED CONSUMER_GROUP CONSUMER_NAME CONSUMER_NUM_INSTANCES DOCKER_NETWORK HTTP_LOG_FILE
KAFKA_AUTO_CREATE_TOPICS KAFKA_BROKER_NAME KAFKA_BROKER_NUM_INSTANCES KAFKA_BROKER_ID_SEED KAFKA_EXTERNAL_CONTAINER_PORT
KAFKA_EXTERNAL_HOST_PORT KAFKA_INTERNAL_CONTAINER_PORT KAFKA_INTERNAL_HOST_PORT KAFKA_TOPIC_REPLICATION_FACTOR KAFKA_TOPIC
KAFKA_TOPIC_PARTITIONS NGINX_NAME NGINX_SERVER_NAME NGINX_CONTAINER_PORT NGINX_HOST_PORT POSTGRES_DB POSTGRES_TABLE
POSTGRES_NAME POSTGRES_USER POSTGRES_PASSWORD POSTGRES_CONTAINER_PORT POSTGRES_HOST_PORT PRODUCER_CLIENT_ID
PRODUCER_CLIENT_ID_SEED PRODUCER_MESSAGE_KEY PRODUCER_NAME PRODUCER_NUM_INSTANCES PRODUCER_HTTP_RULE
PRODUCER_INGRESS_HTTP_LISTENER PRODUCER_CONTAINER_PORT PRODUCER_HOST_PORT SEMVER_TAG VEHICLE_REPORT_DELAY VEHICLE_VELOCITY_X
VEHICLE_VELOCITY_Y VEHICLE_VELOCITY_Z ZOOKEEPER_COMMAND_WHITELIST ZOOKEEPER_ID_SEED ZOOKEEPER_NAME ZOOKEEPER_NUM_INSTANCES
ZOOKEEPER_CONTAINER_CLIENT_PORT ZOOKEEPER_HOST_CLIENT_PORT ZOOKEEPER_ENSEMBLE_LEADER_PORT ZOOKEEPER_ENSEMBLE_ELECTION_PORT
"""
THERE = KEYS.split()
ENVIRONMENT = ["VEHICLE_MAKE", "VEHICLE_MODEL", "AUTO_START"]
PAGE = (ROOT / "docs/settings.md").read_text()


def test_the_page_is_what_the_specs_say() -> None:
    assert module("scripts/settings_doc.py").page() == PAGE, "docs/settings.md is stale: run `make docs`"


def test_every_option_has_a_line() -> None:
    assert [name for name in all_options() if f"| `{name}` |" not in PAGE] == []


@pytest.mark.parametrize("key", THERE + ENVIRONMENT)
def test_every_setting_of_the_predecessor_has_a_home_or_a_reason(key: str) -> None:
    _, names, words = load("scripts/predecessor.yml")[key]
    assert names or words
    assert set(names) <= set(all_options())
    assert f"| `{key}` |" in PAGE


def test_there_were_51_of_them() -> None:
    assert len(set(THERE)) == 51
    assert set(load("scripts/predecessor.yml")) == set(THERE) | set(ENVIRONMENT)
