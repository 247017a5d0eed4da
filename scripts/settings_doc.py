#!/usr/bin/env python3
"""Writes docs/settings.md from the argument specs of all roles; `make docs` runs it, a test fails when the page is stale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/settings.md"


def load(path: Path) -> Any:
    """A YAML file's content."""
    return yaml.safe_load(path.read_text())


KINDS = load(ROOT / "roles/settings/vars/main.yml")["settings_kinds"]
GROUPS = ", ".join(f"`{each['group']}`" for each in KINDS.values())

HEAD = f"""\
# Settings

<!-- Made by `make docs` from the argument specs of the roles and from scripts/predecessor.yml. Change those. -->

Every setting has a default, and nothing needs to be set. Set a value

1. for all nodes in `group_vars/all.yml`,
2. for the nodes of one group in `group_vars/<group>.yml` (the groups are {GROUPS}),
3. for one node next to its name in the inventory,
4. for one run with `-e`.

A later one of these overrides an earlier one. An inventory outside of `inventory/` does not see `group_vars/` here and has its own
next to it.

`site.yml` and `fleet.yml` check all values before they touch anything, and name each wrong one. A variable with a prefix of this
product that nothing reads is an error too, because it is probably misspelt. `ansible-playbook playbooks/settings.yml` prints the
values in force.
"""


def shown(value: Any) -> str:
    """A value as YAML would have it; a bar would end the table's cell."""
    text = (
        value if isinstance(value, str) and value else yaml.safe_dump(value, default_flow_style=True, width=10_000).split("\n")[0]
    )
    return f"`{text.replace('|', '&#124;')}`" if "|" not in text else f"<code>{text.replace('|', '&#124;')}</code>"


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(["| " + " | ".join(row) + " |" for row in [heads, ["---"] * len(heads), *rows]]) + "\n"


def section(role: str) -> str:
    """One role's options."""
    parts = []
    for entry in load(ROOT / f"roles/{role}/meta/argument_specs.yml")["argument_specs"].values():
        rows = [
            [f"`{name}`", kind(spec), shown(spec["default"]), spec["description"].strip()]
            for name, spec in entry["options"].items()
        ]
        words = " ".join([entry["short_description"] + ".", entry.get("description", "")]).strip()
        parts += [f"## {role}\n", f"{words}\n", table(["variable", "type", "default", "meaning"], rows)]
    return "\n".join(parts)


def kind(spec: dict[str, Any]) -> str:
    """The type in words, or the choices."""
    return " or ".join(f"`{choice}`" for choice in spec["choices"]) if "choices" in spec else spec["type"]


def predecessor() -> str:
    """Where the predecessor's settings went."""
    rows = [
        [f"`{key}`", f"`{shown(default).strip('`')}`", ", ".join(f"`{name}`" for name in names) or "none", words]
        for key, (default, names, words) in load(ROOT / "scripts/predecessor.yml").items()
    ]
    return "\n".join(
        [
            "## The predecessor's settings\n",
            "Those of kafka-python-postgres-etl 0.0.5 and the environment of its vehicles, and where each of them went.\n",
            table(["there", "its default", "here", "what to know"], rows),
        ]
    )


def page() -> str:
    """The whole page."""
    roles = {path.parents[1].name for path in ROOT.glob("roles/*/meta/argument_specs.yml")}
    first = ["settings", *KINDS]
    ordered = [*first, *sorted(roles - set(first))]
    return "\n".join([HEAD, *(section(role) for role in ordered), predecessor()])


if __name__ == "__main__":
    PAGE.write_text(page())
