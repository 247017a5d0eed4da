"""Action plugin: what is wrong with the inventory, all of it at once, and what is to be looked at on the hosts.

`problems` is pure: values in, sentences out. The specs of the roles are the only place of types, choices and ranges; a range is
the sentence "From LOW to HIGH." at the end of a description, the length of a text "Of LEAST to MOST characters.". The action
resolves each node's values as its roles would see them (role defaults below the inventory) and needs no connection.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ansible import context
from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase

ROLES = Path(__file__).resolve().parents[2]


class Kind(NamedTuple):
    """What a node of a group runs."""

    group: str
    ports: tuple[str, ...]


KINDS = {
    "zookeeper": Kind("zookeeper", ("zookeeper_client_port", "zookeeper_peer_port", "zookeeper_election_port")),
    "kafka": Kind("kafka", ("kafka_port",)),
    "postgres": Kind("postgres", ("postgres_port",)),
    "nginx": Kind("nginx", ("nginx_port",)),
    "producer": Kind("producers", ("producer_port",)),
    "consumer": Kind("consumers", ("consumer_port",)),
    "vehicle": Kind("vehicles", ("vehicle_port",)),
}
# Tags of the plays, and those that Ansible itself knows
TAGS = ("images", *(each.group for each in KINDS.values()))
SPECIAL_TAGS = ("all", "always", "never", "tagged", "untagged")
# What belongs to one node; every other value of role settings has to be the same everywhere.
OF_ONE_NODE = ("machine", "node_address")
# Values of one role that its hosts have to agree on.
OF_ONE_GROUP = ("zookeeper_peer_port", "zookeeper_election_port", "consumer_group", "vehicle_fleet_seed")
# The first has to fit into the second.
FITS = (
    ("zookeeper_heap", "zookeeper_memory"),
    ("kafka_heap", "kafka_memory"),
    ("postgres_shared_buffers", "postgres_memory"),
    ("producer_queue_bytes", "producer_memory"),
)
# What nginx may hold in /tmp, as role container sets it, in a worker process and for each connection, as tests/edge measures it.
NGINX_TMP, NGINX_WORKER, NGINX_CONNECTION = 64 << 20, 8 << 20, 40 << 10
TRUTHS = ("true", "false", "yes", "no", "on", "off", "y", "n", "t", "f", "1", "0")
SIZE_NAME = re.compile(r"_(memory|heap|shared_buffers|log_max_size|disk_free)$")
NAME_REMEDY = "Use letters, digits, '.', '_' and '-' only"
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
# Arguments of libraries, which stand in a container's environment, and those of their names that hold a secret.
ARGUMENTS = ("kafka_client", "postgres_client")
SECRET_ARGUMENT = re.compile("(?=.*(password|passphrase|secret|token|dsn))(?!.*_file$)", re.IGNORECASE)
RANGE = re.compile(r"\bFrom (\S+) to (\S+)\.$")
LENGTH = re.compile(r"\bOf ([0-9]+) to ([0-9]+) characters\.$")


class Findings:
    """Collects what is wrong; the same fault on several nodes becomes one line."""

    def __init__(self, nodes: Iterable[str]) -> None:
        self._nodes = list(nodes)
        self._found: dict[tuple[str, str, str], list[str]] = defaultdict(list)

    def add(self, host: str | None, subject: str, why: str, remedy: str) -> None:
        """Note a fault of `host`, or of the whole inventory."""
        hosts = self._found[subject, why, remedy]
        if host is not None and host not in hosts:
            hosts.append(host)

    def value(self, host: str, variable: str, value: Any, why: str, remedy: str) -> None:
        """Note that a variable's value is wrong."""
        self.add(host, f"{variable} = {shown(value)}", why, remedy)

    def lines(self) -> list[str]:
        """One sentence a fault: what, where, why, remedy."""
        return [f"{subject}{self._where(hosts)} {why}. {remedy}." for (subject, why, remedy), hosts in self._found.items()]

    def _where(self, hosts: list[str]) -> str:
        return f" ({', '.join(hosts)})" if hosts and set(hosts) != set(self._nodes) else ""


def shown(value: Any) -> str:
    """A value as it would be written."""
    return f"'{value}'" if isinstance(value, str) else str(value)


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


