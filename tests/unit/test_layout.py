"""Imports of the services go down: a process knows its folder, a folder the shared files, and nothing knows another folder."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SERVICES = Path(__file__).parents[2] / "services"
FOLDERS = ("producer", "consumer", "vehicle")
PURE = ("record", "consumer.batch", "consumer.progress", "consumer.resume", "vehicle.journey")
"""What decides, and asks nobody."""
ALLOWED = {
    "__future__", "bisect", "collections", "crc32c", "dataclasses", "datetime", "hashlib", "json", "math", "msgspec", "random",
    "re", "telemetry", "typing", "urllib", "uuid",
}  # fmt: skip
"""Modules that the pure files may import: neither a database nor a broker, a clock or a socket."""


@cache
def imports() -> dict[str, set[str]]:
    """Every module of telemetry, and what it imports: names with their dots, without `telemetry.` for our own."""
    found = {}
    for path in (SERVICES / "telemetry").rglob("*.py"):
        name = ".".join(path.relative_to(SERVICES / "telemetry").with_suffix("").parts)
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                assert node.module
                own = node.module == "telemetry"
                names.update(f"{node.module}.{alias.name}" if own else node.module for alias in node.names)
        found[name] = names
    return found


def ours() -> dict[str, set[str]]:
    """Every module of telemetry, and those of its own that it imports."""
    every = imports()
    return {name: {each.removeprefix("telemetry.") for each in names} & every.keys() for name, names in every.items()}


def test_no_import_goes_round() -> None:
    TopologicalSorter(ours()).prepare()


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_knows_itself_and_what_is_shared(folder: str) -> None:
    reached = {each for name, names in ours().items() if name.startswith(f"{folder}.") for each in names}
    assert not [each for each in reached if "." in each and not each.startswith(f"{folder}.")]


def test_what_is_shared_knows_no_folder() -> None:
    assert not [(name, each) for name, names in ours().items() if "." not in name for each in names if "." in each]


def test_nothing_imports_a_process() -> None:
    assert not [(name, each) for name, names in ours().items() for each in names if each.endswith(".service") or each == "__main__"]


@pytest.mark.parametrize("name", PURE)
def test_what_decides_asks_nobody(name: str) -> None:
    assert {each.partition(".")[0] for each in imports()[name]} <= ALLOWED
    assert ours()[name] <= set(PURE)
