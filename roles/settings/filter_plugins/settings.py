"""Filters that derive values from the inventory alone, so that no fact of another host is ever needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def address(host: str, hostvars: Mapping[str, Any]) -> str:
    """The node's address: `node_address` if the inventory gives it, else `ansible_host`, else the inventory name."""
    values = hostvars[host]
    return str(values.get("node_address") or values.get("ansible_host") or host)


def addresses(hosts: Iterable[str], hostvars: Mapping[str, Any], port: int | str) -> list[str]:
    """`address:port` of every host, in the inventory's order."""
    return [f"{address(host, hostvars)}:{port}" for host in hosts]


def first_of_machine(host: str, hosts: Iterable[str], hostvars: Mapping[str, Any]) -> bool:
    """Tell whether `host` is the first of `hosts` on its machine: what is done once a machine is done by that one."""

    def machine(name: str) -> str:
        return str(hostvars[name].get("machine") or name)

    return host == next(other for other in hosts if machine(other) == machine(host))


def properties(values: Mapping[str, Any]) -> str:
    """A mapping as the lines of a Java properties file, sorted; booleans in lower case; empty values are left out."""

    def text(value: Any) -> str:
        return str(value).lower() if isinstance(value, bool) else str(value)

    return "".join(f"{key}={text(value)}\n" for key, value in sorted(values.items()) if value not in ("", None))


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Name to function."""
        return {"address": address, "addresses": addresses, "first_of_machine": first_of_machine, "properties": properties}
