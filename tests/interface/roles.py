"""What the roles' files say, as data."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())
SERVICES = ["zookeeper", "kafka", "postgres", "nginx", "producer", "consumer", "vehicle"]


def load(path: str) -> Any:
    """A YAML file of the repository, a mapping or a list; a missing one is empty."""
    file = ROOT / path
    return (yaml.safe_load(file.read_text()) if file.exists() else None) or {}


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
