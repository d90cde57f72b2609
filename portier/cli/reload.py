"""`portier reload`: the daemon reads its configuration again; the outcome is waited for and told."""

from __future__ import annotations

import argparse
from typing import Any

from portier.cli import exits, named_file, print_error, text
from portier.system.control import ControlClient

_TIMEOUT = 120.0  # seconds; 10,000 rules take a few


def run(options: argparse.Namespace) -> int:
    """Reload; 0 done, 78 refused, with every error on stderr.  A step that the kernel refuses is told too,
    and is the daemon's to try again: `portier status` follows it."""
    client = ControlClient(options.runtime_dir, _TIMEOUT)
    outcome: dict[str, Any] = client.post("/v1/reload", **named_file(options))
    for error in outcome["errors"]:
        print_error(str(error))
    if not outcome["ok"]:
        return exits.CONFIG
    for step in text.clean(outcome["steps"]):
        print(step)
    if not outcome["steps"] and not outcome["errors"]:
        print("nothing to change")
    return exits.OK
