#!/usr/bin/python
# Copyright (c) 2026 The Tachograph authors. MIT License (see LICENSE).
"""Ansible module: removes what nodes of one instance have on a machine."""

from __future__ import annotations

DOCUMENTATION = """
module: teardown_machine
short_description: Remove what nodes of an instance have on a machine
description:
  - Removes units, containers, files, rules of the packet filter and, if asked for, volumes, and answers each thing that it removed
    and each volume and image that it kept.
  - Takes only what carries the instance, namely Docker objects by their label, units by their line X-Tachograph-Instance, files by
    the instance's folder, rules by their comment; and of that only what belongs to the named nodes.
  - Fails while an engine is stopped that holds containers, because they would come back with it.
options:
  instance:
    description: The instance.
    type: str
    required: true
  nodes:
    description: Names of the nodes that go.
    type: list
    elements: str
    required: true
  kinds:
    description: >-
      Kinds that go, in this order; all containers of a kind at once. C(any) is all that is left of whatever kind, such as one of
      another version.
    type: list
    elements: str
    required: true
  data:
    description: Whether volumes go too.
    type: bool
    default: false
  kill:
    description: >-
      Whether nothing of the instance is kept on any machine. Then nothing has to end in order, and what runs is killed first.
    type: bool
    default: false
author: The Tachograph authors
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
"""

EXAMPLES = """
- name: Remove what two nodes have, and keep their data
  teardown_machine:
    instance: tachograph
    nodes: [node1, node2]
    kinds: [kafka, any]
"""

