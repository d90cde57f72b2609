"""Facts for `portier doctor` that no snapshot of the kernel shows."""

from __future__ import annotations

import configparser
import contextlib
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_network
from pathlib import Path
from socket import AF_INET, AF_INET6
from typing import Any, Final

from portier.core.doctor.facts import Barrier, Daemon, Dispute, Networkd, Refusal, Told, Unknown, Work
from portier.errors import KernelError
from portier.system import rtnetlink as nl
from portier.system import sysctl
from portier.system.kernel import route_message
from portier.system.process import missing_rights

_KINDS: Final = {6: "blackhole", 7: "unreachable", 8: "prohibit"}  # RTN_*
_NETWORKD: Final = "systemd-network"  # the name of its process, which the kernel cuts at 15 characters
_NETWORKD_DIRS: Final = ("etc/systemd", "run/systemd", "usr/local/lib/systemd", "usr/lib/systemd")


def sysctls(paths: Iterable[str]) -> Mapping[str, str]:
    """The values of those sysctls that there are."""
    found = {}
    for path in paths:
        with contextlib.suppress(KernelError):
            value = sysctl.read(path)
            if value is not None:
                found[path] = value
    return found


def daemon(status: Mapping[str, Any]) -> Daemon:
    """A daemon's status, as far as checks go by it."""
    config = status["config"]
    return Daemon(
        pid=status["pid"],
        uptime=status["uptime"],
        file=config["file"],
        refused=tuple(config["error"] or ()),
        differs=config["differs"],
        work={group["name"]: _work(group) for group in status["groups"]},
    )


def _work(group: Mapping[str, Any]) -> Work:
    return Work(
        counters=group["counters"],
        asked={port: tuple(versions) for port, versions in group["asked"].items()},
        refused=tuple(
            Refusal(**{key: refused[key] for key in Refusal._fields}) for refused in group["refused"]
        ),
        contested=tuple(
            Dispute(**{key: contested[key] or "" for key in Dispute._fields})
            for contested in group["contested"]
        ),
        drops={port["name"]: port["drops"] for port in group["ports"]},
        restarts=group["worker"]["restarts"],
        error=group["worker"]["error"],
    )


def told(status: Mapping[str, Any]) -> tuple[Told, ...]:
    """What a daemon warns of."""
    return tuple(
        Told(
            notice["check"],
            notice["severity"] == "problem",
            notice["group"],
            notice["finding"],
            notice["remedy"],
        )
        for notice in status["notices"]
    )


def lacking(pid: int) -> tuple[str, ...] | Unknown:
    """The capabilities that a process needs and does not have."""
    try:
        return missing_rights(pid)
    except OSError as error:
        return Unknown(f"process {pid} cannot be looked at: {error.strerror}")


def barriers() -> tuple[Barrier, ...]:
    """The routes that end in nothing.  Raises `KernelError`."""
    with nl.Socket() as socket:
        return tuple(
            barrier
            for family in (AF_INET6, AF_INET)
            for kind in _KINDS
            for barrier in socket.dump(
                nl.RTM_GETROUTE,
                route_message(family, kind),
                lambda chunks: list(_barriers(chunks)),
            )
        )


def _barriers(chunks: Iterator[bytes]) -> Iterator[Barrier]:
    for chunk in chunks:
        for message in nl.messages(chunk):
            body = message[nl.LENGTH :]
            family, length, table, kind = body[0], body[1], body[4], body[7]
            if kind not in _KINDS:
                continue  # a kernel that does not filter
            found = nl.attributes(body, 12, len(body))
            if nl.RTA_TABLE in found:
                (table,) = nl.U32.unpack(found[nl.RTA_TABLE])
            destination = found.get(nl.RTA_DST, bytes(16 if family == AF_INET6 else 4))
            yield Barrier(ip_network((destination, length), strict=False), _KINDS[kind], table)


# -- systemd-networkd ----------------------------------------------------------------------------------


def networkd(links: Iterable[int], root: Path = Path("/")) -> Networkd | Unknown | None:
    """How systemd-networkd deals with what others make, None where it does not run.  ``links`` are the
    interfaces (by index) that matter; ``root`` is where its files are."""
    try:
        if not runs(_NETWORKD, root):
            return None
    except PermissionError:
        return Unknown("only root sees whether systemd-networkd runs in this network namespace")
    settings = _networkd_settings(root)
    return Networkd(
        routes=_is_on(settings, "ManageForeignRoutes"),
        rules=_is_on(settings, "ManageForeignRoutingPolicyRules"),
        unmanaged=frozenset(link for link in links if not _managed(link, root)),
    )


def runs(name: str, root: Path = Path("/")) -> bool:
    """Whether a process of that name (at most 15 characters) runs in this network namespace.  PermissionError
    where one runs of which that cannot be told."""
    proc = root / "proc"
    here = (proc / "self/ns/net").readlink()
    for comm in proc.glob("[0-9]*/comm"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            named = comm.read_text(errors="replace").strip() == name
            if named and (comm.parent / "ns/net").readlink() == here:
                return True
    return False


def _networkd_settings(root: Path) -> Mapping[str, str]:
    """Section [Network] of networkd.conf: the first main file there is, then all drop-ins by name, one in a
    directory named first hiding those of the same name (systemd.syntax, networkd.conf(5))."""
    main = next((path for each in _NETWORKD_DIRS if (path := root / each / "networkd.conf").is_file()), None)
    drop_ins: dict[str, Path] = {}
    for each in reversed(_NETWORKD_DIRS):
        drop_ins.update({path.name: path for path in (root / each / "networkd.conf.d").glob("*.conf")})
    found: dict[str, str] = {}
    for path in ([main] if main else []) + [drop_ins[name] for name in sorted(drop_ins)]:
        parser = configparser.ConfigParser(strict=False, interpolation=None, allow_no_value=True)
        parser.optionxform = str  # type: ignore[method-assign,assignment]
        with contextlib.suppress(OSError, configparser.Error, UnicodeError):
            parser.read_string(path.read_text())
            if parser.has_section("Network"):
                found.update({key: value or "" for key, value in parser.items("Network")})
    return found


def _is_on(settings: Mapping[str, str], key: str) -> bool:
    """A boolean as systemd writes it; on where nothing is said."""
    return settings.get(key, "").strip().lower() not in {"0", "no", "n", "false", "f", "off"}


def _managed(link: int, root: Path) -> bool:
    """Whether networkd configures a link, by its own word on it."""
    try:
        text = (root / f"run/systemd/netif/links/{link}").read_text(errors="replace")
    except OSError:
        return False
    return "ADMIN_STATE=unmanaged" not in text.splitlines()
