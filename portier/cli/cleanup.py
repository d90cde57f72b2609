"""`portier cleanup`: remove from the kernel what a dead daemon left there, and restore what it changed."""

from __future__ import annotations

import argparse
import sys

from portier import daemon
from portier.cli import exits


def run(options: argparse.Namespace) -> int:
    """Clean up; 0 when nothing is left.  Refused while a daemon runs."""
    done = daemon.cleanup(options.runtime_dir)
    for step in done.steps:
        print(step)
    for error in done.errors:
        print(f"portier cleanup: {error}", file=sys.stderr)
    if done.pending:
        for step in done.pending:
            print(f"portier cleanup: not done: {step}", file=sys.stderr)
        return exits.FAILED
    if not done.steps:
        print("nothing to clean up")
    return exits.OK
