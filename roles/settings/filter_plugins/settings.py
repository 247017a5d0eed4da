"""Filters that derive values from the inventory alone, so that no fact of another host is ever needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleError

Topology = Mapping[str, Any]


def address(host: str, hostvars: Mapping[str, Any], topology: Topology | None = None) -> str:
    """The node's address: `node_address` if the inventory gives it, else `ansible_host`, else the inventory name."""
    known = (topology or {}).get("addresses", {})
    if host in known:
        return str(known[host])
    values = hostvars[host]
    return str(values.get("node_address") or values.get("ansible_host") or host)


def addresses(hosts: Iterable[str], hostvars: Mapping[str, Any], port: int | str, topology: Topology | None = None) -> list[str]:
    """`address:port` of every host, in the inventory's order."""
    return [f"{address(host, hostvars, topology)}:{port}" for host in hosts]


def topology(hosts: Iterable[str], hostvars: Mapping[str, Any]) -> dict[str, Any]:
    """What hosts need to know of each other, in one pass: the address and the machine of each, and the hosts of each machine.

    Reading another host's variables takes milliseconds. If each of n hosts did that for all others, a run would take n times n of
    them. What cannot be computed is left out: preflight names it.
    """
    found: dict[str, Any] = {"addresses": {}, "machine": {}, "machines": {}}
    for host in hosts:
        machine = host
        try:
            found["addresses"][host] = address(host, hostvars)
            machine = str(hostvars[host].get("machine") or host)
        except AnsibleError:
            found["addresses"].pop(host, None)
        found["machine"][host] = machine
        found["machines"].setdefault(machine, []).append(host)
    return found


def machine_hosts(host: str, topology: Topology) -> list[str]:
    """All hosts of the machine of `host`, in the inventory's order."""
    return list(topology["machines"][topology["machine"][host]])


def first_of_machine(host: str, hosts: Iterable[str], topology: Topology) -> bool:
    """Tell whether `host` is the first of `hosts` on its machine: what is done once a machine is done by that one."""
    among = set(hosts)
    return host == next(other for other in machine_hosts(host, topology) if other in among)


def properties(values: Mapping[str, Any]) -> str:
    """A mapping as the lines of a Java properties file, sorted; booleans in lower case; empty values are left out."""

    def text(value: Any) -> str:
        return str(value).lower() if isinstance(value, bool) else str(value)

    return "".join(f"{key}={text(value)}\n" for key, value in sorted(values.items()) if value not in ("", None))


def volume_mounts(service: Mapping[str, Any], container: str) -> list[str]:
    """`volume:place` of every volume of a service. A folder of the host is not filled from the image."""
    paths = volume_paths(service, container)
    names = {f"{container}-{name}": place for name, place in (service.get("volumes") or {}).items()}
    return [f"{name}:{place}{':nocopy' if name in paths else ''}" for name, place in names.items()]


def volume_paths(service: Mapping[str, Any], container: str) -> dict[str, str]:
    """Volume to the folder of the host that it stands for; volumes that the engine keeps itself are left out."""
    return {f"{container}-{name}": str(path) for name, path in (service.get("paths") or {}).items() if path}


def secret_files(secrets: Mapping[str, Any], folder: str) -> dict[str, str]:
    """Name to content of a file for each secret argument of a client, below a folder of the container's own."""
    return {f"{folder}/{name}": str(value) for name, value in secrets.items()}


def secret_arguments(secrets: Mapping[str, Any], folder: str) -> dict[str, str]:
    """The arguments that name those files, as the services read them."""
    return {f"{name}_file": f"/etc/tachograph/{folder}/{name}" for name in secrets}


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Name to function."""
        return {
            "address": address,
            "addresses": addresses,
            "topology": topology,
            "machine_hosts": machine_hosts,
            "first_of_machine": first_of_machine,
            "properties": properties,
            "volume_mounts": volume_mounts,
            "volume_paths": volume_paths,
            "secret_files": secret_files,
            "secret_arguments": secret_arguments,
        }
