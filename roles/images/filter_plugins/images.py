"""Which images machines need, which have to be built, and which hosts make an archive for all that need the same. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any


def images_wanted(
    hosts: Iterable[str],
    groups: Mapping[str, Iterable[str]],
    hostvars: Mapping[str, Mapping[str, Any]],
    kinds: Mapping[str, Mapping[str, Any]],
    ours: Mapping[str, str],
) -> list[str]:
    """The images of all containers of `hosts`: the one that setting <kind>_image names, or ours of the kind's image."""
    wanted = {}
    members = {kind: set(groups.get(each["group"], ())) for kind, each in kinds.items()}
    for host in hosts:
        values = hostvars[host]
        for kind, each in kinds.items():
            if host in members[kind]:
                wanted[str(values.get(f"{kind}_image") or ours[each["image"]])] = True
    return list(wanted)


def images_plan(hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]], ours: str) -> dict[str, list[str]]:
    """What all machines of the run lack together.

    ours: a pattern of the names of our images. Answers as `build` those of ours that any machine lacks, and as `savers` one host of
    those that lack the same: it makes the archive for all of them.
    """
    build: dict[str, bool] = {}
    savers: dict[tuple[str, ...], str] = {}
    for host in hosts:
        values = hostvars[host]
        missing = [name for name in values.get("__images_missing", []) if re.search(ours, name)]
        build |= dict.fromkeys(missing, True)
        # The controller's engine is the engine of every local node
        if missing and values.get("ansible_connection", "ssh") != "local":
            savers.setdefault(tuple(sorted(missing)), host)
    return {"build": list(build), "savers": list(savers.values())}


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Name to function."""
        return {"images_wanted": images_wanted, "images_plan": images_plan}
