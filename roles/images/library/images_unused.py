#!/usr/bin/python
# Copyright (c) 2026 The Tachograph authors. MIT License (see LICENSE).
"""Ansible module: removes images that nobody on the machine needs any more."""

from __future__ import annotations

DOCUMENTATION = """
module: images_unused
short_description: Remove images that no container uses
description:
  - Removes those of the named images that no container uses, running or not.
  - Removes none while another instance is stopped on the machine, since some may be its own. It has volumes there and no container.
options:
  names:
    description: The images that may go. One that is not there any more is passed over.
    type: list
    elements: str
    required: true
  instance:
    description: The instance whose run this is.
    type: str
    required: true
author: The Tachograph authors
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
"""

EXAMPLES = """
- name: Remove what nobody needs
  images_unused:
    names: [tachograph/kafka:0123456789ab]
    instance: tachograph
"""

RETURN = """
removed:
  description: Names of the images that were removed, or would be.
  type: list
  returned: always
stopped:
  description: Other instances that are stopped on the machine; while there is one, nothing is removed.
  type: list
  returned: always
"""

import subprocess

from ansible.module_utils.basic import AnsibleModule


class Failed(Exception):
    """The text says which command failed, and why."""


def run(*command: str) -> str:
    """What a command of the engine's client prints. Raises Failed."""
    done = subprocess.run(["docker", *command], capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise Failed(f"docker {' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def stopped(instance: str) -> list[str]:
    """Other instances that have volumes here and no container."""
    label = '{{.Label "tachograph.instance"}}'
    kept = set(run("volume", "ls", "--filter=label=tachograph.instance", f"--format={label}").split())
    there = set(run("ps", "--all", "--filter=label=tachograph.instance", f"--format={label}").split())
    return sorted(kept - there - {instance})


def used() -> set[str]:
    """Ids of the images that containers use, running or not."""
    containers = run("ps", "--all", "--quiet", "--no-trunc").split()
    return set(run("inspect", "--format={{.Image}}", *containers).split()) if containers else set()


def unused(names: list[str]) -> list[str]:
    """Those of the images that are there and that no container uses."""
    listed = run("images", "--no-trunc", "--format={{.Repository}}:{{.Tag}} {{.ID}}")
    there = dict(line.split() for line in listed.splitlines())
    busy = used()
    return [name for name in names if name in there and there[name] not in busy]


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "required": True},
            "instance": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        others = stopped(module.params["instance"])
        removed = [] if others else unused(module.params["names"])
        if removed and not module.check_mode:
            run("rmi", *removed)
    except Failed as failure:
        module.fail_json(msg=str(failure))
    module.exit_json(changed=bool(removed), removed=removed, stopped=others)


if __name__ == "__main__":
    main()