# What a value of a type is, and the words for one that is not
TYPES: dict[str, tuple[Callable[[Any], bool], str, str]] = {
    "bool": (lambda value: str(value).lower() in TRUTHS, "is neither true nor false", "Set true or false"),
    "list": (lambda value: isinstance(value, list), "is no list", "Set a list, such as [a, b]"),
    "dict": (lambda value: isinstance(value, Mapping), "is no mapping", "Set a mapping, such as {key: value}"),
}
TEXT = (lambda value: value is not None and not isinstance(value, list | Mapping), "is no text", "Set a text")


def fault(name: str, value: Any, spec: Mapping[str, Any]) -> tuple[str, str] | None:
    """Why `value` is no value of `name`, and the remedy; None if it is one."""
    choices = spec.get("choices")
    if choices and str(value) not in map(str, choices):
        return "is not among the choices", f"Set one of {', '.join(map(str, choices))}"
    if SIZE_NAME.search(name) and size(value) is None:
        return "is no size", "Set a number with a unit, such as 256m"
    match spec["type"]:
        case "int":
            return out_of_range(integer(value), "integer", "Set an integer", spec)
        case "float":
            return out_of_range(number(value), "number", "Set a number", spec)
    holds, why, remedy = TYPES.get(spec["type"], TEXT)
    if not holds(value):
        return why, remedy
    return of_length(str(value), spec["description"]) if spec["type"] == "str" else None


def of_length(text: str, description: str) -> tuple[str, str] | None:
    """As `fault`, for a text whose description says how long it may be."""
    found = LENGTH.search(description)
    if not found or (int(found[1]) <= len(text) <= int(found[2]) and not re.search("[\0\ud800-\udfff]", text)):
        return None
    return "is not a text of that length", f"Set a text of {found[1]} to {found[2]} characters"


def out_of_range(value: float | None, noun: str, remedy: str, spec: Mapping[str, Any]) -> tuple[str, str] | None:
    """As `fault`, for a number that was parsed or could not be."""
    found = RANGE.search(spec["description"])
    low, high = (float(found[1]), float(found[2])) if found else (0.0, math.inf)
    remedy += f" from {found[1]} to {found[2]}" if found else " from 0"
    if value is None:
        return f"is no {noun}", remedy
    return None if low <= value <= high else ("is out of range", remedy)


def problems(
    nodes: Mapping[str, Mapping[str, Any]],
    given: Mapping[str, Iterable[str]],
    groups: Mapping[str, list[str]],
    specs: Mapping[str, Mapping[str, Any]],
    fleet: bool = False,
    debian: bool = True,
) -> list[str]:
    """Everything that is wrong, a sentence each.

    nodes: host to the values of all options there; given: host to the names that the inventory sets there;
    groups: the inventory's; specs: option to its spec, with the role's name under `role`; fleet: whether vehicles need a host;
    debian: whether the controller can make a base image.
    """
    findings = Findings(nodes)
    check_groups(findings, groups, fleet)
    check_names(findings, given, specs)
    for host, values in nodes.items():
        check_values(findings, host, values, specs)
        check_client_arguments(findings, host, values)
        check_node(findings, host, values, [kind for kind, each in KINDS.items() if host in groups.get(each.group, [])])
    check_shared(findings, nodes, given, groups, specs)
    check_addresses(findings, nodes)
    check_ids(findings, "zookeeper_id", groups.get("zookeeper", []), nodes, given)
    check_ids(findings, "kafka_broker_id", groups.get("kafka", []), nodes, given)
    check_topic(findings, nodes, groups)
    if not debian:
        check_base(findings, nodes)
    return findings.lines()


def check_groups(findings: Findings, groups: Mapping[str, list[str]], fleet: bool) -> None:
    """Groups with too few, too many or an even number of hosts, and names that no container can have."""
    for kind, each in KINDS.items():
        hosts = groups.get(each.group, [])
        if not hosts and (kind != "vehicle" or fleet):
            findings.add(None, f"group {each.group}", "has no host", f"Put at least one host into group {each.group}")
        for host in hosts:
            if not NAME.fullmatch(host):
                findings.add(None, f"host {host}", "has a name that no container can have", NAME_REMEDY)
    members = groups.get("zookeeper", [])
    if members and len(members) % 2 == 0:
        findings.add(
            None,
            f"group zookeeper = {', '.join(members)}",
            f"is an even ensemble of {len(members)}, which survives no more than one of {len(members) - 1}",
            f"Add or remove one host, so that there are {len(members) - 1} or {len(members) + 1}",
        )
    stores = groups.get("postgres", [])
    if len(stores) > 1:
        findings.add(
            None,
            f"group postgres = {', '.join(stores)}",
            f"has {len(stores)} hosts, but there is one database",
            "Leave one host in it",
        )


