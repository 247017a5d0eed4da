"""A producer at its bound answers 503, says so, and stays below its container's limit."""

from __future__ import annotations

import asyncio

import pytest

from benchmark.producer_memory import measure


@pytest.mark.parametrize(("records", "senders"), [(50, 3000), (1000, 1000)])
def test_a_producer_whose_queue_is_full_stays_below_its_limit(records: int, senders: int) -> None:
    found = asyncio.run(measure("127.0.34.1", records, senders, 10.0, {}))
    assert found.answers[503] > 0
    assert set(found.answers) == {503}
    assert "too many wait" in "".join(found.ready["degraded"] + found.ready["reasons"])
    assert found.peak < 0.9 * found.limit
