"""What a task costs a host when there are many: `python -m benchmark.hosts 10 50 150`.

Real plays of the product run on that many nodes, in check mode and by a local connection. The one thing that is not real is the
interpreter of modules, which answers at once: what is measured is Ansible's own work and our expressions. Every node is a machine
of its own, with `--together` all are on one. Times in one run are compared with each other, so a slow machine does not matter.
What is counted too is how often the variables of any host are read out of `hostvars`, which takes milliseconds each time: if that
grows with the hosts, a run takes the square of them.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from stub import interpreter

ROOT = Path(__file__).resolve().parents[2]
PLAYS: tuple[tuple[str, ...], ...] = (
    ("site.yml", "--tags", "images"),
    ("fleet.yml",),
    ("site.yml", "--tags", "nginx"),
    ("teardown.yml",),
)
LEAST = 0.002
"""Seconds a host below which a task is not worth a line."""


class Cost(NamedTuple):
    """What a task took at one size, each by the host."""

    seconds: float
    reads: float


def inventory(size: int, together: bool, python: Path) -> dict[str, Any]:
    """A fleet of `size` nodes: three that decide and one that stores, a tenth that serve, and vehicles on all."""
    hosts = [f"host{n:03}" for n in range(size)]
    few, tenth = hosts[:3], hosts[: max(3, size // 10)]
    return {
        "all": {
            "vars": {
                "instance": "tachograph-many", "ansible_connection": "local", "ansible_become": False,
                "ansible_python_interpreter": str(python), "container_supervisor": "docker", "num_vehicles": size,
                "kafka_topic_partitions": max(6, len(tenth)), **({"machine": "one"} if together else {}),
            },
            "hosts": {host: {"node_address": f"198.18.{n // 250}.{n % 250 + 1}"} for n, host in enumerate(hosts)},
            "children": {
                "zookeeper": {"hosts": {host: {"zookeeper_id": n} for n, host in enumerate(few, 1)}},
                "kafka": {"hosts": {host: {"kafka_broker_id": n} for n, host in enumerate(few, 1)}},
                "postgres": {"hosts": {hosts[0]: {}}},
                "nginx": {"hosts": dict.fromkeys(tenth)},
                "producers": {"hosts": dict.fromkeys(tenth)},
                "consumers": {"hosts": dict.fromkeys(tenth)},
                "vehicles": {"hosts": dict.fromkeys(hosts)},
            },
        }
    }  # fmt: skip


def costs(size: int, together: bool = False, plays: Sequence[Sequence[str]] = PLAYS) -> dict[str, Cost]:
    """Task to its cost with `size` nodes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "inventory.yml").write_text(yaml.safe_dump(inventory(size, together, interpreter(folder))))
        seconds: dict[str, float] = defaultdict(float)
        reads: dict[str, int] = defaultdict(int)
        for play in plays:
            done = subprocess.run(
                [sys.executable, __file__, "--count", folder / "counted", "-i", folder / "inventory.yml", "--check", *play],
                env=os.environ
                | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "LC_ALL": "C.UTF-8", "PYTHONPATH": str(ROOT / "tests")},
                cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
            )  # fmt: skip
            if done.returncode:
                raise RuntimeError(f"{' '.join(play)} with {size} hosts: {done.stdout[-3000:]}")
            task, since = "", 0.0
            for line in (folder / "counted").read_text().splitlines():
                if line == "read":
                    reads[task] += 1
                    continue
                now, _, next_task = line.partition(" ")
                if task:
                    seconds[task] += float(now) - since
                task = f"{play[0]}: {re.sub('host[0-9]+', 'HOST', next_task)}" if next_task else ""
                since = float(now)
        return {task: Cost(each / size, reads[task] / size) for task, each in seconds.items()}


def count(place: str, arguments: Sequence[str]) -> None:
    """Be ansible-playbook, and note at `place` when each task begins and each time that a host's variables are read."""
    # Only this process has Ansible's parts, and workers are forks of it.
    from ansible.cli.playbook import PlaybookCLI
    from ansible.executor.task_queue_manager import TaskQueueManager
    from ansible.vars.hostvars import HostVars

    handle = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    read, send = HostVars.raw_get, TaskQueueManager.send_callback

    def counted(self: HostVars, host_name: str) -> Any:
        os.write(handle, b"read\n")
        return read(self, host_name)

    def noted(self: TaskQueueManager, method_name: str, *rest: Any, **named: Any) -> None:
        if method_name in ("v2_playbook_on_task_start", "v2_playbook_on_stats"):
            task = rest[0].get_name() if method_name.endswith("task_start") else ""
            os.write(handle, f"{time.monotonic()} {task}\n".encode())
        send(self, method_name, *rest, **named)

    HostVars.raw_get, TaskQueueManager.send_callback = counted, noted
    PlaybookCLI.cli_executor(["ansible-playbook", *arguments])


def table(found: Mapping[int, Mapping[str, Cost]]) -> list[str]:
    """A line a task: milliseconds and reads a host at each size, and how much more the largest size takes than the smallest."""
    sizes = sorted(found)
    head = [" ".join(f"{size:>{width}}" for size in sizes) for width in (7, 6)]
    lines = [f"ms a host {head[0]}   ratio | reads {head[1]} | task"]
    for task, last in sorted(found[sizes[-1]].items(), key=lambda item: -item[1].seconds):
        each = [found[size].get(task, Cost(0.0, 0.0)) for size in sizes]
        if max(cost.seconds for cost in each) >= LEAST:
            ratio = last.seconds / each[0].seconds if each[0].seconds else float("inf")
            lines.append(
                " " * 10 + " ".join(f"{cost.seconds * 1000:7.1f}" for cost in each) + f" {ratio:7.2f} |       "
                + " ".join(f"{cost.reads:6.1f}" for cost in each) + f" | {task}"
            )  # fmt: skip
    whole = [sum(cost.seconds for cost in found[size].values()) for size in sizes]
    lines.append(" " * 10 + " ".join(f"{each * 1000:7.1f}" for each in whole) + f" {whole[-1] / whole[0]:7.2f} | all tasks")
    return lines


def main() -> None:
    """Run the command."""
    if sys.argv[1:2] == ["--count"]:
        count(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, default=[10, 50, 150], help="how many hosts")
    parser.add_argument("--together", action="store_true", help="all nodes on one machine")
    options = parser.parse_args()
    print("\n".join(table({size: costs(size, options.together) for size in options.sizes})))


if __name__ == "__main__":
    main()
