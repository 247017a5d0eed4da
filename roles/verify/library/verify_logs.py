#!/usr/bin/python
# Copyright (c) 2026 The Tachograph authors. MIT License (see LICENSE).
"""Ansible module: lines in the logs of an instance's containers that should not be there."""

from __future__ import annotations

DOCUMENTATION = """
module: verify_logs
short_description: Look for secrets and stack traces in logs
description:
  - Reads the logs of all containers of an instance on this host, line by line, and returns what must not be in them.
options:
  instance:
    description: The instance, whose label its containers carry.
    type: str
    required: true
  since:
    description: Only lines since then, in seconds since 1970 (UTC).
    type: float
    required: true
  secrets:
    description: What no line may hold.
    type: list
    elements: str
    required: true
  traces:
    description: Beginnings of stack traces; no line may hold one.
    type: list
    elements: str
    required: true
author: The Tachograph authors
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
"""

EXAMPLES = """
- name: Look into the logs
  verify_logs:
    instance: tachograph
    since: 1700000000
    secrets: ["{{ password }}"]
    traces: ["Traceback (most recent call last)"]
"""

RETURN = """
lines:
  description: What was found, each with container, what (V(secrets) or V(traces)) and text, which a line with a secret lacks.
  type: list
  returned: always
"""

import subprocess

from ansible.module_utils.basic import AnsibleModule

MOST = 20


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "instance": {"type": "str", "required": True},
            "since": {"type": "float", "required": True},
            "secrets": {"type": "list", "elements": "str", "required": True, "no_log": True},
            "traces": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    given = module.params
    label = f"label=tachograph.instance={given['instance']}"
    listed = subprocess.run(["docker", "ps", "--all", "--filter", label, "--format", "{{.Names}}"], capture_output=True, text=True)
    if listed.returncode:
        module.fail_json(msg=f"docker ps: {listed.stderr.strip()}")
    lines: list[dict[str, str]] = []
    for container in listed.stdout.split():
        command = ["docker", "logs", "--since", f"{given['since']:.0f}", container]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as logs:
            assert logs.stdout
            for line in logs.stdout:
                if any(secret in line for secret in given["secrets"]):
                    lines.append({"container": container, "what": "secrets", "text": ""})
                elif any(trace in line for trace in given["traces"]):
                    lines.append({"container": container, "what": "traces", "text": line.strip()[:200]})
    module.exit_json(changed=False, lines=lines[:MOST])


if __name__ == "__main__":
    main()
