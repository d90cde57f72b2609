"""Several proxies that share what they know through BIRD or FRR, with the configurations of `packaging/`.

Two proxies are connected to a border router by links of their own, so nothing but routing leads from the one
to the other; all hosts believe that 2001:db8:7::/64 and 192.0.2.16/28 are one link.  The border router runs
BIRD, with a configuration of this file.
"""

from __future__ import annotations

import contextlib
import functools
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.netns.lab import ROOT, Host, Lab, Portier, wait_for

BIRD = (ROOT / "packaging/bird/bird.conf").read_text()
FRR = (ROOT / "packaging/frr/frr.conf").read_text()
WORLD, WORLD4 = "2001:db8:aaaa::1", "203.0.113.1"  # on the border router
A, A4 = "2001:db8:7::11", "192.0.2.17"
B, B4 = "2001:db8:7::22", "192.0.2.18"
HOSTS = {
    "a": ("02:00:5e:01:00:0a", f"{A}/64", f"{A4}/28"),
    "b": ("02:00:5e:01:00:0b", f"{B}/64", f"{B4}/28"),
}

BORDER = """
log stderr all;
router id 192.0.2.254;
protocol device { }
protocol kernel { ipv6 { export where source = RTS_BGP; }; }
protocol kernel { ipv4 { export where source = RTS_BGP; }; }
template bgp proxy { connect delay time 1; error wait time 1, 2; }
"""
BORDER_PROXY = """
protocol bgp proxy{n}_6 from proxy {{
    local 2001:db8:ffff:{n}::1 as 4200000000; neighbor 2001:db8:ffff:{n}::2 as 420000000{n};
    ipv6 {{ import all; export all; }};
}}
protocol bgp proxy{n}_4 from proxy {{
    local {router4} as 4200000000; neighbor {own4} as 420000000{n};
    ipv4 {{ import all; export all; }};
}}
"""
# What FRR needs of the machine is put over it, for its processes alone.
FRR_START = """
mount -t tmpfs none /run && mount -t tmpfs -o mode=755 none /etc/frr
mount -t tmpfs none /var/tmp && install -d -o frr -g frrvty /run/frr
cat >/etc/frr/frr.conf && touch /etc/frr/vtysh.conf
/usr/lib/frr/zebra -d -P 0 && /usr/lib/frr/bgpd -d -P 0 && vtysh -b && exec sleep infinity
"""

Start = Callable[[Host, int], None]


def addresses4(number: int) -> tuple[str, str]:
    """The IPv4 addresses on the link between border router and a proxy: the router's and the proxy's."""
    return f"198.51.100.{4 * number - 3}", f"198.51.100.{4 * number - 2}"


def own(text: str, number: int) -> str:
    """A shipped configuration, changed as a user would for one of the proxies."""
    router4, own4 = addresses4(number)
    changes = {
        "192.0.2.1": f"192.0.2.{number}",
        "4200000001": f"420000000{number}",
        "2001:db8:ffff:1": f"2001:db8:ffff:{number}",
        "198.51.100.2": own4,  # FRR finds its own address itself
        "198.51.100.1": router4,
    }
    for old in changes:
        assert old in text or old == "198.51.100.2", old
    return re.sub(
        "|".join(rf"\b{re.escape(old)}\b" for old in changes), lambda match: changes[match[0]], text
    )


def bird(host: Host, text: str) -> Path:
    """Start BIRD; returns its control socket."""
    directory = host.lab.directory / f"bird-{host.name}"
    directory.mkdir()
    config, control = directory / "bird.conf", directory / "ctl"
    config.write_text(text)
    with (directory / "log").open("w") as log:
        program = ["bird", "-f", "-c", str(config), "-s", str(control), "-P", str(directory / "pid")]
        host.popen(program, stdout=log, stderr=log)
    return control


def start_bird(host: Host, number: int) -> None:
    """BIRD on a proxy, as shipped."""
    bird(host, own(BIRD, number))


