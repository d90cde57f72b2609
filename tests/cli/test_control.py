"""The control socket: what it answers, and that whoever may open it cannot hurt the daemon by it."""

import contextlib
import json
import logging
import os
import random
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from portier.errors import Refused
from portier.system import control
from portier.system.control import SOCKET_NAME, ControlClient, ControlServer, Handler, Listener, Page


class Ticker:
    """A stream that says what it is given."""

    def __init__(self) -> None:
        self.closed = threading.Event()
        self._near, self._far = socket.socketpair()

    def fileno(self) -> int:
        return self._near.fileno()

    def take(self) -> bytes:
        return self._near.recv(1 << 20)

    def say(self, what: bytes) -> None:
        self._far.sendall(what)

    def close(self) -> None:
        self._near.close()
        self._far.close()
        self.closed.set()


class Daemon:
    """The handlers of a daemon that remembers what it was asked."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.reloads = 0
        self.tickers: list[Ticker] = []

    def status(self) -> dict[str, Any]:
        """Say that all is well."""
        return {"version": 1, "healthy": True}

    def explain(self, address: str, on: str | None = None) -> dict[str, Any]:
        """Repeat the question."""
        return {"address": address, "on": on}

    def neighbors(self) -> list[dict[str, Any]]:
        """List three hosts."""
        return [{"address": f"2001:db8::{number:x}"} for number in range(3)]

    def reload(self) -> dict[str, Any]:
        """Count."""
        self.reloads += 1
        return {"ok": True}

    def refuse(self) -> None:
        """Refuse."""
        raise Refused("not now: stop the other one first", 64)

    def crash(self) -> None:
        """Have a bug."""
        raise RuntimeError("kaboom")

    def watch(self) -> Ticker:
        """Say something whenever it is poked."""
        self.tickers.append(Ticker())
        return self.tickers[-1]

    def slow(self) -> dict[str, Any]:
        """Take until the gate opens."""
        self.gate.wait(20)
        return {"waited": True}


@pytest.fixture
def daemon() -> Daemon:
    """A daemon's handlers."""
    return Daemon()


@pytest.fixture
def server(tmp_path: Path, daemon: Daemon) -> Iterator[ControlServer]:
    """A server of those handlers, running."""
    routes: dict[tuple[str, str], Handler] = {
        ("GET", "/v1/status"): daemon.status,
        ("GET", "/v1/neighbors"): daemon.neighbors,
        ("GET", "/v1/explain"): daemon.explain,
        ("POST", "/v1/reload"): daemon.reload,
        ("GET", "/refuse"): daemon.refuse,
        ("GET", "/crash"): daemon.crash,
        ("GET", "/slow"): daemon.slow,
        ("GET", "/v1/events"): daemon.watch,
    }
    with ControlServer(tmp_path / SOCKET_NAME, routes) as running:
        yield running
        daemon.gate.set()


def raw(server: ControlServer, request: bytes, timeout: float = 20.0) -> bytes:
    """Everything the server says to ``request``, until it hangs up."""
    said = b""
    with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(ConnectionError, BrokenPipeError):
        client.connect(str(server.path))
        client.settimeout(timeout)
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        while chunk := client.recv(65536):
            said += chunk
    return said


def connected(server: ControlServer) -> socket.socket:
    """A client that has connected and says nothing yet."""
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(server.path))  # blocking: waits while the backlog is full
    client.settimeout(20)
    return client


def test_answers_are_json(server: ControlServer) -> None:
    """A handler's answer, a dict or a list, comes back as it was."""
    client = ControlClient(server.path.parent)
    assert client.get("/v1/status") == {"version": 1, "healthy": True}
    assert [host["address"] for host in client.get("/v1/neighbors")] == [
        "2001:db8::0",
        "2001:db8::1",
        "2001:db8::2",
    ]


@pytest.mark.parametrize(
    "answer",
    [
        {},
        [],
        {"none": [], "nothing": {}},
        {"hosts": [{"a": [1, "\n"]}, {}], "more": {"ä": ["]", None]}},
        "x",
        [1],
    ],
)
def test_answers_go_in_pieces(answer: object) -> None:
    """However an answer is put together, it is the same JSON."""
    assert json.loads(control._encode(answer)) == answer


