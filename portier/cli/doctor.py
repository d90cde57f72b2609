"""`portier doctor`: what makes the proxy silently do nothing, with the evidence and the remedy.

Gathers the facts (what touches is in portier.system, what judges in portier.core.doctor) and prints.
It works without a daemon, without a good configuration and without rights, and says what it could not
look at.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any, Final

from portier import config as configuration
from portier.cli import exits, text
from portier.core import plan
from portier.core.doctor import CHECKS
from portier.core.doctor.facts import Daemon, Facts, Setup, Unknown
from portier.core.doctor.finding import Diagnosis, Finding, Severity, examine
from portier.core.firewall import Ruleset
from portier.core.model import Config, Snapshot
from portier.errors import ConfigError, PortierError, Refused
from portier.system import firewall
from portier.system.control import ControlClient
from portier.system.kernel import Kernel
from portier.system.record import Record

_MARKS: Final = {Severity.PROBLEM: "!", Severity.WARNING: "?", Severity.NOTE: "-"}


def run(options: argparse.Namespace) -> int:
    """Print the findings; 0 none but notes, 3 some."""
    diagnosis = examine(gather(options), CHECKS)
    if options.json:
        json.dump(_plain(diagnosis), sys.stdout, indent=2)
        print()
    else:
        print("\n".join(render(diagnosis, text.width())))
    return exits.OK if diagnosis.healthy else exits.DEGRADED


def gather(options: argparse.Namespace) -> Facts:
    """Look at everything that the checks go by."""
    daemon = _daemon(options)
    file = options.config
    if isinstance(daemon, Daemon) and options.named is None:
        file = daemon.file
    config, problems = _config(file)
    snapshot = _snapshot(options, config)
    return Facts(
        config_file=str(file),
        problems=problems,
        daemon=daemon,
        config=config,
        snapshot=snapshot,
        setup=_setup(config, snapshot),
        ruleset=_ruleset(),
    )


def _daemon(options: argparse.Namespace) -> Daemon | Unknown | None:
    try:
        status: dict[str, Any] = ControlClient(options.runtime_dir).get("/v1/status")
    except Refused as refused:
        return None if refused.exit_code == exits.NO_DAEMON else Unknown(str(refused))
    config = status["config"]
    return Daemon(
        pid=status["pid"],
        uptime=status["uptime"],
        file=config["file"],
        refused=tuple(config["error"] or ()),
        differs=config["differs"],
    )


def _config(file: Any) -> tuple[Config | Unknown, tuple[str, ...]]:
    try:
        return configuration.load(file).config, ()
    except ConfigError as error:
        return Unknown("the configuration is refused"), tuple(map(str, error.problems))


def _snapshot(options: argparse.Namespace, config: Config | Unknown) -> Snapshot | Unknown:
    groups = config.groups if isinstance(config, Config) else ()
    own = {plan.PROTOCOL} | {group.routes.protocol for group in groups if group.routes is not None}
    try:
        with Record(options.runtime_dir) as record, Kernel(record) as kernel:
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


def _ruleset() -> Ruleset | Unknown:
    try:
        return firewall.read()
    except firewall.UnreadableError as error:
        return Unknown(str(error))


def render(diagnosis: Diagnosis, columns: int) -> Iterator[str]:
    """What was found, problems first; then what could not be looked at, and how much is in order."""
    for finding in diagnosis.findings:
        yield from _finding(finding, columns)
        yield ""
    reasons: dict[str, list[str]] = {}
    for check, why in diagnosis.unmade:
        reasons.setdefault(why, []).append(check)
    for why, checks in reasons.items():
        yield from text.wrap(f"not checked, because {why}: {', '.join(checks)}", columns)
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
