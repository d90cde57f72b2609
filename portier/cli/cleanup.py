"""`portier cleanup`: remove from the kernel what a dead daemon left there, and restore what it changed."""

from __future__ import annotations

import argparse

from portier import daemon
from portier.cli import complain, exits
from portier.errors import printable


def run(options: argparse.Namespace) -> int:
    """Clean up; 0 when nothing is left.  Refused while a daemon runs."""
    done = daemon.cleanup(options.runtime_dir)
    for step in done.steps:
        print(printable(str(step)))
    for error in done.errors:
        complain("cleanup", error)
    if done.pending:
        for step in done.pending:
            complain("cleanup", f"not done: {step}")
        return exits.FAILED
    if not done.steps:
        print("nothing to clean up")
    return exits.OK
