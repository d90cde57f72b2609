"""`portier check`: every error of the configuration, or what the configuration means.

Puts a checked Config into words, group by group; whether it is right has been decided in portier.config,
and what this machine makes of it is for portier.core.plan to say.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import ipaddress
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from portier import config
from portier.cli import DEFAULT_CONFIG, exits, text
from portier.core import plan
from portier.core.model import (
    Announce,
    Answer,
    Config,
    Group,
    HostPattern,
    Live,
    LoopProtection,
    Mode,
    Multicast,
    RouterAdvertisements,
    Routes,
    Rule,
    Scope,
)
from portier.core.rules import matches
from portier.errors import ConfigError, PortierError
from portier.system.kernel import Kernel
from portier.system.process import unreadable
from portier.system.record import Record
from portier.system.sysctl import too_few_neighbors

_MEANINGS = {
    Answer.RESOLVE: "asked for behind, answered when the host answers (resolve)",
    Answer.ALWAYS: "answered at once from the upstream, asking nobody (always)",
    Answer.ROUTED: "answered if the kernel routes it by another port of the group (routed)",
    Answer.KERNEL: "answered by the kernel from a proxy entry (kernel)",
}
_LIVE = {
    Live.UPSTREAM: "on-link upstream",  # IPv6 prefixes, followed live
    Live.UPSTREAM_IPV4: "on-link upstream, IPv4",
}
_RELAYED = (
    "everything IPv6: the ports are one link; of Neighbor Discovery the link-layer addresses are rewritten, "
    "of the rest nothing, and the hop limit neither"
)
_LOOPS = {
    LoopProtection.STRICT: (
        "an RA from behind, or one of another proxy, puts its port into hold-down for {}"
    ),
    LoopProtection.NESTED: (
        "an RA from behind puts its port into hold-down for {}; another proxy may be upstream"
    ),
    LoopProtection.DROP: "an RA from behind, or one of another proxy, is dropped and reported",
    LoopProtection.OFF: "nothing but what comes back just as it went out is dropped",
}
_ROUTERS = (
    "Router Advertisements are passed on to the downstreams, and what hosts ask of routers to the upstream; "
    "DHCPv6 is not"
)
_ANNOUNCE = {
    Announce.OFF: "nothing: other ports are not told of hosts learned or moved",
    Announce.SOLICIT: (
        "hosts learned or moved, on the other ports: a router by a solicitation for its own address"
    ),
}


def run(options: argparse.Namespace) -> int:
    """Load the file, print the verdict on it."""
    try:
        loaded = config.load(options.config, replace=dict(options.replace))
    except ConfigError as error:
        if options.json:
            errors = [problem._asdict() for problem in error.problems]
            json.dump({"version": 1, "valid": False, "errors": errors}, sys.stdout, indent=2)
            print()
        raise
    warnings = [
        *map(str, loaded.warnings),
        *kernel_warnings(loaded.config, options.runtime_dir),
        *limit_warnings(loaded.config),
        *service_warnings(options, loaded.files),
    ]
    if options.json:
        answer = {
            "version": 1,
            "valid": True,
            "files": [str(file) for file in loaded.files],
            "config": plain(loaded.config),
            "warnings": warnings,
            "notes": list(separation(loaded.config)),
        }
        json.dump(answer, sys.stdout, indent=2)
        print()
    else:
        print("\n".join(render(loaded.config, loaded.files, warnings, text.width())))
    return exits.OK


def render(config: Config, files: tuple[Path, ...], warnings: list[str], columns: int) -> Iterator[str]:
    """What a configuration means, in lines."""
    yield from text.wrap(
        f"{', '.join(map(str, files))}: valid, {text.plural(len(config.groups), 'group')}", columns
    )
    for group in config.groups:
        yield ""
        yield from _group(group, columns)
    settings = _differences(config, Config(), leave=("groups",))
    if settings:
        yield ""
        yield from text.wrap(f"besides: {', '.join(settings)}", columns)
    for title, lines in (
        ("warnings", warnings),
        ("what separates groups and downstreams", list(separation(config))),
    ):
        if lines:
            yield ""
            yield title
            for line in lines:
                # A command is to be copied, and stays in one line.
                yield from [f"  {line}"] if line.startswith("nft ") else text.wrap(line, columns, indent=2)


def _group(group: Group, columns: int) -> Iterator[str]:
    yield f"group {group.name}, mode {group.mode}"
    if not group.upstream:
        done = "relayed" if group.mode is Mode.RELAY else "proxied"
        upstream = f"none: the downstreams are {done} to each other"
    elif len(group.upstream) == 1:
        upstream = group.upstream[0]
    else:
        upstream = f"the first usable of {', '.join(group.upstream)}"
    rows = [("", ""), ("upstream", upstream), ("downstream", _patterns(group.downstream) or "none yet")]
    if group.isolate:
        rows.append(("isolate", "downstreams are proxied to the upstream, not to each other"))
    routes = group.routes
    table = f"table {routes.table}" if routes else ""
    if group.scope is Scope.GROUP:
        rows.append(("scope", "packets from its ports reach its own hosts and upstream, and this host"))
        if routes and routes.table == Routes().table:
            table = "a table of the group's own"
    said = f"{table}, metric {routes.metric}, protocol {routes.protocol}" if routes else "none made"
    told = ["name", "upstream", "downstream", "mode", "rules", "routes", "isolate", "scope"]
    told += ["router_advertisements", "announce", "multicast", "loop_protection"]
    if group.mode is Mode.RELAY:
        rows.append(("relayed", _RELAYED))
        rows.append(("not relayed", "IPv4"))
        rows.append(("loops", _LOOPS[group.loop_protection].format(text.span(group.timers.hold_down))))
        said += ", for the traffic of this host itself" if routes else ""
    else:
        if group.router_advertisements is RouterAdvertisements.RELAY:
            rows.append(("routers", _ROUTERS))
        if group.announce in _ANNOUNCE:
            rows.append(("announced", _ANNOUNCE[group.announce]))
    if group.multicast is Multicast.ROUTER:
        rows.append(("multicast", "drawn by advertising a multicast router on every port (RFC 4286)"))
    rows.append(("host routes", said))
    other = _differences(group, Group(name=""), leave=tuple(told))
    if other:
        rows.append(("besides", ", ".join(other)))
    yield from text.table(rows, columns, indent=2)[1:]
    if group.mode is Mode.RELAY:
        return
    yield "  addresses, the most specific rule first"
    rules = [("", ""), *map(_rule, sorted(group.rules, key=_specific)), ("whatever else", "not proxied")]
    yield from text.table(rules, columns, indent=4)[1:]


def _specific(rule: Rule) -> tuple[Any, ...]:
    """Sorts rules as they are matched: explicit before live, long before short, more mask bits first."""
    bits = rule.host.mask.bit_count() if rule.host else 0
    if isinstance(rule.prefix, Live):
        return (1, rule.prefix, -bits)
    return (0, rule.prefix.version == 4, -rule.prefix.prefixlen, -bits, rule.prefix.network_address.packed)


def _rule(rule: Rule) -> tuple[str, str]:
    what = _LIVE[rule.prefix] if isinstance(rule.prefix, Live) else str(rule.prefix)
    how = _MEANINGS[rule.answer] if rule.allow else "not proxied (deny)"
    if rule.host:
        how += f"; only addresses like {_pattern(rule.host, rule.version)}"
    if rule.downstream:
        how += f"; only on {_patterns(rule.downstream)}"
    if rule.askers:
        how += f"; only when {', '.join(map(str, rule.askers))} asks"
    return what, how


def _pattern(host: HostPattern, version: int) -> str:
    address = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address
    return f"{address(host.value)}/{address(host.mask)}"


def _patterns(patterns: tuple[str, ...]) -> str:
    """``virbr0, lxc* but not lxcbr0``."""
    wanted = ", ".join(pattern for pattern in patterns if not pattern.startswith("!"))
    unwanted = ", ".join(pattern[1:] for pattern in patterns if pattern.startswith("!"))
    return f"{wanted} but not {unwanted}" if unwanted else wanted


def _differences(value: Any, usual: Any, leave: tuple[str, ...] = (), path: str = "") -> list[str]:
    """The settings in which a value is not like the usual one, as ``limits.neighbors 8192``."""
    found = []
    for field in dataclasses.fields(value):
        mine, other = getattr(value, field.name), getattr(usual, field.name)
        if field.name in leave or mine == other:
            continue
        if dataclasses.is_dataclass(mine) and dataclasses.is_dataclass(other):
            found += _differences(mine, other, path=f"{path}{field.name}.")
        else:
            found.append(f"{path}{field.name} {_scalar(mine)}")
    return found


def _scalar(value: Any) -> str:
    if isinstance(value, float):
        return text.span(value)
    made = plain(value)
    return made if isinstance(made, str) else json.dumps(made)


def kernel_warnings(config: Config, runtime_dir: Path) -> Iterator[str]:
    """What the links, addresses and routes of this very machine make of the configuration.  A group whose
    upstream is not usable here is passed over: the file may be meant for another machine."""
    try:
        with Record(runtime_dir, looking=True) as record, Kernel(record) as kernel:
            snapshot = kernel.snapshot()
    except (PortierError, OSError):
        return  # no right to look, then
    _, report, _ = plan.desired(config, snapshot, plan.Memory(), now=0.0)
    for of in report.groups:
        if of.active is not None:
            yield from of.problems
            yield from (f"group {of.group.name}: {warning}" for warning in of.warnings)


def limit_warnings(config: Config) -> Iterator[str]:
    """Where the kernel keeps fewer neighbors than the configuration allows."""
    for version in (6, 4):
        groups = [group for group in config.groups if version in _versions(group)]
        wanted = max((group.limits.neighbors for group in groups), default=0)
        yield from too_few_neighbors(wanted, (version,))


def service_warnings(options: argparse.Namespace, files: tuple[Path, ...]) -> Iterator[str]:
    """What the service cannot read of its configuration, though whoever asks can."""
    replaced = {path for path, _ in options.replace}
    for path in service_cannot_read(options.config, (path for path in files if path not in replaced)):
        yield f"the service runs as user portier, who cannot read {path}: {let_read(path)}"


def service_cannot_read(main: Path, files: Iterable[Path]) -> tuple[Path, ...]:
    """Of a configuration, if it is the service's: the files, and the directory of the drop-ins."""
    directory = DEFAULT_CONFIG.with_suffix(".d")
    if main.with_suffix(".d") != directory:
        return ()
    return unreadable([*files, *([directory] if directory.is_dir() else [])])


