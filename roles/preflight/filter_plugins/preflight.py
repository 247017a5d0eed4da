"""Which hosts do not answer, and may be left out. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def silent(
    answers: Mapping[str, Mapping[str, Any]], topology: Mapping[str, Any], run: Collection[str], spared: Collection[str]
) -> list[str]:
    """The hosts of machines that do not answer, if the run can do without all of them.

    answers: the host that was asked for its machine, to what module preflight_machine answered; run: the hosts of the run; spared:
    those of them that the run can do without.
    """
    found: list[str] = []
    for host, answer in answers.items():
        on_machine = [other for other in topology["machines"][topology["machine"][host]] if other in run]
        if answer.get("unreachable") and all(other in spared for other in on_machine):
            found += on_machine
    return found


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Name to function."""
        return {"silent": silent}
