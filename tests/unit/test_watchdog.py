"""A loop that does not come round is noticed, and named with the place where it stands."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from telemetry.watchdog import Watchdog


@pytest.fixture
def standing() -> Iterator[threading.Thread]:
    """A thread in a call that does not return before the test is over."""
    over, begun = threading.Event(), threading.Event()

    def never_returns() -> None:
        begun.set()
        over.wait()

    thread = threading.Thread(target=never_returns, name="watch", daemon=True)
    thread.start()
    assert begun.wait(5)
    yield thread
    over.set()
    thread.join()


def test_a_loop_that_comes_round_is_well(standing: threading.Thread) -> None:
    watchdog = Watchdog(standing, limit=10)
    for _ in range(5):
        assert [watchdog.check(4), watchdog.check(4)] == [None, None]
        watchdog.feed()


def test_a_loop_that_does_not_is_named_with_its_place(standing: threading.Thread) -> None:
    watchdog = Watchdog(standing, limit=10)
    assert watchdog.check(10) is None
    assert "the loop 'watch' has not come round for 11 s; it is in " in (watchdog.check(1) or "")
    assert "threading.py:" in (watchdog.check(1) or "")


def test_a_thread_that_is_no_more_is_named_too() -> None:
    thread = threading.Thread(target=lambda: None, name="watch")
    thread.start()
    thread.join()
    assert "its thread has ended" in (Watchdog(thread, limit=1).check(2) or "")