def let_read(path: Path) -> str:
    """The command that lets the service read a file or directory."""
    return f"chgrp portier {path} && chmod g+rX {path}"


def _versions(group: Group) -> frozenset[int]:
    """The versions of IP that the kernel routes for a group; in mode relay it does so for none."""
    return frozenset(rule.version for rule in group.rules)


def separation(config: Config) -> Iterator[str]:
    """That groups and ``isolate`` separate solicitations and not packets, but with `scope: group`, and how to
    separate those."""
    lines: dict[str, list[str]] = {"ip6": [], "ip": []}
    for group in config.groups:
        if group.scope is Scope.GROUP:
            continue  # the kernel forwards nothing across that comes in by its ports
        for family, version in (("ip6", 6), ("ip", 4)):
            if version not in _versions(group):
                continue
            if group.isolate:
                lines[family] += _crossings([group.downstream], [group.downstream], config, group, group)
            for other in config.groups:
                if other is group or version not in (_versions(other) or {6}):
                    continue
                mine, theirs = (group.upstream, group.downstream), (other.upstream, other.downstream)
                lines[family] += _crossings(mine, theirs, config, group, other)
    if not any(lines.values()):
        return
    yield (
        "Solicitations do not cross, but the kernel routes packets that a host sends to this machine on "
        "purpose. To keep those apart too, use `scope: group`, or:"
    )
    for family, rules in lines.items():
        if rules:
            yield f"nft add table {family} portier"
            yield f"nft add chain {family} portier forward '{{ type filter hook forward priority filter; }}'"
        for line in rules:
            yield f"nft add rule {family} portier forward '{line} drop'"
    names = {name.lstrip("!") for group in config.groups for name in (*group.upstream, *group.downstream)}
    if not all(map(_for_nft, names)):
        yield "# nftables has no words for some of the globs: name those interfaces in a rule of your own"


