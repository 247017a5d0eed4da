"""What the machines answered, put together. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def asked(
    answers: Mapping[str, Mapping[str, Any]], topology: Mapping[str, Any], run: Collection[str], spared: Collection[str]
) -> dict[str, list[str]]:
    """All problems of the machines, and the hosts that do not answer and may be left out.

    answers: the host that was asked for its machine, to what module preflight_machine answered; run: the hosts of the run; spared:
    those of them that the run can do without.
    """
    problems: list[str] = []
    silent: list[str] = []
    for host, answer in answers.items():
        on_machine = [other for other in topology["machines"][topology["machine"][host]] if other in run]
        if "problems" in answer:
            problems += answer["problems"]
        elif answer.get("unreachable") and all(other in spared for other in on_machine):
            silent += on_machine
        else:
            why = str(answer.get("msg") or "no answer").strip()
            problems.append(f"{host} cannot be asked: {why}. Correct how it is reached (ansible_host, ansible_user, become).")
    return {"problems": list(dict.fromkeys(problems)), "silent": silent}


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Name to function."""
        return {"asked": asked}
