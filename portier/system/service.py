"""Tells the service manager how things stand, as sd_notify(3) does: one datagram a message.

Where no service manager listens (no NOTIFY_SOCKET), everything here does nothing.  A message that cannot be
delivered is dropped: a daemon must not fail because its manager is deaf.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from typing import Final

STDERR: Final = 2  #: The descriptor, whatever sys.stderr is.


class Service:
    """The connection to the service manager that ``environ`` names.

    ``watchdog`` is how often, in seconds, `alive` must be called at most apart; None when nobody watches.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._socket: socket.socket | None = None
        if path:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
        self.watchdog: float | None = None
        # WATCHDOG_PID names the process that is watched, which may be another than this one.
        watched = environ.get("WATCHDOG_PID", "")
        usec = environ.get("WATCHDOG_USEC", "")
        if path and usec.isdigit() and int(usec) and watched in {"", str(os.getpid())}:
            self.watchdog = int(usec) / 1e6 / 2

    def ready(self, status: str) -> None:
        """Start, or reload, is complete."""
        self._send(f"READY=1\nSTATUS={_line(status)}")

    def reloading(self) -> None:
        """A reload begins; systemd wants the time, to tell its own reloads apart."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The clean stop begins."""
        self._send("STOPPING=1\nSTATUS=undoing what was done to the kernel")

    def status(self, status: str) -> None:
        """One line for people."""
        self._send(f"STATUS={_line(status)}")

    def alive(self) -> None:
        """Nothing hangs."""
        self._send("WATCHDOG=1")

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto(message.encode(errors="backslashreplace"), self._address)


def is_journal(descriptor: int, environ: Mapping[str, str]) -> bool:
    """Whether what is written to a descriptor goes to systemd's journal.  A ``JOURNAL_STREAM`` alone does not
    say so: programs inherit it whose output goes elsewhere (systemd.exec(5))."""
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        about = os.fstat(descriptor)
    except OSError:
        return False
    return (device, inode) == (str(about.st_dev), str(about.st_ino))


def _line(status: str) -> str:
    """A status as one line: what follows a newline would be an assignment of its own."""
    return " ".join(status.splitlines())
