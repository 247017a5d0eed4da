"""nginx as a container, and producers that do what a test asks of them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ADDRESSES = ["127.0.31.11", "127.0.31.12", "127.0.31.13"]
PRODUCER_PORT = 15001
TMP = "/tmp:mode=1777,size=64m"
"""As role container gives it; a test compares."""


def docker(*arguments: str) -> str:
    """What the docker client prints."""
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout


class Nginx:
    """A container that runs one rendered service as role container would."""

    def __init__(self, service: dict[str, Any], folder: Path) -> None:
        self.limit = int(service["memory"].removesuffix("m")) << 20
        self.name = f"tachograph-edge-{os.getpid()}-{folder.name}"
        self._service, self._folder = service, folder

    def __enter__(self) -> Nginx:
        for name, text in self._service["files"].items():
            path = self._folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for path in [self._folder, *self._folder.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        docker(
            *("run", "--detach", "--name", self.name, "--network", "host", "--init", "--read-only", "--cap-drop", "ALL"),
            *("--security-opt", "no-new-privileges:true", "--tmpfs", TMP, "--pids-limit", "512"),
            *("--user", f"{self._service['uid']}:{self._service['uid']}"),
            *("--memory", self._service["memory"], "--memory-swap", self._service["memory"]),
            *("--volume", f"{self._folder}:/etc/tachograph:ro", self._service["image"], *self._service["command"]),
        )
        deadline = time.monotonic() + 30
        while subprocess.run(["docker", "exec", self.name, "bash", "-c", self._service["health"]], capture_output=True).returncode:
            assert time.monotonic() < deadline, self.log()
        return self

    def __exit__(self, *_: object) -> None:
        docker("rm", "--force", self.name)

    def log(self) -> str:
        """All that it wrote."""
        done = subprocess.run(["docker", "logs", self.name], capture_output=True, text=True, check=True)
        return done.stdout + done.stderr

    def memory_peak(self) -> int:
        """The most bytes that the container has held, /tmp and the kernel's cache included."""
        return int(self._memory("memory.peak", "memory.max_usage_in_bytes"))

    def memory_kills(self) -> int:
        """How many of its processes the kernel has killed for memory."""
        lines = self._memory("memory.events", "memory.oom_control").splitlines()
        return int(dict(line.split() for line in lines)["oom_kill"])

    def _memory(self, new: str, old: str) -> str:
        """A file of the container's memory group, by its names in the new hierarchy and the old one."""
        init = docker("inspect", "--format", "{{.State.Pid}}", self.name).strip()
        groups = dict(line.split(":", 2)[1:] for line in Path(f"/proc/{init}/cgroup").read_text().splitlines())
        if "memory" in groups:
            return Path("/sys/fs/cgroup/memory" + groups["memory"], old).read_text()
        return Path("/sys/fs/cgroup" + groups[""], new).read_text()


class Producers:
    """Stand-ins that answer 200 to a whole upload, unless its header X-Do says otherwise."""

    def __init__(self) -> None:
        self.received: list[tuple[str, int]] = []
        """Address and body's size of each upload, as they came."""
        self.answered = threading.Event()
        """Whether a long answer was taken from a producer."""
        self._loop = asyncio.new_event_loop()
        self._servers: dict[str, asyncio.Server] = {}
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Producers:
        self._thread.start()
        for address in ADDRESSES:
            self.begin(address)
        return self

    def __exit__(self, *_: object) -> None:
        for address in list(self._servers):
            self.end(address)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def begin(self, address: str) -> None:
        """Serve at an address."""

        async def run() -> asyncio.Server:
            return await asyncio.start_server(
                lambda reader, writer: self._serve(address, reader, writer), address, PRODUCER_PORT, backlog=4096
            )

        self._servers[address] = asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    def end(self, address: str) -> None:
        """Serve there no more, and close what is open."""

        async def run(server: asyncio.Server) -> None:
            server.close()
            served = [task for task in asyncio.all_tasks() if task.get_name() == address]
            for task in served:
                task.cancel()
            await asyncio.gather(*served, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(run(self._servers.pop(address)), self._loop).result(10)

    async def _serve(self, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        task.set_name(address)
        try:
            while await self._answer(address, reader, writer):
                pass
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; false closes the connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        size = int(headers.get("content-length", 0))
        await reader.readexactly(size)
        self.received.append((address, size))
        match headers.get("x-do", "").split():
            case ["wait", seconds]:
                await asyncio.sleep(float(seconds))
            case ["answer", length]:
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n".encode() + b"x" * int(length))
                await writer.drain()
                self.answered.set()
                return False
            case ["close"]:
                return False
            case ["garbage"]:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: \0\r\n\r\n")
                return False
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 19\r\n\r\n{"acked_through":1}')
        await writer.drain()
        return True
