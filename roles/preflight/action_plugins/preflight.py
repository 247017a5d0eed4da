"""Action plugin: what is wrong with the inventory, all of it at once, and what is to be looked at on the hosts.

`problems` is pure: values in, sentences out. The specs of the roles are the only place of types, choices and ranges; a range is
the sentence "From LOW to HIGH." at the end of a description, the length of a text "Of LEAST to MOST characters.". The action
takes each node's values from role settings and needs no connection.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ansible import context
from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "settings/module_utils"))
from tachograph_settings import (
    KINDS,
    MASK,
    ROLES,
    SECRET_TEXT,
    Inventory,
    address,
    built,
    integer,
    listening,
    masked,
    network,
    number,
    size,
)

# Tags of the plays, and those that Ansible itself knows
TAGS = ("images", *(each.group for each in KINDS.values()))
SPECIAL_TAGS = ("all", "always", "never", "tagged", "untagged")
# Facts that roles leave for those after them, which a second playbook of one run finds
PUBLISHED = (
    "container_new",
    "images_engine",
    "images_removed",
    "preflight_data",
    "preflight_leavers",
    "preflight_old_images",
    "preflight_remote",
    "settings_topology",
    "status_found",
    "status_inventory",
)
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
# Processes of Postgres that are not connections: its own, those of parallel queries, and health checks and tools in its container.
POSTGRES_PROCESSES = 32
# Connections that are not consumers': of readers, tools and Postgres itself.
POSTGRES_OTHERS = 10
# Names that settings had before.
RENAMED = {
    "kafka_zookeeper_session_timeout": "kafka_zookeeper_session_timeout_ms",
    "zookeeper_tick_time": "zookeeper_tick_time_ms",
}
# What nginx may hold in /tmp, as role container sets it, in a worker process and for each connection, as tests/edge measures it.
NGINX_TMP, NGINX_WORKER, NGINX_CONNECTION = 64 << 20, 8 << 20, 40 << 10


class Secret(NamedTuple):
    """A password that every run needs, out of a variable or out of the controller's folder of secrets."""

    owner: str
    """The kind that is told what it is."""
    readers: tuple[str, ...] = ()
    """Other kinds that log in by it."""


