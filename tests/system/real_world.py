"""A network namespace of the test's own, with an administrator who knows the ip command."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

from portier.core.model import HostRoute, ProxyEntry
from portier.system.kernel import Kernel
from portier.system.monitor import Monitor
from portier.system.record import Record
from tests.cables import ip, own_namespace


class RealWorld:
    """The real kernel, in the calling thread's namespace."""

    def __init__(self, directory: Path, monitor: Monitor | None = None) -> None:
        self.record = Record(directory)
        self.kernel = Kernel(self.record, monitor)

    def close(self) -> None:
        """Close the handles."""
        self.kernel.close()
        self.record.close()

    def add_link(self, name: str) -> None:
        """A veth, and a peer that nobody looks at."""
        ip(f"link add name {name} type veth peer name {name}-peer")
        ip(f"link set {name}-peer up")
        ip(f"link set {name} up")

    def set_link(self, name: str, *, up: bool) -> None:
        """Set a link up or down."""
        ip(f"link set {name} {'up' if up else 'down'}")

    def rename_link(self, name: str, new: str) -> None:
        """Rename a link."""
        ip(f"link set {name} name {new}")

    def remove_link(self, name: str) -> None:
        """Delete a link."""
        ip(f"link delete {name}")

    def index(self, name: str) -> int:
        """The index of a link."""
        return socket.if_nametoindex(name)

    def add_address(self, name: str, text: str) -> None:
        """Add an address that needs no duplicate address detection."""
        ip(f"address add {text} dev {name}{' nodad' if ':' in text else ''}")

    def remove_address(self, name: str, text: str) -> None:
        """Take an address away."""
        ip(f"address delete {text} dev {name}")

    def add_host_route(self, route: HostRoute) -> None:
        """Make a route, beside what is there."""
        address, name = ip_address(route.address), socket.if_indextoname(route.ifindex)
        numbers = f"table {route.table} metric {route.metric} protocol {route.protocol}"
        ip(f"-{address.version} route append {address} dev {name} {numbers}")

    def add_proxy(self, entry: ProxyEntry) -> None:
        """Make a proxy entry."""
        name = socket.if_indextoname(entry.ifindex)
        ip(f"neigh add proxy {ip_address(entry.address)} dev {name} protocol {entry.protocol}")

    def add_route(self, network: str, name: str, *, via: str | None = None) -> None:
        """Make a static route."""
        metric = "" if ":" in network else "metric 1024"  # which IPv6 gives by itself
        ip(f"route add {network} {f'via {via}' if via else ''} dev {name} protocol static {metric}")


@contextlib.contextmanager
def real_world(directory: Path) -> Iterator[RealWorld]:
    """An empty world, in which addresses are not tentative for seconds."""
    with own_namespace(ipv6=True):
        ip("link set lo up")
        for name in ("all", "default"):
            Path(f"/proc/sys/net/ipv6/conf/{name}/accept_dad").write_text("0")
        world = RealWorld(directory)
        try:
            yield world
        finally:
            world.close()


@contextlib.contextmanager
def neighbor_host(peer: str) -> Iterator[list[str]]:
    """Move one end of a cable to a namespace of its own; gives the prefix of a command that runs there."""
    # No duplicate address detection there either: a tentative address keeps a host silent for seconds.
    script = "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad; echo ready; exec sleep 120"
    with subprocess.Popen(["unshare", "--net", "sh", "-c", script], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"ready\n"
            ip(f"link set {peer} netns {holder.pid}")
            enter = ["nsenter", "-t", str(holder.pid), "--net", "--"]
            for command in ("link set lo up", f"link set {peer} up"):
                subprocess.run([*enter, "ip", *command.split()], check=True, timeout=20)
            yield enter
        finally:
            holder.kill()
