"""`portier top`: the page of `portier status`, live.

The terminal is put back as it was whatever ends this, stops it or goes wrong.  Plain control sequences
(ECMA-48, and the private modes of xterm that every terminal has) do, because all there is to do is to write
one page over another.  The daemon is asked in a thread, so that the keys work while it does not answer.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final, NamedTuple, NoReturn, Self

from portier.cli import INTERVALS, complain, exits, text
from portier.cli.status import Rates, Traffic, page, traffic
from portier.cli.text import BAD, FAINT, Line
from portier.errors import Refused
from portier.system.control import ControlClient

_TIMEOUT: Final = 10.0  # seconds in which a daemon answers
_SLOW: Final = 3.0  # seconds without an answer that are told of
_ENTER: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l"  # the other screen, no cursor, no wrapping
_LEAVE: Final = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"
_KEYS: Final = "q quit   space now   + - slower, faster"


class _Sample(NamedTuple):
    """What the daemon said, or what was in the way, and when."""

    at: float
    status: dict[str, Any] | None
    error: Exception | None = None


def run(options: argparse.Namespace) -> int:
    """Show the page until it is quit."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM", "dumb") == "dumb":
        complain("top", "this needs a terminal; elsewhere there are `portier status` and its --json")
        return exits.USAGE
    with contextlib.suppress(KeyboardInterrupt), _Terminal() as terminal:
        _Top(terminal, _Asker(options), options.interval).run()
    return exits.OK


class _Top:
    """What is shown, and when it is asked for anew."""

    def __init__(self, terminal: _Terminal, asker: _Asker, interval: float) -> None:
        self._terminal = terminal
        self._asker = asker
        self._interval = interval
        self._last: _Sample | None = None
        self._rates: Rates | None = None
        self._colours = text.colours()

    def run(self) -> None:
        """Ask, show, obey keys; return at the end.  Raises `Refused` where asking again is of no use."""
        due = 0.0
        while True:
            now = time.monotonic()
            if now >= due:
                self._asker.ask()
                due = now + self._interval
            keys, answered = self._terminal.wait(self._asker, due - now)
            if answered:
                self._take(self._asker.take())
            if keys is None or set(keys) & set("qQ\x03\x04"):
                return
            for key in keys:
                if key in "+-":
                    factor = 2.0 if key == "+" else 0.5
                    self._interval = min(max(self._interval * factor, INTERVALS[0]), INTERVALS[1])
                due = 0.0
            self._show()

    def _take(self, sample: _Sample) -> None:
        error = sample.error
        if error is not None and not (isinstance(error, Refused) and error.exit_code != exits.NOT_PERMITTED):
            raise error
        before, self._rates = self._last, None
        if before is not None:
            self._rates = rates(before, sample)
        self._last = sample

    def _show(self) -> None:
        columns, rows = os.get_terminal_size(sys.stdout.fileno())
        columns, rows = columns or 80, rows or 24  # a terminal that knows no size says 0
        self._terminal.write(self._lines(columns, rows), columns, rows, colours=self._colours)

    def _lines(self, columns: int, rows: int) -> list[Line]:
        foot = Line(f"{time.strftime('%H:%M:%S')}   every {self._interval:g} s   {_KEYS}", FAINT)
        if self._last is None:
            return [Line("asking the daemon"), foot]
        if self._last.status is None:
            said = [Line("daemon not running, waiting", BAD)]
            said += [Line(line) for line in text.wrap(text.clean(str(self._last.error)), columns)]
            return [*said[: max(rows - 1, 1)], foot]
        lines = page(self._last.status, columns, max(rows - 1, 1), rates=self._rates)
        silence = time.monotonic() - self._last.at
        if silence > self._interval + _SLOW:
            lines[0] = Line(f"no answer from the daemon for {text.span(silence)}; this is how it was", BAD)
        return [*lines, foot]


def rates(before: _Sample, now: _Sample) -> Rates | None:
    """What happened a second between two samples; None where they cannot be compared, because there was no
    daemon, or another one."""
    if before.status is None or now.status is None or before.status["pid"] != now.status["pid"]:
        return None
    earlier, seconds = _traffic(before.status), max(now.at - before.at, 0.001)
    return {
        place: Traffic(*(max(speed, 0.0) for speed in sums.since(earlier[place], seconds)))
        for place, sums in _traffic(now.status).items()
        if place in earlier
    }