# Names of the files; the variable has `_password` after it.
SECRETS = {
    "zookeeper_super": Secret("zookeeper"),
    "postgres_writer": Secret("postgres", ("consumer",)),
    "postgres_reader": Secret("postgres"),
}
# The superuser's password is a word of a command of ZooKeeper's client
COMMAND_WORD = re.compile(r"(?!.*[\"'\\])[!-~]+")
NO_COMMAND_WORD = ("is not a word that ZooKeeper's client takes", "Use ASCII without spaces, quotes and backslashes")
YES = ("true", "yes", "on", "y", "t", "1")
TRUTHS = (*YES, "false", "no", "off", "n", "f", "0")
SIZE_NAME = re.compile(r"_(memory|heap|shared_buffers|log_max_size|disk_free)$")
NAME_REMEDY = "Use letters, digits, '.', '_' and '-' only"
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
# Arguments of libraries, which stand in a container's environment, each with the setting for those that hold a secret.
ARGUMENTS = {"kafka_client": "kafka_client_secrets", "postgres_client": "postgres_client_secrets"}
SECRET_ARGUMENT = re.compile("(?=.*(password|passphrase|secret|token|dsn))(?!.*_file$)", re.IGNORECASE)
# Lines of configuration files, which everybody on the host may read, each with the setting for those that hold a secret.
LINES = {"kafka_config": "kafka_config_secrets", "kafka_topic_config": "", "zookeeper_config": "", "postgres_config": ""}
SECRET_LINE = re.compile(
    r"(password|passphrase|passwd|secret|token|(secret|master|keystore)[._]key|jaas[._]config)$", re.IGNORECASE
)
# Settings of the topic that producers insist on, and what to do instead
PROMISED = {
    "retention.bytes": (
        "-1",
        "Remove it, and bound the topic by kafka_topic_retention_hours: a bound in bytes deletes what nobody has read",
    ),
    "cleanup.policy": ("delete", "Remove it"),
    "unclean.leader.election.enable": ("false", "Remove it"),
    "message.timestamp.type": ("logappendtime", "Remove it"),
    "compression.type": ("uncompressed", "Remove it"),
}
# What a text may be: a pattern, and what to set in place of what does not match. Every text is in this table or in `PLAIN`, or it
# has choices, is a size, or has a length.
IMAGE = (r"(?!.*//)[a-zA-Z0-9][a-zA-Z0-9._/:@-]*", "an image such as registry.example:5000/team/name:tag, without a scheme")
PATH = (".+", "a path")
FOLDER = ("/.*", "an absolute path")
DATA = (
    r"(?!/(dev|proc|run|sys|tmp)(/|$))(/(?!\.{1,2}(/|$))[a-zA-Z0-9._-]+)+|",
    "an absolute path of letters, digits, '.', '_' and '-' that outlives a boot, and not the root; empty is a volume of the engine",
)
PLACES = r"([^\s:,/]+:[0-9]+)(,[^\s:,/]+:[0-9]+)*"
CHROOT = r"(?!/zookeeper(/|$))(/(?!\.{1,2}(/|$))[a-zA-Z0-9._-]+)*"
OFFSETS = "[0-9]+:[0-9]+"
TEXTS = {
    **{f"{kind}_image": IMAGE for kind in KINDS},
    "images_base": (f"({IMAGE[0]})?", IMAGE[1]),
    "images_registry": (
        r"([a-zA-Z0-9][a-zA-Z0-9.-]*(:[0-9]+)?(/[a-z0-9][a-z0-9._-]*)*/?)?",
        "host:port of a registry, maybe with a path, without a scheme",
    ),
    "kafka_topic": (
        r"(?!\.{1,2}$|__consumer_offsets$|__transaction_state$)[a-zA-Z0-9._-]{1,249}",
        "1 to 249 letters, digits, '.', '_' and '-', not '.', '..' or a topic of Kafka's own",
    ),
    **{name: DATA for kind in KINDS.values() for name in kind.paths.values()},
    "kafka_rack": (r"[a-zA-Z0-9._-]{0,249}", "at most 249 letters, digits, '.', '_' and '-'"),
    "consumer_group": (r"[a-zA-Z0-9._-]{1,249}", "1 to 249 letters, digits, '.', '_' and '-'"),
    "kafka_bootstrap_servers": (f"({PLACES})?", "address:port of each broker, joined by commas"),
    "postgres_database": (
        r"(?!(all|sameuser|samerole|replication|template[01])$)[a-zA-Z_][a-zA-Z0-9_-]{0,62}",
        "1 to 63 letters, digits, '_' and '-' that begin with a letter, and not a word or database of Postgres' own",
    ),
    "postgres_host": (r"[^\s,/]*", "one address"),
    "zookeeper_chroot": (
        CHROOT,
        "a path that begins with a slash and does not end in one, such as /tachograph; empty is the root",
    ),
    "zookeeper_connect": (
        f"({PLACES})?{CHROOT}",
        "address:port of each member, joined by commas, and a path that begins with a slash",
    ),
    # What ends a directive, opens a block, quotes or comments is for nginx to read, not part of a name
    "nginx_server_name": (
        r"""(~([^\s;{}"'#\\]|\\[\w.-])+|[^\s;{}"'#\\$~]+)( (~([^\s;{}"'#\\]|\\[\w.-])+|[^\s;{}"'#\\$~]+))*""",
        "names, or patterns after a '~', with one blank between two, and none of ; { } ' \" #",
    ),
    "container_restart_kinds": (
        rf"\s*({'|'.join(KINDS)})\s*(,\s*({'|'.join(KINDS)})\s*)*",
        f"kinds out of {', '.join(KINDS)}, joined by commas",
    ),
    "kafka_accept_loss": (
        r"(all|[a-zA-Z0-9._-]+-[0-9]+(\s*,\s*[a-zA-Z0-9._-]+-[0-9]+)*)?",
        "all, or partitions such as telemetry-0, joined by commas",
    ),
    "settings_config_dir": (r"/[^:\s]*", "an absolute path without colons and blanks"),
    "settings_secrets_dir": FOLDER,
    "settings_build_dir": FOLDER,
    "settings_engine_log": FOLDER,
    "self_check_summary_file": PATH,
    "status_dir": PATH,
    "images_log": PATH,
    "verify_report_file": PATH,
    "verify_dir": PATH,
    "lab_dir": PATH,
    "verify_seed": (r"[a-zA-Z0-9._-]{0,64}", "at most 64 letters, digits, '.', '_' and '-'"),
    "verify_faults": (r"[a-z_]*(\s*,\s*[a-z_]+)*", "words of faults, joined by commas"),
    "remedy_accept_loss": (f"({OFFSETS}-[0-9]+)?", "PARTITION:FROM-TO, as it was shown"),
    "remedy_read_again": ("[0-9]*", "the number of a partition"),
    "remedy_redrive": (f"({OFFSETS})?", "PARTITION:OFFSET of a dead letter"),
    "remedy_delete_stored": (f"(all|[0-9]+|{OFFSETS})?", "PARTITION, PARTITION:OFFSET or all"),
    "vehicle_put_back": ("([A-Z0-9]{17}|all)?", "a VIN of 17 characters out of A-Z and 0-9, or all"),
    "vehicle_gone": (r"[a-zA-Z0-9_.-]*(\s*,\s*[a-zA-Z0-9_.-]+)*", "names of hosts, joined by commas"),
    "vehicle_discard": ("([A-Z0-9]{17}|all)?", "a VIN of 17 characters out of A-Z and 0-9, or all"),
}
# Texts of one line, whatever they say; those that other checks look at are among them.
PLAIN = (
    "settings_former_nodes",
    *(f"{name}_password" for name in SECRETS),
    "images_refresh",
    "container_restart",
    "machine",
    "instance",
    "node_address",
    "num_vehicles",
    "settings_version",
    "vehicle_fleet_seed",
    "preflight_lock",
    "images_ca_file",
    "remedy_redrive_file",
    "lab_subnet",
)
# Files on the controller that have to be there, if they are named
READ = ("images_ca_file", "remedy_redrive_file")
# Lines of a configuration file: what a name and a value may be.
PROPERTIES = (
    r"[a-zA-Z0-9][a-zA-Z0-9._-]*",
    r"[ -~]*(?<![\\ ])",
    "one line of printable ASCII that ends in neither a blank nor a backslash",
)
ENTRY_TEXTS = {
    "kafka_config": PROPERTIES,
    "kafka_config_secrets": PROPERTIES,
    "kafka_topic_config": PROPERTIES,
    "zookeeper_config": PROPERTIES,
    "postgres_config": (r"[a-zA-Z_][a-zA-Z0-9_.]*", r"[^\x00-\x1f\x7f]+", "one line"),
    "kafka_client": (r"[a-zA-Z_][a-zA-Z0-9_]*", "", ""),
    # Whatever dockerd takes
    "docker_engine_config": (r"[a-z][a-z0-9-]*", "", ""),
    "postgres_client": (r"[a-zA-Z_][a-zA-Z0-9_]*", "", ""),
    "kafka_client_secrets": (r"[a-zA-Z_][a-zA-Z0-9_]*", "", ""),
    "postgres_client_secrets": (r"[a-zA-Z_][a-zA-Z0-9_]*", "", ""),
}
# Elements of lists
ELEMENT_TEXTS = {
    "nginx_urls": (r"https?://[^\s,\"'\\]+", "http://address:port"),
    "zookeeper_commands": (r"[a-z]{4}|\*", "four letters, such as srvr"),
}
RANGE = re.compile(r"\bFrom (\S+) to (\S+)\.$")
LENGTH = re.compile(r"\bOf ([0-9]+) to ([0-9]+) characters\.$")


