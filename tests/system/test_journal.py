"""Log lines as entries of the journal, told to a real socket in the place of journald's."""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from portier.core.model import Event, EventKind
from portier.system import logs
from portier.system.journal import JournalHandler
from portier.system.service import is_journal

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "packaging" / "systemd" / "portier.service"
EVENT = Event(kind=EventKind.CLAIM, text="a claim", group="guests", port="tap-3", address="2001:db8::5")


class Journald:
    """The receiving end: what systemd's journald does with datagrams, by its documented protocol."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(10)

    def entry(self) -> dict[str, str]:
        """The next entry."""
        data, descriptors, _, _ = socket.recv_fds(self.socket, 1 << 20, 1)
        if descriptors:
            assert data == b""
            seals = fcntl.fcntl(descriptors[0], fcntl.F_GET_SEALS)
            wanted = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
            assert seals & wanted == wanted  # journald takes no other
            with os.fdopen(descriptors[0], "rb") as file:
                file.seek(0)
                data = file.read()
        fields = {}
        while data:
            line, _, data = data.partition(b"\n")
            name, equals, value = line.partition(b"=")
            if not equals:
                (length,) = struct.unpack_from("<Q", data)
                value, end, data = data[8 : 8 + length], data[8 + length : 9 + length], data[9 + length :]
                assert end == b"\n"
            fields[name.decode()] = value.decode()
        return fields


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[Journald]:
    daemon = Journald(tmp_path / "socket")
    yield daemon
    daemon.socket.close()


@pytest.fixture
def printed() -> io.StringIO:
    """What cannot be sent."""
    return io.StringIO()


@pytest.fixture
def logger(journald: Journald, printed: io.StringIO) -> Iterator[logging.Logger]:
    """A logger with nothing but the handler."""
    handler = JournalHandler(logging.StreamHandler(printed), journald.path)
    found = logging.Logger("alone", logging.DEBUG)  # noqa: LOG001  (one that pytest does not listen to)
    found.addHandler(handler)
    yield found
    handler.close()


def test_event_is_an_entry_with_fields(logger: logging.Logger, journald: Journald) -> None:
    """Kind, group, port and address; what an event does not have is no field."""
    logger.warning("%s: %s", EVENT.kind, EVENT.text, extra={"event": EVENT})
    assert journald.entry() == {
        "MESSAGE": "claim: a claim",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "portier",
        "PORTIER_KIND": "claim",
        "PORTIER_GROUP": "guests",
        "PORTIER_PORT": "tap-3",
        "PORTIER_ADDRESS": "2001:db8::5",
    }
    logger.info("up", extra={"event": Event(kind=EventKind.LINK, text="up", port="eth0")})
    assert journald.entry() == {
        "MESSAGE": "up",
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "portier",
        "PORTIER_KIND": "link",
        "PORTIER_PORT": "eth0",
    }


MESSAGES = {
    "empty": "",
    "lines": "one\ntwo",
    "field": "one\nPRIORITY=0\n",
    "newline": "\n",
    "equals": "=",
    "surrogate": "\udcff",
    "snowmen": "\N{SNOWMAN}" * 30,
    "large": "x=" * 1_000_000,
}


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
def test_any_message_is_one_entry(logger: logging.Logger, journald: Journald, message: str) -> None:
    """Lines, what looks like a field, what is no UTF-8, and more than a datagram takes."""
    logger.error("%s", message)
    entry = journald.entry()
    assert entry == {
        "MESSAGE": message.encode(errors="backslashreplace").decode(),
        "PRIORITY": "3",
        "SYSLOG_IDENTIFIER": "portier",
    }


def test_traceback_is_part_of_the_entry(logger: logging.Logger, journald: Journald) -> None:
    try:
        print(1 / 0)
    except ZeroDivisionError:
        logger.exception("oops")
    message = journald.entry()["MESSAGE"]
    assert message.startswith("oops\nTraceback")
    assert message.endswith("ZeroDivisionError: division by zero")


def test_restarted_journal_gets_the_next_entry(
    logger: logging.Logger, journald: Journald, printed: io.StringIO
) -> None:
    """While there is none, entries are printed; they are never lost for the lack of a journal."""
    journald.socket.close()
    logger.error("nobody listens")
    journald.path.unlink()
    logger.error("nobody is there")
    again = Journald(journald.path)
    logger.error("back")
    assert again.entry()["MESSAGE"] == "back"
    again.socket.close()
    assert printed.getvalue() == "nobody listens\nnobody is there\n"


def test_stuck_journal_costs_a_second(logger: logging.Logger, journald: Journald) -> None:
    """Threads that log answer hosts too, and the loop feeds the watchdog: an entry is dropped rather than
    waited for without end, and a hundred entries are no hundred waits."""
    journald.socket.setblocking(False)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as flood, contextlib.suppress(BlockingIOError):
        flood.setblocking(False)
        while True:
            flood.sendto(b"MESSAGE=x\n", str(journald.path))
    began = time.monotonic()
    for _ in range(100):
        logger.error("dropped")
    assert time.monotonic() - began < 30  # before the watchdog; it is one second
    with contextlib.suppress(BlockingIOError):
        while True:
            assert journald.entry()["MESSAGE"] == "x"
    logger.error("taken")
    assert journald.entry()["MESSAGE"] == "taken"


def test_entry_after_the_end_is_printed(logger: logging.Logger, printed: io.StringIO) -> None:
    """A reload makes a new handler while a thread still has the old one."""
    (handler,) = logger.handlers
    handler.close()
    logger.error("late")
    assert printed.getvalue() == "late\n"


def test_only_the_journals_own_stream_counts(tmp_path: Path) -> None:
    """A program started from a service inherits the variable, and may write elsewhere."""
    with (tmp_path / "file").open("w") as file:
        about = os.fstat(file.fileno())
        right = {"JOURNAL_STREAM": f"{about.st_dev}:{about.st_ino}"}
        assert is_journal(file.fileno(), right)
        for wrong in ({}, {"JOURNAL_STREAM": ""}, {"JOURNAL_STREAM": f"{about.st_dev}:{about.st_ino + 1}"}):
            assert not is_journal(file.fileno(), wrong)
        descriptor = file.fileno()
    assert not is_journal(descriptor, right)


@pytest.mark.parametrize("style", ["text", "json"])
def test_stderr_that_is_no_journal_gets_plain_lines(capsys: pytest.CaptureFixture[str], style: str) -> None:
    """Even where the variable says that there is a journal."""
    found = logging.getLogger("portier")
    before = (found.handlers[:], found.level, found.propagate)
    found.handlers.clear()
    try:
        logs.configure("info", style, {"JOURNAL_STREAM": "8:1"})
        found.error("one")
    finally:
        found.handlers[:], found.propagate = before[0], before[2]
        found.setLevel(before[1])
    line = capsys.readouterr().err
    assert line.endswith(" ERROR one\n" if style == "text" else '"text": "one"}\n')


def test_unit_is_little_exposed() -> None:
    """To those who judge it by its letter alone; tests/booted runs it."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    command = ["systemd-analyze", "security", "--offline=yes", "--threshold=20", str(UNIT)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
