#!/usr/bin/python
# Copyright (c) 2026 The Tachograph authors. MIT License (see LICENSE).
"""Ansible module: whether a machine has the ports, memory, disk, users and supervisor that its containers need, and what it is."""

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
    description:
      - The containers that should be there, each with its name, kind, node, memory in bytes, places to listen on, the user
        that it runs as, and whether the controller builds its image.
      - Its paths are the volumes that may stand for a folder of the host.
      - C(place) is where others find a member of a cluster, in the words of its container's label; empty for other kinds.
      - A member of a cluster also has the place of its data, which is the name of a volume or a path, and patterns of files, one
        of which is there once it holds data.
    type: list
    elements: dict
    required: true
  expected:
    description: Names of all containers that the inventory has on this machine, those of hosts outside the play too.
    type: list
    elements: str
    required: true
  nodes:
    description: Names of all nodes of the inventory, wherever they are.
    type: list
    elements: str
    required: true
  former:
    description: Names of nodes that were in the inventory and left it.
    type: list
    elements: str
    default: []
  missing_secrets:
    description: >-
      What to say if the instance has anything of some kinds here, because secrets that those kinds know are not on the controller.
      Each has C(kinds) and C(problem).
    type: list
    elements: dict
    default: []
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
        kind: kafka
        places: [{variable: kafka_port, address: 127.0.0.11, port: 9092}]
        uid: 10092
        built: true
    expected: [tachograph-kafka-node1]
    nodes: [node1, node2, node3]
    memory_percent: 60
    disk_free: 3221225472
"""

RETURN = """
problems:
  description: What is wrong, a sentence each.
  type: list
  returned: always
notices:
  description: What is not wrong and may still be unwanted, a sentence each.
  type: list
  returned: always
foreign:
  description: Those of the problems that are about nodes which the inventory does not have.
  type: list
  returned: always
engine:
  description: What decides whether the engine can run the containers, as its API names it; empty where no engine answers.
  type: dict
  returned: always
enforcing:
  description: Whether SELinux is enforcing.
  type: bool
  returned: always
architecture:
  description: The machine's architecture, as `uname -m` has it.
  type: str
  returned: always
builds:
  description: Whether any of the containers runs an image that the controller builds.
  type: bool
  returned: always
clock:
  description: >-
    The machine's clock when the module began and when it ended, in seconds since 1970. The action plugin of this name turns
    it into the least and the greatest offset from the controller's clock.
  type: list
  returned: always
old_images:
  description: Images that the controller built a day ago or more, by name; role images removes those that nobody needs.
  type: list
  returned: always
leavers:
  description: Containers of the instance that are not in the inventory any more, each with its name, kind, node and volumes.
  type: list
  returned: always
data:
  description: >-
    Name of each member's container to what its folder holds. `state` is `whole`, `new` (a play let it begin without data, and
    has not seen yet that it caught up) or `none`. `cluster` is the id of the Kafka cluster, `members` are lines of a ZooKeeper's
    last membership, `place` is where the data lies.
  type: dict
  returned: always
"""

import errno
import glob
import http.client
import json
import os
import pwd
import re
import socket
import time
import urllib.parse
from collections.abc import Container, Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule

ENGINE = "/var/run/docker.sock"
ENGINES = {"DOCKER_HOST": ("", f"unix://{ENGINE}", "unix:///run/docker.sock"), "DOCKER_CONTEXT": ("", "default")}
"""Variables that name an engine, and those of their values that name this one."""
FACTS = ("OperatingSystem", "SecurityOptions", "DockerRootDir", "ServerVersion", "BuildahVersion")
"""What of the engine's answer to /info decides whether it can run the containers."""
OURS = re.compile(r"(.*/)?tachograph/[a-z]+:[0-9a-f]{12}")
"""Names of images that the controller builds."""
DAY = 86_400


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


def volumes(instance: str) -> dict[str, dict[str, Any]]:
    """Name to what the engine knows of it, for each of the instance's volumes."""
    filters = json.dumps({"label": [f"tachograph.instance={instance}"]})
    found = (ask(f"/volumes?filters={urllib.parse.quote(filters)}") or {}).get("Volumes") or []
    return {each["Name"]: each for each in found}


def node_of(name: str, labels: dict[str, str], volume: bool = False) -> str:
    """The node that a container or a volume belongs to. What was made before there was a label for it has the node in its name."""
    kept = name.rpartition("-")[0] if volume else name
    return labels.get("tachograph.node") or kept.removeprefix(
        f"{labels['tachograph.instance']}-{labels.get('tachograph.kind', '')}-"
    )


