"""Filters that judge whether a service can do its work. No I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any


def container_unready(answer: str) -> dict[str, str]:
    """Cause to reason of what keeps a service from its work, from the HTTP answer to the question for it; empty if nothing does."""
    head, _, body = answer.replace("\r", "").partition("\n\n")
    status = re.match(r"HTTP/1\.[01] ([0-9]{3})\b", head)
    if status and status[1] == "200":
        return {}
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    told: dict[str, Any] = found if isinstance(found, dict) else {}
    if reasons := told.get("reasons"):
        # A service of another version may not name its causes
        return dict(zip(told.get("causes", reasons), reasons, strict=True))
    if "message" in told:
        return {told.get("error", "error"): told["message"]}
    return {"answer": f"it answers {head.partition(chr(10))[0]!r}" if head else "it does not answer"}


def container_standing(states: Iterable[Mapping[str, str]]) -> list[str]:
    """Causes that cannot come from what this run changes, from what the hosts of a kind said before they were changed.

    That is what keeps all of them from their work, and what is about one partition: another host may have taken that over since.
    """
    known = [set(state) for state in states]
    everywhere = set.intersection(*known) if known else set()
    return sorted(everywhere | {cause for state in known for cause in state if " " in cause})


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Name to function."""
        return {"container_unready": container_unready, "container_standing": container_standing}
