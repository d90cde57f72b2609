"""The kernel's news wake, what cannot matter does not, and lost news are told."""

from __future__ import annotations

import os
import queue
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from portier.core.model import HostRoute, PolicyRule
from portier.system import monitor as monitor_module
from portier.system.kernel import Kernel
from portier.system.monitor import Monitor
from portier.system.record import Record
from tests.cables import ip, own_namespace

PROMPT = 20.0


class Wakes:
    """Collects the reasons of wakes."""

    def __init__(self) -> None:
        self._queue: queue.Queue[str] = queue.Queue()
        self.gate = threading.Event()
        self.gate.set()
        self.blocked = threading.Event()

    def __call__(self, reason: str) -> None:
        """What the monitor calls; blocks while the gate is closed."""
        if not self.gate.is_set():
            self.blocked.set()
            self.gate.wait(PROMPT)
        self._queue.put(reason)

    def until(self, wanted: str) -> set[str]:
        """Wait for a reason, and return all that came until then."""
        seen = set()
        deadline = time.monotonic() + PROMPT
        while wanted not in seen:
            try:
                seen.add(self._queue.get(timeout=max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                pytest.fail(f"no wake for {wanted}, only for {sorted(seen)}")
        return seen

    def after(self, act: Callable[[], object]) -> set[str]:
        """The reasons of the wakes that an act causes."""
        self._mark()
        act()
        return self._mark() - {"rule"}

    def _mark(self) -> set[str]:
        """Make some news that come after all others: a policy rule of somebody else's."""
        ip("-6 rule add iif mark blackhole priority 7")
        seen = self.until("rule")
        ip("-6 rule delete iif mark blackhole priority 7")
        return seen | self.until("rule")


@pytest.fixture
def wakes() -> Wakes:
    """Where the wakes go."""
    return Wakes()


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    """A link with an address; no duplicate address detection, whose end would be news."""
    with own_namespace(ipv6=True):
        ip("link set lo up")
        for name in ("all", "default"):
            Path(f"/proc/sys/net/ipv6/conf/{name}/accept_dad").write_text("0")
        ip("link add name one type veth peer name peer")
        ip("link set one up")
        ip("link set peer up")
        ip("address add 2001:db8:1::1/64 dev one nodad")
        yield


@pytest.fixture
def monitor(wakes: Wakes) -> Iterator[Monitor]:
    """A monitor that runs."""
    with Monitor(wakes) as monitor:
        yield monitor


@pytest.fixture
def kernel(monitor: Monitor, tmp_path: Path) -> Iterator[Kernel]:
    """A handle that the monitor knows, and a rule on record."""
    with Record(tmp_path) as record, Kernel(record, monitor) as kernel:
        record.note_rule(RULE)
        yield kernel


RULE = PolicyRule(1135, "one", "fe80::/10", "", 135)


@pytest.mark.parametrize(
    ("command", "reasons"),
    [
        ("link add name new type veth peer name other", {"link"}),
        ("link set one mtu 1400", {"link"}),
        ("address add 2001:db8:2::1/64 dev one nodad", {"address", "foreign"}),
        ("-6 route add 2001:db8:3::/64 dev one", {"foreign"}),
        ("-6 route add 2001:db8:3::/64 dev one table 100 protocol bgp", {"foreign"}),
        ("-6 route add 2001:db8:3::/64 via 2001:db8:1::2 dev one protocol static", {"foreign"}),
        ("-6 route add 2001:db8:3::5 dev one protocol static", {"foreign"}),
        ("-6 route add 2001:db8:3::5 dev one protocol bgp", set()),
        ("-6 route add 2001:db8:3::5 dev one metric 4389 protocol 135", {"route"}),
        ("-6 route add unreachable 2001:db8:3::/64", set()),
        ("-6 route add 2001:db8:3::/64 via 2001:db8:1::2 dev one protocol bgp", set()),
        ("-6 route add ::7:0/112 protocol bgp nexthop via 2001:db8:1::2 nexthop via 2001:db8:1::3", set()),
        ("address add 192.0.2.1/24 dev one", {"address", "foreign"}),
    ],
)  # fmt: skip
def test_news(monitor: Monitor, wakes: Wakes, command: str, reasons: set[str]) -> None:
    """Each kind of news has its reason, and what cannot matter has none."""
    assert monitor
    assert wakes.after(lambda: ip(command)) - {"sysctl"} == reasons


def test_forwarding_is_news(monitor: Monitor, wakes: Wakes) -> None:
    """Who switches forwarding off is noticed."""
    assert monitor
    sysctl = Path("/proc/sys/net/ipv6/conf/one/forwarding")
    assert wakes.after(lambda: sysctl.write_text("1")) == {"sysctl"}


def test_own_changes_are_no_news(kernel: Kernel, wakes: Wakes) -> None:
    """What Portier's handles do wakes nobody; what others do to it does."""
    index = kernel.snapshot().links[-1].ifindex
    route = HostRoute(IPv6Address("2001:db8:1::5").packed, index, 254, 4389, 135)

    def change() -> None:
        kernel.add_route(route)
        kernel.remove_route(route)
        kernel.add_rule(RULE)
        kernel.remove_rule(RULE)

    assert wakes.after(change) == set()
    kernel.add_route(route)
    assert wakes.after(lambda: ip("-6 route del 2001:db8:1::5 metric 4389")) == {"route"}


def test_versions_of_makers(monitor: Monitor, wakes: Wakes) -> None:
    """The version of a maker's routes changes with news of them, those of the others do not."""
    wakes.after(lambda: ip("-6 route add 2001:db8:4::/64 dev one protocol static"))
    epoch, before = monitor.route_versions(socket.AF_INET6)
    wakes.after(lambda: ip("-6 route add 2001:db8:3::/64 dev one protocol ra"))
    now, after = monitor.route_versions(socket.AF_INET6)
    assert now == epoch
    changed = {maker for maker in after if after[maker] != before.get(maker)}
    assert changed - {2} == {9}, "2 is the kernel, which may not be done with the link's own routes"


def test_news_between_making_and_starting(wakes: Wakes) -> None:
    """Nothing is lost that happens after a monitor is made."""
    made = Monitor(wakes)
    ip("-6 route add 2001:db8:3::/64 dev one")
    with made:
        wakes.until("foreign")


def test_storm_and_loss(wakes: Wakes, monkeypatch: pytest.MonkeyPatch) -> None:
    """When news come faster than they are read, that is told, everything may have changed, and the monitor
    goes on."""
    monkeypatch.setattr(monitor_module, "_BUFFER", 4096)
    with Monitor(wakes) as monitor:
        epoch, _ = monitor.route_versions(socket.AF_INET6)
        wakes.gate.clear()
        ip("link set one mtu 1450")
        assert wakes.blocked.wait(PROMPT)
        lines = (f"route add 2001:db8:2:{number:x}::/64 dev one" for number in range(500))
        subprocess.run(["ip", "-6", "-batch", "-"], input="\n".join(lines), text=True, check=True, timeout=20)
        wakes.gate.set()
        wakes.until("overflow")
        assert monitor.route_versions(socket.AF_INET6)[0] != epoch
        assert wakes.after(lambda: ip("link set one mtu 1400")) == {"link"}


def test_a_storm_is_few_wakes(monitor: Monitor) -> None:
    """Hundreds of news are a few wakes."""
    counted: list[str] = []
    with Monitor(counted.append):
        begin = time.monotonic()
        lines = (f"route add 2001:db8:2:{number:x}::/64 dev one" for number in range(1000))
        subprocess.run(["ip", "-6", "-batch", "-"], input="\n".join(lines), text=True, check=True, timeout=20)
        while not counted:
            time.sleep(0.01)
        assert len(counted) <= 2 * (2 + (time.monotonic() - begin) / 0.05)
    assert monitor


def test_stop(wakes: Wakes) -> None:
    """Stopping leaves no thread and no descriptor, in the middle of a storm as well."""
    before, files = threading.active_count(), len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with Monitor(wakes):
        lines = (f"route add 2001:db8:2:{number:x}::/64 dev one" for number in range(100))
        subprocess.run(["ip", "-6", "-batch", "-"], input="\n".join(lines), text=True, check=True, timeout=20)
    Monitor(wakes).stop()
    assert threading.active_count() == before
    assert len(os.listdir("/proc/self/fd")) == files  # noqa: PTH208


def test_a_broken_socket_is_replaced(wakes: Wakes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens to the socket, the monitor opens another and says that news were lost."""
    monkeypatch.setattr(monitor_module, "_REOPEN_MS", 10)

    class Broken:
        """A socket that is readable and cannot be read."""

        def __init__(self) -> None:
            self._reading, writing = os.pipe()
            os.write(writing, b"x")
            os.close(writing)

        def fileno(self) -> int:
            """What poll wants."""
            return self._reading

        def recv(self, *_: object) -> bytes:
            """Fail."""
            raise OSError(9, "Bad file descriptor")

        def close(self) -> None:
            """Close it."""
            os.close(self._reading)

    made = Monitor(wakes)
    made._socket.close()
    made._socket = Broken()  # type: ignore[assignment]
    with made:
        wakes.until("overflow")
        assert wakes.after(lambda: ip("link set one mtu 1400")) == {"link"}
