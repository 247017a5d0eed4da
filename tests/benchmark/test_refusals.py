"""A refusal costs at most five times a good upload of its size, and its answer is small."""

from __future__ import annotations

import asyncio

import pytest

from benchmark.refusals import compare, search


def test_the_largest_answer_to_a_refused_upload_is_small() -> None:
    _, largest = search(seconds=0.0, repeats=1)
    assert largest <= 128 * 1024


@pytest.mark.long
def test_the_dearest_refusal_costs_at_most_five_uploads() -> None:
    worst, _ = search(seconds=20.0, repeats=5)
    compared = asyncio.run(compare("127.0.34.1", worst[:12], 480))
    assert compared[0][0] <= 5, compared
