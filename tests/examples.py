"""How many examples a property test tries: all of them in `make test`, a quarter in `make unit` (profile `quick`)."""

from __future__ import annotations

from hypothesis import settings


def examples(number: int) -> settings:
    """A number of examples in the profile that tries all."""
    return settings(max_examples=max(1, number * settings().max_examples // 100))
