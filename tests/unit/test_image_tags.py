"""The tag of an image: everything that it is made of changes it, nothing else does."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

PLUGIN = Path(__file__).resolve().parents[2] / "roles" / "settings" / "lookup_plugins" / "image.py"


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The plugin, looking at a base, a child with a link, and a sibling."""
    spec = importlib.util.spec_from_file_location("image_under_test", PLUGIN)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path / "files"
    for name, parent in {"base": "", "child": "base", "sibling": "base"}.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "made.sh").write_text(f"echo {name}\n")
        if parent:
            (folder / name / "Dockerfile").write_text(f"ARG PARENT={parent}\nFROM $PARENT\n")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "main.py").write_text("print()\n")
    (folder / "child" / "code").symlink_to(tmp_path / "code")
    monkeypatch.setattr(module, "FOLDER", folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return module


def tags(image: ModuleType) -> tuple[str, str]:
    """The tags of child and sibling, read anew."""
    image.tag.cache_clear()
    return image.tag("child"), image.tag("sibling")


CHANGES: dict[str, tuple[Callable[[Path], object], bool, bool]] = {
    "a file": (lambda root: (root / "files/child/made.sh").write_text("echo other\n"), True, False),
    "a new file": (lambda root: (root / "files/child/new").touch(), True, False),
    "a file behind a link": (lambda root: (root / "code/main.py").write_text("print(1)\n"), True, False),
    "a name": (lambda root: (root / "code/main.py").rename(root / "code/other.py"), True, False),
    "the executable bit": (lambda root: (root / "files/child/made.sh").chmod(0o755), True, False),
    "the parent": (lambda root: (root / "files/base/made.sh").write_text("echo other\n"), True, True),
    "another umask": (lambda root: (root / "files/child/made.sh").chmod(0o600), False, False),
    "a cache": (lambda root: (root / "code/__pycache__").mkdir(), False, False),
    "compiled code": (lambda root: (root / "code/main.pyc").touch(), False, False),
    "a hidden file": (lambda root: (root / "code/.swp").touch(), False, False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_a_tag(image: ModuleType, tmp_path: Path, change: str) -> None:
    act, child_changes, sibling_changes = CHANGES[change]
    before = tags(image)
    act(tmp_path)
    after = tags(image)
    assert (before[0] != after[0], before[1] != after[1]) == (child_changes, sibling_changes)


def test_refresh_changes_every_tag(image: ModuleType) -> None:
    assert image.tag("child") != image.tag("child", "2026-11")


def test_an_own_base_keeps_its_name_and_changes_what_stands_on_it(image: ModuleType) -> None:
    assert image.reference("base", base="debian:13") == "debian:13"
    assert image.tag("child") != image.tag("child", base="debian:13")


def test_a_registry_is_a_prefix_and_no_part_of_the_tag(image: ModuleType) -> None:
    assert image.reference("child", registry="r.example:5000/") == f"r.example:5000/tachograph/child:{image.tag('child')}"


def test_parents_come_first(image: ModuleType) -> None:
    assert image.names() == ["base", "child", "sibling"]


def test_a_dockerfile_without_a_parent_is_named(image: ModuleType) -> None:
    (image.FOLDER / "child" / "Dockerfile").write_text("FROM scratch\n")
    with pytest.raises(ValueError, match="ARG PARENT"):
        image.tag("child")
