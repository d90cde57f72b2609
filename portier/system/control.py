"""The control socket: HTTP with JSON over a Unix socket, both ends of it.

`ControlServer` carries requests to the handlers that the daemon gives it and decides nothing itself.
Whoever may open the socket may still be slow, broken or hostile, so everything is bounded: connections,
bytes and seconds of a request, seconds of an answer.  It never polls, and holds the interpreter only for
one item of a long answer at a time, because packet threads share it.  `ControlClient` is what the
command line uses; it turns every failure into a `Refused` that says what to do.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import http.client
import inspect
import io
import json
import logging
import os
import pwd
import select
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, cast, runtime_checkable
from urllib.parse import parse_qsl, urlencode

from portier.errors import PortierError, Refused

SOCKET_NAME = "control.sock"  # in the runtime dir
EXIT_NO_DAEMON = 4
EXIT_NOT_PERMITTED = 77

_CONNECTIONS = 16  # at a time; one more makes the one go that dawdles longest
_BACKLOG = 64
_REQUEST_SECONDS = 5.0  # for all of a request's head, however it trickles in
_REQUEST_BYTES = 16384
_ANSWER_SECONDS = 30.0  # for a client to take the whole answer
_STUCK_SECONDS = 600.0  # for one that watches to take anything

Handler = Callable[..., object]

log = logging.getLogger(__name__)


@runtime_checkable
class Stream(Protocol):
    """An answer without an end, of JSON objects, one a line."""

    def fileno(self) -> int:
        """What is readable when there is something to take."""

    def take(self) -> bytes:
        """What there is now."""

    def close(self) -> None:
        """End: the client has gone."""


class Page(NamedTuple):
    """An answer that is no JSON."""

    content_type: str
    body: bytes


class Server:
    """Serves ``routes``, a mapping of (method, path) to handler, on a socket that listens until `close`.

    A handler is called with the parameters of the query, by name, and returns something JSON can hold, a
    `Page`, or a `Stream`, which is passed on until the client goes, or takes nothing for ten minutes; one
    that does not take them so is answered 400.  A `PortierError` it raises is told to the client (400),
    anything else is logged and answered 500.  Handlers run in threads of their own, several at a time.
    """

    def __init__(
        self, listener: socket.socket, routes: Mapping[tuple[str, str], Handler], name: str = "control"
    ) -> None:
        self.routes = routes
        self._state = threading.Condition()
        self._open: dict[socket.socket, threading.Thread] = {}
        self._reading: dict[socket.socket, None] = {}  # oldest first
        self._closing = False
        self._listener = listener
        self._thread = threading.Thread(target=self._accept, name=name, daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def close(self) -> None:
        """End: no new request, those under way are cut off."""
        with self._state:
            self._closing = True
            self._state.notify_all()
            connections = dict(self._open)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        for connection in connections:
            _cut(connection)
        if self._thread.ident is not None:
            self._thread.join()
        for thread in connections.values():
            thread.join(1.0)
        self._listener.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                with self._state:
                    if self._closing:
                        return
                    log.warning("%s: %s", self._thread.name, error.strerror)
                    self._state.wait(1.0)  # out of descriptors, most likely: others will give some back
                continue
            with self._state:
                if len(self._open) >= _CONNECTIONS and self._reading:
                    _cut(next(iter(self._reading)))
                self._state.wait_for(lambda: self._closing or len(self._open) < _CONNECTIONS)
                if self._closing:
                    connection.close()
                    return
                thread = threading.Thread(
                    target=self._serve, args=(connection,), name="control-request", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError as error:  # no more threads: whoever asked may ask again
                    log.warning("%s: %s", self._thread.name, error)
                    connection.close()
                    continue
                self._open[connection] = thread  # which takes it out again, once it gets the lock
                self._reading[connection] = None

    def _serve(self, connection: socket.socket) -> None:
        try:
            _Request(connection, self)
        except OSError:
            pass  # the client went away, or was sent away
        except Exception:
            log.exception("control socket: a request failed")
        finally:
            with self._state:
                self._reading.pop(connection, None)
                self._open.pop(connection, None)
                self._state.notify_all()
            connection.close()

    def request_read(self, connection: socket.socket) -> None:
        """Note that a request has come in whole: from now on its connection is left to finish."""
        with self._state:
            self._reading.pop(connection, None)


class ControlServer(Server):
    """Serves ``routes`` on the Unix socket ``path``.

    The socket has mode 0660 and belongs to ``gid`` where that is given and may be.  A socket file that a
    dead daemon left is replaced; one that answers raises `Refused`, and so does anything else that
    stands in the way.
    """

    def __init__(self, path: Path, routes: Mapping[tuple[str, str], Handler], gid: int | None = None) -> None:
        super().__init__(_listen(path, gid), routes)
        self.path = path
        self._inode = path.stat().st_ino

    def set_group(self, gid: int | None) -> None:
        """Give the socket to another group, as when the config names another, or with None to our own."""
        _give(self.path, os.getegid() if gid is None else gid)

    def close(self) -> None:
        """End as every server does; the socket file goes if it is still ours."""
        super().close()
        with contextlib.suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()


class Listener:
    """Serves ``routes`` by TCP too, where and as long as it is told to."""

    def __init__(self, routes: Mapping[tuple[str, str], Handler]) -> None:
        self.error = ""  # why it does not listen where it should
        self._routes = routes
        self._server: Server | None = None
        self._where: str | None = None

    def listen(self, where: str | None) -> None:
        """Be on an address and port (``127.0.0.1:9846``, ``[::1]:9846``), or on none; what does not work is
        in ``error``, and tried again when this is called again."""
        if where == self._where and not self.error:
            return
        self.close()
        self._where = where
        if where is None:
            return
        host, _, port = where.rpartition(":")
        family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((host.strip("[]"), int(port)))
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            self.error = error.strerror or str(error)
            return
        self._server = Server(listener, self._routes, "metrics")
        self._server.start()

    def close(self) -> None:
        """Listen nowhere."""
        self.error = ""
        self._where = None
        if self._server is not None:
            self._server.close()
            self._server = None


class _TooLargeError(Exception):
    """A request longer than anything the control socket understands."""


class _Patience(io.RawIOBase):
    """What a client sends, as long as it stays within the bounds on bytes and on time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._deadline = time.monotonic() + _REQUEST_SECONDS
        self._left = _REQUEST_BYTES

    def readable(self) -> bool:
        """Whether one may read: always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Receive into ``buffer``; raises TimeoutError and `_TooLargeError` where the bounds are reached."""
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        if not self._left:
            raise _TooLargeError
        self._connection.settimeout(remaining)
        received = self._connection.recv_into(buffer, min(len(buffer), self._left))
        self._left -= received
        return received