def check_names(findings: Findings, given: Mapping[str, Iterable[str]], specs: Mapping[str, Mapping[str, Any]]) -> None:
    """Variables that look like ours and that nothing reads."""
    prefixes = tuple(f"{role}_" for role in {spec["role"] for spec in specs.values()})
    for host, names in given.items():
        for name in names:
            if name in specs or name.startswith(("_", "ansible_")):
                continue
            # A name without our prefix is an error of typing only if it is nearly one of ours.
            near = difflib.get_close_matches(name, specs, n=1, cutoff=0.6 if name.startswith(prefixes) else 0.89)
            if near or name.startswith(prefixes):
                findings.add(
                    host,
                    name,
                    "is read by nothing",
                    f"Did you mean {near[0]}? Correct or remove it" if near else "Remove it; docs/settings.md lists all there are",
                )


def check_values(findings: Findings, host: str, values: Mapping[str, Any], specs: Mapping[str, Mapping[str, Any]]) -> None:
    """Types, choices and ranges of every option, and those values that need more than that."""
    for name, value in values.items():
        # These have words of their own.
        if name not in ("zookeeper_id", "kafka_broker_id", "num_vehicles") and (wrong := fault(name, value, specs[name])):
            findings.value(host, name, value, *wrong)
    count = values["num_vehicles"]
    if count != "" and (integer(count) or 0) < 1:
        findings.value(
            host, "num_vehicles", count, "is no number of vehicles", "Set an integer from 1, or leave it out to keep the last count"
        )
    if not NAME.fullmatch(str(values["instance"])):
        findings.value(host, "instance", values["instance"], "cannot begin a container's name", NAME_REMEDY)
    for small, large in FITS:
        inner, outer = size(values[small]), size(values[large])
        if inner is not None and outer is not None and inner >= outer:
            findings.value(
                host, small, values[small], f"does not fit into {large} = {shown(values[large])}", f"Lower {small} or raise {large}"
            )


def check_client_arguments(findings: Findings, host: str, values: Mapping[str, Any]) -> None:
    """Secrets among the arguments of libraries, where they do not belong."""
    for variable in ARGUMENTS:
        for name in values[variable] if isinstance(values[variable], Mapping) else ():
            if SECRET_ARGUMENT.match(str(name)):
                why = "is a secret, which would stand in the containers' environment and log"
                findings.add(host, f"{variable}.{name}", why, f"Name the file that holds it: {name}_file")


def check_node(findings: Findings, host: str, values: Mapping[str, Any], kinds: list[str]) -> None:
    """The node's address, and ports that two of its containers would share."""
    if address(values["node_address"]) is None:
        findings.value(
            host,
            "node_address",
            values["node_address"],
            "is no IPv4 address that a service can listen on",
            "Set an address of this host, such as 192.0.2.11",
        )
    users: dict[int, list[str]] = defaultdict(list)
    for name in (name for kind in kinds for name in KINDS[kind].ports):
        port = integer(values[name])
        if port is not None:
            users[port].append(name)
    for port, names in users.items():
        if len(names) > 1:
            findings.add(host, f"{' and '.join(names)} = {port}", "are the same port of one node", "Set different ports")
    if "nginx" in kinds:
        check_nginx(findings, host, values)


