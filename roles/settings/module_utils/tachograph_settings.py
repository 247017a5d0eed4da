"""What the inventory sets: the kinds of containers, the settings of every node as its roles would see them, and what values spell.

Action plugins of other roles import this file. Ansible shares Python between modules only, so each of them first puts this
folder on the path. The name is long so that it hides no other.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from ansible import context
from ansible.errors import AnsibleError
from ansible.release import __version__

ROLES = Path(__file__).resolve().parents[2]
TESTED = "2.19"
"""The ansible-core that plugins which use private parts of it were tested with."""


class Kind(NamedTuple):
    """A line of the table of kinds; roles/settings/vars/main.yml says what each part means."""

    group: str
    image: str
    ports: tuple[str, ...]
    http: bool
    user: int
    paths: dict[str, str]
    marks: tuple[str, ...]


def read_kinds(variables: str) -> dict[str, Kind]:
    """The table of kinds, from the text of the file that holds it."""
    table = yaml.safe_load(variables)["settings_kinds"]
    return {kind: Kind(**{**line, "ports": tuple(line["ports"]), "marks": tuple(line["marks"])}) for kind, line in table.items()}


KINDS = read_kinds((ROLES / "settings/vars/main.yml").read_text())
"""Every kind, in the order in which they need each other."""


# What values spell


def integer(value: Any) -> int | None:
    """The integer that `value` is or spells, as `-e` gives strings."""
    if isinstance(value, bool) or not re.fullmatch(r"-?[0-9]+", str(value).strip()):
        return None
    return int(value)


def number(value: Any) -> float | None:
    """The finite number that `value` is or spells."""
    try:
        result = float(value)
    except (TypeError, ValueError):
        return None
    return result if math.isfinite(result) and not isinstance(value, bool) else None


def size(value: Any) -> int | None:
    """Bytes, from a number with a unit such as 256m."""
    match = re.fullmatch(r"([0-9]+)([bkmgt]?)b?", str(value).strip().lower())
    return int(match[1]) * 1024 ** " kmgt".index(match[2].replace("b", "") or " ") if match else None


def address(value: Any) -> ipaddress.IPv4Address | None:
    """The IPv4 address that `value` spells, if a service can listen on it."""
    try:
        result = ipaddress.IPv4Address(str(value))
    except ValueError:
        return None
    return None if result.is_unspecified or result.is_multicast or str(result) == "255.255.255.255" else result


def network(value: Any) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """The address or network that `value` spells."""
    try:
        return ipaddress.ip_network(str(value))
    except ValueError:
        return None


def listening(place: Any) -> tuple[str, int] | None:
    """Address and port of `address:port`; an IPv6 address stands in brackets, and may be any of its host, `[::]`."""
    host, _, port = str(place).rpartition(":")
    value = integer(port)
    if not value or value > 65535:
        return None
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        return (host, value) if isinstance(network(host), ipaddress.IPv6Network) and "/" not in host else None
    return (host, value) if address(host) else None


def listed(text: Any) -> list[str]:
    """The words of a text that joins them by commas."""
    return [each.strip() for each in str(text).split(",") if each.strip()]


def built(image: Any) -> bool:
    """Whether the controller builds an image of that name; any other is the operator's own."""
    return re.fullmatch(r"(.*/)?tachograph/[a-z]+:[0-9a-f]{12}", str(image)) is not None


# What the inventory wants


def container_name(kind: str, instance: str, node: str) -> str:
    """The name of a container, with which the names of its unit and its volumes begin."""
    return f"{instance}-{kind}-{node}"


def container_dir(kind: str, config_dir: str, node: str) -> str:
    """The folder of a container's files on its host, in the instance's folder there."""
    return f"{config_dir}/{kind}-{node}"


