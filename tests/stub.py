"""Stands for the hosts: a Python for `ansible_python_interpreter` that answers every module with the same result, at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What the modules that the plays call answer where nothing is to be done
ANSWER: dict[str, Any] = {
    "changed": False, "rc": 0, "stdout": "", "stderr": "", "stdout_lines": [], "msg": "", "written": [], "removed": [],
    "reloaded": False, "kept": [],
    "actions": [], "problems": [], "engine": {}, "enforcing": False, "foreign": [], "leavers": [], "volumes": {}, "images": [],
    "stat": {"exists": False},
    "host_info": {"OperatingSystem": "Debian", "SecurityOptions": [], "Architecture": "x86_64"},
    "container": {"State": {"Running": True, "Restarting": False, "Health": {"Status": "healthy"}}},
}  # fmt: skip


def interpreter(folder: Path, name: str = "python", answer: Mapping[str, Any] | None = None) -> Path:
    """The path of such a Python, with further values for its answer."""
    program = folder / name
    (folder / f"{name}.json").write_text(json.dumps(ANSWER | dict(answer or {})))
    program.write_text(f"#!/bin/sh\ncat > /dev/null\ncat {folder / name}.json\n")
    program.chmod(0o755)
    return program