def check_nginx(findings: Findings, host: str, values: Mapping[str, Any]) -> None:
    """Where nginx listens, whom it does not bound, and whether its connections fit into its memory."""
    for place in values["nginx_extra_listen"] if isinstance(values["nginx_extra_listen"], list) else []:
        if listening(place) is None:
            findings.value(
                host, "nginx_extra_listen", place, "is no place to listen on", "Use address:port, such as 127.0.0.1:8080"
            )
    for place in values["nginx_balancers"] if isinstance(values["nginx_balancers"], list) else []:
        if network(place) is None:
            findings.value(
                host,
                "nginx_balancers",
                place,
                "is neither an address nor a network",
                "Use 192.0.2.7 or 192.0.2.0/24, whose last bits are 0",
            )
    workers, connections = integer(values["nginx_worker_processes"]), integer(values["nginx_worker_connections"])
    memory = size(values["nginx_memory"])
    if workers and connections and memory is not None:
        needed = NGINX_TMP + workers * (NGINX_WORKER + connections * NGINX_CONNECTION)
        if memory < needed:
            findings.value(
                host,
                "nginx_memory",
                values["nginx_memory"],
                f"is too little for {workers} x {connections} connections",
                f"Set {-(-needed >> 20)}m at least, or lower nginx_worker_connections",
            )


def network(value: Any) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """The address or network that `value` spells."""
    try:
        return ipaddress.ip_network(str(value))
    except ValueError:
        return None


def listening(place: Any) -> tuple[str, int] | None:
    """Address and port of `address:port`."""
    host, _, port = str(place).rpartition(":")
    value = integer(port)
    return (host, value) if address(host) and value and value < 65536 else None


def check_shared(
    findings: Findings,
    nodes: Mapping[str, Mapping[str, Any]],
    given: Mapping[str, Iterable[str]],
    groups: Mapping[str, list[str]],
    specs: Mapping[str, Mapping[str, Any]],
) -> None:
    """Values that differ between nodes which have to agree on them."""
    everywhere = {name: "all" for name, spec in specs.items() if spec["role"] == "settings" and name not in OF_ONE_NODE}
    for name, group in (everywhere | {name: KINDS[specs[name]["role"]].group for name in OF_ONE_GROUP}).items():
        members = [host for host in nodes if group == "all" or host in groups.get(group, [])]
        hosts = defaultdict(list)
        for host in members:
            hosts[str(nodes[host][name])].append(host)
        # What nobody set follows from other values, which are named themselves.
        if len(hosts) > 1 and any(name in given[host] for host in members):
            differing = ", ".join(f"{value} on {' '.join(where)}" for value, where in hosts.items())
            findings.add(
                None, f"{name} = {differing}", "differs between nodes, which share it", f"Set it for all, in group_vars/{group}.yml"
            )


def check_addresses(findings: Findings, nodes: Mapping[str, Mapping[str, Any]]) -> None:
    """Addresses that two nodes have, and loopback addresses that other machines cannot reach."""
    owners = defaultdict(list)
    for host, values in nodes.items():
        owners[str(values["node_address"])].append(host)
    several_machines = len({str(values["machine"]) for values in nodes.values()}) > 1
    for value, hosts in owners.items():
        if len(hosts) > 1:
            findings.add(
                None,
                f"node_address = {shown(value)}",
                f"belongs to {len(hosts)} nodes, {', '.join(hosts)}",
                "Give each node an address of its own",
            )
        parsed = address(value)
        if several_machines and parsed and parsed.is_loopback:
            for host in hosts:
                findings.value(
                    host,
                    "node_address",
                    value,
                    "is out of reach for the other machines",
                    "Set an address of this host's network, or one machine for all nodes",
                )


def check_ids(
    findings: Findings, name: str, members: list[str], nodes: Mapping[str, Mapping[str, Any]], given: Mapping[str, Iterable[str]]
) -> None:
    """Numbers of members that are missing, out of range or used twice."""
    highest = {"zookeeper_id": 255, "kafka_broker_id": 1000}[name]
    remedy = f"Set an integer from 1 to {highest}, unique in its group, in the inventory"
    for host in members:
        value = nodes[host][name]
        if name not in given[host]:
            findings.add(host, name, "is missing", remedy)
        elif integer(value) is None:
            findings.value(host, name, value, "is no integer", remedy)
        elif not 1 <= int(value) <= highest:
            findings.value(host, name, value, "is out of range", remedy)
    used = Counter(integer(nodes[host][name]) for host in members if name in given[host])
    for value, times in used.items():
        if value is not None and times > 1:
            hosts = [host for host in members if integer(nodes[host][name]) == value]
            findings.add(None, f"{name} = {value}", f"belongs to {', '.join(hosts)}", remedy)