def _traffic(status: dict[str, Any]) -> dict[tuple[str, str], Traffic]:
    return {
        (group["name"], port["name"]): traffic(group, port)
        for group in status["groups"]
        for port in group["ports"]
    }


class _Asker:
    """Asks the daemon in a thread of its own, one question at a time.  Its ``fileno`` is readable when there
    is an answer to `take`."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._client = ControlClient(options.runtime_dir, _TIMEOUT)
        self._read, self._write = os.pipe()
        self._wanted = threading.Event()
        self._sample = _Sample(0.0, None)
        # Left to the end of the process: a daemon that stands still would hold it up.
        threading.Thread(target=self._run, daemon=True).start()

    def fileno(self) -> int:
        """What is waited for."""
        return self._read

    def ask(self) -> None:
        """Ask, unless a question is under way."""
        self._wanted.set()

    def take(self) -> _Sample:
        """The last answer."""
        os.read(self._read, 64)
        return self._sample

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            try:
                status = text.clean(self._client.get("/v1/status"))
                self._sample = _Sample(time.monotonic(), status)
            except Exception as error:  # noqa: BLE001  (is raised where it can be told)
                self._sample = _Sample(time.monotonic(), None, error)
            self._wanted.clear()
            os.write(self._write, b"x")


class _Terminal:
    """The terminal, taken over from `__enter__` to `__exit__`, and given back while it is stopped."""

    def __init__(self) -> None:
        self._saved: list[Any] = termios.tcgetattr(sys.stdin)
        self._read, self._write = os.pipe()
        self._before: dict[int, Any] = {}
        self._entered = False

    def __enter__(self) -> Self:
        os.set_blocking(self._write, False)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number, handler in (
            (signal.SIGTERM, _end),
            (signal.SIGHUP, _end),
            (signal.SIGQUIT, _end),
            (signal.SIGWINCH, _note),
            (signal.SIGTSTP, self._stop),
        ):
            self._before[number] = signal.signal(number, handler)
        try:
            self._enter()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wait(self, asker: _Asker, seconds: float) -> tuple[str | None, bool]:
        """The keys that were pressed within so many seconds, None when there is nobody to press any, and
        whether the daemon answered; a signal ends the wait too."""
        poll = select.poll()
        for file in (sys.stdin.fileno(), self._read, asker.fileno()):
            poll.register(file, select.POLLIN)
        ready = dict(poll.poll(max(0, math.ceil(seconds * 1000))))
        keys: str | None = ""
        if self._read in ready:
            os.read(self._read, 64)
        if sys.stdin.fileno() in ready:
            with contextlib.suppress(OSError):  # it has gone
                keys = os.read(sys.stdin.fileno(), 64).decode(errors="replace")
            keys = keys or None
        return keys, asker.fileno() in ready

    def write(self, lines: list[Line], columns: int, rows: int, *, colours: bool) -> None:
        """Show a page, its last line at the bottom."""
        *above, foot = (line._replace(text=line.text[:columns]).painted(colours=colours) for line in lines)
        shown = above[: rows - 1]
        shown += [""] * (rows - 1 - len(shown)) + [foot]
        self._say("\x1b[H" + "\r\n".join(f"{line}\x1b[K" for line in shown) + "\x1b[J")

    @staticmethod
    def _say(what: str) -> None:
        left = what.encode(sys.stdout.encoding, "backslashreplace")
        while left:
            left = left[os.write(sys.stdout.fileno(), left) :]

    def _enter(self) -> None:
        self._entered = True
        tty.setcbreak(sys.stdin, termios.TCSADRAIN)
        self._say(_ENTER)

    def _leave(self) -> None:
        if not self._entered:
            return
        self._entered = False
        with contextlib.suppress(OSError):  # it may have gone
            self._say(_LEAVE)
        with contextlib.suppress(termios.error), _undisturbed():
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._saved)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        """Stop as Ctrl-Z would have it, with the terminal as it was, and go on when that is over."""
        self._leave()
        handler = signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.signal(number, handler)
        with _undisturbed():
            self._enter()


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Not to be stopped for what is done to the terminal from the background."""
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTTOU, before)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _note(_number: int, _frame: FrameType | None) -> None:
    """Nothing to do: that it came ends the wait."""