def owners(there: dict[str, dict[str, Any]], kept: dict[str, dict[str, Any]]) -> dict[str, list[tuple[str, str]]]:
    """Node to the names of its containers and then of its volumes, each with its kind."""
    result: dict[str, list[tuple[str, str]]] = {}
    for name, each in sorted((there | kept).items(), key=lambda item: (item[0] in kept, item[0])):
        node = node_of(name, each["Labels"], name in kept)
        result.setdefault(node, []).append((name, each["Labels"].get("tachograph.kind", "")))
    return result


def check_nodes(instance: str, machine: str, owned: dict[str, list[tuple[str, str]]], known: list[str]) -> list[str]:
    """Nodes that the inventory does not have: they were renamed, another inventory has them, or they left."""
    return [
        f"{machine} has {', '.join(name for name, _ in things)} of instance {instance}, but node {node} is not in this inventory. "
        "If the node was renamed, give it its old name back, because its data goes by its name. If another inventory has "
        f"node {node}, set another instance in one of the two. If the node is gone for good, set settings_former_nodes to {node} "
        "(commas join several names): then its containers are removed, and its volumes stay until `docker volume rm` removes them."
        for node, things in sorted(owned.items())
        if node not in known
    ]


def folder_of(place: str) -> str:
    """The folder that a member's data lies in: a path, or that of a volume; empty where there is none."""
    if os.path.isabs(place):
        return place
    return str((ask(f"/volumes/{urllib.parse.quote(place)}") or {}).get("Mountpoint") or "")


def lines_of(pattern: str) -> list[str]:
    """The lines of all files that match."""
    lines = []
    for path in sorted(glob.glob(pattern)):
        with open(path, encoding="utf-8", errors="replace") as stream:
            lines += stream.read().splitlines()
    return lines


def membership(folder: str) -> list[str]:
    """The last membership that a ZooKeeper knows, as its start script has it: it alone, where an operator said so."""
    config = os.path.join(glob.escape(folder), "config")
    named = next((line for line in lines_of(f"{config}/zoo.cfg") if line.startswith("dynamicConfigFile=")), "")
    current = named.rpartition("/")[2]
    lines = [line for line in lines_of(f"{config}/{glob.escape(current)}") if line.startswith("server.")] if current else []
    if os.path.exists(f"{folder}/seed-alone"):
        own = next(iter(lines_of(f"{glob.escape(folder)}/myid")), "")
        return [*(line for line in lines if line.startswith(f"server.{own}=")), "alone"]
    found = re.fullmatch(r"zoo\.cfg\.dynamic\.([0-9a-f]+)", current)
    return [*lines, f"version={found[1] if found else 0}"]


def held(container: dict[str, Any]) -> dict[str, Any]:
    """What a member's folder holds."""
    folder = folder_of(container["data"])
    there = bool(folder) and any(glob.glob(f"{glob.escape(folder)}/{mark}") for mark in container["marks"])
    answer: dict[str, Any] = {"state": "none", "cluster": "", "members": [], "place": folder or container["data"]}
    if there:
        answer["state"] = "new" if os.path.exists(f"{folder}/new-member") else "whole"
        answer["members"] = membership(folder)
        ids = [line for line in lines_of(f"{glob.escape(folder)}/*/meta.properties") if line.startswith("cluster.id=")]
        answer["cluster"] = ids[0].partition("=")[2].strip() if ids else ""
    return answer


def leaving(there: dict[str, dict[str, Any]], expected: list[str]) -> list[dict[str, Any]]:
    """The containers that the inventory has no more."""
    return [
        {
            "name": name,
            "kind": each["Labels"]["tachograph.kind"],
            "node": node_of(name, each["Labels"]),
            "volumes": sorted(mount["Name"] for mount in each["Mounts"] if mount["Type"] == "volume"),
        }
        for name, each in sorted(there.items())
        if name not in expected
    ]


def check_database(owned: dict[str, list[tuple[str, str]]], expected: list[str], there: Container[str]) -> list[str]:
    """A database is not left behind: its rows are nowhere else."""
    problems = []
    for node, things in sorted(owned.items()):
        names = [name for name, kind in things if kind == "postgres"]
        if names and not any(name.endswith(f"-postgres-{node}") for name in expected):
            problems.append(
                f"{' and '.join(names)} {'hold' if len(names) > 1 else 'holds'} the database, and {node} is not in group postgres "
                f"any more. Put it back. To move the database, back it up, remove it by hand (`{removal(names, there)}`), run "
                "site.yml, and restore it."
            )
    return problems