def _crossings(
    mine: Iterable[tuple[str, ...]],
    theirs: Iterable[tuple[str, ...]],
    config: Config,
    group: Group,
    other: Group,
) -> Iterator[str]:
    """Match, for nftables, packets from ports of one group to ports of another."""
    for source in mine:
        for destination in theirs:
            if source and destination:
                into = _nft_match("iifname", source, _others(config, group, source))
                out = _nft_match("oifname", destination, _others(config, other, destination))
                if into and out:
                    yield f"{into} {out}"


def _others(config: Config, group: Group, patterns: tuple[str, ...]) -> tuple[str, ...]:
    """Interfaces that ``patterns`` of a group match, and that are something else all the same."""
    if patterns == group.upstream:
        return ()
    names = [name for this in config.groups for name in this.upstream]
    names += [name for this in config.groups if this is not group for name in this.downstream]
    return tuple(dict.fromkeys(name for name in names if _plain(name) and matches(name, patterns)))


def _nft_match(what: str, patterns: tuple[str, ...], others: tuple[str, ...]) -> str:
    wanted = [name for name in patterns if not name.startswith("!")]
    unwanted = [name[1:] for name in patterns if name.startswith("!")] + list(others)
    wanted = list(filter(_for_nft, wanted))
    if not wanted or not all(map(_for_nft, unwanted)):
        return ""
    parts = [] if "*" in wanted else [f"{what} {_nft_set(wanted)}"]
    if unwanted:
        parts.append(f"{what} != {_nft_set(unwanted)}")
    return " ".join(parts) or f"{what} != lo"


def _for_nft(name: str) -> bool:
    """Whether nftables knows such a glob: its only wildcard is a ``*`` at the end."""
    return not set(name.removesuffix("*")) & set("*?[")


def _plain(name: str) -> bool:
    return not name.startswith("!") and not set(name) & set("*?[")


def _nft_set(names: Iterable[str]) -> str:
    return "{ " + ", ".join(f'"{name}"' for name in names) + " }"


def plain(value: Any) -> Any:
    """A value of the model as JSON has it: networks and patterns as text, link-layer addresses as hex."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, bytes):
        return value.hex(":")
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, Rule) and value.host is not None:
        return plain(dataclasses.replace(value, host=None)) | {"host": _pattern(value.host, value.version)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value
