#!/usr/bin/python
# Copyright (c) 2026 The Tachograph authors. MIT License (see LICENSE).
"""Ansible module: one fault on one host, with the proof that it bit, and its end."""

from __future__ import annotations

DOCUMENTATION = """
module: verify_fault
short_description: Kill, pause or cut off a container, or heal what an interrupted run left
description:
  - O(action=kill) sends SIGKILL to the container's main process and waits until its supervisor has it running again.
  - O(action=pause) stops all processes of the container by SIGSTOP for O(seconds), and continues them.
  - O(action=cut) drops TCP packets to O(address) for O(seconds), by a rule that carries the instance as its comment; with
    O(outward) those from it too. SSH is left alone.
  - O(action=heal) continues what is stopped and removes the rules of the instance, whoever left them.
  - A pause and a cut end with the module, however it ends, short of being killed itself; O(action=heal) is for that.
options:
  instance:
    description: The instance whose rules and containers these are.
    type: str
    required: true
  container:
    description: The container; needed for all but O(action=heal).
    type: str
    default: ""
  action:
    description: What to do.
    type: str
    choices: [kill, pause, cut, heal]
    required: true
  seconds:
    description: How long a pause or a cut lasts, and how long a killed container may take to run again.
    type: int
    default: 60
  address:
    description: The node's address, for a cut and for the question who leads.
    type: str
    default: ""
  outward:
    description: Cut what the address sends as well; right where the address belongs to this host alone.
    type: bool
    default: false
  leader_port:
    description: Port of a ZooKeeper member; then only the member that leads is hit. 0 hits whoever is asked.
    type: int
    default: 0
author: The Tachograph authors
attributes:
  check_mode: {support: none}
  diff_mode: {support: none}
"""

EXAMPLES = """
- name: Kill a broker
  verify_fault:
    instance: tachograph
    container: tachograph-kafka-node2
    action: kill
"""

RETURN = """
hit:
  description: Whether this host was chosen.
  type: bool
  returned: always
begun:
  description: When the fault began, in seconds since 1970 (UTC).
  type: float
  returned: when hit
healed:
  description: When nothing kept the service from working any more; of a kill that is when it was killed.
  type: float
  returned: when hit
bit:
  description: Whether the fault was seen to do what it should.
  type: bool
  returned: when hit
proof:
  description: What was seen.
  type: str
  returned: when hit
"""

import contextlib
import os
import signal
import socket
import subprocess
import time

from ansible.module_utils.basic import AnsibleModule


def run(*command: str) -> str:
    """What a command prints; it must succeed."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def init_process(container: str) -> int:
    """The container's first process; 0 while it is stopped."""
    return int(run("docker", "inspect", "--format", "{{.State.Pid}}", container))


