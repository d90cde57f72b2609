"""What the daemon decides by itself, beside the parts that it puts together: those are stood in for."""

from __future__ import annotations

import gc
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import pytest

from portier import daemon as module
from portier.core.engine import Explanation, Service, Standing
from portier.core.model import Config, Event, EventKind, Group, Mode, Role, Timers
from portier.core.outcome import Verdict
from portier.core.plan import GroupReport, PortReport, Report
from portier.core.steps import StopWorker
from portier.daemon import Daemon, _trouble, cleanup
from portier.errors import PortierError, Refused
from portier.runtime.reconcile import Round, Settings
from portier.runtime.supervisor import GroupStatus
from portier.system.control import SOCKET_NAME, ControlServer
from portier.system.process import make_runtime_dir
from tests.cli.conftest import ROOT, Portier

PATIENCE = 20.0
NOTHING = Round()  # done, and nothing left to do


class Rounds:
    """A reconciler that has done its rounds, or is still at the first."""

    def __init__(self, left: Round = NOTHING) -> None:
        self.settings = Settings(Config())
        self.report = Report()
        self.last = left
        self.rounds = 1
        self.reloads = 0

    def stop(self) -> Round:
        return self.last

    def ask_reload(self) -> Future[Round]:
        self.reloads += 1
        done: Future[Round] = Future()
        done.set_result(self.last)
        return done

    def hangs(self, _patience: float) -> bool:
        return False


class Engines:
    """Groups whose engines answer once they have been asked for the host so many times; None is never."""

    def __init__(self, **looks: int | None) -> None:
        self.looks = looks
        self.asked: list[str] = []

    def explain(self, name: str, _target: bytes, _ifindex: int | None) -> Explanation:
        left = self.looks[name]
        if left is None or name not in self.asked:
            return Explanation(Verdict.RESOLVING, ("asking",))
        self.looks[name] = left - 1
        return Explanation(Verdict.RESOLVING if left > 1 else Verdict.ANSWERED, ("it is there",))

    def ask(self, name: str, _target: bytes) -> None:
        self.asked.append(name)

    def status(self) -> dict[str, Any]:
        return {}


class Relay(Engines):
    """A relay group `hotspot` with three ports, and the part that each takes."""

    PARTS = (
        Standing(2, Service.FORWARDING, "", None, None, math.inf),
        Standing(3, Service.HOLD_DOWN, "an RA from behind", b"\xfe\x80" + bytes(14), b"\2" * 6, 60.0),
        Standing(4, Service.WAITING, "1 of 2 RAs", None, None, math.inf),
    )

    def __init__(self) -> None:
        super().__init__()
        self.lifted: list[tuple[str, int]] = []

    def status(self) -> dict[str, Any]:
        return {"hotspot": GroupStatus(state="running", restarts=0, error="", standings=self.PARTS)}

    def lift(self, name: str, ifindex: int) -> None:
        self.lifted.append((name, ifindex))


def relay_report() -> Report:
    """The group of `Relay`, and one in mode route."""
    names = {"eth0": 2, "wlan0": 3, "wlan1": 4, "wlan2": 0}
    ports = tuple(PortReport(n, Role.DOWNSTREAM, "active", "", index) for n, index in names.items() if index)
    ports += (PortReport("wlan2", Role.DOWNSTREAM, "waiting", "down", 5),)
    group = Group(name="hotspot", mode=Mode.RELAY, rules=())
    other = (PortReport("tap0", Role.DOWNSTREAM, "active", "", 6),)
    return Report(
        groups=(
            GroupReport(group, "eth0", ports, (), False, (), ()),
            GroupReport(Group(name="guests"), None, other, (), False, (), ()),
        )
    )


Make = Callable[..., Daemon]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Make]:
    """Makes daemons whose parts are stood in for."""
    daemons = []

    def make(rounds: Rounds | None = None, engines: Engines | None = None) -> Daemon:
        daemon = Daemon(tmp_path / "portier.yaml", tmp_path)
        daemon._reconciler = cast("Any", rounds or Rounds())
        daemon._supervisor = cast("Any", engines or Engines())
        daemons.append(daemon)
        return daemon

    yield make
    for daemon in daemons:
        for part in (daemon._bell, daemon._rope, daemon._service):
            part.close()