def test_parameters_travel_in_the_query(server: ControlServer) -> None:
    """Parameters reach the handler by name, whatever characters they hold."""
    client = ControlClient(server.path.parent)
    assert client.get("/v1/explain", address="2001:db8::5", on="vlan 7&x=ä") == {
        "address": "2001:db8::5",
        "on": "vlan 7&x=ä",
    }


def test_wrong_parameters_are_named(server: ControlServer) -> None:
    """A parameter too few or too many is answered 400, in words, and the handler is not called."""
    client = ControlClient(server.path.parent)
    with pytest.raises(Refused, match="address"):
        client.get("/v1/explain")
    with pytest.raises(Refused, match="colour"):
        client.get("/v1/status", colour="green")


def test_unknown_path_and_wrong_method(server: ControlServer, daemon: Daemon) -> None:
    """An unknown path is 404 and a wrong method 405 with the right one, both as JSON."""
    assert b" 404 " in raw(server, b"GET /v2/status HTTP/1.0\r\n\r\n")
    for method in (b"GET", b"DELETE", b"BREW"):
        answer = raw(server, method + b" /v1/reload HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 405 " in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert b"Allow: POST" in raw(server, b"GET /v1/reload HTTP/1.0\r\n\r\n")
    assert daemon.reloads == 0


def test_a_refusal_reaches_the_user_with_its_exit_code(server: ControlServer) -> None:
    """What the daemon refuses is told to the client in the daemon's words, exit code included."""
    with pytest.raises(Refused, match="stop the other one first") as refused:
        ControlClient(server.path.parent).get("/refuse")
    assert refused.value.exit_code == 64


def test_a_crash_is_500_and_in_the_log(server: ControlServer, caplog: pytest.LogCaptureFixture) -> None:
    """A bug in a handler is logged with its traceback, answered 500, and hurts no later request."""
    client = ControlClient(server.path.parent)
    with caplog.at_level(logging.ERROR), pytest.raises(Refused, match="its log has the details"):
        client.get("/crash")
    assert "kaboom" in caplog.text
    assert "Traceback" in caplog.text
    assert client.get("/v1/status")["healthy"]


def test_the_socket_is_for_owner_and_group(server: ControlServer) -> None:
    """Mode 0660 and nothing for others."""
    mode = server.path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to a group it is not in")
def test_the_socket_is_given_to_the_group(tmp_path: Path) -> None:
    """The group that is named owns the socket, and another one after a change of config, or none."""
    with ControlServer(tmp_path / SOCKET_NAME, {}, gid=7) as server:
        assert server.path.stat().st_gid == 7
        server.set_group(8)
        assert server.path.stat().st_gid == 8
        server.set_group(None)
        assert server.path.stat().st_gid == os.getegid()


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_the_mode_is_the_same_under_any_umask(tmp_path: Path, mask: int) -> None:
    """What the process was started with neither opens nor closes the socket, and is left as it was."""
    before = os.umask(mask)
    try:
        with ControlServer(tmp_path / SOCKET_NAME, {}) as server:
            assert stat.S_IMODE(server.path.stat().st_mode) == 0o660
    finally:
        assert os.umask(before) == mask


def test_links_in_its_place_lead_nowhere(tmp_path: Path) -> None:
    """Whoever puts a link where the socket was does not have the daemon give away what it leads to."""
    victim = tmp_path / "shadow"
    victim.touch(mode=0o600)
    with ControlServer(tmp_path / SOCKET_NAME, {}) as server:
        server.path.unlink()
        server.path.symlink_to(victim)
        server.set_group(7)
        assert victim.stat().st_gid == os.getegid()
        assert stat.S_IMODE(victim.stat().st_mode) == 0o600


def test_group_that_may_not_be_had_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where the socket cannot be given away (a user namespace) the daemon starts all the same."""
    with ControlServer(tmp_path / SOCKET_NAME, {}) as server, caplog.at_level(logging.WARNING):
        server.path.unlink()  # the surest way to make chown fail, as root too
        server.set_group(7)
    assert "cannot give" in caplog.text


def test_a_missing_group_is_no_group() -> None:
    """The group of the default config need not exist."""
    assert control.group_id("no-such-group-at-all") is None
    assert control.group_id("root") == 0


def test_the_file_goes_with_the_server(tmp_path: Path) -> None:
    """After close the socket file is gone, and the runtime dir that was missing has been made."""
    path = tmp_path / "run" / "portier" / SOCKET_NAME
    with ControlServer(path, {}):
        assert path.exists()
    assert not path.exists()


def test_a_dead_daemons_file_is_replaced(tmp_path: Path, daemon: Daemon) -> None:
    """A socket file that nobody listens on is no obstacle."""
    path = tmp_path / SOCKET_NAME
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with ControlServer(path, {("GET", "/v1/status"): daemon.status}):
        assert ControlClient(tmp_path).get("/v1/status")["healthy"]


def test_a_live_daemons_file_is_respected(server: ControlServer) -> None:
    """A second server on the same path is refused, says so, and leaves the first its socket."""
    with pytest.raises(Refused, match="a daemon is running already"):
        ControlServer(server.path, {})
    assert ControlClient(server.path.parent).get("/v1/status")["healthy"]


def test_a_successors_file_is_left_alone(tmp_path: Path, daemon: Daemon) -> None:
    """A server whose file has been replaced does not remove the other's at its end."""
    path = tmp_path / SOCKET_NAME
    first = ControlServer(path, {})
    path.unlink()
    with ControlServer(path, {("GET", "/v1/status"): daemon.status}):
        first.close()
        assert ControlClient(tmp_path).get("/v1/status")["healthy"]


def test_a_file_that_is_no_socket_is_never_removed(tmp_path: Path) -> None:
    """A user's file of that name stays."""
    path = tmp_path / SOCKET_NAME
    path.write_text("precious")
    with pytest.raises(Refused, match="not a socket"):
        ControlServer(path, {})
    assert path.read_text() == "precious"


def test_a_path_too_long_is_told(tmp_path: Path) -> None:
    """The kernel takes 107 bytes of path: more is a sentence, not a traceback."""
    with pytest.raises(Refused, match="--runtime-dir"):
        ControlServer(tmp_path / ("x" * 120) / SOCKET_NAME, {})


def test_no_daemon_is_exit_4(tmp_path: Path) -> None:
    """No socket, or one that nobody listens on, is 'not running' and says how to start one."""
    with pytest.raises(Refused, match="portier run") as missing:
        ControlClient(tmp_path).get("/v1/status")
    assert missing.value.exit_code == 4
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / SOCKET_NAME))
    with pytest.raises(Refused) as refused:
        ControlClient(tmp_path).get("/v1/status")
    assert refused.value.exit_code == 4


