"""A Ray cluster of several nodes on this machine: each node is a raylet with a loopback address of its own."""

import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from opd_verl.pipeline.commands import free_port

RAY = Path(sys.executable).parent / "ray"
SECONDS = 90
STARTED = "Ray runtime started"
CPUS = 64
"""Logical cores: verl's actors ask for more than this machine has."""


class RayNodes:
    """A head with the Jobs API, and nodes that can be added and killed. Ends all of them when it is left."""

    def __init__(self, logs: Path, head_devices: int = 0, environment: dict[str, str] | None = None) -> None:
        self.logs, self.head_devices = logs, head_devices
        self.folder = tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True)
        path = f"{RAY.parent}{os.pathsep}{os.environ.get('PATH', '')}"  # as in a shell where the environment is active
        # A token that an earlier run left in ~/.ray would make `ray start` ask every node for it.
        self.environment = {**os.environ, "RAY_AUTH_MODE": "disabled", **(environment or {}), "PATH": path}
        # Ray notes its newest cluster in its temporary folder; without a folder of our own every `ray.init` on the
        # machine would join this cluster. The path is short since sockets lie there.
        self.environment["RAY_TMPDIR"] = self.folder.name
        self.port, self.dashboard = free_port(), free_port()
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def api(self) -> str:
        """The address of the Jobs API."""
        return f"http://127.0.0.1:{self.dashboard}"

    def __enter__(self) -> Self:
        options = ["--head", f"--port={self.port}", f"--dashboard-port={self.dashboard}"]
        self.start("127.0.0.1", self.head_devices, options)
        self.wait_for_api()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for address in list(self.nodes):
            self.kill(address)
        self.folder.cleanup()

    def start(self, address: str, devices: int, options: list[str]) -> None:
        """Runs `ray start` for a node with an address of its own; the process lives as long as the node."""
        self.logs.mkdir(parents=True, exist_ok=True)
        command = [str(RAY), "start", "--block", "--disable-usage-stats", f"--node-ip-address={address}", *options]
        # A node's agent must not meet another node's: the Jobs API would wait for it for ever.
        command += [
            "--dashboard-agent-listen-port=0",
            f"--num-cpus={CPUS}",
            f"--num-gpus={devices}",
            "--object-store-memory=300000000",
        ]
        with (self.logs / f"node_{address}.log").open("a") as log:
            self.nodes[address] = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment)

    def add(self, address: str, devices: int = 1) -> None:
        """Adds a node and waits until it has joined: two that start at once on a machine take each other's ports."""
        self.start(address, devices, [f"--address=127.0.0.1:{self.port}"])
        log, until = self.logs / f"node_{address}.log", time.monotonic() + SECONDS
        while STARTED not in log.read_text():
            assert self.nodes[address].poll() is None and time.monotonic() < until, log.read_text()[-2000:]
            time.sleep(0.5)

    def kill(self, address: str) -> None:
        """SIGKILL to the node's raylet and all that it started, as in a power cut."""
        node = self.nodes.pop(address)
        try:
            victims = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            victims = []
        for victim in victims:
            try:
                victim.kill()
            except psutil.NoSuchProcess:
                continue
        node.wait()

    def wait_for_api(self) -> None:
        """Waits until the Jobs API answers."""
        until = time.monotonic() + SECONDS
        while True:
            try:
                urllib.request.urlopen(f"{self.api}/api/version", timeout=5).read()
                return
            except OSError:
                assert time.monotonic() < until, f"no Ray head after {SECONDS} s: {self.logs}"
                time.sleep(0.5)

    def wait_for(self, count: int) -> None:
        """Waits until so many nodes, the head among them, are alive."""
        code = "import ray; ray.init(address='auto'); print('alive', sum(n['Alive'] for n in ray.nodes()))"
        until, environment = time.monotonic() + SECONDS, {**self.environment, "RAY_ADDRESS": f"127.0.0.1:{self.port}"}
        while time.monotonic() < until:
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
            if f"alive {count}" in done.stdout:
                return
            time.sleep(1)
        raise AssertionError(f"not {count} nodes after {SECONDS} s: {self.logs}")
