"""A network of namespaces inside this one process, for `portier demo`: links, addresses, pings.

Namespaces are file descriptors that this process enters for a moment to make a socket in them, so they
need no name, no `ip` command and no root, and whatever is in them ends with the process.  Without root
they live in a user namespace of their own.  Knows nothing of Portier.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from portier.cli import exits
from portier.errors import Refused

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_IFA_F_TENTATIVE = 0x40
_IFF_LOOPBACK, _IFF_RUNNING = 0x8, 0x40
_SCOPE_LINK = 253
_ECHO_REQUEST, _ECHO_REPLY = 128, 129
_NTF_PROXY = 0x08

_libc = ctypes.CDLL(None, use_errno=True)


class Node:
    """A namespace: a host with a network stack of its own."""

    def __init__(self, name: str, descriptor: int) -> None:
        self.name = name
        self.descriptor = descriptor


class Lab:
    """Nodes and the links between them.  Making one moves this process into a fresh network namespace for
    good, the node `here`; it must have no other thread.  Raises `Refused` (77) where the machine does
    not let us."""

    def __init__(self, here: str) -> None:
        _leave()
        self.here = Node(here, _current())
        self._open = {here: self.here}
        self._netlink: dict[str, Any] = {}

    def node(self, name: str) -> Node:
        """Make another host."""
        _check(_libc.unshare(_CLONE_NEWNET), "make a network namespace")
        try:
            made = Node(name, _current())
        finally:
            _check(_libc.setns(self.here.descriptor, _CLONE_NEWNET), "return to the first namespace")
        self._open[name] = made
        return made

    @contextlib.contextmanager
    def inside(self, node: Node) -> Iterator[None]:
        """Be in a node: sockets made meanwhile belong to it."""
        _check(_libc.setns(node.descriptor, _CLONE_NEWNET), f"enter {node.name}")
        try:
            yield
        finally:
            _check(_libc.setns(self.here.descriptor, _CLONE_NEWNET), "return to the first namespace")

    def netlink(self, node: Node) -> Any:
        """A node's IPRoute."""
        if node.name not in self._netlink:
            with self.inside(node):
                self._netlink[node.name] = IPRoute()
        return self._netlink[node.name]

    def wire(
        self, near: Node, near_name: str, far: Node, far_name: str, *, bridge: str = "", far_mac: str = ""
    ) -> None:
        """A cable between two nodes, both ends up; the near end in ``bridge`` where one is named."""
        netlink = self.netlink(near)
        peer: dict[str, object] = {"ifname": far_name, "net_ns_fd": far.descriptor}
        if far_mac:
            peer["address"] = far_mac
        netlink.link("add", ifname=near_name, kind="veth", peer=peer)
        index = self.index(near, near_name)
        if bridge:
            netlink.link("set", index=index, master=self.index(near, bridge))
        netlink.link("set", index=index, state="up")
        self.netlink(far).link("set", index=self.index(far, far_name), state="up")

    def bridge(self, node: Node, name: str) -> None:
        """A bridge, up, without ports yet."""
        self.netlink(node).link("add", ifname=name, kind="bridge")
        self.netlink(node).link("set", index=self.index(node, name), state="up")

    def address(self, node: Node, port: str, address: str) -> None:
        """Give a port an address with prefix length; the kernel makes sure first that it is unique."""
        host, _, length = address.partition("/")
        index = self.index(node, port)
        self.netlink(node).addr("add", index=index, address=host, prefixlen=int(length))

    def default_route(self, node: Node, gateway: str) -> None:
        """Send what is not on-link to ``gateway``."""
        self.netlink(node).route("add", dst="::/0", gateway=gateway)

    def forget(self, node: Node) -> None:
        """Empty a node's neighbor table, failures that it remembers among them."""
        netlink = self.netlink(node)
        for entry in netlink.get_neighbours(family=socket.AF_INET6):
            with contextlib.suppress(NetlinkError):  # it may have gone by itself, or be no real entry
                netlink.neigh(
                    "del",
                    family=socket.AF_INET6,
                    dst=entry.get_attr("NDA_DST"),
                    ifindex=entry["ifindex"],
                )

    def index(self, node: Node, port: str) -> int:
        """The interface index of a port."""
        found: list[int] = self.netlink(node).link_lookup(ifname=port)
        return found[0]

    def settle(self, seconds: float) -> None:
        """Wait until every cable carries and every address is known to be unique.  Both take the kernel a
        second or two, and longer on a machine that is busy with other namespaces."""
        deadline = time.monotonic() + seconds
        for node in self._open.values():
            while not self._settled(node):
                if time.monotonic() > deadline:
                    raise Refused(f"the links of {node.name} are not ready after {seconds:g} s: try again")
                time.sleep(0.05)

    def _settled(self, node: Node) -> bool:
        netlink = self.netlink(node)
        unaddressed = set()
        for link in netlink.get_links():
            if link["flags"] & _IFF_LOOPBACK:
                continue
            if not link["flags"] & _IFF_RUNNING:
                return False
            if link.get_attr("IFLA_MASTER") is None:
                unaddressed.add(link["index"])
        for address in netlink.get_addr(family=socket.AF_INET6):
            if int(address.get_attr("IFA_FLAGS") or 0) & _IFA_F_TENTATIVE:
                return False
            if address["scope"] == _SCOPE_LINK:
                unaddressed.discard(address["index"])
        return not unaddressed

    def ping(self, node: Node, target: str, seconds: float) -> float | None:
        """Ping ``target`` from a node, again every half a second, for at most ``seconds``.  The time from
        the first request to the first answer, None when there is none."""
        with self.inside(node):
            sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        identifier = os.urandom(2)
        wanted = ipaddress.IPv6Address(target)
        with sock:
            start = time.monotonic()
            sequence = 0
            while (elapsed := time.monotonic() - start) < seconds:
                if elapsed >= sequence * 0.5:
                    request = struct.pack("!BBH2sH", _ECHO_REQUEST, 0, 0, identifier, sequence)
                    with contextlib.suppress(OSError):  # no route yet counts as no answer
                        sock.sendto(request, (target, 0))
                    sequence += 1
                if select.select([sock], [], [], min(sequence * 0.5, seconds) - elapsed)[0]:
                    reply, sender = sock.recvfrom(2048)
                    if (
                        reply[0] == _ECHO_REPLY
                        and reply[4:6] == identifier
                        and ipaddress.IPv6Address(sender[0]) == wanted
                    ):
                        return time.monotonic() - start
        return None

    def traces(self) -> Traces:
        """What the kernel of the first node holds that a proxy might leave behind."""
        netlink = self.netlink(self.here)
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in netlink.get_links()}
        routes = set()
        for route in netlink.get_routes(family=socket.AF_INET6):
            device = names.get(route.get_attr("RTA_OIF"), "-")
            routes.add(
                f"{route.get_attr('RTA_DST') or '::'}/{route['dst_len']} dev {device} "
                f"via {route.get_attr('RTA_GATEWAY')} table {route.get_attr('RTA_TABLE')} "
                f"proto {route['proto']} metric {route.get_attr('RTA_PRIORITY')} type {route['type']}"
            )
        rules = {
            f"{rule.get_attr('FRA_PRIORITY') or 0}: iif {rule.get_attr('FRA_IIFNAME')} "
            f"from {rule.get_attr('FRA_SRC')} to {rule.get_attr('FRA_DST')} "
            f"action {rule['action']} table {rule.get_attr('FRA_TABLE')}"
            for rule in netlink.get_rules(family=socket.AF_INET6)
        }
        flags = {
            f"{link.get_attr('IFLA_IFNAME')} flags {link['flags']:#x} "
            f"promiscuity {link.get_attr('IFLA_PROMISCUITY')} allmulti {link.get_attr('IFLA_ALLMULTI')}"
            for link in netlink.get_links()
        }
        proxies = {
            f"{entry.get_attr('NDA_DST')} dev {names.get(entry['ifindex'])}"
            for entry in netlink.get_neighbours(family=socket.AF_INET6)
            if entry["flags"] & _NTF_PROXY
        }
        groups = {
            " ".join(line.split()[1:3])  # /proc/net/igmp6: device and group; the rest are counts
            for line in Path("/proc/self/net/igmp6").read_text(encoding="ascii").splitlines()
        }
        return Traces(routes, rules, _sysctls(), flags, proxies, groups)

    def close(self) -> None:
        """Let the nodes go."""
        for netlink in self._netlink.values():
            netlink.close()
        for node in self._open.values():
            os.close(node.descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Traces(NamedTuple):
    """Lines of text for what the kernel holds; two of them can be compared."""

    routes: set[str]
    rules: set[str]
    sysctls: set[str]
    flags: set[str]
    proxies: set[str]
    multicast: set[str]

    def differences(self, after: Traces) -> list[str]:
        """What is in the one and not in the other, as ``+`` and ``-`` lines."""
        found = []
        for kind, old, new in zip(self._fields, self, after, strict=True):
            found += [f"- {kind}: {line}" for line in sorted(old - new)]
            found += [f"+ {kind}: {line}" for line in sorted(new - old)]
        return found


def _sysctls() -> set[str]:
    """Every IPv6 sysctl of this namespace with its value."""
    found = set()
    for path in Path("/proc/sys/net/ipv6").rglob("*"):
        with contextlib.suppress(OSError):  # some are write-only, some have no value yet
            if path.is_file():
                found.add(f"{path.relative_to('/proc/sys')} = {path.read_text(encoding='ascii').strip()}")
    return found


def _current() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _check(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot {what}: {os.strerror(code)}")


def _leave() -> None:
    """Move into a fresh network namespace: as root, else as root of a user namespace."""
    if _libc.unshare(_CLONE_NEWNET) == 0:
        return
    uid, gid = os.geteuid(), os.getegid()
    try:
        _check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET), "make a user namespace")
        for name, line in (
            ("setgroups", "deny"),
            ("uid_map", f"0 {uid} 1"),
            ("gid_map", f"0 {gid} 1"),
        ):
            Path("/proc/self", name).write_text(line, encoding="ascii")
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EUSERS, errno.EINVAL}:
            raise
        raise Refused(
            f"this machine refuses user namespaces to you; {_remedy()}", exits.NOT_PERMITTED
        ) from error


def _remedy() -> str:
    """What lets an unprivileged user have namespaces, by what stands in the way on this machine."""
    for name, refusing, allowing in (
        ("kernel/unprivileged_userns_clone", "0", "1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
        ("user/max_user_namespaces", "0", "15000"),
        ("user/max_net_namespaces", "0", "15000"),
    ):
        with contextlib.suppress(OSError):
            if Path("/proc/sys", name).read_text(encoding="ascii").strip() == refusing:
                return f"run it as root, or allow them: sysctl -w {name.replace('/', '.')}={allowing}"
    return "run it as root, outside of any container that forbids namespaces"
