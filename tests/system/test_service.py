"""What the service manager is told, and how log lines look."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from portier.core.model import Event, EventKind
from portier.system import logs
from portier.system.service import Service


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(5)
        yield listener


def test_messages(manager: socket.socket) -> None:
    """Each state is one datagram in sd_notify's format; a reload bears the time that systemd wants."""
    service = Service({"NOTIFY_SOCKET": manager.getsockname()})
    service.ready("1 group")
    service.reloading()
    service.stopping()
    service.alive()
    service.status("degraded")
    got = [manager.recv(4096).decode() for _ in range(5)]
    assert got[0] == "READY=1\nSTATUS=1 group"
    assert got[1].startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert int(got[1].rpartition("=")[2]) > 0
    assert got[2].startswith("STOPPING=1")
    assert got[3:] == ["WATCHDOG=1", "STATUS=degraded"]
    service.close()


def test_a_status_is_one_line(manager: socket.socket) -> None:
    """Whatever a status quotes, it assigns nothing else and can be sent."""
    service = Service({"NOTIFY_SOCKET": manager.getsockname()})
    service.status("degraded: a.yaml: bad\nWATCHDOG=trigger")
    service.ready("file \udcff\nSTOPPING=1")
    assert manager.recv(4096) == b"STATUS=degraded: a.yaml: bad WATCHDOG=trigger"
    assert manager.recv(4096) == b"READY=1\nSTATUS=file \\udcff STOPPING=1"
    service.close()


def test_abstract_socket() -> None:
    """An address that begins with @ is an abstract socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0portier-test-{os.getpid()}")
        listener.settimeout(5)
        service = Service({"NOTIFY_SOCKET": f"@portier-test-{os.getpid()}"})
        service.alive()
        assert listener.recv(100) == b"WATCHDOG=1"
        service.close()


def test_nobody_listens(tmp_path: Path) -> None:
    """Without a manager, or with one that is gone, nothing happens."""
    Service({}).ready("fine")
    service = Service({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    service.ready("fine")
    service.close()
    service.alive()


@pytest.mark.parametrize(
    ("usec", "pid", "expected"),
    [
        ("10000000", None, 5.0),
        ("10000000", "own", 5.0),
        ("10000000", "1", None),
        ("0", None, None),
        ("soon", None, None),
        (None, None, None),
    ],
)
def test_watchdog(manager: socket.socket, usec: str | None, pid: str | None, expected: float | None) -> None:
    """Signs of life are due at half the watchdog's time, when it is this process that is watched."""
    environ = {"NOTIFY_SOCKET": manager.getsockname()}
    if usec is not None:
        environ["WATCHDOG_USEC"] = usec
    if pid is not None:
        environ["WATCHDOG_PID"] = str(os.getpid()) if pid == "own" else pid
    service = Service(environ)
    assert service.watchdog == expected
    service.close()


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    found = logging.getLogger("portier")
    before = (found.handlers[:], found.level, found.propagate)
    yield found
    found.handlers[:], found.propagate = before[0], before[2]
    found.setLevel(before[1])


def test_json_lines(logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    """With `format: json` each line is an object, an event's fields among it, a traceback within it."""
    logs.configure("info", "json", {})
    event = Event(kind=EventKind.CLAIM, text="a claim", group="guests", port="tap-3", address="2001:db8::5")
    logger.warning("%s: %s", event.kind, event.text, extra={"event": event})
    try:
        print(1 / 0)
    except ZeroDivisionError:
        logger.exception("oops\nindeed")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "warning",
        "event": "claim",
        "text": "a claim",
        "group": "guests",
        "port": "tap-3",
        "address": "2001:db8::5",
    }
    assert "ZeroDivisionError" in second["traceback"]


def test_text_lines(logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    """For people: time, level, text; configuring twice does not log twice."""
    logs.configure("info", "text", {})
    logs.configure("debug", "text", {})
    logger.debug("shown")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(" DEBUG shown")
