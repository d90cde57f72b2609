"""A loaded configuration on its way from the child process that read it to the daemon that uses it.

A daemon's packet threads share its interpreter lock with whoever receives 10,000 rules, and pickle holds
that lock while it builds objects (addresses even parse themselves again).  So groups and rules travel in
small slices, rules as plain tuples of numbers and text, and the receiver sleeps a little between slices:
no packet thread waits longer than one slice takes.  The parser and jsonschema are never imported here.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

from portier.core.model import Answer, Config, Group, HostPattern, Live, Network, Rule
from portier.errors import ConfigError, Problem, Refused

_SLICE = 50  # rules; about 0.3 ms to build
_WORK, _REST = 0.0005, 0.0005  # seconds between rests, and of one
_OS_ERROR = 71  # exit code: the system failed, not the configuration
_TIMEOUT = 120.0  # seconds; 10,000 rules take about two


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that may be used: what it says, what to tell its author all the same (sorted),
    the files it was read from, main file first, and a fingerprint of their names and contents."""

    config: Config
    warnings: tuple[Problem, ...]
    files: tuple[Path, ...]
    digest: str


def load_in_child(path: Path) -> Loaded:
    """Run `portier.config.child` and take over what it loaded; raises the ConfigError that it met.  For
    a child that dies, or takes two minutes, it raises Refused: that is not the configuration's fault."""
    # -P keeps the working directory, which may be anybody's, from being searched for modules.
    command = [sys.executable, "-P", "-m", "portier.config.child", str(path)]
    modules = [entry for entry in sys.path if entry] + [str(Path(__file__).parents[2])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(modules)}
    try:
        child = subprocess.run(command, env=environment, capture_output=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refused(f"{path} could not be loaded: {error}", _OS_ERROR) from error
    if child.returncode != 0:
        last = child.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise Refused(
            f"{path} could not be loaded: the loader ended with {child.returncode}: {last}", _OS_ERROR
        )
    return decode(child.stdout)


def encode(outcome: Loaded | ConfigError) -> bytes:
    """What `decode` turns back."""
    if isinstance(outcome, ConfigError):
        return pickle.dumps(outcome.problems)
    groups = [
        (
            pickle.dumps(dataclasses.replace(group, rules=())),
            [
                pickle.dumps([_flat_rule(rule) for rule in group.rules[start : start + _SLICE]])
                for start in range(0, len(group.rules), _SLICE)
            ],
        )
        for group in outcome.config.groups
    ]
    rest = dataclasses.replace(outcome.config, groups=())
    return pickle.dumps(
        (rest, groups, outcome.warnings, [str(name) for name in outcome.files], outcome.digest)
    )


def decode(data: bytes, sleep: Callable[[float], None] = time.sleep) -> Loaded:
    """The configuration in ``data``, which comes from `encode`; raises the ConfigError if that is what it
    holds.  Rests between slices of work."""
    outer = pickle.loads(data)  # noqa: S301  (from our own child)
    if isinstance(outer[0], Problem):
        raise ConfigError(outer)
    rest, packed, warnings, names, digest = outer
    groups: list[Group] = []
    since = time.monotonic()
    for head, slices in packed:
        rules: list[Rule] = []
        for piece in slices:
            rules += map(_rule, pickle.loads(piece))  # noqa: S301
            if time.monotonic() - since > _WORK:
                sleep(_REST)
                since = time.monotonic()
        groups.append(dataclasses.replace(pickle.loads(head), rules=tuple(rules)))  # noqa: S301
    config = dataclasses.replace(rest, groups=tuple(groups))
    return Loaded(config, warnings, tuple(map(Path, names)), digest)


def _flat_network(network: Network | Live) -> Any:
    if isinstance(network, Live):
        return network.value
    return network.version, int(network.network_address), network.prefixlen


def _network(flat: Any) -> Any:
    if isinstance(flat, str):
        return Live(flat)
    version, value, length = flat
    return IPv6Network((value, length)) if version == 6 else IPv4Network((value, length))


def _flat_rule(rule: Rule) -> tuple[Any, ...]:
    askers = tuple(map(_flat_network, rule.askers))
    host = None if rule.host is None else tuple(rule.host)
    return _flat_network(rule.prefix), rule.allow, rule.answer.value, host, rule.downstream, askers


def _rule(flat: tuple[Any, ...]) -> Rule:
    prefix, allow, answer, host, downstream, askers = flat
    return Rule(
        prefix=_network(prefix),
        allow=allow,
        answer=Answer(answer),
        host=None if host is None else HostPattern(*host),
        downstream=downstream,
        askers=tuple(map(_network, askers)),
    )
