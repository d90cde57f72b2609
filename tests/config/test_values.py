"""What the fields become: defaults that merge, durations, rules, patterns, ports."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv6Network

import pytest

from portier.config import Loaded
from portier.core.model import (
    Advertisement,
    Announce,
    Answer,
    Config,
    Group,
    HostPattern,
    Limits,
    Live,
    LoopProtection,
    RouterAdvertisements,
    Routes,
    Rule,
    Source,
    Switch,
    Sysctls,
    Timers,
)

Loads = Callable[..., Loaded]


def test_nothing_given(loads: Loads) -> None:
    """A group that says nothing has the model's defaults."""
    config = loads("version: 1\ngroups: {g: {}}").config
    assert config == Config(groups=(Group(name="g"),))


def test_everything_given(loads: Loads) -> None:
    """Every field of a group that works already arrives where it belongs."""
    (group,) = loads(
        """
        version: 1
        groups:
          g:
            upstream: [eth0, wlan0, eth0]
            downstream: [virbr0, "lxc*", "!lxcbr0"]
            prefixes:
              - upstream
              - 2001:db8:7::/64
              - {allow: "2001:db8:7::53/128", answer: always}
              - {allow: "2001:db8:8::/64", downstream: virbr0, askers: ["fe80::/10"]}
              - {deny: "2001:db8:7::/112"}
              - {allow: "2001:db8:7::/64", host: "::5054:ff:fe00:0/::ffff:ffff:ff00:0"}
              - {allow: upstream, host: "fd00::1/8", downstream: [lxc1, "lxc2*"]}
            answer: routed
            routes: {table: 100, metric: 1, protocol: 99}
            isolate: true
            announce: solicit
            advertisement: {router: off, override: on, source: target, link_layer: 2-0-5e-0-53-FF}
            limits: {neighbors: 1, per_port: 2, per_host: 3, pending: 4, resolutions: 5, per_source: 6,
                     route_changes: 7}
            timers: {reachable: 500ms, retransmit: 0.25s, retries: 1, negative: 0s, forget: 1h,
                     prefix_grace: 1.5min}
        """
    ).config.groups
    assert group.upstream == ("eth0", "wlan0")
    assert group.downstream == ("virbr0", "lxc*", "!lxcbr0")
    net = IPv6Network
    routed = Answer.ROUTED
    assert group.rules == (
        Rule(prefix=Live.UPSTREAM, answer=routed),
        Rule(prefix=net("2001:db8:7::/64"), answer=routed),
        Rule(prefix=net("2001:db8:7::53"), answer=Answer.ALWAYS),
        Rule(
            prefix=net("2001:db8:8::/64"),
            answer=routed,
            downstream=("virbr0",),
            askers=(net("fe80::/10"),),
        ),
        Rule(prefix=net("2001:db8:7::/112"), allow=False, answer=routed),
        Rule(
            prefix=net("2001:db8:7::/64"),
            answer=routed,
            host=HostPattern(0x5054_00FF_FE00_0000, 0xFFFF_FFFF_FF00_0000),
        ),
        Rule(
            prefix=Live.UPSTREAM,
            answer=routed,
            host=HostPattern(0xFD << 120, 0xFF << 120),
            downstream=("lxc1", "lxc2*"),
        ),
    )
    assert group.routes == Routes(table=100, metric=1, protocol=99)
    assert group.isolate is True
    assert group.advertisement == Advertisement(
        router=Switch.OFF,
        override=Switch.ON,
        source=Source.TARGET,
        link_layer=bytes.fromhex("02005e0053ff"),
    )
    assert group.limits == Limits(
        neighbors=1, per_port=2, per_host=3, pending=4, resolutions=5, per_source=6, route_changes=7
    )
    assert group.timers == Timers(
        reachable=0.5, retransmit=0.25, retries=1, negative=0.0, forget=3600.0, prefix_grace=90.0
    )


def test_top_level(loads: Loads) -> None:
    """What is not about groups arrives too."""
    config = loads(
        "version: 1\nwatch: false\nsysctls: check\ncontrol: {group: 0}\n"
        "log: {level: error, format: json}\nmetrics: {listen: null}"
    ).config
    expected = Config(
        watch=False, sysctls=Sysctls.CHECK, control_group="0", log_level="error", log_format="json"
    )
    assert config == expected