RETURN = """
removed:
  description: What was removed, or would be, such as V(container tachograph-kafka-node1).
  type: list
  returned: always
kept:
  description: Volumes of the nodes and images that stay.
  type: list
  returned: always
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule

Run = Callable[..., tuple[int, str, str]]
UNITS = Path("/etc/systemd/system")
FILES = Path("/etc/tachograph")
CONTAINERS = Path("/var/lib/docker/containers")
"""Where an engine keeps containers, also while it is stopped."""
STOPPED = (
    f"No engine answers, but {CONTAINERS} holds containers, which would come back with it. Start it, then run this again: "
    "systemctl start docker (without systemd: dockerd)."
)


class Thing(NamedTuple):
    """A container, a volume, a unit or a folder."""

    name: str
    kind: str
    node: str


class Failed(Exception):
    """A command that failed; the text has it and what it said."""


class Machine:
    """What is on a machine, and the commands that remove it; a dry one only looks."""

    def __init__(self, run: Run, instance: str, nodes: list[str], dry: bool) -> None:
        self._run, self._instance, self._nodes, self._dry = run, instance, nodes, dry
        self.removed: list[str] = []
        self.engine = run(["docker", "version", "--format", "{{.Server.Version}}"])[0] == 0
        # systemd's own files may name a unit that is gone already
        self.units = self._units()

    def _ask(self, *command: str) -> str:
        """What a command prints. Raises Failed."""
        status, said, error = self._run(list(command))
        if status:
            raise Failed(f"{' '.join(command)}: {error.strip() or said.strip()}")
        return said

    def _do(self, *command: str) -> None:
        if not self._dry:
            self._ask(*command)

    def _node(self, name: str, after: str = "") -> tuple[str, str]:
        """Kind and node out of a name, KIND-NODE and what follows; empty unless it is one of the nodes that go."""
        pattern = f"([a-z]+)-({'|'.join(map(re.escape, self._nodes))}){after}"
        found = re.fullmatch(pattern, name) if self._nodes else None
        return (found[1], found[2]) if found else ("", "")

    def _units(self) -> list[Thing]:
        """Units of the nodes."""
        line = f"X-Tachograph-Instance={self._instance}"
        found = [
            Thing(path.name, *self._node(path.name.removeprefix(f"{self._instance}-"), r"\.service"))
            for path in sorted(UNITS.glob("*.service"))
            if path.name.startswith(f"{self._instance}-") and path.is_file() and line in path.read_text().splitlines()
        ]
        return [unit for unit in found if unit.node]

    def _labelled(self, after: str, *command: str) -> list[Thing]:
        """The nodes' own among the instance's containers or volumes. Without a label for its node it is in the name."""
        columns = ["Names" if after == "" else "Name", 'Label "tachograph.kind"', 'Label "tachograph.node"']
        shape = "\t".join(f"{{{{.{column}}}}}" for column in columns)
        label = f"--filter=label=tachograph.instance={self._instance}"
        said = self._ask("docker", *command, label, "--format", shape) if self.engine else ""
        found = []
        for line in filter(None, said.splitlines()):
            name, kind, node = (*line.split("\t"), "", "")[:3]
            found.append(Thing(name, kind, node or self._node(name.removeprefix(f"{self._instance}-"), after)[1]))
        return sorted(thing for thing in found if thing.node in self._nodes)

    def containers(self) -> list[Thing]:
        """Containers of the nodes that there are now."""
        return self._labelled("", "ps", "--all")

    def volumes(self) -> list[Thing]:
        """Volumes of the nodes that there are now."""
        return self._labelled("-[a-z]+", "volume", "ls")

    def kill(self) -> None:
        """End at once what runs."""
        # What systemd is about to stop it does not start again
        for command, things in (
            (("systemctl", "stop", "--no-block"), self.units),
            (("docker", "stop", "-t", "0"), self.containers()),
        ):
            if things:
                self._do(*command, *(thing.name for thing in things))

    def remove(self, kind: str, data: bool) -> None:
        """Remove what is of a kind: what keeps containers first, then containers, volumes and files."""
        for unit in self.units:
            if kind in ("any", unit.kind) and f"unit {unit.name}" not in self.removed:
                self._remove_unit(unit)
        containers = [each.name for each in self.containers() if kind in ("any", each.kind)]
        if containers:
            self.removed += [f"container {name}" for name in containers]
            self._do("docker", "stop", *containers)
            self._do("docker", "rm", "--force", "--volumes", *containers)
        volumes = [each.name for each in self.volumes() if kind in ("any", each.kind)] if data else []
        if volumes:
            self.removed += [f"volume {name}" for name in volumes]
            folders = self._folders(volumes)
            self._do("docker", "volume", "rm", *volumes)
            for path in folders:
                self._empty(path)
        for folder in sorted((FILES / self._instance).glob("*")):
            if folder.is_dir() and self._node(folder.name)[0] in ((kind,) if kind != "any" else (folder.name.split("-")[0],)):
                self.removed.append(f"files {folder}")
                if not self._dry:
                    shutil.rmtree(folder)

    def _folders(self, volumes: list[str]) -> list[Path]:
        """The folders of the host that some volumes stand for; those that the engine keeps itself are left out."""
        said = self._ask("docker", "volume", "inspect", "--format", '{{with .Options}}{{index . "device"}}{{end}}', *volumes)
        return [Path(line) for line in said.splitlines() if line.startswith("/")]

    def _empty(self, folder: Path) -> None:
        """Remove what a folder holds; the folder itself may be where a disk is mounted."""
        held = [each for each in folder.iterdir() if each.name != "lost+found"] if folder.is_dir() else []
        if held:
            self.removed.append(f"contents of {folder}")
        for each in held if not self._dry else []:
            if each.is_dir() and not each.is_symlink():
                shutil.rmtree(each)
            else:
                each.unlink()

    def _remove_unit(self, unit: Thing) -> None:
        """Stop and remove a unit."""
        self.removed.append(f"unit {unit.name}")
        self._do("systemctl", "disable", "--now", unit.name)
        if not self._dry:
            (UNITS / unit.name).unlink()
        # One that had failed would be listed for ever
        if self._run(["systemctl", "is-failed", "--quiet", unit.name])[0] == 0:
            self._do("systemctl", "reset-failed", unit.name)

    def forget(self) -> None:
        """Let systemd forget the units, once for all, and remove folders that are empty now."""
        if self.units:
            self._do("systemctl", "daemon-reload")
        for folder in (FILES / self._instance, FILES):
            if not self._dry and folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def remove_rules(self) -> None:
        """Remove rules of a proof that was killed."""
        for chain in ("INPUT", "OUTPUT"):
            # Where none can be listed, none could be made
            status, said, _ = self._run(["iptables", "-w", "10", "-nL", chain, "--line-numbers"])
            lines = said.splitlines() if status == 0 else []
            numbers = [int(line.split()[0]) for line in lines if f"/* tachograph-verify {self._instance} */" in line]
            for number in sorted(numbers, reverse=True):
                self.removed.append(f"rule {number} of chain {chain}")
                self._do("iptables", "-w", "10", "-D", chain, str(number))

    def kept(self, kinds: list[str]) -> list[str]:
        """Volumes of the nodes and images that stay."""
        if not self.engine:
            return []
        volumes = [f"volume {each.name}" for each in self.volumes() if "any" in kinds or each.kind in kinds]
        images = self._ask("docker", "images", "--filter", "label=tachograph.image", "--format", "{{.Repository}}:{{.Tag}}")
        return volumes + [f"image {name}" for name in images.split() if "<none>" not in name]


def tear_down(machine: Machine, kinds: list[str], data: bool, kill: bool) -> dict[str, Any]:
    """Remove what is of the kinds; what was removed, and what stays. Raises Failed."""
    if not machine.engine and CONTAINERS.is_dir() and any(CONTAINERS.iterdir()):
        raise Failed(STOPPED)
    if kill:
        machine.kill()
    for kind in kinds:
        machine.remove(kind, data)
    machine.forget()
    machine.remove_rules()
    removed = list(dict.fromkeys(machine.removed))
    return {"changed": bool(removed), "removed": removed, "kept": [] if data else machine.kept(kinds)}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "instance": {"type": "str", "required": True},
            "nodes": {"type": "list", "elements": "str", "required": True},
            "kinds": {"type": "list", "elements": "str", "required": True},
            "data": {"type": "bool", "default": False},
            "kill": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    given = module.params

    def run(command: list[str]) -> tuple[int, str, str]:
        status, said, error = module.run_command(command, handle_exceptions=False) if shutil.which(command[0]) else (127, "", "")
        return int(status), str(said), str(error)

    try:
        machine = Machine(run, given["instance"], given["nodes"], module.check_mode)
        module.exit_json(**tear_down(machine, given["kinds"], given["data"], given["kill"]))
    except Failed as failed:
        module.fail_json(msg=str(failed))


if __name__ == "__main__":
    main()
