"""Action plugin: module support_machine, and how far the machine's clock is from the controller's: that takes both sides."""

from __future__ import annotations

import time
from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """What Ansible loads."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask for the time, then run the module."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        before = time.time()
        said = self._low_level_execute_command("date +%s.%N")
        after = time.time()
        result.update(self._execute_module(task_vars=task_vars))
        try:
            offset = float(said["stdout"]) - (before + after) / 2
        except ValueError:
            clock = f"The time is not known: date said {said['stdout']!r} {said['stderr']!r}\n"
        else:
            clock = f"{offset:+.3f} s against the controller, plus or minus {(after - before) / 2:.3f} s\n"
        if "files" in result:
            result["files"]["clock-offset.txt"] = clock
        return result