def report(*names: str, retries: int = 3) -> Report:
    """Groups without upstream, which may be asked right away."""
    timers = Timers(retransmit=1.0, retries=retries)
    groups = [Group(name=name, timers=timers) for name in names]
    return Report(groups=tuple(GroupReport(group, None, (), (), True, (), ()) for group in groups))


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o775])
def test_a_runtime_dir_of_our_own_is_used(tmp_path: Path, mode: int) -> None:
    """One that is missing is made; one that is ours and closed to others stays as it is."""
    path = tmp_path / "run" / "portier"
    make_runtime_dir(path)
    assert path.stat().st_mode & 0o777 == 0o755
    path.chmod(mode)
    make_runtime_dir(path)
    assert path.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_a_runtime_dir_open_to_everybody_is_refused(tmp_path: Path, mode: int) -> None:
    """Whoever can write there could have the daemon believe in a record of theirs; sticky or not."""
    tmp_path.chmod(mode)
    with pytest.raises(Refused, match=r"by everybody: .*--runtime-dir") as refused:
        make_runtime_dir(tmp_path)
    assert refused.value.exit_code == 77


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a directory away")
def test_a_runtime_dir_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """So could its owner; cleanup, which acts on the record as well, refuses it too."""
    os.chown(tmp_path, 65534, -1)
    for use in (make_runtime_dir, cleanup):
        with pytest.raises(Refused, match=r"another user \(65534\): .*--runtime-dir"):
            use(tmp_path)


def test_another_file_than_the_daemons_is_refused(tmp_path: Path, made: Make) -> None:
    """Plan and reload are about the daemon's own file; by another name it is the same."""
    daemon = made()
    for command in (daemon.plan, daemon.reload):
        with pytest.raises(Refused, match=f"runs with {tmp_path}/portier.yaml, not with /etc/x") as refused:
            command(config="/etc/x")
        assert refused.value.exit_code == 64
    (tmp_path / "link").symlink_to(tmp_path / "portier.yaml")
    daemon._require_file(str(tmp_path / "link"))
    daemon._require_file(None)


def test_the_file_is_sent_only_when_named(tmp_path: Path, portier: Portier) -> None:
    """`-c` travels with plan and reload, before the command or after it, as an absolute path; the default
    does not."""
    asked: list[str | None] = []

    def answer(config: str | None = None) -> dict[str, Any]:
        asked.append(config)
        return {"ok": True, "steps": [], "warnings": [], "errors": []}

    with ControlServer(
        tmp_path / "run" / SOCKET_NAME, {("POST", "/v1/plan"): answer, ("POST", "/v1/reload"): answer}
    ):
        for command in ("plan", "reload"):
            assert portier(command).returncode == 0
            assert portier("-c", "a.yaml", command).returncode == 0
            assert portier(command, "-c", "/b.yaml").returncode == 0
    assert asked == [None, str(ROOT / "a.yaml"), "/b.yaml"] * 2