def removal(names: list[str], there: Container[str]) -> str:
    """The commands that remove containers and volumes."""
    containers = [name for name in names if name in there]
    data = [name for name in names if name not in there]
    commands = [("docker rm -f", containers), ("docker volume rm", data)]
    return " && ".join(f"{command} {' '.join(each)}" for command, each in commands if each)


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
        with socket.socket(socket.AF_INET6 if ":" in where else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if ":" in where:
                # As nginx does: IPv4 has places of its own
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
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


def check_member(container: dict[str, Any], there: dict[str, dict[str, Any]]) -> list[str]:
    """Refuse another address, port or path of a member that runs: those that stop could not find those that go on."""
    now = there.get(container["name"], {"Labels": {}})["Labels"].get("tachograph.place", "")
    if not container.get("place") or now in ("", container["place"]):
        return []
    return [
        f"{container['name']} runs at {now}, and the inventory says {container['place']}. Its address, ports and chroot cannot "
        "change while it runs, because members would not find each other. Put the old value back, or run teardown.yml, which keeps "
        "the data, and then site.yml."
    ]


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


def check_paths(container: dict[str, Any], volumes: dict[str, dict[str, Any]]) -> list[str]:
    """Whether each folder can hold what it should, and holds nothing else."""
    return [problem for place in container["paths"] for problem in check_path(container, place, volumes)]


def check_path(container: dict[str, Any], place: dict[str, str], volumes: dict[str, dict[str, Any]]) -> list[str]:
    """Whether one folder can hold a volume."""
    path, name = place["path"].rstrip("/"), place["volume"]
    what = f"{place['variable']} = '{path}' ({container['node']})"
    kept = device(volumes[name]) if name in volumes else path
    if kept != path:
        old = f"in {kept}" if kept else "as a volume of the engine"
        container_name, source = container["name"], kept or volumes[name]["Mountpoint"]
        return [
            f"{what}: {name} keeps its data {old}. Set {place['variable']} back to '{kept}'. To move the data, stop "
            f"{container_name}, copy {source} with its owners, run `docker rm -f {container_name} && docker volume rm {name}`, "
            "then site.yml."
        ]
    if not path:
        return []
    others = sorted(other for other, volume in volumes.items() if other != name and device(volume) == path)
    if others:
        return [f"{what} is the folder of volume {others[0]}. Set another one."]
    if os.path.exists(path) and not os.path.isdir(path):
        return [f"{what} is not a folder. Set another path."]
    there = [each for each in os.listdir(path) if each != "lost+found"] if os.path.isdir(path) else []
    if name not in volumes and there and os.stat(path).st_uid != container["uid"]:
        return [
            f"{what} holds something already ({there[0]}), and its owner is not {container['uid']}, as whom it would "
            "be used. Set a folder that is empty, missing, or holds the data of this member."
        ]
    return []


def device(volume: dict[str, Any]) -> str:
    """The folder of the host that a volume stands for; empty if the engine keeps it."""
    return str((volume.get("Options") or {}).get("device", "")).rstrip("/")


def notices(machine: str, containers: list[dict[str, Any]], expected: list[str]) -> list[str]:
    """What is not wrong and may still be unwanted: little of a machine is used. Of a part of its containers nothing is said."""
    with open("/proc/meminfo") as stream:
        total = next(int(line.split()[1]) * 1024 for line in stream if line.startswith("MemTotal:"))
    limits = sum(container["memory"] for container in containers)
    if not expected or {each["name"] for each in containers} != set(expected) or limits * 10 >= total:
        return []
    return [
        f"The containers of {machine} may use {mebibytes(limits)}, which is {100 * limits // total} percent of its memory. "
        "docs/hosts.md, section Sizes, has values for larger machines."
    ]


def check_environment(machine: str, environment: Mapping[str, str]) -> list[str]:
    """What runs here must not talk to another engine than the one that is looked at."""
    other = {name: environment.get(name, "") for name, same in ENGINES.items() if environment.get(name, "") not in same}
    return [
        f"{name} of {machine} = '{value}' names another engine than {ENGINE}, which is the only one used here. Unset {name}."
        for name, value in other.items()
    ]


def check_users(containers: list[dict[str, Any]]) -> list[str]:
    """A container's user is nobody else's on its host: that account could read the service's secrets and data."""
    problems = []
    for container in containers:
        kind = container["kind"]
        try:
            name = pwd.getpwuid(container["uid"]).pw_name
        except KeyError:
            continue
        # An operator may have made an account for it
        if name != kind and not name.startswith("tachograph"):
            problems.append(
                f"{kind}_uid = {container['uid']} ({container['node']}) is the user {name} of its host, who could read the "
                "service's secrets and data. Set settings_uid_base before the first start, so that the users get other numbers. "
                f"If the account was made for this service, name it tachograph-{kind}."
            )
    return problems


def engine_facts() -> dict[str, Any]:
    """What decides whether the engine can run the containers; empty where no engine answers."""
    info = ask("/info") or {}
    return {name: info[name] for name in FACTS if name in info}


def enforcing() -> bool:
    """Whether SELinux is enforcing."""
    try:
        with open("/sys/fs/selinux/enforce") as stream:
            return stream.read().strip() == "1"
    except OSError:
        return False


def old_images(now: float) -> list[str]:
    """Images that the controller built a day ago or more."""
    filters = json.dumps({"label": ["tachograph.image"]})
    found = ask(f"/images/json?filters={urllib.parse.quote(filters)}") or []
    return sorted(name for each in found if now - each["Created"] > DAY for name in each["RepoTags"] or [] if OURS.fullmatch(name))


def data_root() -> str:
    """Where the engine keeps images and volumes, or would."""
    try:
        with open("/etc/docker/daemon.json") as stream:
            configured = json.load(stream).get("data-root")
    except (OSError, ValueError):
        configured = None
    return existing((ask("/info") or {}).get("DockerRootDir") or configured or "/var/lib/docker")


def check_disks(machine: str, needed: int, containers: list[dict[str, Any]]) -> list[str]:
    """Compare the disk of the engine, and those of the folders, with what must be free."""
    folders = [place["path"] for container in containers for place in container["paths"] if place["path"]]
    disks = {os.stat(existing(path)).st_dev: existing(path) for path in reversed([data_root(), *folders])}
    return [problem for path in disks.values() for problem in check_disk(machine, needed, path)]


def existing(path: str) -> str:
    """A path, or the closest folder above it that is there."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def check_disk(machine: str, needed: int, path: str) -> list[str]:
    """Compare a disk with what must be free."""
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


def check_owners(arguments: dict[str, Any], there: dict[str, dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Nodes that the inventory does not know; then a database left behind, and secrets that this controller does not have."""
    kept = volumes(arguments["instance"])
    owned, known = owners(there, kept), arguments["nodes"] + arguments["former"]
    kinds = {each["Labels"].get("tachograph.kind") for each in (there | kept).values()}
    return check_nodes(arguments["instance"], arguments["machine"], owned, known), [
        *check_database({node: owned[node] for node in owned if node in known}, arguments["expected"], there),
        *(each["problem"] for each in arguments["missing_secrets"] if kinds & set(each["kinds"])),
    ]


def main() -> None:
    """Run the module."""
    began = time.time()
    module = AnsibleModule(
        argument_spec={
            "instance": {"type": "str", "required": True},
            "machine": {"type": "str", "required": True},
            "containers": {"type": "list", "elements": "dict", "required": True},
            "expected": {"type": "list", "elements": "str", "required": True},
            "nodes": {"type": "list", "elements": "str", "required": True},
            "former": {"type": "list", "elements": "str", "default": []},
            "missing_secrets": {"type": "list", "elements": "dict", "default": [], "no_log": False},
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
    problems = check_environment(arguments["machine"], os.environ)
    problems += dict.fromkeys(problem for container in starting for problem in check_places(container))
    problems += dict.fromkeys(check_users(starting))
    problems += dict.fromkeys(
        each for one in arguments["containers"] if one["name"] in holding for each in check_member(one, there)
    )
    if starting:
        problems += check_memory(arguments["machine"], starting, arguments["memory_percent"])
    # A machine that runs nothing of the product needs no room for it
    if arguments["expected"]:
        problems += check_disks(arguments["machine"], arguments["disk_free"], arguments["containers"])
    known = {each["Name"]: each for each in (ask("/volumes") or {}).get("Volumes") or []}
    problems += [problem for container in arguments["containers"] for problem in check_paths(container, known)]
    problems += check_systemd(arguments["systemd"])
    leavers = leaving(there, arguments["expected"])
    foreign, others = check_owners(arguments, there)
    problems += foreign + others
    data = {container["name"]: held(container) for container in arguments["containers"] if container["data"]}
    module.exit_json(
        changed=False,
        problems=problems,
        notices=notices(arguments["machine"], arguments["containers"], arguments["expected"]),
        foreign=foreign,
        leavers=leavers,
        data=data,
        engine=engine_facts() if arguments["expected"] else {},
        enforcing=enforcing(),
        architecture=os.uname().machine,
        builds=any(container["built"] for container in arguments["containers"]),
        old_images=old_images(began),
        clock=[began, time.time()],
    )


if __name__ == "__main__":
    main()
