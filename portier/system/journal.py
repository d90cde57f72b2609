"""Gives log lines to systemd's journal by its native protocol, so that what an event is about is a field.

`journalctl PORTIER_ADDRESS=2001:db8::5` then finds what happened to a host.  The protocol is one datagram a
line of the log (https://systemd.io/JOURNAL_NATIVE_PROTOCOL); a large one travels as a sealed file in memory.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import logging
import os
import socket
import struct
from pathlib import Path
from typing import Final

from portier.core.model import Event

SOCKET: Final = Path("/run/systemd/journal/socket")
IDENTIFIER: Final = "portier"
#: The priorities of syslog(3), which sd-daemon(3) has too.
PRIORITIES: Final = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}
_PATIENCE: Final = 1.0  # seconds; a thread that logs may be one that answers hosts
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class JournalHandler(logging.Handler):
    """Sends each record as an entry of its own, however many lines it has.

    An entry that the journal does not take within a second is dropped, and so are those after it that it does
    not take at once: many waits in a row would hold up the loop until the watchdog ends the daemon.  Where
    there is no journal at all, the record goes to ``otherwise``.
    """

    def __init__(self, otherwise: logging.Handler, address: Path = SOCKET) -> None:
        super().__init__()
        self._otherwise = otherwise
        self._address = str(address)
        # Not connected: the socket is another one when the journal was restarted.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(_PATIENCE)

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record."""
        fields = {
            "MESSAGE": self.format(record),
            "PRIORITY": str(PRIORITIES.get(record.levelno, 6)),
            "SYSLOG_IDENTIFIER": IDENTIFIER,
        }
        event = getattr(record, "event", None)
        if isinstance(event, Event):
            fields["PORTIER_KIND"] = event.kind.value
            for name in ("group", "port", "address"):
                if value := getattr(event, name):
                    fields[f"PORTIER_{name.upper()}"] = value
        entry = b"".join(_field(name, value) for name, value in fields.items())
        try:
            self._send(entry)
            self._socket.settimeout(_PATIENCE)
        except (TimeoutError, BlockingIOError):
            self._socket.setblocking(False)
        except OSError:
            self._otherwise.handle(record)

    def close(self) -> None:
        """Close the socket."""
        with self.lock or contextlib.nullcontext():  # not while another thread's entry is on its way
            self._socket.close()
        super().close()

    def _send(self, entry: bytes) -> None:
        try:
            self._socket.sendto(entry, self._address)
        except OSError as error:
            if error.errno not in {errno.EMSGSIZE, errno.ENOBUFS}:
                raise
        else:
            return
        descriptor = os.memfd_create("portier-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with contextlib.closing(os.fdopen(descriptor, "wb", buffering=0)) as file:
            left = memoryview(entry)
            while left:
                left = left[file.write(left) :]
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
            self._socket.sendmsg([], passed, 0, self._address)


def _field(name: str, value: str) -> bytes:
    """One field: a value with line breaks goes by its length."""
    data = value.encode(errors="backslashreplace")
    if b"\n" in data:
        return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
    return name.encode() + b"=" + data + b"\n"
