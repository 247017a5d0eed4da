#!/usr/bin/python
# Copyright (c) 2026 The Tachograph authors. MIT License (see LICENSE).
"""Ansible module: all files of one container in one call."""

from __future__ import annotations

DOCUMENTATION = """
module: container_files
short_description: Make a directory hold exactly the given files
description:
  - Writes the files of one container in one call, each by an atomic rename.
  - Removes files of its directory that are no longer wanted.
  - A file is compared by content, owner and mode, so nothing is written that is already right.
  - Directories in between are made with mode 0755; the directory itself belongs to root.
  - A difference never shows a secret, nor a file on the disk that others cannot read.
options:
  path:
    description: The directory. Its parents are made too.
    type: path
    required: true
  files:
    description: Relative name to content. Readable by everyone (mode 0644).
    type: dict
    default: {}
  secrets:
    description: Relative name to content. Readable by O(uid) alone (mode 0400); neither logged nor shown as a difference.
    type: dict
    default: {}
  elsewhere:
    description: Absolute path to content, outside the directory. Readable by everyone (mode 0644).
    type: dict
    default: {}
  trial:
    description:
      - A command that tries the wanted files before any is written. C({folder}) in it stands for a folder that holds them all.
      - Runs if any file of the directory is to be written or removed. If it fails nothing is written. Not run in check mode.
    type: list
    elements: str
    default: []
  live:
    description: Names among O(files) that the service reads again while it runs.
    type: list
    elements: str
    default: []
  reload:
    description:
      - A command that makes the running service read what is O(live). Runs after such a file was written, and again until it has
        succeeded.
      - Without it, a service that is about to start reads its files by itself.
    type: list
    elements: str
    default: []
  uid:
    description: User and group id of the service, owner of the secrets.
    type: int
    required: true
author: The Tachograph authors
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
"""

EXAMPLES = """
- name: Write what the broker reads
  container_files:
    path: /etc/tachograph/tachograph/kafka-node1
    files:
      server.properties: "broker.id=1\\n"
    uid: 10092
"""

RETURN = """
written:
  description: Names and paths written because content, owner or mode differed.
  type: list
  returned: always
reloaded:
  description: Whether the service was made to read its live files again, or would be.
  type: bool
  returned: always
removed:
  description: Names removed because they are no longer wanted.
  type: list
  returned: always
"""

import hashlib
import json
import os
import shutil
import tempfile

from ansible.module_utils.basic import AnsibleModule

IN_FORCE = ".in-force"
"""In the directory: the hash of the live files that the service has read."""


def differs(path: str, content: bytes, mode: int, uid: int) -> bool:
    """Tell whether the file at path is not the one wanted."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return True
    if not os.path.isfile(path) or os.path.islink(path):
        return True
    if (status.st_mode & 0o7777, status.st_uid, status.st_gid) != (mode, uid, uid):
        return True
    with open(path, "rb") as stream:
        return stream.read() != content


def write(path: str, content: bytes, mode: int, uid: int) -> None:
    """Replace the file in one step: a reader sees the old one or the new one, whole."""
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    # One name, so that what a killed run left is overwritten
    temporary = os.path.join(folder, ".new-" + os.path.basename(path))
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(handle, "wb") as stream:
            os.fchown(stream.fileno(), uid, uid)
            os.fchmod(stream.fileno(), mode)
            stream.write(content)
            os.fsync(stream.fileno())
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def present(root: str) -> set[str]:
    """Names of all files below root, relative to it."""
    return {os.path.relpath(os.path.join(folder, name), root) for folder, _, names in os.walk(root) for name in names}


def guarded(path: str) -> bool:
    """Tell whether the file may hold a secret: others cannot read it, or a killed run was writing it."""
    try:
        return os.lstat(path).st_mode & 0o077 == 0 or os.path.basename(path).startswith(".new-")
    except FileNotFoundError:
        return False


def text(path: str) -> str:
    """The file as text for a difference; empty when there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except FileNotFoundError:
        return ""


