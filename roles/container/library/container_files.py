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
removed:
  description: Names removed because they are no longer wanted.
  type: list
  returned: always
"""

import os

from ansible.module_utils.basic import AnsibleModule


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


def text(path: str) -> str:
    """The file as text for a difference; empty when there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except FileNotFoundError:
        return ""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "files": {"type": "dict", "default": {}},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "elsewhere": {"type": "dict", "default": {}},
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
    removed = sorted(present(root) - set(wanted))
    diff = [
        {
            "before_header": os.path.join(root, name),
            "after_header": os.path.join(root, name),
            "before": text(os.path.join(root, name)),
            "after": str(wanted[name][0]) if name in wanted else "",
        }
        for name in written + removed
        if name not in module.params["secrets"]
    ]
    if not module.check_mode:
        os.makedirs(root, mode=0o755, exist_ok=True)
        # First: what a killed run was writing has the name that is written to now
        for name in removed:
            os.unlink(os.path.join(root, name))
        for name in written:
            write(os.path.join(root, name), *encoded[name])
    module.exit_json(changed=bool(written or removed), written=written, removed=removed, diff=diff)


if __name__ == "__main__":
    main()
