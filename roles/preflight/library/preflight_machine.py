#!/usr/bin/python
# Copyright (c) 2026 The Tachograph authors. MIT License (see LICENSE).
"""Ansible module: whether a machine has the ports, memory, disk and supervisor that its containers need."""

from __future__ import annotations

DOCUMENTATION = """
module: preflight_machine
short_description: Look at what containers need before they are made
description:
  - Looks at one machine for all nodes that share it, changes nothing, and answers what is wrong as sentences.
  - Containers that run already have their ports and their memory; only the others are looked at.
options:
  instance:
    description: The instance, whose label its containers carry.
    type: str
    required: true
  machine:
    description: The machine's name, for the sentences.
    type: str
    required: true
  containers:
    description: The containers that should be there, each with its name, node, memory in bytes, and places to listen on.
    type: list
    elements: dict
    required: true
  expected:
    description: Names of all containers that the inventory has on this machine, those of hosts outside the play too.
    type: list
    elements: str
    required: true
  memory_percent:
    description: How much of the containers' limits must be available, in percent.
    type: int
    required: true
  disk_free:
    description: Bytes that must be free on the disk of the engine.
    type: int
    required: true
  systemd:
    description: The nodes whose containers systemd is to supervise.
    type: list
    elements: str
    default: []
author: The Tachograph authors
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
"""

EXAMPLES = """
- name: Look at a machine
  preflight_machine:
    instance: tachograph
    machine: local
    containers:
      - name: tachograph-kafka-node1
        node: node1
        memory: 805306368
        places: [{variable: kafka_port, address: 127.0.0.11, port: 9092}]
    expected: [tachograph-kafka-node1]
    memory_percent: 60
    disk_free: 3221225472
"""

RETURN = """
problems:
  description: What is wrong, a sentence each.
  type: list
  returned: always
leavers:
  description: Containers of the instance that the inventory has no more, each with its name, kind, node and volumes.
  type: list
  returned: always
"""

import errno
import http.client
import json
import os
import socket
import urllib.parse
from typing import Any

from ansible.module_utils.basic import AnsibleModule

ENGINE = "/var/run/docker.sock"


class Engine(http.client.HTTPConnection):
    """The engine's API; preflight comes before anything is installed, so no library for it can be expected."""

    def connect(self) -> None:
        """Connect to the engine's socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(ENGINE)


def ask(path: str) -> Any:
    """The engine's answer, or None where no engine answers."""
    connection = Engine("localhost")
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return json.loads(response.read()) if response.status == 200 else None
    except OSError:
        return None
    finally:
        connection.close()


def present(instance: str) -> dict[str, dict[str, Any]]:
    """Name to what the engine knows of it, for each of the instance's containers."""
    filters = json.dumps({"label": [f"tachograph.instance={instance}"]})
    found = ask(f"/containers/json?all=1&filters={urllib.parse.quote(filters)}") or []
    return {each["Names"][0].lstrip("/"): each for each in found}


def leaving(there: dict[str, dict[str, Any]], expected: list[str]) -> list[dict[str, Any]]:
    """The containers that the inventory has no more."""
    return [
        {
            "name": name,
            "kind": each["Labels"]["tachograph.kind"],
            "node": name.removeprefix(f"{each['Labels']['tachograph.instance']}-{each['Labels']['tachograph.kind']}-"),
            "volumes": sorted(mount["Name"] for mount in each["Mounts"] if mount["Type"] == "volume"),
        }
        for name, each in sorted(there.items())
        if name not in expected
    ]


def check_database(leavers: list[dict[str, Any]]) -> list[str]:
    """A database is not left behind: its rows are nowhere else."""
    return [
        f"{each['name']} holds the database, and {each['node']} is not in group postgres any more. Put it back. To move the "
        f"database, back it up, remove that container by hand, which keeps its volume (`docker rm -f {each['name']}`), run "
        "site.yml, and restore it."
        for each in leavers
        if each["kind"] == "postgres"
    ]


