"""Metrics: what the operator's table says, what others ask for, and what the services expose are the same names."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Histogram
from telemetry.metrics import SERVICES, Metric, ServiceMetrics

ROOT = Path(__file__).parents[2]
ALL: list[tuple[str, Metric]] = [
    *(("all", metric) for _, metric in ServiceMetrics.declared()),
    *((service, metric) for service, kind in SERVICES.items() for _, metric in kind.declared()),
]
ROLES_OF_THE_DATABASE = {"telemetry_owner", "telemetry_reader", "telemetry_writer"}
ASKING = ("roles", "services/proof", "molecule", "tests", "docs", "scripts", "playbooks")
"""Where metrics are asked for or told of."""


def exposed() -> set[str]:
    """Every name that /metrics of some service shows."""
    names = {metric.exposed for _, metric in ALL}
    parts = {f"{metric.name}_{part}" for _, metric in ALL if metric.kind is Histogram for part in ("bucket", "count", "sum")}
    return names | parts


def row(service: str, metric: Metric) -> str:
    """An alarm's row in the operator's table."""
    when, _, meaning = metric.alarm.partition(": ")
    return f"| `{metric.exposed}` {when} | {service} | {meaning} |"


def test_the_table_has_every_alarm_in_its_words_and_nothing_else() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    table = page.partition("| metric | of | means |\n| --- | --- | --- |\n")[2].partition("\n\n")[0]
    assert sorted(table.splitlines()) == sorted(row(service, metric) for service, metric in ALL if metric.alarm)


def test_no_two_metrics_share_a_name() -> None:
    assert [name for name, count in Counter(metric.name for _, metric in ALL).items() if count > 1] == []


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_exposes_what_is_declared(service: str) -> None:
    registry = CollectorRegistry()
    ServiceMetrics(registry)
    SERVICES[service](registry)
    declared = {metric.name for of, metric in ALL if of in ("all", service)}
    assert {family.name for family in registry.collect()} == declared


@pytest.mark.parametrize("folder", ASKING)
def test_nobody_asks_for_a_metric_that_is_not_there(folder: str) -> None:
    unknown = set()
    for path in (ROOT / folder).rglob("*"):
        if path.suffix not in (".py", ".yml", ".j2", ".md", ".sh", ".sql") or "__pycache__" in path.parts:
            continue
        for name in re.findall(r"\btelemetry_[a-z_]*[a-z]\b(?![.(])", path.read_text()):
            if name not in exposed() | ROLES_OF_THE_DATABASE:
                unknown.add(f"{path.relative_to(ROOT)}: {name}")
    assert unknown == set()
