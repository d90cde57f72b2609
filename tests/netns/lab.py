"""A lab of real kernels: every host is a network namespace, every cable a veth pair.

`Keeper` holds the namespaces (as root, or in an unprivileged user namespace), `Lab` builds hosts,
links and bridges in them, `Host` runs commands, pings, injects and captures frames, and `Portier` is
the real daemon as a subprocess.  Nothing here touches the machine's own network or writes outside
of the test's temporary directory, everything is bounded in time, and nothing outlives the test.

Captures have no thread: the frames wait in the socket, with the kernel's time stamps, until somebody
looks.  A capture that lost a frame says so by failing.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import ipaddress
import json
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

ROOT = Path(__file__).resolve().parents[2]
ETH_P_ALL = 3
PACKET_OUTGOING = 4
SOL_PACKET = 263
PACKET_STATISTICS = 6
SO_TIMESTAMPNS = 35
# Of /proc/net/if_inet6: IFA_F_DADFAILED, IFA_F_DEPRECATED and IFA_F_TENTATIVE.
STATES = ((0x08, "dadfailed"), (0x40, "tentative"), (0x20, "deprecated"))
QUIET = ("all/accept_dad", "default/accept_dad", "default/router_solicitations")
TICKS = os.sysconf("SC_CLK_TCK")


class UnavailableError(Exception):
    """No lab can be made on this machine; the text says why."""


def wait_for(condition: Callable[[], Any], timeout: float, what: str, *, interval: float = 0.02) -> Any:
    """Ask until the condition gives something true, and return it; fail after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what} (last: {value!r})")
        time.sleep(interval)


