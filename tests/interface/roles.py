"""What the roles' files say, as data."""

from __future__ import annotations

import copy
import functools
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())


def load(path: str) -> Any:
    """A YAML file of the repository, a mapping or a list; a missing one is empty."""
    return copy.deepcopy(_parsed(path))


@functools.cache
def _parsed(path: str) -> Any:
    file = ROOT / path
    return (yaml.safe_load(file.read_text()) if file.exists() else None) or {}


KINDS: dict[str, dict[str, Any]] = load("roles/settings/vars/main.yml")["settings_kinds"]
"""The table of kinds."""


def plays(*playbooks: str) -> list[dict[str, Any]]:
    """The plays of playbooks, with those of imported ones: a variable that the import sets stands for itself in `hosts`."""
    found: list[dict[str, Any]] = []
    for playbook in playbooks:
        for play in load(f"playbooks/{playbook}"):
            if "ansible.builtin.import_playbook" not in play:
                found.append(play)
                continue
            for each in plays(play["ansible.builtin.import_playbook"]):
                hosts = each["hosts"]
                for name, value in play["vars"].items():
                    hosts = hosts.replace(f"{{{{ {name} }}}}", value)
                found.append(each | {"hosts": hosts, "tags": play["tags"]})
    return found


def defaults(role: str) -> dict[str, Any]:
    """The role's default values."""
    values: dict[str, Any] = load(f"roles/{role}/defaults/main.yml")
    return values


def options(role: str) -> dict[str, dict[str, Any]]:
    """The options of all entry points of the role's spec."""
    entries = load(f"roles/{role}/meta/argument_specs.yml")["argument_specs"]
    return {name: spec for entry in entries.values() for name, spec in entry.get("options", {}).items()}


def all_options() -> dict[str, dict[str, Any]]:
    """The options of all roles, with the role's name."""
    return {name: {**spec, "role": role} for role in ROLES for name, spec in options(role).items()}


def module(path: str) -> ModuleType:
    """A Python file of the repository that is no part of a package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec
    assert spec.loader
    result = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(result)
    return result
