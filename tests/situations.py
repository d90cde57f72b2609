"""The situations of the README, each as a lab: the links that it names, with hosts on them, and the daemon.

The commands that the README shows in a situation are run there as a user types them: those after ``$`` on the
machine with Portier, those after ``NAME$`` on the host of that name.
"""

from __future__ import annotations

import fnmatch
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from portier.config.peers import convert
from tests.netns.lab import ROOT, Host, Keeper, Lab, Portier, wait_for
from tests.netns.test_routing import BIRD, WORLD, fabric, start_bird

NET = "2001:db8:7:"
COMMAND = re.compile(r"^(?:(\w+)\$|\$) (.*)$")


class Site:
    """A rented server: a router in front, which has the /64 on its link, and this machine, `proxy`.

    ``settled`` says whether the hosts have what they need from the network, which takes a while where
    nobody configures them.  ``daemon`` is the one that runs already, if one does, and ``programs`` are what
    commands besides Portier's stand for.
    """

    def __init__(self, lab: Lab, uplink: str) -> None:
        self.lab = lab
        self.uplink = uplink
        self.outside = lab.host("outside", forwarding=True)
        self.proxy = lab.host("proxy")
        lab.link(self.outside, "eth0", self.proxy, uplink)
        self.outside.add("eth0", f"{NET}:1/64")
        self.settled: Callable[[], bool] = lambda: True
        self.daemon: Portier | None = None
        self.programs: dict[str, str] = {}

    def address(self, interface: str) -> None:
        """Give this machine its address and its default route, on the uplink or the bridge that it is in."""
        self.proxy.add(interface, f"{NET}:2/64")
        self.proxy.ip(f"-6 route add default via {NET}:1 dev {interface}")

    def bridge(self, name: str, *links: str) -> None:
        """A bridge with these links in it."""
        self.lab.bridge(self.proxy, name)
        for link in links:
            self.lab.plug(self.proxy, name, link)

    def guest(self, name: str, link: str, address: str, gateway: str) -> Host:
        """A host behind a link of the proxy."""
        host = self.lab.host(name)
        self.lab.link(host, "eth0", self.proxy, link)
        host.add("eth0", address)
        host.ip(f"-6 route add default via {gateway} dev eth0")
        return host


def docker(lab: Lab) -> Site:
    """A network of Docker's with one container; its addresses are a part of the /64."""
    site = Site(lab, "eth0")
    site.address("eth0")
    site.guest("container", "veth1", f"{NET}0:d::2/80", f"{NET}0:d::1")
    site.bridge("br-web", "veth1")
    site.proxy.add("br-web", f"{NET}0:d::1/80")
    return site


def firewalled(lab: Lab) -> Site:
    """The same, with the packet filter that is in the way."""
    site = docker(lab)
    rules = "table ip6 filter { chain FORWARD { type filter hook forward priority filter; policy drop; }; }"
    site.proxy.run(["nft", rules])
    return site


def machines(lab: Lab) -> Site:
    """Proxmox: the uplink in one bridge, a machine in another."""
    site = Site(lab, "enp3s0")
    site.bridge("vmbr0", "enp3s0")
    site.address("vmbr0")
    site.guest("vm", "tap100i0", f"{NET}:10/64", "fe80::1")
    site.bridge("vmbr1", "tap100i0")
    site.proxy.add("vmbr1", "fe80::1/64")
    return site


def hotspot(lab: Lab) -> Site:
    """Somebody's Wi-Fi, whose router advertises a prefix, and a guest that nobody configures."""
    site = Site(lab, "wlan0")
    guest = lab.host("guest")
    guest.sysctl("net/ipv6/conf/default/router_solicitations", 10)
    lab.link(guest, "eth0", site.proxy, "wlan1")
    lab.link(lab.host("cable"), "eth0", site.proxy, "eth0")
    conf = lab.directory / "radvd.conf"
    conf.write_text(
        "interface eth0 { AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4; "
        f"AdvDefaultLifetime 1800; prefix {NET}:/64 {{ }}; }};\n"
    )
    site.outside.popen(["radvd", "-n", "-m", "none", "-C", str(conf), "-p", str(conf.with_suffix(".pid"))])

    def settled() -> bool:
        valid = [address for address, state in guest.addresses("eth0").items() if state == "valid"]
        return len(valid) > 1 and any(route["dst"] == "default" for route in guest.routes())

    site.settled = settled
    return site


def npd6(lab: Lab) -> Site:
    """A server whose whole /64 npd6 answered for, with machines on libvirt's bridge."""
    site = Site(lab, "eth0")
    site.address("eth0")
    site.guest("vm", "vnet0", f"{NET}:10/64", "fe80::1")
    site.bridge("virbr0", "vnet0")
    site.proxy.add("virbr0", "fe80::1/64")
    return site