class Controller(NamedTuple):
    """What the controller knows of a run."""

    kinds: Collection[str]
    """Kinds that this run is about, by its hosts and tags."""
    missing: Collection[str]
    """Secrets that are neither in the folder nor in variables."""
    folder: str
    """Of secrets."""
    renew: bool = False
    """Whether new ones may be made in place of lost ones."""


class Findings:
    """Collects what is wrong; the same fault on several nodes becomes one line."""

    def __init__(self, nodes: Iterable[str], hidden: Collection[str] = ()) -> None:
        self._nodes = list(nodes)
        self._hidden = hidden
        self._found: dict[tuple[str, str, str], list[str]] = defaultdict(list)

    def add(self, host: str | None, subject: str, why: str, remedy: str) -> None:
        """Note a fault of `host`, or of the whole inventory."""
        hosts = self._found[subject, why, remedy]
        if host is not None and host not in hosts:
            hosts.append(host)

    def value(self, host: str, variable: str, value: Any, why: str, remedy: str) -> None:
        """Note that a variable's value is wrong."""
        self.add(host, f"{variable} = {self.shown(variable, value)}", why, remedy)

    def shown(self, variable: str, value: Any) -> str:
        """A value as it would be written, unless it is a secret."""
        return MASK if variable in self._hidden else shown(value)

    def lines(self) -> list[str]:
        """One sentence a fault: what, where, why, remedy."""
        return [f"{subject}{self._where(hosts)} {why}. {remedy}." for (subject, why, remedy), hosts in self._found.items()]

    def _where(self, hosts: list[str]) -> str:
        return f" ({', '.join(hosts)})" if hosts and set(hosts) != set(self._nodes) else ""