class _Request(BaseHTTPRequestHandler):
    """One request; the connection is closed after it.  Bodies are not read: parameters are in the query."""

    server_version = "portier"
    sys_version = ""
    protocol_version = "HTTP/1.0"

    def __init__(self, connection: socket.socket, control: Server) -> None:
        self._control = control
        # Only this class looks at its server, and it needs no more of it than _control.
        super().__init__(connection, "", cast("Any", control))

    def setup(self) -> None:
        """Read through the bounds."""
        super().setup()
        self.rfile = io.BufferedReader(_Patience(self.connection))

    def handle(self) -> None:
        """Handle the one request."""
        try:
            self.handle_one_request()
        except _TooLargeError:
            self.requestline, self.request_version, self.command = "", "HTTP/1.0", ""
            self._reply(413, {"error": f"the request is longer than {_REQUEST_BYTES} bytes"})

    def _dispatch(self) -> None:
        self._control.request_read(self.connection)
        self.connection.settimeout(_ANSWER_SECONDS)
        path, _, query = self.path.partition("?")
        handler = self._control.routes.get((self.command, path))
        if handler is None:
            others = sorted(method for method, known in self._control.routes if known == path)
            if others:
                self._reply(
                    405, {"error": f"{path} takes {' and '.join(others)}"}, {"Allow": ", ".join(others)}
                )
            else:
                self._reply(404, {"error": f"there is no {path}"})
            return
        parameters = dict(parse_qsl(query, keep_blank_values=True))
        try:
            inspect.signature(handler).bind(**parameters)
        except TypeError as error:
            self._reply(400, {"error": f"{path}: {error}"})
            return
        try:
            answer = handler(**parameters)
        except PortierError as error:
            self._reply(400, {"error": str(error), "exit": getattr(error, "exit_code", 1)})
        except Exception as error:
            log.exception("control socket: %s %s failed", self.command, path)
            self._reply(500, {"error": f"{type(error).__name__} in the daemon: its log has the details"})
        else:
            if isinstance(answer, Stream):
                with contextlib.closing(answer):
                    self._pass_on(answer)
            else:
                self._reply(200, answer)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = _dispatch  # noqa: N815

    def _pass_on(self, stream: Stream) -> None:
        """Send what a stream has whenever it has something."""
        self.connection.settimeout(_STUCK_SECONDS)
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.end_headers()
        poll = select.poll()
        poll.register(self.connection, 0)  # which tells of a hang-up alone
        poll.register(stream, select.POLLIN)
        while all(descriptor == stream.fileno() for descriptor, _ in poll.poll()):
            self.wfile.write(stream.take())

    def _reply(self, code: int, answer: object, headers: Mapping[str, str] | None = None) -> None:
        kind, body = answer if isinstance(answer, Page) else ("application/json", _encode(answer))
        self.connection.settimeout(_ANSWER_SECONDS)
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer an error of the protocol itself as JSON, like every other."""
        del explain
        self._reply(
            405 if code == 501 else code, {"error": message or self.responses.get(code, ("error",))[0]}
        )

    def log_message(self, *_: object) -> None:
        """Requests are not events."""


def _encode(answer: object) -> bytes:
    """``answer`` as JSON.  A list, also one in an object, goes item by item: the encoder keeps the
    interpreter to itself while it works, and 100,000 neighbors at once would take it from the packet threads
    for half a second."""
    if isinstance(answer, dict) and answer:
        members = (json.dumps(name).encode() + b": " + _encode(value) for name, value in answer.items())
        return b"{" + b", ".join(member.rstrip() for member in members) + b"}\n"
    if isinstance(answer, list):
        return b"[" + b",\n".join(json.dumps(item).encode() for item in answer) + b"]\n"
    return json.dumps(answer).encode() + b"\n"


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _listen(path: Path, gid: int | None) -> socket.socket:
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _clear(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # The file that bind makes takes its mode from the socket, less the umask.  A chmod of the path
            # could be led elsewhere by whoever may write to the directory.
            os.fchmod(listener.fileno(), 0o660)
            mask = os.umask(0o007)
            try:
                listener.bind(str(path))
            finally:
                os.umask(mask)
            if gid is not None:
                _give(path, gid)
            listener.listen(_BACKLOG)  # until then nobody can connect
        except OSError:
            listener.close()
            raise
    except OSError as error:
        code = EXIT_NOT_PERMITTED if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS} else 1
        reason = error.strerror or str(error)  # a path that is too long has no errno
        raise Refused(
            f"cannot make the control socket {path}: {reason}; run as root, or name another place "
            "with --runtime-dir",
            code,
        ) from error
    return listener


def _clear(path: Path) -> None:
    """Remove the socket file that a dead daemon left."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise Refused(f"{path} exists and is not a socket: remove it, or name another --runtime-dir")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass  # its backlog is full: alive
    raise Refused(
        f"a daemon is running already: it answers on {path}; stop it first, or use `portier reload`"
    )