def children(process: int) -> list[int]:
    """Processes that a process started."""
    try:
        with open(f"/proc/{process}/task/{process}/children") as file:
            return [int(child) for child in file.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def main_process(container: str) -> int:
    """The service's own process, the child of the container's init; 0 while there is none."""
    return next(iter(children(init_process(container))), 0)


def tree(process: int) -> list[int]:
    """A process and all below it, the upper ones first."""
    found = [process]
    for each in found:
        found += children(each)
    return found


def state(process: int) -> str:
    """One letter: R, S, T (stopped) ...; empty when it is gone."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def leads(address: str, port: int) -> bool:
    """Whether the ZooKeeper member at this address leads."""
    with socket.create_connection((address, port), 5) as connection:
        connection.sendall(b"srvr")
        answer = b""
        while part := connection.recv(4096):
            answer += part
    return b"Mode: leader" in answer


def kill(container: str, seconds: int) -> dict[str, object]:
    """SIGKILL to the main process, and what became of it."""
    process = main_process(container)
    if not process:
        return {"bit": False, "proof": "it was not running"}
    begun = time.time()
    os.kill(process, signal.SIGKILL)
    deadline = begun + seconds
    while time.time() < deadline:
        found = main_process(container)
        if found not in (0, process):
            return {
                "begun": begun, "healed": begun, "bit": True,
                "proof": f"process {process}, {found} after {time.time() - begun:.1f} s",
            }  # fmt: skip
        time.sleep(0.1)
    return {"begun": begun, "healed": begun, "bit": True, "proof": f"process {process}, and none after {seconds} s"}


def pause(container: str, seconds: int) -> dict[str, object]:
    """SIGSTOP to all processes, and SIGCONT."""
    processes = tree(main_process(container))
    begun = time.time()
    try:
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        time.sleep(seconds)
        states = "".join(state(process) for process in processes)
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)
    return {
        "begun": begun,
        "healed": time.time(),
        "bit": set(states) == {"T"},
        "proof": f"state {states or 'gone'} for {seconds} s",
    }


def rules(instance: str, address: str, outward: bool) -> list[list[str]]:
    """The rules of a cut, without the command that adds them."""
    mark = ["-m", "comment", "--comment", f"tachograph-verify {instance}", "-j", "DROP"]
    found = [["INPUT", "-d", address, "-p", "tcp", "!", "--dport", "22", *mark]]
    if outward:
        found.append(["OUTPUT", "-s", address, "-p", "tcp", "!", "--sport", "22", *mark])
    return found


def remove_rules(instance: str) -> list[str]:
    """Remove every rule of the instance; returns how many packets each dropped, and from which chain."""
    removed = []
    for chain in ("INPUT", "OUTPUT"):
        lines = run("iptables", "-w", "10", "-nvxL", chain, "--line-numbers").splitlines()
        mine = [line.split() for line in lines if f"/* tachograph-verify {instance} */" in line]
        for fields in reversed(mine):
            run("iptables", "-w", "10", "-D", chain, fields[0])
            removed.append(f"{fields[1]} packets {'inbound' if chain == 'INPUT' else 'outbound'}")
    return removed


def cut(instance: str, address: str, seconds: int, outward: bool) -> dict[str, object]:
    """Drop packets for a while."""
    begun = time.time()
    dropped: list[str] = []
    try:
        for rule in rules(instance, address, outward):
            run("iptables", "-w", "10", "-I", *rule)
        time.sleep(seconds)
    finally:
        dropped = remove_rules(instance)
    bit = any(not each.startswith("0 ") for each in dropped)
    return {"begun": begun, "healed": time.time(), "bit": bit, "proof": f"dropped {', '.join(dropped)}"}


def heal(instance: str) -> list[str]:
    """Undo what an interrupted run left; returns what it was."""
    found = remove_rules(instance)
    for container in run("docker", "ps", "--filter", f"label=tachograph.instance={instance}", "--format", "{{.Names}}").split():
        for process in tree(init_process(container)):
            if state(process) == "T":
                os.kill(process, signal.SIGCONT)
                found.append(f"process {process} of {container} was stopped")
    return found


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "instance": {"type": "str", "required": True},
            "container": {"type": "str", "default": ""},
            "action": {"type": "str", "required": True, "choices": ["kill", "pause", "cut", "heal"]},
            "seconds": {"type": "int", "default": 60},
            "address": {"type": "str", "default": ""},
            "outward": {"type": "bool", "default": False},
            "leader_port": {"type": "int", "default": 0},
        },
    )
    given = module.params
    # A run that is interrupted ends its modules by SIGTERM or SIGHUP: the ends below must still run
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: module.fail_json(msg="interrupted"))
    try:
        if given["action"] == "heal":
            found = heal(given["instance"])
            module.exit_json(changed=bool(found), found=found)
        if given["leader_port"] and not leads(given["address"], given["leader_port"]):
            module.exit_json(changed=False, hit=False)
        if given["action"] == "kill":
            result = kill(given["container"], given["seconds"])
        elif given["action"] == "pause":
            result = pause(given["container"], given["seconds"])
        else:
            result = cut(given["instance"], given["address"], given["seconds"], given["outward"])
    except FileNotFoundError as error:
        module.fail_json(msg=f"{error.filename} is missing on this host: install it")
    except subprocess.CalledProcessError as error:
        module.fail_json(msg=f"{' '.join(error.cmd)}: {error.stderr.strip()}")
    except OSError as error:
        module.fail_json(msg=f"{given['action']} {given['container']}: {error}")
    module.exit_json(changed=True, hit=True, **{"begun": time.time(), "healed": time.time(), **result})


if __name__ == "__main__":
    main()
