"""Action plugin: masks what machines returned and writes it as one archive, on the controller.

What is not masked stays in this process's memory: nothing is written before every secret in it was looked for.
"""

from __future__ import annotations

import base64
import io
import json
import os
import platform
import re
import tarfile
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.release import __version__

STARS = b"***"
SHORTEST = 4
"""A piece of a coded secret that is shorter would be found everywhere, and tells nothing."""
SECRET_KEY = rb"(password|passphrase|secret|token)"
ASSIGNMENT = re.compile(
    # The end of a name, in quotes or not, which JSON within JSON has escaped; a value in the same quotes, or up to what ends it
    SECRET_KEY + rb"""((?:\\*["'])?\s*[=:]\s*)"""
    rb"""(?:(")(?:[^"\\]|\\.)*"|(\\+")(?:[^\n]{0,4096}?[^\\\n])?\4|(')[^']*'|[^\s,;"'}\]\\]+)""",
    re.IGNORECASE,
)
"""What is called a secret is masked even where it is none of ours."""


def values(content: bytes) -> Iterator[bytes]:
    """What must not be shown of a secret file: the whole, and each line of a longer one, such as a key in PEM."""
    text = content.strip()
    if text:
        yield text
    for line in text.splitlines():
        if len(line) >= 8 and not line.startswith(b"-----"):
            yield line.strip()


def in_base64(value: bytes) -> Iterator[bytes]:
    """What base64 makes of a value, wherever it begins in what is coded: the characters that nothing else has a part in."""
    for before in range(3):
        coded = base64.b64encode(b"\0" * before + value)
        first, last = -(-before * 8 // 6), (before + len(value)) * 8 // 6
        yield coded[first:last]
        yield base64.urlsafe_b64encode(b"\0" * before + value)[first:last]


def forms(value: bytes) -> set[bytes]:
    """A value as it is, and as shells, JSON, URLs and hexadecimal dumps write it."""
    text = value.decode(errors="surrogateescape")
    percent = "".join(f"%{byte:02x}" for byte in value)
    found = {value, value.hex().encode(), value.hex().upper().encode(), percent.encode(), percent.upper().encode()}
    for coded in (quote(value, safe=""), quote(value), quote_plus(value)):
        found |= {coded.encode(), re.sub("%..", lambda each: each[0].lower(), coded).encode()}
    for coded in (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]):
        found |= {coded.encode(errors="surrogateescape"), json.dumps(coded)[1:-1].encode(errors="surrogateescape")}
    return found


class Mask:
    """Replaces secrets by stars, in whatever form they come."""

    def __init__(self, contents: Iterable[bytes]) -> None:
        secrets = {value for content in contents for value in values(content)}
        # The longest first: one secret may be a part of another
        self._plain = sorted({form for value in secrets for form in forms(value)}, key=len, reverse=True)
        pieces = {piece for value in secrets for piece in in_base64(value) if len(piece) >= SHORTEST}
        # Long lines of base64 are folded, and JSON has its own words for that
        fold = rb"(?:\r?\n|\\n)?"
        end = rb"(?:[\w+/-]?={1,2})?"
        self._coded = [re.compile(fold.join(re.escape(bytes([byte])) for byte in piece) + end) for piece in pieces]

    def __call__(self, text: bytes) -> bytes:
        for pattern in self._coded:
            text = pattern.sub(STARS, text)
        for form in self._plain:
            text = text.replace(form, STARS)
        return ASSIGNMENT.sub(stars, text)


def stars(found: re.Match[bytes]) -> bytes:
    """An assignment without its value; JSON stays JSON."""
    mark = found[3] or found[4] or found[5] or b""
    return found[1] + found[2] + mark + STARS + mark


def write(path: Path, files: Mapping[str, bytes]) -> None:
    """Write an archive that nobody else may read."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as stream, tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(f"{path.name.removesuffix('.tar.gz')}/{name}")
            entry.size, entry.mode, entry.mtime = len(content), 0o600, int(time.time())
            archive.addfile(entry, io.BytesIO(content))


def controller() -> list[str]:
    """What runs here."""
    return [f"ansible-core {__version__}", f"python {platform.python_version()}", platform.platform()]


def collect(given: Mapping[str, Any], answers: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Name to text of everything that goes into the archive, and what is missing."""
    files = {
        "status.txt": given["status"]["text"],
        "status.json": json.dumps(given["status"]["report"], indent=2),
        "settings.json": json.dumps(given["settings"], indent=2, sort_keys=True),
        "controller.txt": "\n".join([f"tachograph {given['version']}", *controller(), ""]),
    }
    missing = []
    for host, answer in answers.items():
        if "files" not in answer:
            missing.append(f"{host}: everything, for it cannot be asked: {answer.get('msg', 'no answer')}")
            continue
        files |= {f"hosts/{host}/{name}": content for name, content in answer["files"].items()}
        missing += [f"{host}: {each}" for each in answer["missing"]]
    files["missing.txt"] = "".join(f"{each}\n" for each in missing) or "Nothing.\n"
    return files, missing


def secrets_of(folder: Path) -> list[bytes]:
    """Contents of every secret of the instance. Raises AnsibleActionFail where there is none: then nothing could be masked."""
    found = [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()] if folder.is_dir() else []
    if not found:
        raise AnsibleActionFail(
            f"{folder} holds no secret, so none could be masked, and nothing was written. Run this where site.yml was run, "
            "or say where the secrets are: -e settings_secrets_dir=/path"
        )
    return found


class ActionModule(ActionBase):
    """What Ansible loads. Answers `path`, and `said`: where the archive is and what is in it."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _VALID_ARGS = frozenset(("instance", "hosts", "status", "settings", "version", "secrets_dir", "dir"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Take what module support_machine left as __support_machine on the first host of each machine."""
        variables, given = task_vars or {}, self._task.args
        result: dict[str, Any] = super().run(tmp, variables)
        answers = {host: variables["hostvars"][host]["__support_machine"] for host in given["hosts"]}
        files, missing = collect(given, answers)
        on_hosts = [each.encode() for answer in answers.values() for each in answer.get("secrets", [])]
        mask = Mask([*secrets_of(Path(given["secrets_dir"])), *on_hosts])
        folder = Path(given["dir"])
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"support-{given['instance']}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.tar.gz"
        write(path, {mask(name.encode()).decode(): mask(content.encode(errors="replace")) for name, content in files.items()})
        result |= {"changed": True, "path": str(path)}
        result["said"] = [
            f"{path}, {path.stat().st_size // 1024 + 1} KiB, for your eyes alone (mode 0600)",
            "status.txt, status.json  what runs where, and what is not well",
            "settings.json            every setting in force",
            "hosts/                   logs, inspect, files, units, engine, kafka, database, disks, memory, clock",
            f"                         of {', '.join(answers)}",
            f"missing.txt              {len(missing)} of all this could not be collected",
            "Secrets are replaced by ***. Look into it before you hand it on.",
        ]
        return result