def check_places(container: dict[str, Any]) -> list[str]:
    """Bind to each place as the service will, and let go at once."""
    problems = []
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as stream:
        lowest = int(stream.read())
    for place in container["places"]:
        where, port, variable = place["address"], place["port"], place["variable"]
        if port < lowest:
            problems.append(
                f"{variable} = {port} ({container['node']}): its host keeps ports below {lowest} for root "
                "(net.ipv4.ip_unprivileged_port_start), and no service runs as root. Set a higher port."
            )
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((where, port))
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:
                    name = variable if variable == "nginx_extra_listen" else "node_address"
                    problems.append(
                        f"{name} = '{where}' ({container['node']}) is not an address of its host. "
                        "Set one that `ip address` shows there."
                    )
                elif error.errno == errno.EADDRINUSE:
                    problems.append(
                        f"{variable} = {port} ({container['node']}) is taken on {where}, and not by {container['name']}. "
                        f"Stop it (`ss -ltnp 'sport = :{port}'` shows what it is), or set another port."
                    )
                else:
                    problems.append(
                        f"{variable} = {port} ({container['node']}) cannot be bound on {where}: {error.strerror}. Set another port."
                    )
    return list(dict.fromkeys(problems))


def check_memory(machine: str, containers: list[dict[str, Any]], percent: int) -> list[str]:
    """Compare what is available with the limits of the containers that are to start."""
    with open("/proc/meminfo") as stream:
        available = next(int(line.split()[1]) * 1024 for line in stream if line.startswith("MemAvailable:"))
    limits = sum(container["memory"] for container in containers)
    needed = limits * percent // 100
    if available >= needed:
        return []
    return [
        f"memory of {machine} = {mebibytes(available)} available is too little for {len(containers)} containers with limits of "
        f"{mebibytes(limits)} in all, of which {percent} percent (preflight_memory_percent) must be there, {mebibytes(needed)}. "
        "Free some, use fewer nodes on this machine, or lower the limits."
    ]


def data_root() -> str:
    """Where the engine keeps images and volumes, or would."""
    try:
        with open("/etc/docker/daemon.json") as stream:
            configured = json.load(stream).get("data-root")
    except (OSError, ValueError):
        configured = None
    path = (ask("/info") or {}).get("DockerRootDir") or configured or "/var/lib/docker"
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def check_disk(machine: str, needed: int) -> list[str]:
    """Compare the engine's disk with what must be free."""
    path = data_root()
    status = os.statvfs(path)
    free = status.f_bavail * status.f_frsize
    if free >= needed:
        return []
    return [
        f"disk of {machine} = {mebibytes(free)} free at {path} is less than preflight_disk_free, {mebibytes(needed)}. "
        "Free some (`docker system df` shows what the engine holds), or lower preflight_disk_free."
    ]


def check_systemd(nodes: list[str]) -> list[str]:
    """Refuse systemd as a supervisor where it is not PID 1."""
    if not nodes or os.path.isdir("/run/systemd/system"):
        return []
    with open("/proc/1/comm") as stream:
        first = stream.read().strip()
    return [
        f"container_supervisor = 'systemd' ({', '.join(nodes)}) needs systemd as PID 1, which is {first}. "
        "Set container_supervisor to docker."
    ]


def mebibytes(size: int) -> str:
    """A size for people."""
    return f"{size // 2**20} MiB"


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "instance": {"type": "str", "required": True},
            "machine": {"type": "str", "required": True},
            "containers": {"type": "list", "elements": "dict", "required": True},
            "expected": {"type": "list", "elements": "str", "required": True},
            "memory_percent": {"type": "int", "required": True},
            "disk_free": {"type": "int", "required": True},
            "systemd": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    arguments = module.params
    there = present(arguments["instance"])
    holding = {name for name, each in there.items() if each["State"] in ("running", "paused")}
    starting = [container for container in arguments["containers"] if container["name"] not in holding]
    problems = [problem for container in starting for problem in check_places(container)]
    problems = list(dict.fromkeys(problems))
    if starting:
        problems += check_memory(arguments["machine"], starting, arguments["memory_percent"])
    problems += check_disk(arguments["machine"], arguments["disk_free"])
    problems += check_systemd(arguments["systemd"])
    leavers = leaving(there, arguments["expected"])
    problems += check_database(leavers)
    module.exit_json(changed=False, problems=problems, leavers=leavers)


if __name__ == "__main__":
    main()
