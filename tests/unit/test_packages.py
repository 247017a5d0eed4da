"""The proof and the services know nothing of each other: what is wrong in one is not repeated in the other."""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path

from proof import ledger
from telemetry import record

SERVICES = Path(__file__).resolve().parents[2] / "services"


@cache
def trees(package: str) -> list[ast.Module]:
    """Every file of a package, parsed."""
    found = [ast.parse(path.read_text(), str(path)) for path in sorted((SERVICES / package).rglob("*.py"))]
    assert found
    return found


def imported(package: str) -> set[str]:
    """Packages outside the standard library that a package imports anywhere, also inside a function."""
    names = set()
    for node in (node for tree in trees(package) for node in ast.walk(tree)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.add(str(node.module).partition(".")[0])
    return names - sys.stdlib_module_names


def test_the_proof_imports_nothing_of_the_services() -> None:
    assert imported("proof") == {"aiohttp", "kafka", "proof", "psycopg2"}


def test_the_services_import_nothing_of_the_proof() -> None:
    assert "telemetry" in imported("telemetry")
    assert "proof" not in imported("telemetry")


def classes(package: str) -> set[str]:
    return {node.name for tree in trees(package) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def test_no_class_of_the_proof_has_the_name_of_one_of_the_services() -> None:
    assert classes("proof") & classes("telemetry") == set()


def test_the_proof_compares_every_field_of_a_record() -> None:
    assert ledger.VALUES == record.VALUES
