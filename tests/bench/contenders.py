"""The daemons that are compared, each with a configuration for the same job.

`portier` and `portier, no host routes` serve `always` and `resolve`; `ndppd` has `static` and `iface` for the
two; `npd6` has `always` only.  For ARP there are `parprouted`, which looks for every host and makes a route
to it, and the kernel's `proxy_arp`, which answers wherever there is a route.  All listen on `outer`, and the
hosts are behind `inner`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from tests.bench.load import FIRST4, INNER, OUTER, PREFIX, PREFIX4, Site
from tests.netns.lab import TICKS, Portier, wait_for

KERNEL: Final = "kernel"
ALWAYS: Final = "always"
RESOLVE: Final = "resolve"
# The defaults are made for real links: one asker that asks for 100,000 addresses is a scan to them.
LIMITS: Final = (
    "{neighbors: 1048576, per_port: 1048576, per_host: 1048576, pending: 65536, "
    "resolutions: 1000000, per_source: 1000000, route_changes: 1000000}"
)


@dataclass(frozen=True, slots=True)
class Running:
    """A daemon that runs; ``pid`` is 0 where it is the kernel, which has no CPU time of its own."""

    pid: int
    stop: Callable[[], None]
    portier: Portier | None = None

    def cpu(self) -> float:
        """CPU seconds so far, user and system, of all its threads; in steps of a hundredth."""
        if not self.pid:
            return 0.0
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def cpu_exact(self) -> float:
        """The same to the nanosecond, of the threads that live."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def peak_mb(self) -> float:
        """The most memory it ever had, in MB of 1,000,000 octets (VmHWM)."""
        return self._status("VmHWM") * 1024 / 1e6

    def descriptors(self) -> int:
        """Open descriptors."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208 - the names are all that is wanted

    def threads(self) -> int:
        """Threads."""
        return self._status("Threads")

    def _status(self, field: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1])
        raise AssertionError(f"/proc/{self.pid}/status has no {field}")


def portier_config(answer: str, *, routes: bool = True, prefix: str = PREFIX) -> str:
    """One group, one prefix, limits that never bite."""
    return f"""version: 1
groups:
  bench:
    upstream: {OUTER}
    downstream: [{INNER}]
    prefixes: [{{allow: "{prefix}", answer: {answer}}}]
    routes: {str(routes).lower()}
    limits: {LIMITS}
"""


def start_portier(site: Site, answer: str, *, routes: bool = True) -> Running:
    """Portier, ready to answer."""
    name = f"{site.proxy.name}-{answer}-{len(site.lab.portiers)}"
    prefix = PREFIX4 if site.version == 4 else PREFIX
    config = portier_config(answer, routes=routes, prefix=prefix)
    daemon = site.lab.portier(config, on=site.proxy, name=name)
    daemon.wait_ports(OUTER, INNER)
    return Running(daemon.pid, lambda: check_stop(daemon), daemon)


def check_stop(daemon: Portier) -> None:
    """Stop Portier; a bad end is an error."""
    code = daemon.stop()
    if code != 0 or "Traceback" in daemon.log.read_text():
        raise AssertionError(f"portier ended with exit code {code}:\n{daemon.tail()}")


def _start_peer(site: Site, arguments: list[str]) -> Running:
    log = site.lab.directory / f"{site.proxy.name}-{arguments[0]}.log"
    with log.open("w") as output:
        process = site.proxy.popen(arguments, stdout=output, stderr=subprocess.STDOUT)

    def listening() -> bool:
        if process.poll() is not None:
            raise AssertionError(f"{arguments[0]} ended by itself:\n{log.read_text()}")
        return len(site.proxy.run(["cat", "/proc/net/packet"]).stdout.splitlines()) > 1

    def stop() -> None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)

    wait_for(listening, 5, f"{arguments[0]} listens")
    return Running(process.pid, stop)


def start_ndppd(site: Site, answer: str) -> Running:
    """Debian's ndppd; its options at their defaults."""
    method = "static" if answer == ALWAYS else f"iface {INNER}"
    file = site.lab.directory / f"{site.proxy.name}-ndppd.conf"
    file.write_text(f"proxy {OUTER} {{\n  rule {PREFIX} {{\n    {method}\n  }}\n}}\n")
    return _start_peer(site, ["ndppd", "-c", str(file)])


def start_npd6(site: Site, answer: str) -> Running:
    """Debian's npd6, which never asks whether a host is there; its log goes to a file."""
    assert answer == ALWAYS
    file = site.lab.directory / f"{site.proxy.name}-npd6.conf"
    file.write_text(f"prefix={PREFIX.removesuffix(':/64')}\ninterface={OUTER}\n")
    return _start_peer(site, ["npd6", "-f", "-c", str(file), "-l", f"{file}.log"])


def start_parprouted(site: Site, answer: str) -> Running:
    """Debian's parprouted, which wants an address on each of its interfaces.  It runs in the foreground where
    it is told to print what it does (``-d``)."""
    assert answer == RESOLVE
    site.proxy.ip(f"addr add 10.8.0.1/32 dev {INNER}")
    return _start_peer(site, ["parprouted", "-d", OUTER, INNER])


def start_kernel(site: Site, answer: str, *, delay: bool) -> Running:
    """The kernel's `proxy_arp`, with its delay of up to 0.8 s or with none, and a route to the hosts."""
    assert answer == ALWAYS
    site.proxy.ip(f"route add {FIRST4}/20 dev {INNER}")
    site.proxy.sysctl(f"net/ipv4/conf/{OUTER}/proxy_arp", 1)
    if not delay:
        site.proxy.sysctl(f"net/ipv4/neigh/{OUTER}/proxy_delay", 0)
    return Running(0, lambda: None)


@dataclass(frozen=True, slots=True)
class Contender:
    """One line of the comparison.  ``package`` names a peer's Debian package, or is `KERNEL`; a round
    takes ``patience`` seconds at least, or it might end before an answer."""

    name: str
    answers: tuple[str, ...]
    start: Callable[[Site, str], Running]
    package: str = ""
    patience: float = 0.0

    @property
    def installed(self) -> bool:
        """Whether it can be started here."""
        return (
            self.package in {"", KERNEL} or shutil.which(self.package, path="/usr/sbin:/usr/bin") is not None
        )

    @property
    def own(self) -> bool:
        """Whether it is Portier, whose mistakes count."""
        return not self.package


PORTIER: Final = (
    Contender("portier", (ALWAYS, RESOLVE), start_portier),
    Contender(
        "portier, no host routes", (RESOLVE,), lambda site, answer: start_portier(site, answer, routes=False)
    ),
)
CONTENDERS: Final = (
    *PORTIER,
    Contender("ndppd", (ALWAYS, RESOLVE), start_ndppd, "ndppd"),
    Contender("npd6", (ALWAYS,), start_npd6, "npd6"),
)
ARP_CONTENDERS: Final = (
    *PORTIER,
    Contender("parprouted", (RESOLVE,), start_parprouted, "parprouted"),
    Contender("proxy_arp", (ALWAYS,), partial(start_kernel, delay=True), KERNEL, patience=1.0),
    Contender("proxy_arp, proxy_delay 0", (ALWAYS,), partial(start_kernel, delay=False), KERNEL),
)
