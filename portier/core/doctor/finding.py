"""What `portier doctor` looks for and what it says: checks, findings, and the run of all checks."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from portier.core.doctor.facts import CannotTellError, Facts


class Severity(enum.StrEnum):
    """How bad a finding is: hosts are not reached because of it, or may not be; a note is no fault, and only
    worth knowing where something does not work."""

    PROBLEM = "problem"
    WARNING = "warning"
    NOTE = "note"


_ORDER: Final = tuple(Severity)


class Finding(NamedTuple):
    """One thing that is wrong.  ``check`` is the name of the check that found it, ``subject`` what it is
    about (a port, a group, a file), ``finding`` a sentence, ``evidence`` what was seen that says so, and
    ``remedy`` a command line to type where there is one, else what to do in words."""

    check: str
    severity: Severity
    subject: str
    finding: str
    evidence: str = ""
    remedy: str = ""


def problem(subject: str, finding: str, evidence: str = "", remedy: str = "") -> Finding:
    """A finding because of which hosts are not reached; `examine` adds the name of the check."""
    return Finding("", Severity.PROBLEM, subject, finding, evidence, remedy)


def warning(subject: str, finding: str, evidence: str = "", remedy: str = "") -> Finding:
    """A finding because of which hosts may not be reached; `examine` adds the name of the check."""
    return Finding("", Severity.WARNING, subject, finding, evidence, remedy)


def note(subject: str, finding: str, evidence: str = "", remedy: str = "") -> Finding:
    """What may be meant so; `examine` adds the name of the check."""
    return Finding("", Severity.NOTE, subject, finding, evidence, remedy)


class Check(NamedTuple):
    """One cause of silence.  ``name`` never changes; ``looks_for`` says what is as it should be where nothing
    is found; ``find`` gives a finding for each place where it is not, and raises `CannotTellError` (by
    `known`) where a fact that it needs could not be found out."""

    name: str
    looks_for: str
    find: Callable[[Facts], Iterable[Finding]]


class Unmade(NamedTuple):
    """A check that could not be made, and why."""

    check: str
    why: str


class Diagnosis(NamedTuple):
    """What all checks came to.  Findings are problems first, notes last; ``passed`` are the names of the
    checks that were made and found nothing that is wrong."""

    findings: tuple[Finding, ...]
    passed: tuple[str, ...]
    unmade: tuple[Unmade, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing was found but notes."""
        return all(finding.severity is Severity.NOTE for finding in self.findings)


def examine(facts: Facts, checks: Iterable[Check]) -> Diagnosis:
    """Make all checks."""
    findings: list[Finding] = []
    passed: list[str] = []
    unmade: list[Unmade] = []
    for check in checks:
        before, cannot = len(findings), None
        try:
            # What was found before a fact was missing stays.
            findings.extend(finding._replace(check=check.name) for finding in check.find(facts))
        except CannotTellError as missing:
            cannot = Unmade(check.name, missing.why)
        if cannot:
            unmade.append(cannot)
        elif all(finding.severity is Severity.NOTE for finding in findings[before:]):
            passed.append(check.name)
    findings.sort(key=lambda finding: _ORDER.index(finding.severity))
    return Diagnosis(tuple(dict.fromkeys(findings)), tuple(passed), tuple(unmade))
