#!/usr/bin/env python3
"""Builds images on this machine's engine, those that are missing and what they stand on.

Everything that the builders say goes to the log, each line behind its image's name. Lines that begin with `==>` are for
people who wait: every step, and from a long one a line now and then.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "settings" / "lookup_plugins"))
import image  # noqa: E402  (its folder is only now on the path)

# Told to a build that needs them; the classic builder passes them on without a trace in the image.
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
# The classic builder is what every engine since 20.10 has; the other is a plugin that Debian 12 lacks.
ENVIRONMENT = {**os.environ, "DOCKER_BUILDKIT": "0"}
# What the classic builder says before a step that takes time, and how it colours what went to standard error
STEP = re.compile(r"Step (\d+/\d+) : ((?:RUN|COPY) .*)")
COLOURS = re.compile("\x1b\\[[0-9;]*m")


class Failed(Exception):
    """A step that failed, said in a sentence."""


class Log:
    """Lines of several builds at once, each behind its image's name."""

    SILENCE = 5.0
    """Seconds after which a long step shows a line of its builder."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", buffering=1)
        self._lock = threading.Lock()
        self._shown: defaultdict[str, float] = defaultdict(time.monotonic)

    def step(self, name: str, text: str) -> None:
        """A line that says how far a build is."""
        self._shown[name] = time.monotonic()
        self._write(f"==> {name}: {text}")

    def line(self, name: str, text: str) -> None:
        """A line of a builder."""
        if text and time.monotonic() - self._shown[name] > self.SILENCE:
            self.step(name, f"... {text}")
        else:
            self._write(f"{name} | {text}")

    def _write(self, text: str) -> None:
        with self._lock:
            self._file.write(text + "\n")


class Builder:
    """Builds with one set of arguments."""

    def __init__(self, options: argparse.Namespace, log: Log) -> None:
        self._options = options
        self._log = log

    def build(self, name: str) -> None:
        """Build one image; its parent is there. The name is given last: an image that has it is whole."""
        began = time.monotonic()
        wanted, unfinished = reference(self._options, name), f"tachograph/{name}:unfinished"
        if image.parent(name) is not None:
            self._dockerfile(name, unfinished)
        elif self._options.base:
            self._run(name, ["docker", "pull", self._options.base])
            return
        else:
            self._rootfs(name, unfinished)
        packages = output(
            ["docker", "run", "--rm", "--network=none", unfinished, "dpkg-query", "-W", "-f", "${Package}=${Version} "]
        )
        labels = [f"--label=tachograph.image={name}", f"--label=tachograph.packages={packages.strip()}"]
        self._run(name, ["docker", "build", f"--tag={wanted}", *labels, "-"], f"FROM {unfinished}\n".encode())
        output(["docker", "rmi", unfinished])
        self._forget(name, wanted)
        self._log.step(name, f"{wanted} is ready, {size(wanted)} MB, {time.monotonic() - began:.0f} s")

    def _forget(self, name: str, wanted: str) -> None:
        """Remove earlier images of that name, made a day ago or more, which no container uses.

        Younger ones may be those of another deployment on this engine that is about to start its containers.
        """
        asked = ["docker", "images", f"--filter=label=tachograph.image={name}", f"--filter=before={wanted}"]
        for line in output([*asked, "--format={{.CreatedAt}}\t{{.Repository}}:{{.Tag}}"]).splitlines():
            created, earlier = line.split("\t")
            made = datetime.strptime(created[:25], "%Y-%m-%d %H:%M:%S %z")
            if datetime.now(UTC) - made > timedelta(days=1) and not earlier.endswith(":<none>"):
                # Without --force the engine refuses an image that a container uses, and that is meant
                subprocess.run(["docker", "rmi", earlier], capture_output=True)

    def _rootfs(self, name: str, tag: str) -> None:
        """The base: a root file system, imported."""
        self._log.step(name, "a minimal Debian, by mmdebstrap")
        with subprocess.Popen([image.FOLDER / name / "rootfs.sh"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as made:
            assert made.stdout
            assert made.stderr
            reader = threading.Thread(target=self._copy, args=(name, made.stderr))
            reader.start()
            imported = subprocess.run(["docker", "import", "-", tag], stdin=made.stdout, capture_output=True)
            made.stdout.close()
            reader.join()
        if made.returncode or imported.returncode:
            raise Failed(f"{name}: mmdebstrap or docker import failed. {imported.stderr.decode().strip()}")

    def _dockerfile(self, name: str, tag: str) -> None:
        """Every other image: its folder, and the certificates that this machine trusts, as the context."""
        arguments = {"PARENT": reference(self._options, str(image.parent(name)))}
        arguments |= {key: os.environ[key] for key in (*PROXIES, "PIP_INDEX_URL") if os.environ.get(key)}
        dockerfile = (image.FOLDER / name / "Dockerfile").read_text()
        given = [f"--build-arg={key}={value}" for key, value in arguments.items() if key in PROXIES or f"ARG {key}" in dockerfile]
        self._run(
            name,
            ["docker", "build", "--network=host", "--force-rm", f"--tag={tag}", *given, "-"],
            self._context(name),
        )

    def _context(self, name: str) -> bytes:
        """The build context as a tar archive. The certificates are not part of the tag, and stay in a build stage."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            trusted = Path(self._options.ca).read_bytes()
            for path, mode, content in [*image.files(name), ("ca-certificates.crt", 0o644, trusted)]:
                entry = tarfile.TarInfo(path)
                entry.mode, entry.size = mode, len(content)
                tar.addfile(entry, io.BytesIO(content))
        return archive.getvalue()

    def _run(self, name: str, command: list[str], given: bytes = b"") -> None:
        """Run a command, its lines into the log."""
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=ENVIRONMENT
        ) as process:
            assert process.stdin
            assert process.stdout
            stdin = process.stdin

            def feed() -> None:
                with stdin:
                    stdin.write(given)

            writer = threading.Thread(target=feed)
            writer.start()
            self._copy(name, process.stdout)
            writer.join()
        if process.returncode:
            raise Failed(f"{name}: '{command[0]} {command[1]}' failed.")

    def _copy(self, name: str, lines: IO[bytes]) -> None:
        for raw in lines:
            text = COLOURS.sub("", raw.decode(errors="replace")).rstrip()
            step = STEP.fullmatch(text)
            if step:
                self._log.step(name, f"{step[1]} {step[2]}")
            else:
                self._log.line(name, text)