def start_frr(host: Host, number: int) -> None:
    """FRR on a proxy, as shipped."""
    directory = host.lab.directory / f"frr-{host.name}"
    directory.mkdir()
    config = directory / "frr.conf"
    config.write_text(own(FRR, number))
    command = [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "sh",
        "-ec",
        FRR_START,
    ]
    with (directory / "log").open("w") as log, config.open() as opened:
        host.popen(command, stdin=opened, stdout=log, stderr=log)


def need(start: Start, lab: Lab) -> None:
    """Skip where a routing daemon is missing."""
    missing = [
        tool
        for tool in (
            "/usr/sbin/bird",
            "/usr/sbin/birdc",
            *(["/usr/lib/frr/bgpd"] if start is start_frr else []),
        )
        if not Path(tool).exists()
    ]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if start is start_frr and lab.keeper.unprivileged:
        pytest.skip("FRR wants a user of its own, and there is only one in a user namespace")


@dataclass
class Fabric:
    """The border router, and the proxies with the guests on them."""

    lab: Lab
    border: Host
    proxies: dict[int, Host] = field(default_factory=dict)
    daemons: dict[int, Portier] = field(default_factory=dict)

    def plug(self, host: Host, number: int, port: str, *, switch: Host | None = None) -> None:
        """Connect a host to a port of a proxy, or to the switch behind it, and give it its addresses once
        the port is in use, as a virtual machine has them that comes from elsewhere."""
        proxy = self.proxies[number]
        mac, *addresses = HOSTS[host.name]
        self.lab.link(host, "eth0", switch or proxy, f"to-{host.name}" if switch else port, mac=mac)
        if switch:
            self.lab.plug(switch, "br0", f"to-{host.name}")
        wait_for(lambda: self.daemons[number].ports().get(port) == "active", 10, f"{port} of {proxy.name}")
        host.ip(
            *(f"addr add {address} dev eth0" + (" nodad" if ":" in address else "") for address in addresses),
            f"route add default via {proxy.link_local(port)} dev eth0",
            f"route add default via {addresses4(number)[1]} dev eth0 onlink",
        )

    def leads(self, *addresses: str) -> set[str]:
        """The proxies by which the border router reaches hosts; without those it has no route to."""
        gateways = {addresses4(number)[1]: f"p{number}" for number in self.proxies}
        gateways |= {f"2001:db8:ffff:{number}::2": f"p{number}" for number in self.proxies}
        shown = self.border.ip_json("-6 route show") + self.border.ip_json("-4 route show")
        return {gateways[route["gateway"]] for route in shown if route["dst"] in addresses}


def portier_config(text: str) -> str:
    """The configuration of Portier that stands in the head of a shipped configuration."""
    lines = [line[1:] for line in text.splitlines()]
    begin = next(n for n, line in enumerate(lines) if line.strip() == "version: 1")
    end = next(n for n, line in enumerate(lines) if n > begin and not line.strip())
    return "\n".join(lines[begin:end]) + "\n"


def fabric(lab: Lab, start: Start, text: str, *, switched: bool = False) -> Fabric:
    """Build it, with Portier and a routing daemon on each proxy; returns when the sessions are up.
    ``switched`` makes one link of the proxies' links to the border router."""
    made = Fabric(lab, lab.host("border", forwarding=True))
    made.border.sysctl("net/ipv4/ip_forward", 1)
    made.border.ip(f"addr add {WORLD}/128 dev lo", f"addr add {WORLD4}/32 dev lo")
    config = BORDER
    if switched:
        lab.bridge(made.border, "br0")
    for number in (1, 2):
        proxy = made.proxies[number] = lab.host(f"p{number}")
        lab.link(made.border, f"eth{number}", proxy, "eth0")
        if switched:
            lab.plug(made.border, "br0", f"eth{number}")
        border_port = "br0" if switched else f"eth{number}"
        router4, own4 = addresses4(number)
        made.border.add(border_port, f"2001:db8:ffff:{number}::1/64")
        made.border.ip(f"addr add {router4}/30 dev {border_port}")
        proxy.add("eth0", f"2001:db8:ffff:{number}::2/64")
        proxy.ip(
            f"addr add {own4}/30 dev eth0",
            f"route add default via 2001:db8:ffff:{number}::1",
            f"route add default via {router4}",
        )
        config += BORDER_PROXY.format(n=number, router4=router4, own4=own4)
    control = bird(made.border, config)
    for number, proxy in made.proxies.items():
        start(proxy, number)
        made.daemons[number] = lab.portier(portier_config(text), on=proxy, name=f"portier{number}")

    def sessions() -> int:
        shown = made.border.run(["birdc", "-s", str(control), "show", "protocols"], check=False)
        return shown.stdout.count("Established")

    wait_for(lambda: sessions() == 4, 30, "the sessions of both proxies, for both families", interval=0.1)
    return made


