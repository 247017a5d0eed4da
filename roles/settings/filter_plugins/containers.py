"""Filters that name what role container makes, for roles that run a command in a container or look at it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "settings/module_utils"))
from tachograph_settings import container_dir, container_name


def node_container(node: str, instance: str, kind: str) -> str:
    """As container_name, for a list of nodes."""
    return container_name(kind, instance, node)


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Name to function."""
        return {"container_name": container_name, "container_dir": container_dir, "node_container": node_container}