def reference(options: argparse.Namespace, name: str) -> str:
    """The full name of an image."""
    return image.reference(name, options.refresh, options.base)


def missing_images(options: argparse.Namespace) -> list[str]:
    """Those asked for, and of what they stand on, that the engine lacks; parents first.

    What a present image stands on is not needed.
    """
    needed: set[str] = set()
    for name in options.images:
        for each in image.line_of(name):
            if present(reference(options, each)):
                break
            needed.add(each)
    return [name for name in image.names() if name in needed]


def output(command: list[str]) -> str:
    """What a command that has to succeed prints."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"'{' '.join(command)}' failed: {done.stderr.strip()}")
    return done.stdout


def present(name: str) -> bool:
    """Tell whether the engine has the image; a dry run may come before there is any docker."""
    client = shutil.which("docker")
    return client is not None and subprocess.run([client, "image", "inspect", name], capture_output=True).returncode == 0


def size(name: str) -> int:
    """An image's size in MB, its parents' layers included."""
    return int(output(["docker", "image", "inspect", "--format={{.Size}}", name])) // 1_000_000


def build(builder: Builder, missing: list[str]) -> None:
    """Build all, two at a time; a child waits for its parent."""
    futures: dict[str, Future[None]] = {}

    def one(name: str) -> None:
        above = image.parent(name)
        if above in futures:
            futures[above].result()
        builder.build(name)

    # Parents come first in the list, so a waiting child never holds the place that its parent needs.
    with ThreadPoolExecutor(max_workers=2) as pool:
        for name in missing:
            futures[name] = pool.submit(one, name)
    for future in futures.values():
        future.result()


def main() -> int:
    """Command line: names the images that are missing (--list) or builds them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="only print what would be built")
    parser.add_argument("--log", type=Path, required=True, help="file that takes all output of the builders")
    parser.add_argument("--ca", required=True, help="certificates that the network needs, as PEM")
    parser.add_argument("--base", default="", help="image to build on instead of a Debian made here")
    parser.add_argument("--refresh", default="", help="any text; a new one makes all images anew")
    parser.add_argument("images", nargs="+", choices=image.names(), metavar="IMAGE")
    options = parser.parse_args()

    if options.list:
        print("\n".join(missing_images(options)))
        return 0
    options.log.parent.mkdir(parents=True, exist_ok=True)
    # Another run may be building the same: then wait, and find them present
    with options.log.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = missing_images(options)
        if not missing:
            return 0
        try:
            build(Builder(options, Log(options.log)), missing)
        except Failed as failure:
            tail = options.log.read_text().splitlines()[-30:]
            print(failure, f"The last lines of {options.log}:", *tail, sep="\n", file=sys.stderr)
            return 1
        finally:
            # Untagged stages with compilers, caches and certificates; what another build still uses, the engine keeps
            subprocess.run(["docker", "image", "prune", "--force", "--filter=label=tachograph.stage"], capture_output=True)
        for name in missing:
            print(f"built {reference(options, name)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
