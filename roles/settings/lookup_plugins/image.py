"""The name of an image: a pure function of what it is made of, so that it is known before, and without, an engine.

The same functions make the build contexts (roles/images/files/build.py). An image is a folder of roles/images/files: a
Dockerfile, whose line `ARG PARENT=<image>` names the image it stands on, or, for `base`, the script that makes a root
file system, and whatever else they read. Links are followed; caches and hidden files are not part of it.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

DOCUMENTATION = """
name: image
short_description: Name an image of this product
description:
  - Answers C([registry/]tachograph/NAME:TAG) for each term. The tag is a hash of the image's build context, of its
    parent's tag and, for the base, of C(images_refresh), so that an unchanged image is never rebuilt and a changed one
    always is.
  - Reads the variables C(images_base), C(images_refresh) and C(images_registry).
options:
  _terms:
    description: Names of images, which are folders of C(roles/images/files).
    required: true
"""

FOLDER = Path(__file__).resolve().parents[2] / "images" / "files"


def names() -> list[str]:
    """Every image there is, parents before their children."""
    found = (path.name for path in FOLDER.iterdir() if path.is_dir() and not path.name.startswith(("_", ".")))
    return sorted(found, key=lambda name: (len(line_of(name)), name))


def parent(name: str) -> str | None:
    """The image that `name` stands on, or None for the base."""
    dockerfile = FOLDER / name / "Dockerfile"
    if not dockerfile.exists():
        return None
    match = re.search(r"^ARG PARENT=(\w+)$", dockerfile.read_text(), re.MULTILINE)
    if not match:
        raise ValueError(f"{dockerfile}: the line 'ARG PARENT=<image>' is missing")
    return match[1]


def line_of(name: str) -> list[str]:
    """The image and all it stands on, the base last."""
    above = parent(name)
    return [name, *line_of(above)] if above else [name]


def files(name: str) -> Iterator[tuple[str, int, bytes]]:
    """Path, mode and content of everything in the image's build context, in a fixed order."""
    yield from sorted(_walk(FOLDER / name, ""))


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, int, bytes]]:
    for path in folder.iterdir():
        if path.name.startswith(".") or path.name == "__pycache__" or path.suffix == ".pyc":
            continue
        if path.is_dir():
            yield from _walk(path, f"{prefix}{path.name}/")
        else:
            # Only "executable or not": the rest of a mode follows the umask of whoever made the clone
            yield f"{prefix}{path.name}", 0o755 if path.stat().st_mode & 0o100 else 0o644, path.read_bytes()


@functools.cache
def tag(name: str, refresh: str = "", base: str = "") -> str:
    """The tag of `name`: 12 hexadecimal digits over context, parent's tag and arguments."""
    above = parent(name)
    digest = hashlib.sha256()
    if above is None and base:
        digest.update(base.encode())
    else:
        digest.update((tag(above, refresh, base) if above else refresh).encode())
        for path, mode, content in files(name):
            digest.update(f"\0{path}\0{mode:o}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()[:12]


def reference(name: str, refresh: str = "", base: str = "", registry: str = "") -> str:
    """The full name of an image; an operator's own base goes by the operator's name."""
    if base and parent(name) is None:
        return base
    return f"{registry.rstrip('/')}/tachograph/{name}:{tag(name, refresh, base)}".lstrip("/")


class LookupModule(LookupBase):
    """What Ansible loads."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[str]:
        """Answer the full name of each image."""

        def value(variable: str) -> str:
            return str(self._templar.template((variables or {}).get(variable, "")) or "")

        known = names()
        unknown = [term for term in terms if term not in known]
        if unknown:
            raise AnsibleError(f"There is no image {', '.join(unknown)}; there are {', '.join(known)}.")
        refresh, base, registry = value("images_refresh"), value("images_base"), value("images_registry")
        return [reference(term, refresh, base, registry) for term in terms]