def check_topic(findings: Findings, nodes: Mapping[str, Mapping[str, Any]], groups: Mapping[str, list[str]]) -> None:
    """What the topic needs of the groups."""
    brokers, consumers = len(groups.get("kafka", [])), len(groups.get("consumers", []))
    for host, values in nodes.items():
        factor = integer(values["kafka_topic_replication_factor"])
        insync = integer(values["kafka_topic_min_insync_replicas"])
        partitions = integer(values["kafka_topic_partitions"])
        if factor and 0 < brokers < factor:
            findings.value(
                host,
                "kafka_topic_replication_factor",
                factor,
                f"is more than the {brokers} of group kafka",
                f"Set {brokers} at most, or add brokers",
            )
        if factor and insync and insync > factor:
            findings.value(
                host,
                "kafka_topic_min_insync_replicas",
                insync,
                f"is more than kafka_topic_replication_factor = {factor}",
                f"Set {factor} at most",
            )
        if partitions and partitions < consumers:
            findings.value(
                host,
                "kafka_topic_partitions",
                partitions,
                f"leaves some of the {consumers} consumers without work",
                f"Set {consumers} at least, or remove consumers",
            )


def check_base(findings: Findings, nodes: Mapping[str, Mapping[str, Any]]) -> None:
    """On a controller that cannot make a Debian, a base has to be named."""
    for host, values in nodes.items():
        if values["images_base"] == "":
            findings.value(
                host,
                "images_base",
                "",
                "needs a controller with Debian or Ubuntu",
                "Name an image of Debian 13 to build on, or run this from Debian or Ubuntu",
            )


def check_arguments(tags: Iterable[str], limit: str, groups: Mapping[str, Iterable[str]]) -> list[str]:
    """What is wrong with --tags, --skip-tags and --limit: Ansible passes by what it does not know."""
    findings = Findings([])
    for tag in tags:
        if tag not in (*TAGS, *SPECIAL_TAGS):
            findings.add(None, f"tag {tag}", "is known to no play", meant(tag, TAGS))
    names = [*groups, *groups.get("all", [])]
    for pattern in re.split("[,:]", limit):
        # What is more than a name, such as web* or @file, is Ansible's to understand
        name = pattern.strip().lstrip("!&")
        if NAME.fullmatch(name) and name not in names:
            findings.add(None, f"limit {name}", "is neither a host nor a group of the inventory", meant(name, names))
    return findings.lines()


def meant(word: str, words: Iterable[str]) -> str:
    """The remedy for a word that is not among those known."""
    near = difflib.get_close_matches(word, words, n=1)
    return f"Did you mean {near[0]}? Correct it" if near else f"Use one of {', '.join(words)}"


def looks(
    hosts: Iterable[str], nodes: Mapping[str, Mapping[str, Any]], groups: Mapping[str, list[str]]
) -> dict[str, dict[str, Any]]:
    """What to look at on the machines: the first of `hosts` on each to the arguments of module preflight_machine.

    Values that are wrong already are left out; they have been named.
    """
    first: dict[str, str] = {}
    arguments: dict[str, dict[str, Any]] = {}
    for host in hosts:
        if host not in nodes:
            continue
        values = nodes[host]
        machine = arguments.setdefault(
            first.setdefault(str(values["machine"]), host),
            {
                "instance": str(values["instance"]),
                "machine": str(values["machine"]),
                "containers": [],
                "expected": [
                    f"{values['instance']}-{kind}-{other}"
                    for kind, each in KINDS.items()
                    for other in groups.get(each.group, [])
                    if str(nodes[other]["machine"]) == str(values["machine"])
                ],
                "memory_percent": integer(values["preflight_memory_percent"]) or 0,
                "disk_free": size(values["preflight_disk_free"]) or 0,
                "systemd": [],
            },
        )
        if values["container_supervisor"] == "systemd":
            machine["systemd"].append(host)
        for kind, each in KINDS.items():
            if host in groups.get(each.group, []):
                places: list[dict[str, Any]] = [
                    {"variable": name, "address": str(values["node_address"]), "port": integer(values[name])} for name in each.ports
                ]
                if kind == "nginx" and isinstance(values["nginx_extra_listen"], list):
                    extra = [listening(place) for place in values["nginx_extra_listen"]]
                    places += [
                        {"variable": "nginx_extra_listen", "address": place[0], "port": place[1]} for place in extra if place
                    ]
                machine["containers"].append(
                    {
                        "name": f"{values['instance']}-{kind}-{host}",
                        "kind": kind,
                        "node": host,
                        "memory": size(values[f"{kind}_memory"]) or 0,
                        "places": [place for place in places if address(place["address"]) and 0 < (place["port"] or 0) < 65536],
                    }
                )
    return arguments