def shown(value: Any) -> str:
    """A value as it would be written, in one line."""
    value = masked(value)
    return f"'{value}'" if isinstance(value, str) and not re.search("[\r\n]", value) else repr(value)


# What a value of a type is, and the words for one that is not
TYPES: dict[str, tuple[Callable[[Any], bool], str, str]] = {
    "bool": (lambda value: str(value).lower() in TRUTHS, "is neither true nor false", "Set true or false"),
    "list": (lambda value: isinstance(value, list), "is not a list", "Set a list, such as [a, b]"),
    "dict": (lambda value: isinstance(value, Mapping), "is not a mapping", "Set a mapping, such as {key: value}"),
}
CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
TEXT = (lambda value: value is not None and not isinstance(value, list | Mapping), "is not a text", "Set a text")


def fault(name: str, value: Any, spec: Mapping[str, Any]) -> tuple[str, str] | None:
    """Why `value` is no value of `name`, and the remedy; None if it is one."""
    choices = spec.get("choices")
    if choices and str(value) not in map(str, choices):
        return "is not among the choices", f"Set one of {', '.join(map(str, choices))}"
    if SIZE_NAME.search(name) and size(value) is None:
        return "is not a size", "Set a number with a unit, such as 256m"
    match spec["type"]:
        case "int":
            return out_of_range(integer(value), "an integer", "Set an integer", spec)
        case "float":
            return out_of_range(number(value), "a number", "Set a number", spec)
    holds, why, remedy = TYPES.get(spec["type"], TEXT)
    if not holds(value):
        return why, remedy
    return of_text(name, str(value), spec["description"]) if spec["type"] in ("str", "path") else None


def of_text(name: str, text: str, description: str) -> tuple[str, str] | None:
    """As `fault`, for a text: its length, its lines, what it is made of, and whether the file that it names is there."""
    if wrong := of_length(text, description):
        return wrong
    if CONTROL.search(text):
        return "has a line break or another control character", "Set a text of one line"
    pattern, remedy = TEXTS.get(name, (".*", ""))
    if not re.fullmatch(pattern, text):
        return "cannot work", f"Set {remedy}"
    if name in READ and text and not Path(text).is_file():
        return "is not a file of this controller", "Name a file that is there"
    return None


def check_members(findings: Findings, host: str, values: Mapping[str, Any]) -> None:
    """Elements of lists, and names and values of the lines that go into configuration files."""
    for name, (pattern, remedy) in ELEMENT_TEXTS.items():
        for each in values[name] if isinstance(values[name], list) else ():
            if not re.fullmatch(pattern, str(each)):
                findings.value(host, name, each, "cannot work", f"Set a list, each as {remedy}")
    for name, (key_pattern, value_pattern, remedy) in ENTRY_TEXTS.items():
        for key, value in values[name].items() if isinstance(values[name], Mapping) else ():
            if not re.fullmatch(key_pattern, str(key)):
                findings.add(host, f"{name}.{key!r}", "is not a name that can be set", "Use letters, digits, '.', '_' and '-' only")
            elif value_pattern and (isinstance(value, list | Mapping) or not re.fullmatch(value_pattern, text_of(value))):
                # The value itself may be a secret
                findings.add(host, f"the value of {name}.{key}", "cannot stand in its file", f"Set {remedy}")


def text_of(value: Any) -> str:
    """A value as a configuration file has it; nothing leaves a line out."""
    return "" if value is None else str(value)


def of_length(text: str, description: str) -> tuple[str, str] | None:
    """As `fault`, for a text whose description says how long it may be."""
    found = LENGTH.search(description)
    if not found or (int(found[1]) <= len(text) <= int(found[2]) and not re.search("[\0\ud800-\udfff]", text)):
        return None
    return "is not a text of that length", f"Set a text of {found[1]} to {found[2]} characters"