class Cluster(Site):
    """Two proxies with BIRD behind a border router, as `packaging/bird` has them, and a host behind each."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        made = fabric(lab, start_bird, BIRD)
        self.proxy, self.daemon = made.proxies[1], made.daemons[1]
        self.programs = {"birdc": f"/usr/sbin/birdc -s {lab.directory}/bird-p1/ctl"}
        guests = lab.host("a"), lab.host("b")
        for number, guest in enumerate(guests, 1):
            made.plug(guest, number, "tap1")
        self.settled = lambda: all(guest.ping(WORLD, timeout=0.5) for guest in guests)


# Heading in the README: the lab, and what the user moves over from, if anything.
SITUATIONS: dict[str, tuple[Callable[[Lab], Site], str]] = {
    "A VPS with Docker": (docker, ""),
    "Virtual machines: Proxmox, libvirt": (machines, ""),
    "A hotspot on somebody's Wi-Fi": (hotspot, ""),
    "You have ndppd": (machines, "ndppd"),
    "You have npd6": (npd6, "npd6"),
    "When it does not work": (firewalled, ""),
    "More than one machine": (Cluster, ""),
}


class Player:
    """Runs the commands of one situation."""

    def __init__(self, site: Site, config: str, old: dict[str, str]) -> None:
        self._site = site
        self._etc, programs = site.lab.directory / "etc", site.lab.directory / "bin"
        self._daemon = daemon = site.daemon or site.lab.portier(config, on=site.proxy)
        self._await_ports()
        wait_for(site.settled, 30, "all hosts have their addresses")
        self._etc.mkdir()
        programs.mkdir()
        for name, text in old.items():
            (self._etc / name).write_text(text, encoding="utf-8")
        ours = f"{sys.executable} -m portier"
        where = f"-c {daemon.config} --runtime-dir {daemon.runtime}"
        for name, command in {"portier": ours, **site.programs}.items():
            program = programs / name
            program.write_text(f'#!/bin/sh\nexec {command} "$@" {where if command == ours else ""}\n')
            program.chmod(0o755)
        self._path = f"PATH={programs}:/usr/sbin:/usr/bin:/sbin:/bin COLUMNS=104 PYTHONPATH={ROOT}"

    def _await_ports(self) -> None:
        """Wait until Portier does its work on those links that the configuration names, and are there."""
        (group,) = yaml.safe_load(self._daemon.config.read_text(encoding="utf-8"))["groups"].values()
        named = [
            group["upstream"],
            *([behind] if isinstance(behind := group.get("downstream", []), str) else behind),
        ]
        links = [link["ifname"] for link in self._site.proxy.ip_json("link show")]
        there = {link for link in links for pattern in named if fnmatch.fnmatch(link, pattern)}

        def ready() -> bool:
            ports = {port["name"]: port for port in self._daemon.group()["ports"]}
            states = {
                name: (port["relay"] or {"service": port["state"]})["service"] for name, port in ports.items()
            }
            return all(states.get(name) in {"active", "forwarding"} for name in there)

        wait_for(ready, 30, f"{there} are in service")

    def save(self, config: str) -> None:
        """Make this the configuration, as a user does who saves the file."""
        self._daemon.config.write_text(config, encoding="utf-8")
        self.run("portier reload")
        self._await_ports()

    def run(self, command: str, host: str = "") -> list[str]:
        """What a command prints, as the user of that host would see it."""
        etc = str(self._etc)
        line = command.replace("/etc/portier.yaml", str(self._daemon.config)).replace("/etc/", f"{etc}/")
        on = self._site.lab.hosts[host] if host else self._site.proxy
        done = on.run(["sh", "-c", f"export {self._path}; {{ {line}; }} 2>&1"], check=False, timeout=60)
        said = done.stdout.replace(str(self._daemon.config), "/etc/portier.yaml").replace(f"{etc}/", "/etc/")
        return said.rstrip("\n").split("\n") if said.strip() else []


@contextmanager
def playing(keeper: Keeper, heading: str, config: str, old: str) -> Iterator[Player]:
    """The situation of that heading, with the daemon on ``config``, or on what is imported from ``old``."""
    build, peer = SITUATIONS[heading]
    with tempfile.TemporaryDirectory(prefix="portier-readme-") as directory:
        lab = Lab(keeper, Path(directory))
        try:
            text = convert(peer, old, f"/etc/{peer}.conf").text if peer else config
            yield Player(build(lab), text, {f"{peer}.conf": old} if peer else {})
        finally:
            problems = lab.close()
        assert not problems, problems