def masked(value: Any) -> Any:
    """A value without what may be secret in the arguments of a client."""
    if not isinstance(value, Mapping):
        return value
    return {
        key: "***" if re.search("password|secret|token|key", str(key), re.IGNORECASE) else masked(each)
        for key, each in value.items()
    }


def in_force(nodes: Mapping[str, Mapping[str, Any]], specs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Role to its options' values, by node where nodes differ."""
    result: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, spec in specs.items():
        values = {host: masked(each[name]) for host, each in nodes.items()}
        first = next(iter(values.values()), None)
        # A dict of its own is handed from role to role and is no setting.
        if name != "container_service":
            result[spec["role"]][name] = first if all(value == first for value in values.values()) else values
    return dict(result)


class ActionModule(ActionBase):
    """What Ansible loads; it never fails because of what it found.

    Answers `problems`, `looks`, `wanted` (names of all containers of the inventory) and `in_force`.
    """

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Resolve every node's values, then look at them."""
        variables = task_vars or {}
        result: dict[str, Any] = super().run(tmp, variables)
        groups = {group: list(hosts) for group, hosts in variables["groups"].items()}
        specs, defaults = self._specs(), self._defaults()
        magic = {"hostvars": variables["hostvars"], "role_path": variables["role_path"]}
        given = {host: variables["hostvars"].raw_get(host) for each in KINDS.values() for host in groups.get(each.group, [])}
        failures = Findings(given)
        nodes = {}
        for host, raw in given.items():
            nodes[host], failed = self._resolve(specs, defaults, raw, magic)
            if failed:
                # The default stands in for what fails, so that all else can be checked.
                kept = {name: value for name, value in raw.items() if name not in failed}
                nodes[host], remaining = self._resolve(specs, defaults, kept, magic)
                for name, error in (remaining or {name: failed[name] for name in failed.keys() & raw.keys()}).items():
                    failures.value(
                        host, name, raw.get(name, defaults[name]), f"cannot be computed: {error}", "Correct the expression"
                    )
        fleet = str(self._templar.template(variables["preflight_fleet"])).lower() in ("true", "yes", "1")
        debian = Path("/etc/debian_version").exists()
        # A host of no group may still run what it ran before
        idle = {host: variables["hostvars"].raw_get(host) for host in variables["ansible_play_hosts_all"] if host not in given}
        others = {host: self._resolve(specs, defaults, raw, magic)[0] for host, raw in idle.items()}
        tags = {*variables["ansible_run_tags"], *variables["ansible_skip_tags"]} if self._ours() else set()
        result["problems"] = check_arguments(sorted(tags), variables.get("ansible_limit") or "", groups)
        result["problems"] += failures.lines() + problems(nodes, given, groups, specs, fleet, debian)
        result["looks"] = looks(variables["ansible_play_hosts_all"], nodes | others, groups)
        result["wanted"] = [each["name"] for look in looks(nodes, nodes, groups).values() for each in look["containers"]]
        result["in_force"] = in_force(nodes, specs)
        return result

    def _ours(self) -> bool:
        """Whether all playbooks of this run are those of this product; others may have tags of their own."""
        return {Path(each).resolve().parent for each in context.CLIARGS["args"]} <= {ROLES.parent, ROLES.parent / "playbooks"}

    def _resolve(
        self, specs: Iterable[str], defaults: Mapping[str, Any], raw: Mapping[str, Any], magic: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """The value of each option, as a role on that host would see it, and those that fail with the reason."""
        templar = self._templar.copy_with_new_env(available_variables={**defaults, **raw, **magic})
        values: dict[str, Any] = {}
        failed: dict[str, str] = {}
        for name in specs:
            try:
                values[name] = templar.template(raw.get(name, defaults[name]))
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
        """The defaults of every role, in which expressions count as such."""
        return {
            name: value
            for path in sorted(ROLES.glob("*/defaults/main.yml"))
            for name, value in (self._loader.load_from_file(str(path), trusted_as_template=True) or {}).items()
        }