def _give(path: Path, gid: int) -> None:
    """Let a group use the socket.  In a user namespace without that group it stays ours alone, and so it does
    where we are not root nor a member."""
    try:
        os.chown(path, -1, gid, follow_symlinks=False)
    except OSError as error:
        hint = f"; make {_user()} a member of it" if error.errno == errno.EPERM and os.geteuid() else ""
        log.warning("cannot give %s to group %d: %s%s", path, gid, error.strerror, hint)


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"user {os.geteuid()}"


def group_id(name: str) -> int | None:
    """The number of the group ``name``, or None where there is no such group."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path
        self._wait = timeout

    def connect(self) -> None:
        """Connect to the socket file instead of to a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Python's own timeout makes connect fail at once where the backlog is full; the kernel's waits.
        seconds, fraction = divmod(self._wait, 1)
        patience = struct.pack("@ll", int(seconds), int(fraction * 1_000_000))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        self.sock.connect(str(self._path))
        self.sock.settimeout(self._wait)


class ControlClient:
    """Asks the daemon behind the control socket in ``runtime_dir``.  ``timeout`` is in seconds.

    Every failure is a `Refused` whose exit code is that of the command: 4 where no daemon answers, 77
    where the socket is not ours to use, and what the daemon said where it refused.
    """

    def __init__(self, runtime_dir: Path, timeout: float = 10.0) -> None:
        self.path = runtime_dir / SOCKET_NAME
        self.timeout = timeout

    def get(self, path: str, **parameters: str) -> Any:
        """Answer of ``GET path``, decoded."""
        return self._request("GET", path, parameters)

    def post(self, path: str, **parameters: str) -> Any:
        """Answer of ``POST path``, decoded."""
        return self._request("POST", path, parameters)

    def watch(self, path: str, **parameters: str) -> Generator[Any, None, None]:
        """What ``GET path`` has to say from now on, object by object, until the daemon ends."""
        connection = _UnixConnection(self.path, self.timeout)
        try:
            with self._failures():
                connection.request("GET", _target(path, parameters))
                opened = connection.sock  # which an answer without an end has for itself, once it has begun
                response = connection.getresponse()
                if response.status != http.HTTPStatus.OK:
                    self._decode(response.status, response.read())
                opened.settimeout(None)
        except BaseException:
            connection.close()
            raise
        return self._entries(response)

    def _entries(self, response: http.client.HTTPResponse) -> Generator[Any, None, None]:
        with response, self._failures():
            while (line := response.readline()).endswith(b"\n"):
                yield self._decode(response.status, line)

    def _request(self, method: str, path: str, parameters: Mapping[str, str]) -> Any:
        with self._failures(), contextlib.closing(_UnixConnection(self.path, self.timeout)) as connection:
            connection.request(method, _target(path, parameters))
            with connection.getresponse() as response:
                status, body = response.status, response.read()
        return self._decode(status, body)

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Turn what goes wrong on the way into what to do about it."""
        try:
            yield
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise Refused(
                f"no daemon answers on {self.path}: start it (`systemctl start portier`, or `portier run`), "
                "or name its --runtime-dir",
                EXIT_NO_DAEMON,
            ) from error
        except PermissionError as error:
            raise Refused(
                f"not permitted to use {self.path}: run as root, or join the group that owns it",
                EXIT_NOT_PERMITTED,
            ) from error
        except (TimeoutError, BlockingIOError) as error:
            raise Refused(
                f"the daemon behind {self.path} does not answer within {self.timeout:g} s: see its log",
                EXIT_NO_DAEMON,
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise Refused(f"the daemon behind {self.path} went away: {error}", EXIT_NO_DAEMON) from error

    def _decode(self, status: int, body: bytes) -> Any:
        try:
            answer = json.loads(body)
        except ValueError as error:
            raise Refused(
                f"{self.path} does not speak Portier's protocol: name another --runtime-dir"
            ) from error
        if status != http.HTTPStatus.OK:
            said = answer if isinstance(answer, dict) else {}
            raise Refused(str(said.get("error", f"status {status}")), int(said.get("exit", 1)))
        return answer


def _target(path: str, parameters: Mapping[str, str]) -> str:
    return f"{path}?{urlencode(parameters)}" if parameters else path
