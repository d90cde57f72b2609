"""`portier top` and `portier status` on a real terminal, beside a real daemon."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from portier.cli import top
from tests.cli.conftest import ROOT, Portier
from tests.cli.test_render import HEALTHY
from tests.netns.lab import Lab, wait_for
from tests.netns.scenes import NET, Scene, config, guest, solicit, vps

PATIENCE = 30.0
LEAVE = "\x1b[?25h\x1b[?1049l"  # the cursor is back, and the first screen


class Terminal:
    """A pseudo-terminal, a program on it, and all that it has written."""

    def __init__(self, columns: int, rows: int) -> None:
        self.main, self.far = pty.openpty()
        self.before = termios.tcgetattr(self.far)
        self.said = ""
        self.process: subprocess.Popen[Any] | None = None
        self.resize(columns, rows)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def start(self, popen: Callable[..., subprocess.Popen[Any]], *arguments: str) -> None:
        """Run ``portier`` with these arguments here, as a shell would, in a session of its own."""
        environment = {key: value for key, value in os.environ.items() if key not in {"COLUMNS", "LINES"}}
        self.process = popen(
            ["setsid", "--ctty", sys.executable, "-m", "portier", *arguments],
            stdin=self.far,
            stdout=self.far,
            stderr=self.far,
            env={**environment, "PYTHONPATH": str(ROOT), "TERM": "xterm"},
        )

    def _read(self) -> None:
        while True:
            try:
                self.said += os.read(self.main, 65536).decode(errors="replace")
            except OSError:
                return

    def resize(self, columns: int, rows: int) -> None:
        """Make it another size; the kernel tells the program."""
        fcntl.ioctl(self.main, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self.main, keys.encode())

    def page(self) -> list[str]:
        """The last page that was written whole, without colours."""
        pages = self.said.rpartition("\x1b[J")[0].split("\x1b[H")
        return [re.sub(r"\x1b\[[0-9;]*[mK]", "", line) for line in re.split("\r+\n", pages[-1])]

    def shows(self, *words: str) -> bool:
        """Whether the page has all of these words."""
        page = "\n".join(self.page())
        return all(word in page for word in words)

    def wait(self, *words: str) -> list[str]:
        """Wait until the page has all of these words."""
        wait_for(lambda: self.shows(*words), PATIENCE, f"a page with {words}")
        return self.page()

    def end(self) -> int:
        """Wait for the program's end."""
        assert self.process is not None
        return self.process.wait(PATIENCE)

    def is_restored(self) -> bool:
        """Whether the terminal is as it was before: its settings, its screen and its cursor."""
        with contextlib.suppress(AssertionError):
            wait_for(lambda: LEAVE in self.said, PATIENCE, "the first screen again")
        after = self.said.rpartition("\x1b[?1049h")[2]
        return after.count(LEAVE) == 1 and termios.tcgetattr(self.far) == self.before

    def close(self) -> None:
        """End what is running, and the terminal."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE)
        os.close(self.far)
        os.close(self.main)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """A terminal of 100 columns and 30 lines."""
    made = Terminal(100, 30)
    yield made
    made.close()


@pytest.fixture
def scene(lab: Lab) -> Scene:
    """The usual scene with its daemon."""
    made = vps(lab)
    made.start(config(f"[{NET}/64, {{deny: '{NET}dead/128'}}]"))
    return made


def where(scene: Scene) -> tuple[str, str]:
    """The option that leads to the daemon."""
    return "--runtime-dir", str(scene.portier.runtime)


def test_it_is_live(scene: Scene, terminal: Terminal) -> None:
    """The page has the terminal's size and follows it; what happens shows by itself, with its rate; the keys
    do what the foot says; q ends it with 0 and leaves the terminal as it was."""
    terminal.start(scene.p.popen, "top", "--interval", "0.5", *where(scene))
    page = terminal.wait("portier is healthy", "group lan", "q quit", "every 0.5 s")
    assert len(page) == 30
    assert max(map(len, page)) <= 100
    assert not termios.tcgetattr(terminal.far)[3] & (termios.ECHO | termios.ICANON), "keys work at once"

    def asked() -> bool:
        for _ in range(5):
            scene.u.inject("eth0", solicit(scene.u, f"{NET}dead"))
        return any(re.match(r" *eth0 .* \d+ +[\d.]+ +\d+ a rule denies it", line) for line in terminal.page())

    wait_for(asked, PATIENCE, "a number, and how much a second", interval=0.1)
    terminal.press("+")
    terminal.wait("every 1 s")
    terminal.press("--")
    terminal.wait("every 0.25 s")
    terminal.resize(60, 12)
    wait_for(lambda: len(terminal.page()) == 12, PATIENCE, "a page of 12 lines")
    assert max(map(len, terminal.wait("portier is healthy", "q quit"))) <= 60
    terminal.press("q")
    assert terminal.end() == 0
    assert terminal.is_restored()


def test_the_daemon_goes_and_comes(scene: Scene, terminal: Terminal) -> None:
    """While the daemon does not answer, and while none runs, it says so, waits, and goes on when one does."""
    terminal.start(scene.p.popen, "top", "--interval", "0.5", *where(scene))
    terminal.wait("portier is healthy")
    scene.portier.signal(signal.SIGSTOP)
    terminal.wait("no answer from the daemon for", "group lan")
    scene.portier.signal(signal.SIGCONT)
    terminal.wait("portier is healthy")
    scene.portier.kill9()
    terminal.wait("daemon not running, waiting", "q quit")
    scene.portier.start()
    terminal.wait("portier is healthy", str(scene.portier.pid))
    terminal.press("\x03")
    assert terminal.end() == 0
    assert terminal.is_restored()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT])
def test_signals_leave_the_terminal_in_order(terminal: Terminal, tmp_path: Path, number: int) -> None:
    """Whatever signal ends it, the terminal is as it was; it needs no daemon for that."""
    terminal.start(subprocess.Popen, "--runtime-dir", str(tmp_path), "top")
    terminal.wait("daemon not running, waiting")
    assert terminal.process is not None
    terminal.process.send_signal(number)
    assert terminal.end() == (0 if number == signal.SIGINT else 128 + number)
    assert terminal.is_restored()
    assert "Traceback" not in terminal.said


def test_it_can_be_stopped_and_go_on(terminal: Terminal, tmp_path: Path) -> None:
    """Ctrl-Z gives the terminal back to the shell as it was; `fg` takes it again."""
    script = '"$0" -m portier --runtime-dir "$1" top; echo it has stopped; read -r line; fg; exit 7'
    terminal.process = subprocess.Popen(
        ["setsid", "--ctty", "bash", "-m", "-c", script, sys.executable, str(tmp_path)],
        stdin=terminal.far,
        stdout=terminal.far,
        stderr=terminal.far,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"},
    )
    terminal.wait("daemon not running, waiting")
    terminal.press("\x1a")
    wait_for(lambda: "it has stopped" in terminal.said, PATIENCE, "the shell to go on")
    assert terminal.is_restored()
    terminal.said = ""
    terminal.press("\n")
    terminal.wait("daemon not running, waiting")
    terminal.press("q")
    assert terminal.end() == 7
    assert terminal.is_restored()


def test_a_broken_daemon_leaves_the_terminal_in_order(terminal: Terminal, tmp_path: Path) -> None:
    """What answers on the socket and is no daemon is told of, and the terminal is as it was."""
    terminal.start(subprocess.Popen, "--runtime-dir", str(tmp_path), "top", "-i", "0.25")
    terminal.wait("daemon not running, waiting")
    with Stranger(tmp_path / "control.sock"):
        assert terminal.end() != 0
    assert terminal.is_restored()
    assert "portier top: " in terminal.said
    assert "Traceback" not in terminal.said


class Stranger(contextlib.AbstractContextManager["Stranger"]):
    """Answers whoever asks on a socket with JSON that is no status."""

    def __init__(self, path: Path) -> None:
        import socket  # noqa: PLC0415

        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(path))
        self._socket.listen()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._answer)
        self._thread.start()

    def _answer(self) -> None:
        while not self._done.is_set():
            if select.select([self._socket], [], [], 0.1)[0]:
                connection, _ = self._socket.accept()
                with connection:
                    connection.recv(65536)
                    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n"
                    connection.sendall(head + b"{}")

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._socket.close()


def test_without_a_terminal(portier: Portier) -> None:
    """In a pipe it is wrong usage, in one line that says what there is instead; so is an odd interval."""
    done = portier("top")
    assert done.returncode == 64
    assert done.stderr == (
        "portier top: this needs a terminal; elsewhere there are `portier status` and its --json\n"
    )
    for wrong in ("0", "fast", "nan", "1e9"):
        assert portier("top", "--interval", wrong).returncode == 64


def test_status_fits_the_terminal(scene: Scene, terminal: Terminal) -> None:
    """`portier status` on a terminal has colours, and leaves room for the prompt; NO_COLOR has none; in a
    pipe nothing is left out."""
    terminal.resize(70, 14)
    assert wait_for(lambda: scene.u.ping(guest(1), timeout=1), PATIENCE, "the first host answers")
    terminal.start(scene.p.popen, "status", *where(scene))
    assert terminal.end() == 0
    wait_for(lambda: "group lan" in terminal.said, PATIENCE, "the page")
    assert "\x1b[1;32mportier is healthy\x1b[0m" in terminal.said
    lines = re.sub(r"\x1b\[[0-9;]*m", "", terminal.said).replace("\r", "").splitlines()
    assert len(lines) <= 13
    assert max(map(len, lines)) <= 70
    piped = scene.portier.cli("status").stdout
    assert "last events" in piped
    assert len(piped.splitlines()) > 13
    assert "\x1b" not in piped


def test_rates_need_the_same_daemon() -> None:
    """Rates are differences by time, never below zero, and there are none from one process to the next."""

    def sample(at: float, answers: int, pid: int = 1) -> top._Sample:
        group = HEALTHY["groups"][0]
        port = group["ports"][0] | {"answers": answers}
        return top._Sample(at, HEALTHY | {"pid": pid, "groups": [group | {"ports": [port]}]})

    found = top.rates(sample(10.0, 100), sample(12.0, 150))
    assert found is not None
    assert found["guests", "eth0"].answered == 25.0
    again = top.rates(sample(10.0, 100), sample(12.0, 3))
    assert again is not None
    assert again["guests", "eth0"].answered == 0.0, "the group's worker was restarted"
    assert top.rates(sample(10.0, 100), sample(12.0, 150, pid=2)) is None
    assert top.rates(top._Sample(9.0, None), sample(12.0, 150)) is None
