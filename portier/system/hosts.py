"""The hosts that were known, kept in the runtime directory for the next start.

A line a host; the file's name tells the network namespace, its first line that and the boot, for only there
do indexes mean anything.  It is a hint and nothing else: what is torn, foreign or not understood is passed
over, and whatever it says is asked of the host itself before it is used.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Final

from portier.core.engine import KnownHost
from portier.system.record import boot_id, namespace_id, read_own

_VERSION: Final = "portier-hosts 1"
_MOST: Final = 65536  # hosts; the first ones are kept
_MOST_OCTETS: Final = 256 * _MOST

log = logging.getLogger(__name__)


class HostFile:
    """The file of the calling thread's network namespace in a runtime directory."""

    def __init__(self, runtime_dir: Path) -> None:
        namespace = namespace_id()
        self._path = runtime_dir / f"hosts.{namespace}"
        self._place = f"{_VERSION} {boot_id(runtime_dir)} {namespace}"

    def load(self) -> list[KnownHost]:
        """The hosts saved last in this boot; none where there is no such file or it cannot be read."""
        try:
            data = read_own(self._path, _MOST_OCTETS)
        except FileNotFoundError:
            return []
        except OSError as error:
            log.warning("%s: %s: known hosts are asked for anew", self._path, error.strerror or error)
            return []
        place, _, rest = data.decode(errors="surrogateescape").partition("\n")
        if place != self._place:
            return []
        whole, _, _torn = rest.rpartition("\n")
        hosts = []
        for line in islice(whole.split("\n"), _MOST):
            with contextlib.suppress(ValueError):
                hosts.append(_host(line))
        return hosts

    def save(self, hosts: Iterable[KnownHost]) -> None:
        """Put these hosts in the place of those saved before.  Raises OSError."""
        lines = [self._place, *(_line(host) for host in islice(hosts, _MOST)), ""]
        if len(lines) == 2:
            self._path.unlink(missing_ok=True)
            return
        new = self._path.with_name(f"new-{self._path.name}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with os.fdopen(os.open(new, flags, 0o600), "wb") as file:
            file.write("\n".join(lines).encode(errors="surrogateescape"))
        new.replace(self._path)


def _line(host: KnownHost) -> str:
    numbers = f"{host.address.hex()}\t{host.mac.hex()}\t{host.ifindex}\t{host.port_mac.hex()}"
    return f"{numbers}\t{host.port}\t{host.group}"


def _host(line: str) -> KnownHost:
    """The host of a line; ValueError where it is none."""
    address, mac, ifindex, port_mac, port, group = line.split("\t")
    host = KnownHost(
        bytes.fromhex(address), bytes.fromhex(mac), int(ifindex), bytes.fromhex(port_mac), port, group
    )
    if len(host.address) not in {4, 16} or len(host.mac) != 6 or len(host.port_mac) != 6:
        raise ValueError(line)
    return host
