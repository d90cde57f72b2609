"""Checks of the daemon itself and of its configuration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from portier.core.doctor.facts import Daemon, Facts, known, running
from portier.core.doctor.finding import Check, Finding, problem, warning


def _runs(facts: Facts) -> Iterator[Finding]:
    if known(facts.daemon) is None:
        yield problem(
            "portier",
            "no daemon runs, so nobody answers",
            "nobody listens on the control socket",
            "systemctl start portier",
        )


def _config(facts: Facts) -> Iterator[Finding]:
    if facts.problems:
        yield problem(
            facts.config_file,
            "the configuration is refused"
            + (", and the daemon goes on with the one before it" if isinstance(facts.daemon, Daemon) else ""),
            "; ".join(facts.problems),
            f"portier check -c {facts.config_file}",
        )


def _applied(facts: Facts) -> Iterator[Finding]:
    daemon = running(facts)
    if daemon.differs:
        yield warning(
            daemon.file,
            "the file was changed since the daemon read it",
            "`watch: false` leaves it to you to apply it",
            "portier reload",
        )


CHECKS: Final = (
    Check("daemon", "a daemon runs", _runs),
    Check("config", "the configuration is good", _config),
    Check("config-applied", "the daemon goes by the configuration on disk", _applied),
)
