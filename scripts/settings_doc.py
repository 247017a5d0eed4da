#!/usr/bin/env python3
"""Writes docs/settings.md from the argument specs of all roles; `make docs` runs it, a test fails when the page is stale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/settings.md"
# In the order of the world; roles that come to be later follow by name.
ORDER = ["settings", "zookeeper", "kafka", "postgres", "nginx", "producer", "consumer", "vehicle"]

HEAD = """\
# Settings

<!-- Made by `make docs` from the argument specs of the roles and from scripts/predecessor.yml. Change those. -->

Every value has a default, and nothing needs to be set. To set one for all nodes, write it into `group_vars/all.yml`; for the
nodes of one group into `group_vars/<group>.yml` (the groups are `zookeeper`, `kafka`, `postgres`, `nginx`, `producers`,
`consumers`, `vehicles`); for one node beside its name in the inventory; for one run behind `-e`. The later of these wins. An
inventory outside `inventory/` does not see `group_vars/` here and has its own beside it.

`site.yml` and `fleet.yml` check all values before they touch anything, and name each that is wrong. A variable with one of our
prefixes that nothing reads is an error too, because it is a misspelt one. `ansible-playbook playbooks/settings.yml` prints what
is in force.
"""


def load(path: Path) -> Any:
    """A YAML file's content."""
    return yaml.safe_load(path.read_text())


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
    ordered = [*ORDER, *sorted(roles - set(ORDER))]
    return "\n".join([HEAD, *(section(role) for role in ordered), predecessor()])


if __name__ == "__main__":
    PAGE.write_text(page())