def out_of_range(value: float | None, noun: str, remedy: str, spec: Mapping[str, Any]) -> tuple[str, str] | None:
    """As `fault`, for a number that was parsed or could not be."""
    found = RANGE.search(spec["description"])
    if not found:
        raise ValueError(f"the description of a number ends with its range: {spec['description']}")
    remedy += f" from {found[1]} to {found[2]}"
    if value is None:
        return f"is not {noun}", remedy
    return None if float(found[1]) <= value <= float(found[2]) else ("is out of range", remedy)


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
    findings = Findings(nodes, hidden(specs))
    check_groups(findings, groups, fleet)
    check_names(findings, given, specs)
    for host, values in nodes.items():
        check_values(findings, host, values, specs)
        check_open_secrets(findings, host, values)
        check_passwords(findings, host, values)
        check_users(findings, host, values)
        check_promise(findings, host, values)
        check_members(findings, host, values)
        check_reader_networks(findings, host, values)
        check_node(findings, host, values, [kind for kind, each in KINDS.items() if host in groups.get(each.group, [])])
    check_shared(findings, nodes, given, groups, specs)
    check_addresses(findings, nodes)
    check_ids(findings, "zookeeper_id", groups.get("zookeeper", []), nodes, given)
    check_ids(findings, "kafka_broker_id", groups.get("kafka", []), nodes, given)
    check_racks(findings, nodes, groups)
    check_topic(findings, nodes, groups)
    check_data(findings, nodes, groups)
    check_connections(findings, nodes, groups)
    check_session(findings, nodes, groups)
    if not debian:
        check_base(findings, nodes)
    return findings.lines()