def test_groups_are_waited_for_together(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many groups look for a host, `explain` waits once, and as long as one of them."""
    monkeypatch.setattr(module, "_EXPLAIN", 0.3)
    names = [f"g{number}" for number in range(40)]
    rounds, engines = Rounds(), Engines(**dict.fromkeys(names))
    rounds.report = report(*names)
    began = time.monotonic()
    said = made(rounds, engines).explain("2001:db8::5")
    assert said["verdict"] == Verdict.RESOLVING.label
    assert engines.asked == names
    assert time.monotonic() - began < 40 * 0.3 / 2


def test_the_first_group_that_answers_is_enough(made: Make) -> None:
    """Where one of the groups finds the host, the others are not waited for."""
    rounds, engines = Rounds(), Engines(slow=None, quick=2)
    rounds.report = report("slow", "quick", retries=1000)
    said = made(rounds, engines).explain("2001:db8::5")
    assert said["answered"]
    assert said["steps"][0] == "group quick"


@pytest.mark.parametrize(
    ("left", "code"),
    [(Round(), 0), (Round(pending=(StopWorker("lan"),)), 1), (Round(errors=("no look at the kernel",)), 1)],
)
def test_what_is_not_undone_shows(
    made: Make, caplog: pytest.LogCaptureFixture, left: Round, code: int
) -> None:
    """Steps left over, and an undo that could not even look, both end with 1 and name the way out."""
    assert made(Rounds(left))._undo() == code
    assert ("portier cleanup" in caplog.text) == bool(code)


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A service manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(PATIENCE)
        monkeypatch.setenv("NOTIFY_SOCKET", listener.getsockname())
        yield listener


def test_a_stop_does_not_wait_for_the_first_round(manager: socket.socket, made: Make) -> None:
    """SIGTERM during a long first round ends the wait at once, and readiness is never told."""
    daemon = made()
    daemon._applied = daemon._reconciler.settings.generation
    with daemon._handle_signals():
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        daemon._serve(Future())
    manager.settimeout(0)
    said = b""
    while True:
        try:
            said += manager.recv(4096)
        except BlockingIOError:
            break
    assert b"READY" not in said


def test_readiness_follows_the_first_round(manager: socket.socket, made: Make) -> None:
    """It is told when the round is done; a reload asked for meanwhile is done, and what was built by then
    is left to no collection."""
    rounds = Rounds()
    daemon = made(rounds)
    first: Future[Round] = Future()
    first.add_done_callback(lambda _: daemon._ring())
    gc.unfreeze()
    try:
        with daemon._handle_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            threading.Timer(0.1, first.set_result, (Round(),)).start()

            def stop_when_ready() -> None:
                while True:
                    said = manager.recv(4096)
                    if said.startswith(b"READY=1") and first.done():
                        os.kill(os.getpid(), signal.SIGTERM)
                        return

            waiter = threading.Thread(target=stop_when_ready)
            waiter.start()
            daemon._serve(first)
            waiter.join()
        assert rounds.reloads == 1
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_a_group_that_cannot_be_asked_says_why(made: Make) -> None:
    """A worker that waits for its restart costs the explanation nothing but that group."""

    class Gone(Engines):
        def explain(self, name: str, _target: bytes, _ifindex: int | None) -> Explanation:
            raise PortierError(f"worker {name} waits for its restart")

    rounds = Rounds()
    rounds.report = report("lan")
    said = made(rounds, Gone()).explain("2001:db8::5")
    assert said["steps"] == ["group lan: worker lan waits for its restart"]


def test_a_hold_down_is_lifted(made: Make) -> None:
    """The worker is told, and the answer says what it was held down for."""
    rounds, engines = Rounds(), Relay()
    rounds.report = relay_report()
    said = made(rounds, engines).lift("wlan0")
    assert engines.lifted == [("hotspot", 3)]
    assert (said["group"], said["port"]) == ("hotspot", "wlan0")
    assert said["was"] == {
        "service": "hold-down",
        "reason": "an RA from behind",
        "offender": "fe80::",
        "mac": "02:02:02:02:02:02",
        "left": 60.0,
    }


@pytest.mark.parametrize(
    ("port", "why"),
    [
        ("eth0", "eth0 is a port of group hotspot, and is not in hold-down: forwarding"),
        ("wlan1", "wlan1 is a port of group hotspot, and is not in hold-down: waiting for RAs"),
        ("wlan2", "wlan2 is a port of group hotspot, and is not in hold-down: waiting, down"),
        ("tap0", "tap0 is a port of group guests, in mode route: nothing is held down there"),
        ("lo", "no group names lo or matches it"),
    ],
)
def test_what_cannot_be_lifted_is_told(made: Make, port: str, why: str) -> None:
    """A port that is not held down, and one that there is not, are refused with the reason."""
    rounds, engines = Rounds(), Relay()
    rounds.report = relay_report()
    with pytest.raises(Refused) as refused:
        made(rounds, engines).lift(port)
    assert (str(refused.value), refused.value.exit_code) == (why, 1)
    assert not engines.lifted


def test_a_hold_down_degrades(made: Make) -> None:
    """The problem names port, reason and the remedy, and no time, which would make it new
    every second."""
    rounds, engines = Rounds(), Relay()
    rounds.report = relay_report()
    daemon = made(rounds, engines)
    (problem,) = daemon._find_problems(engines.status())
    assert problem == (
        "group hotspot: wlan0 is in hold-down: an RA from behind; when that is put right: portier lift wlan0"
    )
    assert not daemon._news
    daemon._hear(Event(kind=EventKind.LEARNED, text="a host"))
    assert not daemon._news
    daemon._hear(Event(kind=EventKind.LOOP, text="wlan0 is in hold-down"))
    assert daemon._news


def test_lift_on_the_command_line(tmp_path: Path, portier: Portier) -> None:
    """0 when it is done, 1 with the reason when it is refused, 4 without a daemon, 64 without a port."""

    def lift(port: str) -> dict[str, Any]:
        if port != "wlan0":
            raise Refused(f"no group names {port} or matches it")
        return {"version": 1, "group": "hotspot", "port": port, "was": {"reason": "an RA from behind"}}

    with ControlServer(tmp_path / "run" / SOCKET_NAME, {("POST", "/v1/lift"): lift}):
        done = portier("lift", "wlan0")
        assert done.returncode == 0
        assert done.stdout.startswith(
            "wlan0 of group hotspot is not in hold-down any more (an RA from behind)"
        )
        done = portier("lift", "lo")
        assert (done.returncode, done.stderr) == (1, "portier lift: no group names lo or matches it\n")
        assert portier("lift").returncode == 64
    assert portier("lift", "wlan0").returncode == 4


@pytest.mark.parametrize(
    ("state", "reason", "service", "said"),
    [
        ("active", "", None, ""),
        ("active", "", "forwarding", ""),
        ("active", "", "hold-down", " (hold-down)"),
        ("active", "", "waiting for RAs", " (waiting for RAs)"),
        ("waiting", "down", None, " (down)"),
    ],
)
def test_the_log_names_ports_that_take_no_part(
    state: str, reason: str, service: str | None, said: str
) -> None:
    """In the summary that SIGUSR1 asks for, with why."""
    relay = {"service": service} if service else None
    assert _trouble({"state": state, "reason": reason, "relay": relay}) == said
