"""The promise holds, whatever the scheduler does."""

from __future__ import annotations

import pytest

from simulation.world import World


@pytest.mark.parametrize("seed", range(3))
def test_what_was_made_is_stored_once(seed: int) -> None:
    World(seed).run()