def trial_fails(module: AnsibleModule, root: str, wanted: dict[str, tuple[bytes, int, int]]) -> str:
    """What the trial says against the wanted files; empty if it has nothing against them."""
    parent = os.path.dirname(root)
    os.makedirs(parent, mode=0o755, exist_ok=True)
    folder = tempfile.mkdtemp(prefix=".trial-", dir=parent)
    try:
        os.chmod(folder, 0o755)
        for name, (content, mode, owner) in wanted.items():
            write(os.path.join(folder, name), content, mode, owner)
        status, out, error = module.run_command([part.replace("{folder}", folder) for part in module.params["trial"]])
    finally:
        shutil.rmtree(folder)
    return f"{out}{error}".strip() or "it said nothing" if status else ""


def reload(module: AnsibleModule, stamp: str, live: str) -> None:
    """Make the service read its live files, and note that it did."""
    if module.params["reload"]:
        status, out, error = module.run_command(module.params["reload"])
        if status:
            what = f"{module.params['path']}: the service did not take its new files: {out}{error}".strip()
            module.fail_json(msg=f"{what}\nIt goes on with what it read before. Correct the setting, then run this again.")
    write(stamp, live.encode(), 0o644, 0)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "files": {"type": "dict", "default": {}},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "elsewhere": {"type": "dict", "default": {}},
            "trial": {"type": "list", "elements": "str", "default": []},
            "live": {"type": "list", "elements": "str", "default": []},
            "reload": {"type": "list", "elements": "str", "default": []},
            "uid": {"type": "int", "required": True},
        },
        supports_check_mode=True,
    )
    # Root's own may keep the service's user out
    os.umask(0o022)
    root, uid = module.params["path"], module.params["uid"]
    wanted = {name: (content, 0o644, 0) for name, content in module.params["files"].items()}
    wanted.update({name: (content, 0o400, uid) for name, content in module.params["secrets"].items()})
    for name in wanted:
        if os.path.isabs(name) or ".." in name.split("/"):
            module.fail_json(msg=f"file name {name!r} must be relative and stay inside {root}")
    for name, content in module.params["elsewhere"].items():
        if not os.path.isabs(name):
            module.fail_json(msg=f"path {name!r} of a file elsewhere must be absolute")
        wanted[name] = (content, 0o644, 0)

    encoded = {name: (str(content).encode(), mode, owner) for name, (content, mode, owner) in wanted.items()}
    written = sorted(name for name, want in encoded.items() if differs(os.path.join(root, name), *want))
    removed = sorted(present(root) - set(wanted) - {IN_FORCE})
    live = hashlib.sha256(json.dumps([[name, str(wanted[name][0])] for name in module.params["live"]]).encode()).hexdigest()
    stamp = os.path.join(root, IN_FORCE)
    behind = bool(module.params["live"]) and (text(stamp) != live or not set(written).isdisjoint(module.params["live"]))
    diff = [
        {
            "before_header": os.path.join(root, name),
            "after_header": os.path.join(root, name),
            "before": text(os.path.join(root, name)),
            "after": str(wanted[name][0]) if name in wanted else "",
        }
        for name in written + removed
        if name not in module.params["secrets"] and not guarded(os.path.join(root, name))
    ]
    if not module.check_mode:
        inside = {name: each for name, each in encoded.items() if not os.path.isabs(name)}
        if module.params["trial"] and (removed or inside.keys() & set(written)) and (said := trial_fails(module, root, inside)):
            module.fail_json(msg=f"{root} was left as it is, because its new files cannot work: {said}")
        os.makedirs(root, mode=0o755, exist_ok=True)
        # First: what a killed run was writing has the name that is written to now
        for name in removed:
            os.unlink(os.path.join(root, name))
        for name in written:
            write(os.path.join(root, name), *encoded[name])
        if behind:
            reload(module, stamp, live)
    reloaded = behind and bool(module.params["reload"])
    module.exit_json(changed=bool(written or removed or reloaded), written=written, removed=removed, reloaded=reloaded, diff=diff)


if __name__ == "__main__":
    main()
