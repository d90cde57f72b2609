"""`portier doctor`: what makes the proxy silently do nothing, with the evidence and the remedy.

Gathers the facts (what touches is in portier.system, what judges in portier.core.doctor) and prints.
It works without a daemon, without a good configuration and without rights, and says what it could not
look at.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, TypeVar

from portier import config as configuration
from portier.cli import complain, exits, probe, text
from portier.cli.check import service_cannot_read
from portier.core import plan
from portier.core.doctor import CHECKS
from portier.core.doctor.facts import Daemon, Facts, Host, Networkd, Setup, Told, Unknown
from portier.core.doctor.finding import Diagnosis, Finding, Severity, examine
from portier.core.doctor.machine import sysctl_paths
from portier.core.model import Config, Mode, Role, Snapshot
from portier.errors import ConfigError, PortierError, Refused
from portier.system import around, firewall, inspect
from portier.system.control import ControlClient
from portier.system.kernel import MAIN, Kernel
from portier.system.probe import name_of, way
from portier.system.process import place_holder
from portier.system.record import Record
from portier.system.sysctl import too_few_neighbors

T = TypeVar("T")

_HOSTS: Final = 1000  # whose routes are looked at

_MARKS: Final = {Severity.PROBLEM: "!", Severity.WARNING: "?", Severity.NOTE: "-"}


def run(options: argparse.Namespace) -> int:
    """Print the findings; 0 none but notes, 3 some."""
    if options.probe is not None:
        return probe.run(options)
    if options.on is not None:
        complain("doctor", "--on says where --probe asks: give an address by --probe")
        return exits.USAGE
    diagnosis = examine(gather(options), CHECKS)
    if options.json:
        json.dump(_plain(diagnosis), sys.stdout, indent=2)
        print()
    else:
        print("\n".join(render(diagnosis, text.width())))
    return exits.OK if diagnosis.healthy else exits.DEGRADED


def gather(options: argparse.Namespace) -> Facts:
    """Look at everything that the checks go by."""
    client = ControlClient(options.runtime_dir)
    status, mute = _status(client)
    daemon = inspect.daemon(status) if isinstance(status, dict) else status
    file = Path(daemon.file) if isinstance(daemon, Daemon) and options.named is None else options.config
    config, problems, unreadable = _config(file)
    snapshot = _snapshot(options, config)
    setup = _setup(config, snapshot)
    return Facts(
        config_file=str(file),
        mute=mute,
        problems=problems,
        unreadable=unreadable,
        daemon=daemon,
        told=inspect.told(status) if isinstance(status, dict) else _would_tell(config, setup),
        lacking=inspect.lacking(daemon.pid) if isinstance(daemon, Daemon) else Unknown("no daemon runs"),
        hosts=_hosts(options, client, setup) if isinstance(daemon, Daemon) else Unknown("no daemon runs"),
        barriers=_try(inspect.barriers),
        networkd=_networkd(setup),
        config=config,
        snapshot=snapshot,
        setup=setup,
        sysctls=inspect.sysctls(sysctl_paths(setup)) if isinstance(setup, Setup) else {},
        ruleset=_try(firewall.read),
        proxies=_try(around.proxies),
        members=_try(around.members),
    )


def _status(client: ControlClient) -> tuple[dict[str, Any] | Unknown | None, str]:
    """What the daemon says, and who it is if there is one that says nothing."""
    try:
        status: dict[str, Any] = client.get("/v1/status")
    except Refused as refused:
        if refused.exit_code != exits.NO_DAEMON:
            return Unknown(str(refused)), ""
        if holder := place_holder():
            return Unknown("the daemon does not answer"), f"the daemon{holder}: {refused}"
        return None, ""
    return status, ""


def _config(file: Path) -> tuple[Config | Unknown, tuple[str, ...], tuple[str, ...]]:
    """The configuration, its errors, and what the service cannot read of it."""
    try:
        loaded = configuration.load(file)
    except ConfigError as error:
        return Unknown("the configuration is refused"), tuple(map(str, error.problems)), ()
    return loaded.config, (), tuple(map(str, service_cannot_read(file, loaded.files)))


def _snapshot(options: argparse.Namespace, config: Config | Unknown) -> Snapshot | Unknown:
    groups = config.groups if isinstance(config, Config) else ()
    own = {plan.PROTOCOL} | {group.routes.protocol for group in groups if group.routes is not None}
    try:
        with Record(options.runtime_dir, looking=True) as record, Kernel(record) as kernel:
            return kernel.snapshot(own)
    except (PortierError, OSError) as error:
        return Unknown(str(error))


def _setup(config: Config | Unknown, snapshot: Snapshot | Unknown) -> Setup | Unknown:
    if isinstance(config, Unknown):
        return config
    if isinstance(snapshot, Unknown):
        return snapshot
    state, report, _ = plan.desired(config, snapshot, plan.Memory(), now=0.0)
    return Setup(report.groups, state.workers)


def _would_tell(config: Config | Unknown, setup: Setup | Unknown) -> tuple[Told, ...] | Unknown:
    """What a daemon that began now would warn of."""
    if isinstance(config, Unknown):
        return config
    if isinstance(setup, Unknown):
        return setup
    found = []
    for of in setup.reports:
        name = of.group.name
        versions = {rule.version for rule in of.group.rules}
        warnings = [*of.warnings, *too_few_neighbors(of.group.limits.neighbors, versions)]
        found += [Told(each.check, True, name, each.finding, each.remedy) for each in of.problems]
        found += [Told(each.check, False, name, each.finding, each.remedy) for each in warnings]
    return tuple(found)


def _hosts(
    options: argparse.Namespace, client: ControlClient, setup: Setup | Unknown
) -> tuple[Host, ...] | Unknown:
    """The first of the hosts that the daemon knows behind, and where the kernel looks for them."""
    if isinstance(setup, Unknown):
        return setup
    places = {
        (name, port.name): port
        for name, bound in setup.bounds.items()
        if bound.group.mode is Mode.ROUTE
        for port in bound.ports
        if port.role is Role.DOWNSTREAM
    }
    upstreams = {
        name: port.ifindex
        for name, bound in setup.bounds.items()
        for port in bound.ports
        if port.role is Role.UPSTREAM
    }
    hosts: list[Host] = []
    try:
        with Record(options.runtime_dir, looking=True) as record, Kernel(record) as kernel:
            for host in client.get("/v1/neighbors")["neighbors"]:
                port = places.get((host["group"], host["port"]))
                if port is None or len(hosts) >= _HOSTS:
                    continue
                address = ip_address(host["address"])
                out = kernel.route(address.packed, port.table)
                asked = f"ip route get {address}"
                astray = out not in {0, port.ifindex} and port.table == MAIN
                best = kernel.best(address.packed) if astray else None
                upstream = upstreams.get(host["group"])
                if out == port.ifindex and upstream is not None:
                    # Rules may send what comes in there another way; that it comes in is another check's.
                    through = way(None, address.packed, upstream)
                    out, asked = (through.ifindex, through.asked) if through.ifindex else (out, asked)
                by = name_of(out) if out else ""
                hosts.append(Host(str(address), host["group"], host["port"], host["route"], by, asked, best))
    except (PortierError, OSError) as error:
        return Unknown(str(error))
    return tuple(hosts)


def _networkd(setup: Setup | Unknown) -> Networkd | Unknown | None:
    if isinstance(setup, Unknown):
        return setup
    return inspect.networkd(port.ifindex for bound in setup.bounds.values() for port in bound.ports)


def _try(look: Callable[[], T]) -> T | Unknown:
    try:
        return look()
    except PortierError as error:
        return Unknown(str(error))


def render(diagnosis: Diagnosis, columns: int) -> Iterator[str]:
    """What was found, problems first; then what could not be looked at, and how much is in order."""
    for finding in diagnosis.findings:
        # Names of interfaces and comments of packet filters may hold anything.
        yield from _finding(Finding._make(text.clean(part) for part in finding), columns)
        yield ""
    reasons: dict[str, list[str]] = {}
    for check, why in diagnosis.unmade:
        reasons.setdefault(why, []).append(check)
    for why, checks in reasons.items():
        yield from text.wrap(f"not checked, because {text.clean(why)}: {', '.join(checks)}", columns)
    yield f"{text.plural(len(diagnosis.passed), 'check')} passed"


def _finding(finding: Finding, columns: int) -> Iterator[str]:
    mark = _MARKS[finding.severity]
    yield from text.wrap(f"{mark} {finding.subject}: {finding.finding} [{finding.check}]", columns)
    if finding.evidence:
        yield from text.wrap(f"seen: {finding.evidence}", columns, indent=4)
    if finding.remedy:
        yield f"    do:   {finding.remedy}"  # to be copied, so it stays in one line


def _plain(diagnosis: Diagnosis) -> dict[str, Any]:
    """The diagnosis as JSON has it."""
    return {
        "version": 1,
        "findings": [finding._asdict() for finding in diagnosis.findings],
        "passed": list(diagnosis.passed),
        "unmade": [unmade._asdict() for unmade in diagnosis.unmade],
    }
