"""Postgres's sizes follow from the memory of its container."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

PLUGIN = Path(__file__).resolve().parents[2] / "roles/postgres/filter_plugins/postgres.py"
spec = importlib.util.spec_from_file_location("postgres_filters", PLUGIN)
assert spec
assert spec.loader
postgres = importlib.util.module_from_spec(spec)
spec.loader.exec_module(postgres)
MIB, GIB = 2**20, 2**30


@pytest.mark.parametrize(
    ("memory", "lines"),
    [
        (768 * MIB, ("576MB", "4MB", "48MB", "2048MB")),
        (5 * GIB, ("3840MB", "25MB", "320MB", "2048MB")),
        (24 * GIB, ("18432MB", "122MB", "1536MB", "6144MB")),
        (512 * GIB, ("393216MB", "2621MB", "2048MB", "16384MB")),
    ],
)
def test_sizes_follow_from_the_memory(memory: int, lines: tuple[str, ...]) -> None:
    names = ("effective_cache_size", "work_mem", "maintenance_work_mem", "max_wal_size")
    assert postgres.postgres_sizes(memory, 50) == dict(zip(names, lines, strict=True))


def test_a_session_may_use_half_of_what_the_buffers_leave() -> None:
    assert postgres.postgres_session(768 * MIB, 128 * MIB, 0) == (128 + 96 + 320) * 1024
    # The table of locks is mapped by every session, too
    assert postgres.postgres_session(768 * MIB, 128 * MIB, MIB) == (128 + 96 + 320 + 400) * 1024
    # What is bounded stays below the container, so that the query fails first
    assert postgres.postgres_session(24 * GIB, 6 * GIB, 9200) < 24 * MIB
