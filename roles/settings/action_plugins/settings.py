"""Action plugin: what the inventory says, with every setting of every node resolved; it refuses nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "settings/module_utils"))
from tachograph_settings import Inventory


class ActionModule(ActionBase):
    """What Ansible loads.

    Answers `looks` (what to look at on the machines of this play), `wanted` (names of all containers of the inventory), `in_force`
    (every setting, by role) and `remote` (whether it reaches other machines).
    """

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Resolve every node's values."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        inventory = Inventory(self._loader, self._templar, task_vars or {})
        found = {"looks": inventory.looks(), "wanted": inventory.wanted(), "in_force": inventory.in_force()}
        return result | found | {"remote": bool(inventory.remote())}