@contextlib.contextmanager
def speaking(host: Host) -> Iterator[None]:
    """Have a host send something beyond its link, by both families, again and again."""
    talkers = [
        host.popen(["ping", "-n", "-i", "0.2", address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for address in (WORLD, WORLD4)
    ]
    try:
        yield
    finally:
        for talker in talkers:
            talker.kill()


def reached(host: Host, *addresses: str) -> float:
    """Wait until data flows to all addresses, and return the seconds that took."""
    begin = time.monotonic()
    for address in addresses:
        ping = functools.partial(host.ping, address, timeout=0.3)
        wait_for(ping, 20, f"{host.name} reaches {address}")
    return time.monotonic() - begin


def leads_nowhere(host: Host, address: str) -> bool:
    """Whether a host has no route to this very address."""
    return not host.ip_json(f"-6 route show {address}")


CASES = [
    pytest.param(start_bird, BIRD, False, id="bird"),
    pytest.param(start_frr, FRR, False, id="frr"),
    pytest.param(start_bird, BIRD, True, id="bird, on one link"),
]


@pytest.mark.parametrize(("start", "text", "switched"), CASES)
def test_a_host_is_reached_wherever_it_is(lab: Lab, start: Start, text: str, switched: bool) -> None:
    """With the shipped configurations: a host that one proxy has learned is reached through the other within
    three seconds, from the border and from a guest that believes it on its own link; it is found again when
    it moves, whether its old port goes with it or not; and nobody leads to it when it is gone."""
    need(start, lab)
    made = fabric(lab, start, text, switched=switched)
    a, b, switch = lab.host("a"), lab.host("b"), lab.host("switch")
    lab.bridge(switch, "br0")
    lab.link(switch, "uplink", made.proxies[1], "tap1")
    lab.plug(switch, "br0", "uplink")
    made.plug(b, 2, "tap1")
    with speaking(b):
        reached(b, WORLD, WORLD4)

    made.plug(a, 1, "tap1", switch=switch)
    with speaking(a):
        took = reached(b, A, A4)
        assert took < 3, "data flows"
        assert reached(made.border, A, A4) < 3
        assert made.leads(A, A4) == {"p1"}

    # Out of the switch: nothing tells the first proxy.  It misses the host when that is silent.
    a.ip("link del eth0")
    made.plug(a, 2, "tap2")
    with speaking(a):
        silent = reached(b, A, A4)
        wait_for(lambda: made.leads(A, A4) == {"p2"}, 10, "the border follows")
        reached(made.border, A, A4)
        wait_for(lambda: A not in made.proxies[1].host_routes(), 10, "the first proxy's route is gone")
        assert made.proxies[2].host_routes()[A] == "tap2"

    # With its port, as a virtual machine does.
    a.ip("link del eth0")
    made.plug(a, 1, "tap2")
    with speaking(a):
        with_port = reached(b, A, A4)
        wait_for(lambda: made.leads(A, A4) == {"p1"}, 10, "the border follows")
        reached(made.border, A, A4)

    begin = time.monotonic()
    a.ip("addr flush dev eth0 scope global")
    wait_for(lambda: not made.leads(A, A4), 10, "the routes are withdrawn")
    gone = time.monotonic() - begin
    print(
        f"comes {took:.2f} s, moves {silent:.2f} s, with its port {with_port:.2f} s, gone after {gone:.2f} s"
    )
    for name in ("p1", "p2"):
        wait_for(functools.partial(leads_nowhere, lab.hosts[name], A), 10, f"no route is left on {name}")
    assert b.ping(WORLD)
