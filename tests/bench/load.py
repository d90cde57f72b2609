"""The load generators from Python, and the place where a proxy is measured.

`compiled()` compiles generator.c or traffic.c, once a process.  `Site` is two hosts of the test lab: `proxy`,
which has the interfaces `outer` (upstream) and `inner` (downstream), and `world`, in which the other ends of
both lie and whose kernel stays out of it: the generator is the only one to speak there.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from tests.netns.lab import Lab

PREFIX: Final = "2001:db8:7::/64"
PREFIX4: Final = "10.7.0.0/16"
PROXY4: Final = "10.7.0.1"
ASKER4: Final = "10.7.0.10"
FIRST4: Final = IPv4Address("10.7.16.0")
OUTER: Final = "outer"
INNER: Final = "inner"


@functools.cache
def compiled(name: str) -> Path:
    """A program of this directory, compiled, until the process ends."""
    directory = tempfile.mkdtemp(prefix="portier-bench-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    binary = Path(directory) / name
    subprocess.run(["cc", "-O2", "-o", binary, Path(__file__).with_name(f"{name}.c")], check=True)
    return binary


@dataclass(frozen=True, slots=True)
class Result:
    """What the generator counted.  Times with ``_us`` are microseconds, with ``_at`` seconds of
    CLOCK_MONOTONIC (0: never); ``extra`` are right answers that nobody waited for, ``wrong`` those with a
    defect, ``dropped`` frames that the generator itself was too slow for."""

    seconds: float
    sent: int
    answered: int
    lost: int
    wrong: int
    extra: int
    served: int
    router_flag: int
    override_flag: int
    p50_us: float
    p99_us: float
    max_us: float
    first_answer_at: float
    started_at: float
    dropped: int

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answered / self.seconds

    @classmethod
    def read(cls, output: str) -> Result:
        """The last line of the generator's output."""
        return cls(**json.loads(output.splitlines()[-1]))


def command(core: int, *args: str) -> list[str]:
    """The command line of a generator that runs on a core of its own."""
    return ["taskset", "-c", str(core), str(compiled("generator")), *args]


def asked4(skip: int = 0) -> list[str]:
    """What the generator is told to ask by ARP, beginning with the target of that number."""
    return ["--first", str(FIRST4 + skip), "--source", ASKER4]


class Site:
    """A proxy host between two cables, for one version of IP."""

    def __init__(self, lab: Lab, *, name: str = "", core: int = 0, version: int = 6) -> None:
        self.core = core
        self.version = version
        self.lab = lab
        self.proxy = lab.host(f"proxy{name}", forwarding=True)
        self.world = lab.host(f"world{name}")
        self.world.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
        for interface in (OUTER, INNER):
            self.proxy.ip(
                f"link add {interface} address {lab.new_mac()} type veth "
                f"peer name {interface} address {lab.new_mac()} netns {self.world.pid}"
            )
            self.world.ip(f"link set {interface} up")
            self.proxy.ip(f"link set {interface} up")
        for interface in (OUTER, INNER):
            self.proxy.link_local(interface)
        if version == 4:
            self.proxy.ip(f"addr add {PROXY4}/{PREFIX4.partition('/')[2]} dev {OUTER}")
            self.proxy.sysctl("net/ipv4/conf/all/forwarding", 1)
        else:
            self.proxy.add(INNER, PREFIX.replace("::", "::1"))
        self.mac = self.proxy.mac(OUTER)

    def args(self, *, targets: int, seconds: float, respond: bool, skip: int = 0) -> list[str]:
        """What every run of the generator here is told."""
        told = asked4(skip) if self.version == 4 else []
        told += ["--ask", OUTER, "--targets", str(targets), "--seconds", str(seconds), "--expect", self.mac]
        return [*told, "--respond", INNER] if respond else told

    def run(self, args: list[str], seconds: float) -> Result:
        """Run the generator in the world."""
        done = self.world.run(command(self.core, *args), check=False, timeout=seconds + 30)
        if not done.stdout.rstrip().endswith("}"):
            raise AssertionError(f"generator: exit {done.returncode}: {done.stderr}")
        if done.stderr:
            print(done.stderr, end="")
        return Result.read(done.stdout)

    def ask(
        self,
        *,
        targets: int,
        window: int,
        seconds: float,
        once: bool = False,
        timeout: float = 1.0,
        respond: bool = True,
        verify: bool = False,
        unicast: bool = False,
        skip: int = 0,
    ) -> Result:
        """Closed loop: `window` solicitations on the way at any time, for `seconds`, or until every target
        had its turn where `once`.  `verify` checks every checksum, at a cost to the generator.  So many of
        the IPv4 targets to `skip` are left out."""
        args = self.args(targets=targets, seconds=seconds, respond=respond, skip=skip)
        args += ["--window", str(window), "--timeout", str(timeout)]
        args += ["--once"] * once + ["--checksum"] * verify + ["--unicast", self.mac] * unicast
        return self.run(args, seconds + timeout)

    def pace(
        self, *, targets: int, rate: float, seconds: float, timeout: float = 1.0, respond: bool = True
    ) -> Result:
        """Open loop: `rate` solicitations a second whatever comes back, for `seconds`, and `timeout` for the
        last answers."""
        args = self.args(targets=targets, seconds=seconds, respond=respond)
        return self.run([*args, "--rate", str(rate), "--timeout", str(timeout)], seconds + timeout)
