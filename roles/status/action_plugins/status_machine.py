"""Action plugin: module status_machine, and how far the machine's clock is from the controller's: that takes both sides."""

from __future__ import annotations

import time
from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """What Ansible loads."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module, and turn its own times into the least and the greatest offset that they allow."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        before = time.time()
        result.update(self._execute_module(task_vars=task_vars))
        after = time.time()
        if "clock" in result:
            began, ended = result["clock"]
            result["clock"] = [ended - after, began - before]
        return result