def test_a_silent_daemon_is_exit_4(server: ControlServer) -> None:
    """A daemon that does not answer in time is told apart from one that is not there."""
    with pytest.raises(Refused, match="does not answer within") as refused:
        ControlClient(server.path.parent, timeout=0.2).get("/slow")
    assert refused.value.exit_code == 4


def test_a_stranger_on_the_socket_is_told(tmp_path: Path) -> None:
    """What answers but is no Portier makes a sentence, not a traceback."""
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(tmp_path / SOCKET_NAME))
        stranger.listen()

        def answer() -> None:
            for said in (b"220 smtp ready\r\n", b"HTTP/1.0 200 OK\r\n\r\n<html>"):
                peer, _ = stranger.accept()
                with peer:
                    peer.recv(4096)
                    peer.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        for _ in range(2):
            with pytest.raises(Refused):
                ControlClient(tmp_path).get("/v1/status")
        thread.join()


def test_oversized_requests_are_cut_off(server: ControlServer) -> None:
    """A request line or a header without end is ended by the server, which answers the next one."""
    for request in (b"GET /" + b"x" * 200_000, b"GET / HTTP/1.0\r\n" + b"A: b\r\n" * 50_000):
        assert b" 200 " not in raw(server, request)
    assert ControlClient(server.path.parent).get("/v1/status")["healthy"]