def hidden(specs: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Names of settings that are secrets."""
    return {name for name, spec in specs.items() if spec.get("no_log")}


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
            if name in specs or name in PUBLISHED or name.startswith(("_", "ansible_")):
                continue
            if name in RENAMED:
                findings.add(host, name, f"is now {RENAMED[name]}", "Rename it")
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
            host,
            "num_vehicles",
            count,
            "is not a number of vehicles",
            "Set an integer from 1, or leave it out to keep the last count",
        )
    if not NAME.fullmatch(str(values["instance"])):
        findings.value(host, "instance", values["instance"], "cannot begin a container's name", NAME_REMEDY)
    for small, large in FITS:
        inner, outer = size(values[small]), size(values[large])
        if inner is not None and outer is not None and inner >= outer:
            findings.value(
                host, small, values[small], f"does not fit into {large} = {shown(values[large])}", f"Lower {small} or raise {large}"
            )


def check_users(findings: Findings, host: str, values: Mapping[str, Any]) -> None:
    """A user that our image does not know: its folders belong to another one."""
    base = integer(values["settings_uid_base"])
    if base is None:
        return
    for kind, each in KINDS.items():
        name, image, known = f"{kind}_uid", values[f"{kind}_image"], base + each.user
        if built(image) and integer(values[name]) not in (known, None):
            remedy = f"Remove it, set settings_uid_base for all of them, or name an image of your own in {kind}_image"
            findings.value(host, name, values[name], f"is not the user of our image, {known}", remedy)


def check_open_secrets(findings: Findings, host: str, values: Mapping[str, Any]) -> None:
    """Secrets among the arguments of libraries and the lines of files, where others read them."""
    for variable, instead in ARGUMENTS.items():
        for name, value in entries(values[variable]):
            if SECRET_ARGUMENT.match(name) or SECRET_TEXT.search(str(value)):
                why = "is a secret, which would stand in the containers' environment and log"
                findings.add(host, f"{variable}.{name}", why, f"Move it to {instead}.{name}")
        for name, value in entries(values[instead]):
            if not SECRET_ARGUMENT.match(name):
                findings.add(host, f"{instead}.{name}", "is not the name of a secret", f"Move it to {variable}.{name}")
            check_secret(findings, host, f"{instead}.{name}", value)
    for variable, instead in LINES.items():
        for name, value in entries(values[variable]):
            if SECRET_LINE.search(name) or SECRET_TEXT.search(str(value)):
                why = "is a secret, which everybody on the host could read"
                remedy = f"Move it to {instead}['{name}']" if instead else "Leave it out, or name a file that holds it"
                findings.add(host, f"{variable}['{name}']", why, remedy)


def entries(value: Any) -> list[tuple[str, Any]]:
    """Names and values of a mapping; another value has none, and was named already."""
    return [(str(name), each) for name, each in value.items()] if isinstance(value, Mapping) else []


def check_passwords(findings: Findings, host: str, values: Mapping[str, Any]) -> None:
    """Passwords that stand in variables; empty ones stand in the folder of secrets."""
    for name in SECRETS:
        value = values[f"{name}_password"]
        if value:
            check_secret(findings, host, f"{name}_password", value)
        if value and name == "zookeeper_super" and not COMMAND_WORD.fullmatch(str(value)):
            findings.add(host, f"{name}_password", *NO_COMMAND_WORD)


def check_secret(findings: Findings, host: str, name: str, value: Any) -> None:
    """A secret that does not survive a file of one line. It is not repeated."""
    if not isinstance(value, str) or not value or value != value.strip() or not value.isprintable():
        why = "is not one line of text without spaces at its ends"
        findings.add(host, name, why, "Set a text of printable characters, in quotes if YAML takes it for a number")


def check_secret_files(folder: Path, values: Mapping[str, Any]) -> list[str]:
    """Files of the folder of secrets that hold what no service could log in by; what stands in a variable was checked there."""
    findings = Findings([])
    for name in SECRETS:
        file = folder / name
        if values[f"{name}_password"] or not file.is_file():
            continue
        # As lookup `secret` and the services read it
        text = file.read_bytes().decode(errors="replace").strip()
        if not text:
            findings.add(None, str(file), "is empty", "Remove it, and a password is made; or write one line into it")
        elif not text.isprintable() or "\ufffd" in text:
            findings.add(None, str(file), "is not one line of text", "Write one line of printable characters into it")
        elif name == "zookeeper_super" and not COMMAND_WORD.fullmatch(text):
            findings.add(None, str(file), *NO_COMMAND_WORD)
    return findings.lines()


def check_node(findings: Findings, host: str, values: Mapping[str, Any], kinds: list[str]) -> None:
    """The node's address, and ports that two of its containers would share."""
    if address(values["node_address"]) is None:
        findings.value(
            host,
            "node_address",
            values["node_address"],
            "is not an IPv4 address that a service can listen on",
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


def check_connections(findings: Findings, nodes: Mapping[str, Mapping[str, Any]], groups: Mapping[str, list[str]]) -> None:
    """Whether the database has connections for all consumers, and its container processes for all connections."""
    consumers = len(groups.get("consumers", []))
    for host in groups.get("postgres", []):
        connections, processes = (integer(nodes[host][name]) for name in ("postgres_max_connections", "container_pids_limit"))
        if connections is None or processes is None:
            continue
        if connections + POSTGRES_PROCESSES > processes:
            findings.value(
                host,
                "postgres_max_connections",
                connections,
                f"does not fit into container_pids_limit = {processes}: each connection is a process, and Postgres has up to "
                f"{POSTGRES_PROCESSES} others",
                f"Set {processes - POSTGRES_PROCESSES} at most, or raise container_pids_limit",
            )
        needed = 2 * consumers + POSTGRES_OTHERS
        if connections < needed:
            findings.value(
                host,
                "postgres_max_connections",
                connections,
                f"is too few for {consumers} consumers, which take two each, and {POSTGRES_OTHERS} others",
                f"Set {needed} at least",
            )


def check_session(findings: Findings, nodes: Mapping[str, Mapping[str, Any]], groups: Mapping[str, list[str]]) -> None:
    """Whether every ZooKeeper takes the brokers' session timeout as it is."""
    ticks = {tick for host in groups.get("zookeeper", []) if (tick := integer(nodes[host]["zookeeper_tick_time_ms"]))}
    for host in groups.get("kafka", []):
        session = integer(nodes[host]["kafka_zookeeper_session_timeout_ms"])
        for tick in sorted(ticks):
            if session is not None and not 2 * tick <= session <= 20 * tick:
                findings.value(
                    host,
                    "kafka_zookeeper_session_timeout_ms",
                    session,
                    f"is not within 2 to 20 ticks of ZooKeeper (zookeeper_tick_time_ms = {tick}), which would change it silently",
                    f"Set {2 * tick} to {20 * tick}",
                )


def check_nginx(findings: Findings, host: str, values: Mapping[str, Any]) -> None:
    """Where nginx listens, whom it does not bound, and whether its connections fit into its memory."""
    for place in values["nginx_extra_listen"] if isinstance(values["nginx_extra_listen"], list) else []:
        if listening(place) is None:
            findings.value(
                host,
                "nginx_extra_listen",
                place,
                "is not a place to listen on",
                "Use address:port, such as 127.0.0.1:8080 or [::1]:8080",
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


def check_reader_networks(findings: Findings, host: str, values: Mapping[str, Any]) -> None:
    """Networks that Postgres would not start with, or could never see a reader from: it listens on an IPv4 address."""
    given = values["postgres_reader_networks"]
    for place in given if isinstance(given, list) else ():
        parsed = network(place)
        if not isinstance(parsed, ipaddress.IPv4Network):
            remedy = "Use 192.0.2.0/24, whose last bits are 0, or 192.0.2.7/32 for one address"
            findings.value(host, "postgres_reader_networks", place, "is not an IPv4 network", remedy)
        elif "/" not in str(place):
            findings.value(host, "postgres_reader_networks", place, "has no mask", f"Use {parsed} for this address alone")


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
            texts = {value: MASK if specs[name].get("no_log") else masked(value) for value in hosts}
            differing = ", ".join(f"{texts[value]} on {' '.join(where)}" for value, where in hosts.items())
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
            findings.value(host, name, value, "is not an integer", remedy)
        elif not 1 <= int(value) <= highest:
            findings.value(host, name, value, "is out of range", remedy)
    used = Counter(integer(nodes[host][name]) for host in members if name in given[host])
    for value, times in used.items():
        if value is not None and times > 1:
            hosts = [host for host in members if integer(nodes[host][name]) == value]
            findings.add(None, f"{name} = {value}", f"belongs to {', '.join(hosts)}", remedy)


def check_racks(findings: Findings, nodes: Mapping[str, Mapping[str, Any]], groups: Mapping[str, list[str]]) -> None:
    """Racks that some brokers have and others do not: Kafka then makes no topic."""
    brokers = [host for host in groups.get("kafka", []) if host in nodes]
    without = [host for host in brokers if not nodes[host]["kafka_rack"]]
    if without and len(without) < len(brokers):
        for host in without:
            findings.add(host, "kafka_rack", "is missing, and other brokers have one", "Set it for all brokers or for none")


def check_data(findings: Findings, nodes: Mapping[str, Mapping[str, Any]], groups: Mapping[str, list[str]]) -> None:
    """Folders of a machine that two members would share, or that lie within another."""
    folders = [
        (str(values["machine"]), str(values[name]).rstrip("/"), name, host)
        for host, values in nodes.items()
        for each in KINDS.values()
        for name in each.paths.values()
        if host in groups.get(each.group, []) and values[name]
    ]
    for place, (machine, path, name, host) in enumerate(folders):
        for other_machine, other_path, other_name, other in folders[place + 1 :]:
            if machine == other_machine and f"{path}/".startswith(f"{other_path}/") | f"{other_path}/".startswith(f"{path}/"):
                findings.add(
                    None,
                    f"{name} = '{path}' of {host} and {other_name} = '{other_path}' of {other}",
                    f"are not apart, on machine {machine}",
                    f"Give each member a folder of its own, such as {path}/{{{{ inventory_hostname }}}}-{name.split('_')[0]}",
                )


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


def check_promise(findings: Findings, host: str, values: Mapping[str, Any]) -> None:
    """Settings of the topic for which producers would never be ready, because they let go of records that were acknowledged."""
    config = values["kafka_topic_config"] if isinstance(values["kafka_topic_config"], Mapping) else {}
    for name, (good, remedy) in PROMISED.items():
        if name in config and str(config[name]).strip().lower() != good:
            why = "weakens the promise, so no producer would be ready"
            findings.add(host, f"kafka_topic_config.{name} = {shown(config[name])}", why, remedy)


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


def check_name(nodes: Mapping[str, Mapping[str, Any]], trial: str, remote: Collection[str]) -> list[str]:
    """The trial's name, in an inventory that reaches other machines: `make destroy` of a trial would be about them too."""
    findings = Findings(nodes)
    for host in remote:
        if nodes[host]["instance"] == trial and str(nodes[host]["settings_instance_kept"]).lower() not in YES:
            findings.value(
                host,
                "instance",
                trial,
                "is the name of the trial, and this inventory reaches other machines: removing the trial from the same folder "
                "would remove the secrets of this cluster too",
                "Set a name of its own, such as instance: fleet. If the cluster already runs under this name, keep it: set "
                "settings_instance_kept: true",
            )
    return findings.lines()


def check_secrets(run: Controller) -> list[str]:
    """Secrets that some kind of this run reads, and that nobody sets in this run."""
    findings = Findings([])
    for name in run.missing:
        owner, readers = SECRETS[name]
        if owner not in run.kinds and set(readers) & set(run.kinds):
            findings.add(
                None,
                f"secret {name}",
                f"is neither in the folder of secrets nor in {name}_password, and a new one is only made in a run that is about "
                f"group {KINDS[owner].group} too",
                "Run site.yml for all hosts and tags, or copy the folder from the controller that made it",
            )
    return findings.lines()


def lost_secrets(run: Controller, instance: str) -> list[dict[str, Any]]:
    """What a machine is to say if it has something that knows secrets which this controller does not have."""
    lost = [name for name in run.missing if SECRETS[name].owner in run.kinds]
    if not lost or run.renew:
        return []
    problem = (
        f"Instance {instance} is there already, but its secrets {', '.join(lost)} are neither in {run.folder} nor in variables "
        f"({', '.join(f'{name}_password' for name in lost)}). Another controller, or another folder of this project, made them: "
        f"copy its secrets/{instance} to {run.folder}, or set the variables. To have new ones made, which changes the passwords of "
        "what runs, add -e settings_secrets_new=true."
    )
    return [{"kinds": sorted({SECRETS[name].owner for name in lost}), "problem": problem}]


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


class ActionModule(ActionBase):
    """What Ansible loads; it never fails because of what it found.

    Answers `problems`, and `looks`: what to look at on the machines of this play.
    """

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Resolve every node's values, then look at them."""
        variables = task_vars or {}
        result: dict[str, Any] = super().run(tmp, variables)
        inventory = Inventory(self._loader, self._templar, variables)
        failures = Findings(inventory.given, hidden(inventory.specs))
        for host, name, error in inventory.failed:
            value = inventory.given[host].get(name, inventory.defaults[name])
            failures.value(host, name, value, f"cannot be computed: {error}", "Correct the expression")
        fleet = str(self._templar.template(variables["preflight_fleet"])).lower() in ("true", "yes", "1")
        debian = Path("/etc/debian_version").exists()
        tags = {*variables["ansible_run_tags"], *variables["ansible_skip_tags"]} if self._ours() else set()
        result["problems"] = check_arguments(sorted(tags), variables.get("ansible_limit") or "", inventory.groups)
        run = self._controller(variables, inventory, fleet)
        result["problems"] += check_name(inventory.nodes, inventory.defaults["instance"], inventory.remote()) + check_secrets(run)
        values: Mapping[str, Any] = next(iter(inventory.nodes.values()), {})
        result["problems"] += check_secret_files(Path(run.folder), values) if values else []
        result["problems"] += failures.lines()
        result["problems"] += problems(inventory.nodes, inventory.given, inventory.groups, inventory.specs, fleet, debian)
        result["looks"] = inventory.looks()
        for look in result["looks"].values():
            look["missing_secrets"] = lost_secrets(run, look["instance"])
        result["remote"] = bool(inventory.remote())
        result["architecture"] = os.uname().machine
        return result

    def _ours(self) -> bool:
        """Whether all playbooks of this run are those of this product; others may have tags of their own."""
        return {Path(each).resolve().parent for each in context.CLIARGS["args"]} <= {ROLES.parent, ROLES.parent / "playbooks"}

    def _controller(self, variables: Mapping[str, Any], inventory: Inventory, fleet: bool) -> Controller:
        """What this run is about, and which secrets it lacks."""
        tags, skipped = set(variables["ansible_run_tags"]), set(variables["ansible_skip_tags"])
        kinds = {
            kind
            for kind, each in KINDS.items()
            if {"all", "tagged", each.group} & tags
            and each.group not in skipped
            and set(inventory.groups.get(each.group, [])) & set(variables["ansible_play_hosts_all"])
        }
        # They are the same for all nodes
        values: Mapping[str, Any] = next(iter(inventory.nodes.values()), {})
        folder = Path(values.get("settings_secrets_dir") or "/")
        missing = [name for name in SECRETS if values and not values[f"{name}_password"] and not (folder / name).is_file()]
        renew = str(values.get("settings_secrets_new")).lower() in YES
        return Controller(kinds & {"vehicle"} if fleet else kinds, missing, str(folder), renew)
