r"""What Portier made or changed in the kernel, kept in the runtime directory.

A later start, or `portier cleanup`, tells by it what to adopt, remove and restore: only protocol number
and record together allow that.  It is a journal, one line an entry, each written by one `write` before
the kernel is touched and struck off after; reading it back ends at what a crash left whole.  A line
that is torn or not understood is passed over.

The file's name tells the network namespace, its first line that and the boot, for only there do the entries
mean anything.  So several namespaces can share a directory, each with its own.  A record of another boot
counts as empty, and goes before the first own entry is written.

Reading changes nothing on disk.  Nothing is synced: the directory is a tmpfs, and what it describes
does not survive a power failure either.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import threading
from pathlib import Path
from typing import Final, Self

from portier.core.model import HostRoute, KernelRoute, PolicyRule, ProxyEntry
from portier.errors import Refused

_NAME: Final = "record."
_VERSION: Final = "portier-record 1"
_SO_NETNS_COOKIE: Final = 71
_COMPACT_AT: Final = 1 << 20  # bytes, and four times what the compacted one had
_FULL: Final = 1 << 62  # a size that calls for compaction


class Record:
    """The journal of one runtime directory.  Safe to use from several threads.

    ``note_`` methods raise OSError when the directory does not take the entry; then nothing may be done to
    the kernel either.  `Refused` where the record may not be read.

    ``looking`` is for who only looks, and does nothing by what the record says: root may read that of the
    service's user then, which it does not act on.
    """

    def __init__(self, runtime_dir: Path, *, looking: bool = False) -> None:
        namespace = namespace_id()
        self._boot = f"{_VERSION} {boot_id(runtime_dir)}"
        self._place = f"{self._boot} {namespace}"
        self._path = runtime_dir / f"{_NAME}{namespace}"
        self._lock = threading.Lock()
        #: To be held while a host route is noted, added or removed, and struck off: who adds a route at the
        #: same time as another must find it on record once it is there, and what is struck off not there.
        self.changing_routes = threading.RLock()
        self._descriptor = -1
        self._size = 0
        self._compacted = 0
        self._routes: set[HostRoute] = set()
        self._table_routes: set[KernelRoute] = set()
        self._rules: set[PolicyRule] = set()
        self._proxies: set[ProxyEntry] = set()
        self._sysctls: dict[str, tuple[str, str]] = {}
        self._owners: dict[str, int] = {}
        self._load(anybodys=looking)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, and remove it when nothing is on record; once more does nothing."""
        with self._lock:
            if self._descriptor < 0:
                return
            os.close(self._descriptor)
            self._descriptor = -1
            whole = (self._routes, self._table_routes, self._rules, self._proxies, self._sysctls)
            if not any(whole):
                self._path.unlink(missing_ok=True)

    # -- host routes

    def note_route(self, route: HostRoute) -> None:
        """Record a route that is about to be added."""
        with self._lock:
            if route not in self._routes:
                self._append(_route_line("+", route))
                self._routes.add(route)

    def forget_route(self, route: HostRoute) -> None:
        """Strike off a route that is gone; one that is not on record does no harm."""
        with self._lock:
            if route in self._routes:
                self._strike(_route_line("-", route))
                self._routes.discard(route)

    def has_route(self, route: HostRoute) -> bool:
        """Whether a route is on record."""
        return route in self._routes

    def routes(self) -> frozenset[HostRoute]:
        """The routes on record."""
        with self._lock:
            return frozenset(self._routes)

    # -- the other routes of a group's own table

    def note_table_route(self, route: KernelRoute) -> None:
        """Record a route that is about to be added."""
        with self._lock:
            if route not in self._table_routes:
                self._append(_table_route_line("+", route))
                self._table_routes.add(route)

    def forget_table_route(self, route: KernelRoute) -> None:
        """Strike off a route that is gone; one that is not on record does no harm."""
        with self._lock:
            if route in self._table_routes:
                self._strike(_table_route_line("-", route))
                self._table_routes.discard(route)

    def has_table_route(self, route: KernelRoute) -> bool:
        """Whether a route is on record."""
        return route in self._table_routes

    def table_routes(self) -> frozenset[KernelRoute]:
        """The routes on record."""
        with self._lock:
            return frozenset(self._table_routes)

    # -- policy rules

    def note_rule(self, rule: PolicyRule) -> None:
        """Record a rule that is about to be added."""
        with self._lock:
            if rule not in self._rules:
                self._append(_rule_line("+", rule))
                self._rules.add(rule)

    def forget_rule(self, rule: PolicyRule) -> None:
        """Strike off a rule that is gone; one that is not on record does no harm."""
        with self._lock:
            if rule in self._rules:
                self._strike(_rule_line("-", rule))
                self._rules.discard(rule)

    def has_rule(self, rule: PolicyRule) -> bool:
        """Whether a rule is on record."""
        return rule in self._rules

    def rules(self) -> frozenset[PolicyRule]:
        """The rules on record."""
        with self._lock:
            return frozenset(self._rules)

    # -- proxy entries

    def note_proxy(self, entry: ProxyEntry) -> None:
        """Record a proxy entry that is about to be added."""
        with self._lock:
            if entry not in self._proxies:
                self._append(_proxy_line("+", entry))
                self._proxies.add(entry)

    def forget_proxy(self, entry: ProxyEntry) -> None:
        """Strike off a proxy entry that is gone; one that is not on record does no harm."""
        with self._lock:
            if entry in self._proxies:
                self._strike(_proxy_line("-", entry))
                self._proxies.discard(entry)

    def has_proxy(self, entry: ProxyEntry) -> bool:
        """Whether a proxy entry is on record."""
        return entry in self._proxies

    def proxies(self) -> frozenset[ProxyEntry]:
        """The proxy entries on record."""
        with self._lock:
            return frozenset(self._proxies)

    # -- sysctls

    def note_sysctl(self, path: str, old: str, new: str, ifindex: int = 0) -> None:
        """Record the value found and the value about to be set, in place of what was on record; and the
        interface whose sysctl it is, which may have another name by the time it is restored."""
        with self._lock:
            if self._sysctls.get(path) != (old, new) or self._owners.get(path) != ifindex:
                self._append(_line("+sysctl", path, old, new, str(ifindex)))
                self._sysctls[path] = (old, new)
                self._owners[path] = ifindex

    def forget_sysctl(self, path: str) -> None:
        """Strike off a sysctl that needs no restoring."""
        with self._lock:
            if path in self._sysctls:
                self._strike(_line("-sysctl", path))
                del self._sysctls[path], self._owners[path]

    def sysctls(self) -> dict[str, tuple[str, str]]:
        """Path -> value found, value set."""
        with self._lock:
            return dict(self._sysctls)

    def owners(self) -> dict[str, int]:
        """Path -> index of the interface whose sysctl it is, 0 where it is none's."""
        with self._lock:
            return dict(self._owners)

    # -- the file

    def _load(self, *, anybodys: bool) -> None:
        try:
            text = read_own(self._path, anybodys=anybodys).decode(errors="surrogateescape")
        except FileNotFoundError:
            return
        except PermissionError as error:
            raise Refused(f"{self._path}: not permitted", 77) from error
        except OSError as error:
            what = "what the kernel still has of Portier is unknown"
            raise Refused(f"{self._path}: {error.strerror or error}: {what}", 77) from error
        place, newline, rest = text.partition("\n")
        if place != self._place or not newline:
            return
        whole, _, _torn = rest.rpartition("\n")
        for line in whole.split("\n"):
            with contextlib.suppress(ValueError, IndexError, TypeError):
                self._replay(line)

    def _replay(self, line: str) -> None:
        kind, *fields = [_unescape(field) for field in line.split("\t")]
        match kind:
            case "+route" | "-route":
                address, *numbers = fields
                route = HostRoute(bytes.fromhex(address), *[int(number) for number in numbers])
                (self._routes.add if kind[0] == "+" else self._routes.discard)(route)
            case "+table-route" | "-table-route":
                destination, length, ifindex, gateway, *numbers = fields
                via = bytes.fromhex(gateway) if gateway else None
                table_route = KernelRoute(
                    bytes.fromhex(destination), int(length), int(ifindex), via, *map(int, numbers)
                )
                (self._table_routes.add if kind[0] == "+" else self._table_routes.discard)(table_route)
            case "+rule" | "-rule":
                # Earlier versions knew no tables, and their lines end at the protocol.
                priority, iif, source, destination, protocol, *later = fields
                table, version, suppress, unreachable = later or ("0", "6", "-1", "0")
                rule = PolicyRule(
                    priority=int(priority),
                    iif=iif,
                    source=source,
                    destination=destination,
                    protocol=int(protocol),
                    table=int(table),
                    version=int(version),
                    suppress=int(suppress),
                    unreachable=unreachable == "1",
                )
                (self._rules.add if kind[0] == "+" else self._rules.discard)(rule)
            case "+proxy" | "-proxy":
                address, *numbers = fields
                entry = ProxyEntry(bytes.fromhex(address), *[int(number) for number in numbers])
                (self._proxies.add if kind[0] == "+" else self._proxies.discard)(entry)
            case "+sysctl":
                path, old, new, ifindex = fields
                self._owners[path] = int(ifindex)
                self._sysctls[path] = (old, new)
            case "-sysctl":
                self._sysctls.pop(fields[0], None)
                self._owners.pop(fields[0], None)

    def _append(self, line: str) -> None:
        data = line.encode(errors="surrogateescape")
        try:
            if self._descriptor < 0 or self._size > max(_COMPACT_AT, 4 * self._compacted):
                self._compact()
            whole = os.write(self._descriptor, data) == len(data)
        except OSError as error:  # a step fails by it that has nothing to do with files: name this one
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        if not whole:
            self._size = _FULL  # the next entry must not be joined to the torn one
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        self._size += len(data)

    def _strike(self, line: str) -> None:
        """Append, but go on without: what is struck off no longer exists, whatever the disk says."""
        try:
            self._append(line)
        except OSError:
            self._size = _FULL  # so that the file is written anew as soon as it can be

    def _compact(self) -> None:
        """Write what is on record anew, and put it in the place of the journal at once."""
        if self._descriptor < 0:
            self._remove_old()
        lines = [f"{self._place}\n"]
        lines += [_route_line("+", route) for route in self._routes]
        lines += [_table_route_line("+", route) for route in self._table_routes]
        lines += [_rule_line("+", rule) for rule in self._rules]
        lines += [_proxy_line("+", entry) for entry in self._proxies]
        lines += [
            _line("+sysctl", path, *values, str(self._owners[path])) for path, values in self._sysctls.items()
        ]
        data = "".join(lines).encode(errors="surrogateescape")
        new = self._path.with_name(f"new-{self._path.name}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(new, flags, 0o600)
        try:
            _write_all(descriptor, data)
            new.replace(self._path)
        except OSError:
            os.close(descriptor)
            raise
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = descriptor
        self._size = self._compacted = len(data)

    def _remove_old(self) -> None:
        """Remove what other boots left in the directory."""
        for path in self._path.parent.glob(f"{_NAME}*"):
            with contextlib.suppress(OSError):
                with path.open("rb") as file:
                    start = file.readline(200)
                if not start.startswith(f"{self._boot} ".encode()):
                    path.unlink()


def read_own(path: Path, most: int = -1, *, anybodys: bool = False) -> bytes:
    """What is in a file that Portier wrote, of at most `most` octets, -1 for any number; never waits.

    OSError where it is no file, or a larger one, or somebody else's, who could have anything done by it;
    `anybodys` where nothing is done.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        small = most < 0 or about.st_size <= most
        believed = anybodys or about.st_uid in {0, os.geteuid()}
        if not (stat.S_ISREG(about.st_mode) and small and believed):
            raise OSError(errno.EINVAL, "not a file that Portier wrote")
        return file.read(most)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _route_line(sign: str, route: HostRoute) -> str:
    # By hand, because a worker writes one with every host it learns.
    return (
        f"{sign}route\t{route.address.hex()}\t{route.ifindex}\t{route.table}\t{route.metric}"
        f"\t{route.protocol}\n"
    )


def _table_route_line(sign: str, route: KernelRoute) -> str:
    destination, length, ifindex, gateway, *numbers = route
    via = gateway.hex() if gateway else ""
    return _line(f"{sign}table-route", destination.hex(), str(length), str(ifindex), via, *map(str, numbers))


def _rule_line(sign: str, rule: PolicyRule) -> str:
    return _line(f"{sign}rule", *map(str, rule[:-1]), str(int(rule.unreachable)))


def _proxy_line(sign: str, entry: ProxyEntry) -> str:
    address, *numbers = entry
    return _line(f"{sign}proxy", address.hex(), *map(str, numbers))


def _line(*fields: str) -> str:
    escaped = (f.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n") for f in fields)
    return "\t".join(escaped) + "\n"


def _unescape(field: str) -> str:
    if "\\" not in field:
        return field
    # Sysctls of several numbers have tabs between them.
    parts = field.split("\\\\")
    return "\\".join(part.replace("\\t", "\t").replace("\\n", "\n") for part in parts)


def boot_id(directory: Path) -> str:
    """What tells this boot from others, for what is kept in a directory.

    Where that is in memory nothing has to: it ends with the boot.  And the kernel's word may differ between a
    container and a sandbox within it, whose /proc is another.
    """
    with contextlib.suppress(OSError, ValueError):
        device = directory.stat().st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            fields = line.split()
            if fields[2] == number and fields[fields.index("-") + 1] == "tmpfs":
                return "in-memory"
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown-boot"


def namespace_id() -> str:
    """The calling thread's network namespace: by its cookie, which is never given twice in a boot, or by
    its inode, where the kernel (before 5.14) has no cookies."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        (cookie,) = struct.unpack("=Q", probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))
        return f"cookie:{cookie}"
    with contextlib.suppress(OSError):
        return f"inode:{Path('/proc/thread-self/ns/net').stat().st_ino}"
    return "unknown-namespace"