def test_defaults_merge(loads: Loads) -> None:
    """Maps merge key by key, the group's value wins; a value that is no map replaces all of it."""
    config = loads(
        """
        version: 1
        defaults:
          answer: always
          isolate: yes
          routes: {table: 100, metric: 7}
          limits: {neighbors: 10, pending: 20}
          timers: {reachable: 1min}
          advertisement: {source: target}
        groups:
          a: {}
          b:
            answer: resolve
            isolate: no
            routes: {metric: 8}
            limits: {pending: 5}
            timers: {forget: 2min}
            advertisement: {router: on}
          c: {routes: yes}
          d: {routes: no}
        """
    ).config
    a, b, c, d = config.groups
    assert a.rules == (Rule(prefix=Live.UPSTREAM, answer=Answer.ALWAYS),)
    assert (a.isolate, a.routes, a.limits) == (
        True,
        Routes(table=100, metric=7),
        Limits(neighbors=10, pending=20),
    )
    assert b.rules == (Rule(prefix=Live.UPSTREAM),)
    assert (b.isolate, b.routes, b.limits) == (
        False,
        Routes(table=100, metric=8),
        Limits(neighbors=10, pending=5),
    )
    assert b.timers == Timers(reachable=60.0, forget=120.0)
    assert b.advertisement == Advertisement(source=Source.TARGET, router=Switch.ON)
    assert (c.routes, d.routes) == (Routes(), None)


def test_routes_off_by_default(loads: Loads) -> None:
    """A group's map stands alone where the defaults say no."""
    a, b = loads(
        "version: 1\ndefaults: {routes: false}\ngroups: {a: {}, b: {routes: {table: 5}}}"
    ).config.groups
    assert (a.routes, b.routes) == (None, Routes(table=5))


def test_patterns_that_do_not_tie(loads: Loads) -> None:
    """A pattern beats none, more mask bits beat fewer, and equal masks with other values never meet."""
    (group,) = loads(
        """
        version: 1
        groups:
          g:
            upstream: eth0
            prefixes:
              - upstream
              - {allow: upstream, host: "::1/::f"}
              - {allow: upstream, host: "::2/::f"}
              - {allow: upstream, host: "::1/::1f"}
              - {allow: upstream, host: "::18/::78"}
              - {deny: "::/0"}
        """
    ).config.groups
    assert len(group.rules) == 6


@pytest.mark.parametrize(
    "groups",
    [
        '{a: {upstream: eth0, downstream: ["lxc*", "!lxc1"]}, b: {upstream: eth1, downstream: lxc1}}',
        '{a: {upstream: eth0, downstream: [eth1, "!eth1"]}, b: {upstream: eth1}}',
        '{a: {upstream: eth0, downstream: "lxc*"}, b: {upstream: eth1, downstream: "lxc*"}}',
        '{a: {upstream: eth0, downstream: ["eth*", "!eth0"]}}',
        '{a: {upstream: eth0, downstream: ["*", "!eth?"]}}',
    ],
)
def test_ports_that_may_be_right(groups: str, loads: Loads) -> None:
    """What only the links that exist can decide is no error, and not worth a warning."""
    assert loads(f"version: 1\ngroups: {groups}").warnings == ()


def test_mode_relay(loads: Loads) -> None:
    """A relay group has no rules, relays RAs, and keeps what it shares with the other mode; defaults made for
    groups in mode route do not trouble it."""
    loaded = loads(
        """
        version: 1
        defaults: {answer: always, loop_protection: nested}
        groups:
          one: {mode: relay, upstream: eth0, downstream: eth1, timers: {hold_down: 5min}, isolate: no}
          two: {upstream: eth2, downstream: eth3}
        """
    )
    assert loaded.warnings == ()
    one, two = loaded.config.groups
    assert one.rules == ()
    assert one.router_advertisements is RouterAdvertisements.RELAY
    assert one.loop_protection is LoopProtection.NESTED
    assert one.timers.hold_down == 300
    assert one.announce is Announce.OFF
    assert one.routes == Routes()
    assert two.rules[0].answer is Answer.ALWAYS
    assert two.router_advertisements is RouterAdvertisements.OFF