def looks(
    hosts: Iterable[str], nodes: Mapping[str, Mapping[str, Any]], groups: Mapping[str, list[str]]
) -> dict[str, dict[str, Any]]:
    """What to look at on the machines: the first of `hosts` on each to what the inventory has there.

    Values that are wrong are left out; preflight names them.
    """
    first: dict[str, str] = {}
    found: dict[str, dict[str, Any]] = {}
    expected: dict[str, list[str]] = defaultdict(list)
    for kind, each in KINDS.items():
        for host in groups.get(each.group, []):
            expected[str(nodes[host]["machine"])].append(container_name(kind, nodes[host]["instance"], host))
    members = {kind: set(groups.get(each.group, [])) for kind, each in KINDS.items()}
    for host in hosts:
        if host not in nodes:
            continue
        values = nodes[host]
        machine = found.setdefault(
            first.setdefault(str(values["machine"]), host),
            {
                "instance": str(values["instance"]),
                "machine": str(values["machine"]),
                "containers": [],
                "expected": expected[str(values["machine"])],
                "nodes": groups.get("all", []),
                "former": listed(values["settings_former_nodes"]),
                "memory_percent": integer(values["preflight_memory_percent"]) or 0,
                "disk_free": size(values["preflight_disk_free"]) or 0,
                "systemd": [],
            },
        )
        if values["container_supervisor"] == "systemd":
            machine["systemd"].append(host)
        for kind in KINDS:
            if host in members[kind]:
                machine["containers"].append(look(host, kind, values))
    return found