def holds_for(condition: Callable[[], Any], seconds: float, what: str, *, interval: float = 0.05) -> None:
    """Assert that the condition stays true for so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert condition(), what
        time.sleep(interval)


# -- namespaces ------------------------------------------------------------------------------------


class Keeper:
    """The process that holds namespaces; one for a whole test session."""

    def __init__(self, *, unprivileged: bool) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(20)
        self.unprivileged = unprivileged
        self._control = ours
        self._stderr = ""
        program = [
            sys.executable,
            "-I",
            "-S",
            str(Path(__file__).with_name("keeper.py")),
            str(theirs.fileno()),
        ]
        if unprivileged:
            program = ["unshare", "--user", "--map-root-user", "--", *program]
        with theirs:
            self._process = subprocess.Popen(
                program,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        try:
            self._reply()
        except (UnavailableError, OSError) as error:
            self.close()
            raise UnavailableError(f"no keeper process: {self._stderr.strip() or error}") from error

    @classmethod
    def start(cls) -> Self:
        """Start as root where that works, else in a user namespace; `UnavailableError` where neither does.

        ``PORTIER_LAB=root`` or ``=user`` in the environment forces one.
        """
        missing = [
            tool for tool in ("ip", "nsenter", "unshare", "setpriv", "ping") if shutil.which(tool) is None
        ]
        if missing:
            raise UnavailableError(f"not installed: {', '.join(missing)}")
        wish = os.environ.get("PORTIER_LAB")
        ways = {"root": [False], "user": [True]}.get(
            wish or "", [False, True] if os.geteuid() == 0 else [True]
        )
        reasons = []
        for unprivileged in ways:
            keeper = None
            try:
                keeper = cls(unprivileged=unprivileged)
                pid = keeper.hold()
                proof = [*keeper.enter(pid), "ip", "addr", "add", "::2", "dev", "lo"]
                subprocess.run(proof, check=True, capture_output=True, text=True, timeout=20)
                keeper.drop(pid)
            except (UnavailableError, OSError, subprocess.SubprocessError) as error:
                reasons.append(f"{'user namespace' if unprivileged else 'root'}: {error}")
                if keeper is not None:
                    keeper.close()
            else:
                return keeper
        raise UnavailableError("; ".join(reasons))

    def _reply(self) -> tuple[dict[str, Any], list[int]]:
        data, descriptors, _, _ = socket.recv_fds(self._control, 65536, 1)
        if not data:
            raise UnavailableError("the keeper of the namespaces is gone")
        reply = json.loads(data)
        if "error" in reply:
            raise UnavailableError(reply["error"])
        return reply, descriptors

    def _ask(self, **request: Any) -> tuple[dict[str, Any], list[int]]:
        self._control.send(json.dumps(request).encode())
        return self._reply()

    def hold(self) -> int:
        """Make a network namespace; returns the process id of its holder."""
        return int(self._ask(do="hold")[0]["pid"])

    def drop(self, pid: int) -> None:
        """Let a namespace go."""
        self._ask(do="drop", pid=pid)

    def packet_socket(self, pid: int, interface: str, protocol: int) -> socket.socket:
        """Give an AF_PACKET socket bound to an interface of that namespace; ``protocol`` in host order."""
        _, descriptors = self._ask(do="packet", pid=pid, interface=interface, protocol=protocol)
        return socket.socket(fileno=descriptors[0])

    def enter(self, pid: int) -> list[str]:
        """Give the command prefix that runs a program there, and takes it down with us."""
        user = ["--user", "--preserve-credentials"] if self.unprivileged else []
        return ["nsenter", "-t", str(pid), *user, "--net", "--", "setpriv", "--pdeathsig", "KILL", "--"]

    def close(self) -> None:
        """End the process, and with it every namespace."""
        self._control.close()
        try:
            _, self._stderr = self._process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            _, self._stderr = self._process.communicate(timeout=5)


# -- frames ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Frame:
    """One captured frame.  ``time`` is the kernel's stamp (seconds, CLOCK_REALTIME); ``outgoing`` is
    seen from the host whose interface was captured."""

    time: float
    outgoing: bool
    raw: bytes

    @property
    def packet(self) -> Packet:
        """The frame as scapy reads it."""
        return Ether(self.raw)

    @property
    def nd_type(self) -> int | None:
        """The ICMPv6 type of a plain ND message (133 to 137), or None."""
        raw = self.raw
        if len(raw) < 55 or raw[12:14] != b"\x86\xdd" or raw[20] != 58 or not 133 <= raw[54] <= 137:
            return None
        return raw[54]

    @property
    def nd_target(self) -> str | None:
        """The target of a solicitation or advertisement, as text."""
        if self.nd_type not in (135, 136) or len(self.raw) < 78:
            return None
        return str(ipaddress.IPv6Address(self.raw[62:78]))

    @property
    def source(self) -> str:
        """The IPv6 source, as text."""
        return str(ipaddress.IPv6Address(self.raw[22:38]))


class Capture:
    """All frames of an interface, both directions, from now on."""

    def __init__(self, opened: socket.socket) -> None:
        opened.setblocking(False)
        self._socket = opened
        self._frames: list[Frame] = []

    def _drain(self) -> None:
        while True:
            try:
                data, extra, _, address = self._socket.recvmsg(65536, 128)
            except BlockingIOError:
                break
            except OSError:  # the interface went down or away; what came before counts
                continue
            stamp = 0.0
            for level, kind, value in extra:
                if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
                    seconds, nanoseconds = struct.unpack("qq", value[:16])
                    stamp = seconds + nanoseconds / 1e9
            self._frames.append(Frame(stamp, address[2] == PACKET_OUTGOING, data))
        _, lost = struct.unpack("II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        assert lost == 0, f"the capture lost {lost} frames"

    def frames(self) -> list[Frame]:
        """Everything captured so far, in order."""
        self._drain()
        return list(self._frames)

    def nd(
        self, kind: int | None = None, target: str | None = None, *, outgoing: bool | None = None
    ) -> list[Frame]:
        """The ND messages so far, of one ICMPv6 type, about one target, of one direction."""
        wanted = None if target is None else str(ipaddress.IPv6Address(target))
        return [
            frame
            for frame in self.frames()
            if frame.nd_type is not None
            and (kind is None or frame.nd_type == kind)
            and (wanted is None or frame.nd_target == wanted)
            and (outgoing is None or frame.outgoing == outgoing)
        ]

    def solicitations(self, target: str | None = None, *, outgoing: bool | None = None) -> list[Frame]:
        """Neighbor Solicitations so far."""
        return self.nd(135, target, outgoing=outgoing)

    def advertisements(self, target: str | None = None, *, outgoing: bool | None = None) -> list[Frame]:
        """Neighbor Advertisements so far."""
        return self.nd(136, target, outgoing=outgoing)

    def wait(self, find: Callable[[], Sequence[Frame]], timeout: float, what: str) -> Frame:
        """Wait until ``find`` gives a frame, and return the first."""
        deadline = time.monotonic() + timeout
        while not (found := find()):
            left = deadline - time.monotonic()
            if left <= 0:
                seen = "\n".join(f"  {f.time:.3f} {'out' if f.outgoing else 'in '} {f.packet.summary()}"
                                 for f in self._frames[-20:])  # fmt: skip
                raise AssertionError(f"no frame within {timeout} s: {what}; the last seen:\n{seen}")
            select.select([self._socket], [], [], min(left, 0.2))
        return found[0]

    def wait_advertisement(self, target: str, timeout: float = 5.0, *, outgoing: bool | None = None) -> Frame:
        """Wait for a Neighbor Advertisement of that target."""
        return self.wait(
            lambda: self.advertisements(target, outgoing=outgoing), timeout, f"advertisement of {target}"
        )

    def wait_solicitation(self, target: str, timeout: float = 5.0, *, outgoing: bool | None = None) -> Frame:
        """Wait for a Neighbor Solicitation for that target."""
        return self.wait(
            lambda: self.solicitations(target, outgoing=outgoing), timeout, f"solicitation for {target}"
        )

    def clear(self) -> None:
        """Forget what was captured."""
        self._drain()
        self._frames.clear()

    def close(self) -> None:
        """Stop capturing."""
        self._socket.close()


# -- hosts -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ping:
    """What came of a ping.  ``first`` and ``elapsed`` are seconds: until the first reply (infinite when
    there was none), counted from the start of the program, and until its end; ``replies`` maps
    sequence numbers to round-trip times in seconds."""

    sent: int
    received: int
    first: float
    elapsed: float
    replies: dict[int, float]
    output: str

    def __bool__(self) -> bool:
        """Say whether every request was answered."""
        return self.sent > 0 and self.received == self.sent


class Pinging:
    """A ping that runs until it is stopped."""

    def __init__(self, process: subprocess.Popen[str], interval: float) -> None:
        self._process = process
        self._interval = interval

    def stop(self) -> tuple[int, float]:
        """Stop; returns (replies, the longest time without one in seconds, from request to request)."""
        self._process.send_signal(signal.SIGINT)
        output, _ = self._process.communicate(timeout=10)
        sequences = [int(number) for number in re.findall(r"icmp_seq=(\d+) ttl", output)]
        sent = int(match[1]) if (match := re.search(r"(\d+) packets transmitted", output)) else 0
        gap, last = 0, 0
        for sequence in [*sorted(set(sequences)), sent]:  # the last may still have been under way
            gap, last = max(gap, sequence - last), sequence
        return len(set(sequences)), gap * self._interval


class Host:
    """One network namespace."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = name
        self.pid = lab.keeper.hold()
        self._injectors: dict[str, socket.socket] = {}
        self._captures: list[Capture] = []
        self._macs: dict[str, str] = {}
        # Infrastructure comes up at once: no DAD unless a test asks for it, no Router Solicitations.
        script = "".join(f"echo 0 > /proc/sys/net/ipv6/conf/{name}; " for name in QUIET)
        self.run(["sh", "-ec", f"{script} ip link set lo up"])

    def __repr__(self) -> str:
        return f"Host({self.name})"

    # programs

    def command(self, args: Sequence[str]) -> list[str]:
        """The command line that runs ``args`` on this host."""
        return [*self.lab.keeper.enter(self.pid), *args]

    def run(
        self, args: Sequence[str], *, check: bool = True, timeout: float = 30.0, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, and return it with its output; a failure fails."""
        done = subprocess.run(
            self.command(args),
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout,
            input=stdin,
            cwd=ROOT,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"{self.name}: {' '.join(args)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def popen(self, args: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a program that is killed with the lab at the latest."""
        process: subprocess.Popen[str] = subprocess.Popen(
            self.command(args), stdin=options.pop("stdin", subprocess.DEVNULL), text=True, cwd=ROOT, **options
        )
        self.lab.processes.append(process)
        return process

    def ip(self, *commands: str) -> None:
        """Run ``ip`` commands (without the word ``ip``), all in one go; all of them must succeed."""
        if any("link" in command for command in commands):
            self._macs.clear()
        if len(commands) == 1:
            self.run(["ip", *commands[0].split()])
        else:
            self.run(["ip", "-batch", "-"], stdin="\n".join(commands) + "\n")

    def ip_json(self, command: str) -> list[dict[str, Any]]:
        """Run an ``ip`` command that shows something, and give what it shows."""
        output = self.run(["ip", "-json", *command.split()]).stdout
        shown: list[dict[str, Any]] = json.loads(output) if output.strip() else []
        return [entry for entry in shown if entry]

    def sysctl(self, path: str, value: int | str | None = None) -> str:
        """Read, or first write, a sysctl by its path below /proc/sys (slashes)."""
        file = f"/proc/sys/{path}"
        script = 'cat "$0"' if value is None else 'printf %s "$1" > "$0" && cat "$0"'
        return self.run(["sh", "-c", script, file, str(value)]).stdout.strip()

    def sysctls(self) -> dict[str, str]:
        """Every sysctl of this namespace below net/ipv6 and net/ipv4 that can be read."""
        output = self.run(["sh", "-c", "grep -rs ^ /proc/sys/net/ipv6 /proc/sys/net/ipv4 || true"]).stdout
        return dict(line.split(":", 1) for line in output.splitlines() if ":" in line)

    # links and addresses

    def mac(self, interface: str) -> str:
        """The link-layer address of an interface, as text; remembered until a link is changed here."""
        if interface not in self._macs:
            self._macs[interface] = str(self.ip_json(f"link show dev {interface}")[0]["address"])
        return self._macs[interface]

    def index(self, interface: str) -> int:
        """The kernel's index of an interface."""
        return int(self.ip_json(f"link show dev {interface}")[0]["ifindex"])

    def addresses(self, interface: str) -> dict[str, str]:
        """The IPv6 addresses of an interface and the state of each: ``valid``, or one of `STATES`."""
        found = {}
        for line in Path(f"/proc/{self.pid}/net/if_inet6").read_text().splitlines():
            address, _, _, _, flags, name = line.split()
            if name == interface:
                state = next((state for flag, state in STATES if int(flags, 16) & flag), "valid")
                found[str(ipaddress.IPv6Address(bytes.fromhex(address)))] = state
        return found

    def link_local(self, interface: str) -> str:
        """The link-local address of an interface, as soon as it has one that it may use."""

        def usable() -> str | None:
            addresses = self.addresses(interface).items()
            return next((a for a, state in addresses if a.startswith("fe80:") and state == "valid"), None)

        return str(wait_for(usable, 30, f"link-local address on {self.name}/{interface}"))

    def address_state(self, interface: str, address: str) -> str:
        """``valid``, ``tentative``, ``dadfailed``, ``deprecated`` or ``absent``."""
        return self.addresses(interface).get(str(ipaddress.IPv6Address(address)), "absent")

    def carrier(self, interface: str) -> bool:
        """Whether the interface can send: administratively up, and so is the other end."""
        return bool(self.ip_json(f"link show dev {interface}")[0]["operstate"] == "UP")

    def add(self, interface: str, address: str, *, dad: bool = False) -> None:
        """Add an address; without DAD unless asked for."""
        self.ip(f"addr add {address} dev {interface}" + ("" if dad else " nodad"))

    def use_dad(self, interface: str, *, transmits: int = 1) -> None:
        """Let addresses added from now on take the way of RFC 4862, without its random delay."""
        self.sysctl(f"net/ipv6/conf/{interface}/accept_dad", 1)
        self.sysctl(f"net/ipv6/conf/{interface}/dad_transmits", transmits)
        self.sysctl(f"net/ipv6/conf/{interface}/router_solicitation_delay", 0)

    def routes(self, match: str = "") -> list[dict[str, Any]]:
        """IPv6 routes of all tables that match, such as ``proto 135``."""
        return self.ip_json(f"-6 route show table all {match}")

    def host_routes(self) -> dict[str, str]:
        """Portier's host routes in the main table: address to interface."""
        return {route["dst"]: route["dev"] for route in self.ip_json("-6 route show proto 135")}

    def host_routes4(self) -> dict[str, str]:
        """The same for IPv4."""
        return {route["dst"]: route["dev"] for route in self.ip_json("-4 route show proto 135")}

    def rules(self) -> list[dict[str, Any]]:
        """IPv6 policy rules."""
        return self.ip_json("-6 rule show")

    # traffic

    def ping(
        self,
        address: str,
        count: int = 1,
        timeout: float = 5.0,
        *,
        interval: float = 0.2,
        source: str | None = None,
    ) -> Ping:
        """Ping; every request may take ``timeout`` seconds.  Never fails by itself."""
        args = ["ping", "-n", "-c", str(count), "-i", str(interval), "-W", str(timeout)]
        args += ["-I", source] if source else []
        begin = time.monotonic()
        process = self.popen([*args, address], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert process.stdout is not None
        first, lines = float("inf"), []
        for line in process.stdout:  # ends with the program, which -c and -W bound
            if " bytes from " in line and first == float("inf"):
                first = time.monotonic() - begin
            lines.append(line)
        process.wait(timeout + 10)
        process.stdout.close()
        output = "".join(lines)
        replies = {
            int(n): float(ms) / 1000 for n, ms in re.findall(r"icmp_seq=(\d+) ttl=\d+ time=([\d.]+)", output)
        }
        return Ping(count, len(replies), first, time.monotonic() - begin, replies, output)

    def pinging(self, address: str, interval: float = 0.05) -> Pinging:
        """Ping until `Pinging.stop`, for a minute at most."""
        args = ["ping", "-n", "-i", str(interval), "-w", "60", address]
        return Pinging(self.popen(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT), interval)

    def capture(self, interface: str) -> Capture:
        """Capture all frames of an interface from now on, both directions."""
        capture = Capture(self.lab.keeper.packet_socket(self.pid, interface, ETH_P_ALL))
        self._captures.append(capture)
        return capture

    def inject(self, interface: str, frame: Packet | bytes) -> None:
        """Send one frame as it is."""
        if interface not in self._injectors:
            self._injectors[interface] = self.lab.keeper.packet_socket(self.pid, interface, 0)
        self._injectors[interface].send(bytes(frame))

    def close(self) -> None:
        """Let the namespace go."""
        for capture in self._captures:
            capture.close()
        for opened in self._injectors.values():
            opened.close()
        with contextlib.suppress(UnavailableError, OSError):
            self.lab.keeper.drop(self.pid)


class Lab:
    """The hosts, links and daemons of one test."""

    def __init__(self, keeper: Keeper, directory: Path) -> None:
        self.keeper = keeper
        self.directory = directory
        self.hosts: dict[str, Host] = {}
        self.processes: list[subprocess.Popen[str]] = []
        self.portiers: list[Portier] = []
        self._macs = 0
        self._index = 10

    def host(self, name: str, *, forwarding: bool = False) -> Host:
        """Make a host; ``forwarding`` makes it a router for IPv6."""
        host = self.hosts[name] = Host(self, name)
        if forwarding:
            host.sysctl("net/ipv6/conf/all/forwarding", 1)
        return host

    def new_mac(self) -> str:
        """A link-layer address that nobody in this lab has yet."""
        self._macs += 1
        return f"02:00:5e:00:{self._macs >> 8:02x}:{self._macs & 0xFF:02x}"

    def link(
        self, one: Host, one_name: str, other: Host, other_name: str, *,
        mac: str | None = None, other_mac: str | None = None, up: bool = True,
    ) -> None:  # fmt: skip
        """Lay a cable between two hosts; ``mac`` is that of the first end."""
        # Two ends with one index, as they come by themselves in fresh namespaces, are told of their carrier
        # up to a second late: the kernel takes them for a link that is its own peer.
        self._index += 2
        add = (
            f"link add {one_name} index {self._index} address {mac or self.new_mac()} netns {one.pid} "
            f"type veth peer name {other_name} index {self._index + 1} address {other_mac or self.new_mac()} "
            f"netns {other.pid}"
        )
        if not up:
            one.ip(add)
            return
        one.ip(add, f"link set {one_name} up")
        other.ip(f"link set {other_name} up")
        one.link_local(one_name)
        other.link_local(other_name)

    def bridge(self, host: Host, name: str, *, snooping: bool = False) -> None:
        """Make a bridge that forwards at once."""
        host.ip(
            f"link add {name} address {self.new_mac()} type bridge stp_state 0 forward_delay 0 "
            f"mcast_snooping {int(snooping)}",
            f"link set {name} up",
        )

    def plug(self, host: Host, bridge: str, port: str) -> None:
        """Make an interface a port of a bridge."""
        host.ip(f"link set {port} master {bridge}", f"link set {port} up")

    def portier(
        self, config: str, *, on: Host, name: str = "portier", wait: bool = True, crashing: str = ""
    ) -> Portier:
        """Start the daemon on a host with this configuration, and wait until it is ready.

        ``crashing`` is Python that runs in it first, to make it crash; its tracebacks are no failure then.
        """
        daemon = Portier(self, on, self.directory / name, config, crashing)
        self.portiers.append(daemon)
        daemon.start(wait=wait)
        return daemon

    def close(self) -> list[str]:
        """Stop and remove everything; returns what was wrong on the way."""
        problems = []
        for daemon in self.portiers:
            problems += daemon.finish()
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            for stream in (process.stdout, process.stderr, process.stdin):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
        for host in self.hosts.values():
            host.close()
        return problems


# -- the daemon ------------------------------------------------------------------------------------


class UnixConnection(http.client.HTTPConnection):
    """HTTP over the control socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = str(path)

    def connect(self) -> None:
        """Connect to the socket instead of a port."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Portier:
    """The daemon under test, as a subprocess on one host.  ``within`` is a program that becomes the daemon by
    exec, as container engines do."""

    within: Sequence[str] = ()

    def __init__(self, lab: Lab, host: Host, directory: Path, config: str, crashing: str = "") -> None:
        directory.mkdir(parents=True)
        self.lab = lab
        self.host = host
        self.config = directory / "portier.yaml"
        self.runtime = directory / "run"
        self.log = directory / "log"
        self.config.write_text(config)
        self._crashing = crashing
        self._process: subprocess.Popen[str] | None = None
        self._wants_clean_exit = False
        self._checked = 0

    # life

    def start(self, *, wait: bool = True) -> None:
        """Start (again); with ``wait`` until it has done its first round."""
        program = ["-m", "portier"]
        if self._crashing:
            program = ["-c", f"{self._crashing}\nimport sys, portier.cli\nsys.exit(portier.cli.main())"]
        with self.log.open("a") as log:
            self._process = self.host.popen(
                [*self.within, sys.executable, *program, "run", *self._where()],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._wants_clean_exit = True
        if wait:
            self.wait_ready()

    def _where(self) -> list[str]:
        return ["-c", str(self.config), "--runtime-dir", str(self.runtime)]

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def wait_ready(self, timeout: float = 20.0) -> None:
        """Wait until the control socket answers and the first reconcile round is through."""

        def ready() -> bool:
            assert self.running, f"the daemon ended by itself:\n{self.tail()}"
            try:
                return bool(self.status()["reconcile"]["rounds"])
            except (OSError, http.client.HTTPException):
                return False

        wait_for(ready, timeout, f"daemon ready; log:\n{self.tail()}")

    def stop(self) -> int:
        """SIGTERM; returns the exit code.  Stopping is given 15 seconds."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
            raise AssertionError(f"SIGTERM did not end the daemon:\n{self.tail()}") from None

    def kill9(self) -> None:
        """SIGKILL: no chance to clean up."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(5)
        self._wants_clean_exit = False

    def signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def finish(self) -> list[str]:
        """End of the test: stop if it runs still; returns what is wrong with how it went."""
        problems = []
        if self._process is not None and self._process.poll() is None:
            try:
                code = self.stop()
            except AssertionError as error:
                problems.append(str(error))
            else:
                if code != 0:
                    problems.append(f"the daemon on {self.host.name} ended with exit code {code}")
        elif self._wants_clean_exit and self._process is not None and self._process.returncode not in (0, 78):
            problems.append(f"the daemon on {self.host.name} ended by itself: {self._process.returncode}")
        text = self.log.read_text() if self.log.exists() else ""
        if "Traceback" in text and not self._crashing:
            problems.append(f"a traceback in the log:\n{text[text.index('Traceback') :][:3000]}")
        return problems

    def tail(self, lines: int = 60) -> str:
        """Give the end of the log."""
        return "\n".join(self.log.read_text().splitlines()[-lines:]) if self.log.exists() else ""

    # talk

    def request(self, method: str, path: str, timeout: float = 20.0) -> Any:
        """One request to the control socket; the JSON that it gives."""
        connection = UnixConnection(self.runtime / "control.sock", timeout)
        try:
            connection.request(method, path)
            body = connection.getresponse().read()
        finally:
            connection.close()
        return json.loads(body)

    def status(self) -> dict[str, Any]:
        """`portier status --json`, without the detour."""
        status: dict[str, Any] = self.request("GET", "/v1/status")
        return status

    def group(self, name: str | None = None) -> dict[str, Any]:
        """One group of the status: the named one, or the only one; an empty one until it is there."""
        groups: list[dict[str, Any]] = self.status()["groups"]
        empty: dict[str, Any] = {"name": name, "ports": [], "live": [], "counters": {}, "rules": 0}
        return next((group for group in groups if name is None or group["name"] == name), empty)

    def ports(self, group: str | None = None) -> dict[str, str]:
        """Interface to state, in one group."""
        return {port["name"]: port["state"] for port in self.group(group)["ports"]}

    def wait_ports(self, *names: str, group: str | None = None, timeout: float = 10.0) -> None:
        """Wait until exactly these interfaces are active in the group."""

        def active() -> bool:
            found = {name for name, state in self.ports(group).items() if state == "active"}
            return found == set(names)

        try:
            wait_for(active, timeout, f"ports {names} active")
        except AssertionError as error:
            raise AssertionError(f"{error}; ports: {self.group(group)['ports']}") from None

    def counters(self, group: str | None = None) -> dict[str, int]:
        """Verdicts counted, summed over the ports of a group."""
        total: dict[str, int] = {}
        for verdicts in self.group(group)["counters"].values():
            for verdict, number in verdicts.items():
                total[verdict] = total.get(verdict, 0) + number
        return total

    def count(self, verdict: str, group: str | None = None) -> int:
        """One verdict's count, summed over the ports."""
        return self.counters(group).get(verdict, 0)

    def neighbors(self) -> dict[str, dict[str, Any]]:
        """The hosts known, by address."""
        answer = self.request("GET", "/v1/neighbors")
        return {entry["address"]: entry for entry in answer["neighbors"]}

    def events(self) -> list[str]:
        """The last events, as sentences."""
        return [f"{event['kind']}: {event['text']}" for event in self.status()["events"]]

    def wait_event(self, *words: str, timeout: float = 5.0) -> str:
        """Wait for an event whose text has all of these words."""

        def found() -> str | None:
            return next((e for e in self.events() if all(word.lower() in e.lower() for word in words)), None)

        try:
            return str(wait_for(found, timeout, f"an event with {words}"))
        except AssertionError as error:
            raise AssertionError(f"{error}; events: {self.events()}") from None

    def cli(self, *args: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        """Run another command of the program against this daemon's files, on its host."""
        return self.host.run(
            [sys.executable, "-m", "portier", args[0], *self._where(), *args[1:]], check=check, timeout=60
        )

    def reload(self) -> subprocess.CompletedProcess[str]:
        """`portier reload`."""
        return self.cli("reload")

    def explain(self, address: str, on: str | None = None) -> subprocess.CompletedProcess[str]:
        """`portier explain`."""
        return self.cli("explain", address, *(["--on", on] if on else []))

    def write(self, config: str) -> None:
        """Save the config as editors do: a temporary file, renamed over the old one."""
        temporary = self.config.with_name(".portier.yaml.new")
        temporary.write_text(config)
        temporary.rename(self.config)

    def generation(self) -> int:
        """The number of configurations taken so far."""
        return int(self.status()["config"]["generation"])

    # cost

    def cpu_seconds(self) -> float:
        """CPU time spent so far, user and system, by the process and its waited-for children."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(int(field) for field in fields[11:15]) / TICKS

    def fds(self) -> int:
        """Open descriptors."""
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())

    def threads(self) -> int:
        """Threads of the process."""
        return sum(1 for _ in Path(f"/proc/{self.pid}/task").iterdir())


# -- solicitations by hand -------------------------------------------------------------------------


def solicited_node(address: str) -> str:
    """The solicited-node multicast group of an address (RFC 4291 section 2.7.1)."""
    low = int(ipaddress.IPv6Address(address)) & 0xFFFFFF
    return str(ipaddress.IPv6Address(int(ipaddress.IPv6Address("ff02::1:ff00:0")) | low))


def multicast_mac(group: str) -> str:
    """The Ethernet group of an IPv6 multicast address (RFC 2464 section 7)."""
    return "33:33:" + ":".join(f"{octet:02x}" for octet in ipaddress.IPv6Address(group).packed[12:])


@functools.cache
def eui64(mac: str) -> str:
    """The link-local address that the kernel makes of a link-layer address (RFC 4291 appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    interface = bytes([octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]])
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + interface))


def checksum_is_right(frame: bytes) -> bool:
    """Whether the ICMPv6 checksum of an Ethernet frame is right, computed independently of the daemon."""
    length = struct.unpack("!H", frame[18:20])[0]
    message = frame[54 : 54 + length]
    pseudo = frame[22:54] + struct.pack("!IxxxB", length, 58) + message + b"\0" * (length % 2)
    total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return bool(total == 0xFFFF)


def options_of(frame: bytes) -> list[tuple[int, bytes]]:
    """The options of a Neighbor Solicitation or Advertisement: (type, content)."""
    end = 54 + struct.unpack("!H", frame[18:20])[0]
    at, options = 78, []
    while at < end:
        length = frame[at + 1] * 8
        assert length, "an option of length zero"
        assert at + length <= end, "an option runs past the end"
        options.append((frame[at], frame[at + 2 : at + length]))
        at += length
    return options


def ipv6_of(frame: Frame) -> Packet:
    """The IPv6 packet in a frame."""
    return frame.packet[IPv6]


def collect(captures: Sequence[Capture]) -> Iterator[Frame]:
    """All frames of several captures, in order of time."""
    yield from sorted(
        (frame for capture in captures for frame in capture.frames()), key=lambda frame: frame.time
    )