def test_random_bytes_never_crash_it(server: ControlServer, caplog: pytest.LogCaptureFixture) -> None:
    """Garbage, and requests with bytes changed, give an HTTP error or silence, and no line in the log."""
    dice = random.Random(4389)
    whole = b"GET /v1/explain?address=%32::1&on=eth0 HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody"
    for round_ in range(300):
        if round_ % 3:
            request = bytearray(whole)
            for _ in range(dice.randrange(1, 6)):
                request[dice.randrange(len(request))] = dice.randrange(256)
        else:
            request = bytearray(dice.randbytes(dice.randrange(0, 400))) + b"\r\n\r\n"
        raw(server, bytes(request))
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert ControlClient(server.path.parent).get("/v1/status")["healthy"]


def test_slow_clients_do_not_keep_others_out(server: ControlServer) -> None:
    """With every place taken by clients that never finish their request, a whole request is answered
    at once, and the number of threads stays bounded."""
    before = threading.active_count()
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            slow = stack.enter_context(connected(server))
            with contextlib.suppress(OSError):
                slow.sendall(b"GET /v1/sta")
            assert threading.active_count() <= before + 2 * control._CONNECTIONS  # some just ending
        assert ControlClient(server.path.parent, timeout=20).get("/v1/status")["healthy"]


def test_a_trickling_request_has_a_deadline(server: ControlServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time for a request is for all of it, so a byte now and then buys no more."""
    monkeypatch.setattr(control, "_REQUEST_SECONDS", 0.3)
    with connected(server) as slow:
        for byte in b"GET /v1/status HTTP/1.0" * 40:
            try:
                slow.sendall(bytes([byte]))
            except (BrokenPipeError, ConnectionResetError):
                break
            time.sleep(0.01)
        else:
            pytest.fail("the server listened for ever")


def test_requests_under_way_are_not_evicted(server: ControlServer, daemon: Daemon) -> None:
    """A reload that takes its time is never cut off by a crowd at the door."""
    answers: list[Any] = []
    waiting = threading.Thread(
        target=lambda: answers.append(ControlClient(server.path.parent, timeout=30).get("/slow"))
    )
    waiting.start()
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(connected(server))
        daemon.gate.set()
        waiting.join(30)
    assert answers == [{"waited": True}]


def test_want_of_threads_costs_one_request(server: ControlServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request for which no thread can be started is hung up on, and the next one is answered."""
    start = threading.Thread.start
    refused: list[str] = []

    def refuse_once(thread: threading.Thread) -> None:
        if thread.name == "control-request" and not refused:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse_once)
    client = ControlClient(server.path.parent)
    with pytest.raises(Refused):
        client.get("/v1/status")
    assert refused
    assert client.get("/v1/status")["healthy"]


def test_close_ends_requests_and_threads(tmp_path: Path, daemon: Daemon) -> None:
    """Close is quick with clients connected, and leaves no thread behind."""
    before = set(threading.enumerate())
    server = ControlServer(tmp_path / SOCKET_NAME, {("GET", "/v1/status"): daemon.status})
    server.start()
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(connected(server))
        server.close()
    assert not set(threading.enumerate()) - before


def ticker(daemon: Daemon) -> Ticker:
    """The stream that was opened last."""
    deadline = time.monotonic() + 20
    while not daemon.tickers:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return daemon.tickers[-1]


def test_stream_goes_on(server: ControlServer, daemon: Daemon) -> None:
    """Objects come as they are said, for longer than any answer may take to come, until the daemon ends."""
    entries = ControlClient(server.path.parent, timeout=0.2).watch("/v1/events")
    said: list[Any] = []
    reader = threading.Thread(target=lambda: said.extend(entries))
    reader.start()
    stream = ticker(daemon)
    stream.say(b'{"number": 1}\n{"number": 2}\n')
    time.sleep(0.5)  # longer than the client waits for an answer
    stream.say(b'{"number": 3}\n')
    deadline = time.monotonic() + 20
    while len(said) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    server.close()
    reader.join(20)
    assert said == [{"number": 1}, {"number": 2}, {"number": 3}]
    assert stream.closed.wait(20)