def look(host: str, kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What to look at of one container."""
    places: list[dict[str, Any]] = [
        {"variable": name, "address": str(values["node_address"]), "port": integer(values[name])} for name in KINDS[kind].ports
    ]
    if kind == "nginx" and isinstance(values["nginx_extra_listen"], list):
        extra = [listening(place) for place in values["nginx_extra_listen"]]
        places += [{"variable": "nginx_extra_listen", "address": place[0], "port": place[1]} for place in extra if place]
    return {
        "name": container_name(kind, values["instance"], host),
        "kind": kind,
        "node": host,
        "http": KINDS[kind].http,
        "paths": [
            {
                "variable": name,
                "volume": f"{container_name(kind, values['instance'], host)}-{volume}",
                "path": str(values[name] or ""),
            }
            for volume, name in KINDS[kind].paths.items()
        ],
        "memory": size(values[f"{kind}_memory"]) or 0,
        "uid": integer(values[f"{kind}_uid"]) or 0,
        "built": built(values[f"{kind}_image"]),
        "places": [
            place
            for place in places
            if (place["variable"] == "nginx_extra_listen" or address(place["address"])) and 0 < (place["port"] or 0) < 65536
        ],
        "place": member_place(kind, values),
        "data": data_place(host, kind, values) if KINDS[kind].marks else "",
        "marks": list(KINDS[kind].marks),
    }


def member_place(kind: str, values: Mapping[str, Any]) -> str:
    """Where the others of a cluster find a member, as its role notes it at the container; empty for other kinds."""
    if kind not in ("zookeeper", "kafka"):
        return ""
    ports = ":".join(str(values[name]) for name in KINDS[kind].ports)
    return f"{values['node_address']}:{ports}{values['zookeeper_chroot'] if kind == 'kafka' else ''}"


def data_place(host: str, kind: str, values: Mapping[str, Any]) -> str:
    """Where a member's data lies: the name of a volume, or a path of its host."""
    name = KINDS[kind].paths.get("data", "")
    return str(values[name]) if name and values[name] else f"{container_name(kind, values['instance'], host)}-data"


# Names of entries that are not shown
SECRET_ENTRY = re.compile("password|passwd|passphrase|secret|token|key|dsn|jaas", re.IGNORECASE)
# A secret within a text, such as the value of sasl.jaas.config has
SECRET_TEXT = re.compile(r"(password|passwd|passphrase|secret|token)(\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|[^\s;,\"']+)", re.IGNORECASE)
MASK = "***"


def masked(value: Any) -> Any:
    """A value without what may be secret in it: by the name of an entry, or within a text."""
    if isinstance(value, str):
        return SECRET_TEXT.sub(lambda found: f"{found[1]}{found[2]}{MASK}", value)
    if isinstance(value, Mapping):
        return {key: MASK if SECRET_ENTRY.search(str(key)) else masked(each) for key, each in value.items()}
    return [masked(each) for each in value] if isinstance(value, list) else value


def in_force(nodes: Mapping[str, Mapping[str, Any]], specs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Role to its options' values, by node where nodes differ. Of a secret only whether there is one is shown."""
    result: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, spec in specs.items():
        hidden = spec.get("no_log")
        values = {host: MASK if hidden and each[name] else masked(each[name]) for host, each in nodes.items()}
        first = next(iter(values.values()), None)
        # A dict of its own is handed from role to role and is no setting.
        if name != "container_service":
            result[spec["role"]][name] = first if all(value == first for value in values.values()) else values
    return dict(result)


# What every node's settings are


class Inventory:
    """The settings of every node, resolved as a role on it would see them: the roles' defaults below what the inventory sets."""

    def __init__(self, loader: Any, templar: Any, variables: Mapping[str, Any]) -> None:
        """Resolve everything. loader, templar: of an action plugin; variables: those of its task."""
        # Parts of Ansible that it does not promise to keep
        for thing, name in ((variables["hostvars"], "raw_get"), (templar, "copy_with_new_env")):
            if not hasattr(thing, name):
                raise AnsibleError(
                    f"Settings cannot be resolved with ansible-core {__version__}, which has no {name}; {TESTED} was tested. "
                    "Nothing was touched. Use the tested version, which `make venv` puts into .venv."
                )
        self._loader, self._templar = loader, templar
        self._hostvars, self._hosts = variables["hostvars"], variables["ansible_play_hosts_all"]
        self._magic = {
            "hostvars": variables["hostvars"],
            "role_path": variables["role_path"],
            # Once, and not by each node
            "settings_topology": templar.template(variables["settings_topology"]),
        }
        self.groups: dict[str, list[str]] = {group: list(hosts) for group, hosts in variables["groups"].items()}
        self.specs = self._specs()
        """Option to its spec, with the role's name under `role`."""
        self.defaults = self._defaults()
        self.given: dict[str, Any] = {
            host: self._hostvars.raw_get(host) for each in KINDS.values() for host in self.groups.get(each.group, [])
        }
        """Node to what the inventory sets there, before it is resolved."""
        self.nodes: dict[str, dict[str, Any]] = {}
        """Node to the value of every option."""
        self.failed: list[tuple[str, str, str]] = []
        """Node, option and reason of what cannot be computed; the default stands in for it, so that all else can be checked."""
        for host, raw in self.given.items():
            self.nodes[host], failed = self._resolve(raw)
            if failed:
                self.nodes[host], remaining = self._resolve({name: value for name, value in raw.items() if name not in failed})
                named = remaining or {name: failed[name] for name in failed.keys() & raw.keys()}
                self.failed += [(host, name, error) for name, error in named.items()]

    def looks(self) -> dict[str, dict[str, Any]]:
        """What to look at on the machines of this play."""
        # A host of no group may still run what it ran before
        idle = {host: self._resolve(self._hostvars.raw_get(host))[0] for host in self._hosts if host not in self.nodes}
        return looks(self._hosts, self.nodes | idle, self.groups)

    def remote(self) -> list[str]:
        """Nodes that are reached by more than a local connection."""
        found = []
        for host, raw in self.given.items():
            connection = raw.get("ansible_connection", context.CLIARGS.get("connection", "ssh"))
            templar = self._templar.copy_with_new_env(available_variables={**raw, **self._magic})
            if str(templar.template(connection)) != "local":
                found.append(host)
        return found

    def wanted(self) -> list[str]:
        """Names of all containers of the inventory."""
        return [each["name"] for found in looks(self.nodes, self.nodes, self.groups).values() for each in found["containers"]]

    def in_force(self) -> dict[str, dict[str, Any]]:
        """Every setting, by role."""
        return in_force(self.nodes, self.specs)

    def _resolve(self, raw: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """The value of each option on a node, and those that fail with the reason."""
        templar = self._templar.copy_with_new_env(available_variables={**self.defaults, **raw, **self._magic})
        values: dict[str, Any] = {}
        failed: dict[str, str] = {}
        for name in self.specs:
            try:
                values[name] = templar.template(raw.get(name, self.defaults[name]))
            except AnsibleError as error:
                values[name] = None
                failed[name] = str(error).rstrip(".")
        return values, failed

    def _specs(self) -> dict[str, dict[str, Any]]:
        """Every option of every role."""
        return {
            name: {**spec, "role": path.parents[1].name}
            for path in sorted(ROLES.glob("*/meta/argument_specs.yml"))
            for entry in self._loader.load_from_file(str(path))["argument_specs"].values()
            for name, spec in entry.get("options", {}).items()
        }

    def _defaults(self) -> dict[str, Any]:
        """The defaults of every role, and the variables of role settings that they read; expressions in them count as such."""
        paths = [ROLES / "settings/vars/main.yml", *sorted(ROLES.glob("*/defaults/main.yml"))]
        return {
            name: value
            for path in paths
            for name, value in (self._loader.load_from_file(str(path), trusted_as_template=True) or {}).items()
        }