def test_stream_ends_with_its_client(server: ControlServer, daemon: Daemon) -> None:
    """A watcher that goes is noticed though nothing happens; one that has said all it has to say stays."""
    client = connected(server)
    client.sendall(b"GET /v1/events HTTP/1.0\r\n\r\n")
    client.shutdown(socket.SHUT_WR)
    stream = ticker(daemon)
    stream.say(b"{}\n")
    said = b""
    while not said.endswith(b"\n{}\n"):
        chunk = client.recv(65536)
        assert chunk
        said += chunk
    assert not stream.closed.is_set()
    client.close()
    assert stream.closed.wait(20)


def test_stuck_streams_leave_the_socket_alone(server: ControlServer, daemon: Daemon) -> None:
    """Watchers that take nothing keep nobody from asking, nor the server from ending."""
    clients = []
    for number in range(8):
        clients.append(connected(server))
        clients[-1].sendall(b"GET /v1/events HTTP/1.0\r\n\r\n")
        deadline = time.monotonic() + 20
        while len(daemon.tickers) <= number:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    for stream in daemon.tickers:
        stream._far.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                stream.say(bytes(100_000))
    assert ControlClient(server.path.parent).get("/v1/status")["healthy"]
    begin = time.monotonic()
    server.close()
    assert time.monotonic() - begin < 10
    for client in clients:
        client.close()


def test_refused_stream_says_why(server: ControlServer) -> None:
    """A stream that is not to be is an error like any other."""
    with pytest.raises(Refused, match="not now"):
        ControlClient(server.path.parent).watch("/refuse")
    with pytest.raises(Refused) as none:
        ControlClient(server.path.parent / "none").watch("/v1/events")
    assert none.value.exit_code == 4


def over_tcp(port: int, request: bytes) -> bytes:
    """Everything that is said to a request by TCP."""
    with socket.create_connection(("127.0.0.1", port), 20) as client:
        client.sendall(request)
        said = b""
        while chunk := client.recv(65536):
            said += chunk
        return said


def free_port() -> int:
    """A port that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def test_listener_serves_pages_and_moves() -> None:
    """A page goes out as it is; the listener moves where it is told to, and ends; one whose place is taken
    says so and tries again when told again."""
    listener = Listener({("GET", "/metrics"): lambda: Page("text/plain; version=0.0.4", b"up 1\n")})
    one, two = free_port(), free_port()
    listener.listen(f"127.0.0.1:{one}")
    assert listener.error == ""
    said = over_tcp(one, b"GET /metrics HTTP/1.1\r\n\r\n")
    assert b"Content-Type: text/plain; version=0.0.4\r\n" in said
    assert said.endswith(b"\r\n\r\nup 1\n")
    assert b"404" in over_tcp(one, b"GET /v1/status HTTP/1.1\r\n\r\n")
    with socket.create_server(("127.0.0.1", two)):
        listener.listen(f"127.0.0.1:{two}")
        assert listener.error == "Address already in use"
        with pytest.raises(ConnectionRefusedError):
            over_tcp(one, b"")
    listener.listen(f"127.0.0.1:{two}")
    assert listener.error == ""
    assert b"up 1" in over_tcp(two, b"GET /metrics HTTP/1.1\r\n\r\n")
    listener.listen(None)
    with pytest.raises(ConnectionRefusedError):
        over_tcp(two, b"")


def test_listener_is_bounded() -> None:
    """A hundred connections that say nothing keep nobody from asking."""
    listener = Listener({("GET", "/metrics"): lambda: Page("text/plain", b"up 1\n")})
    port = free_port()
    listener.listen(f"127.0.0.1:{port}")
    idle = [socket.create_connection(("127.0.0.1", port), 20) for _ in range(100)]
    assert b"up 1" in over_tcp(port, b"GET /metrics HTTP/1.1\r\n\r\n")
    assert sum(thread.name == "control-request" for thread in threading.enumerate()) <= 16
    for client in idle:
        client.close()
    listener.close()
