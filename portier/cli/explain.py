"""`portier explain ADDR`: why a solicitation for it would be answered, or would not, step by step."""

from __future__ import annotations

import argparse
import ipaddress
import json
import sys
from typing import Any

from portier.cli import complain, exits, text
from portier.system.control import ControlClient

_TIMEOUT = 30.0  # seconds; a host has 8 to answer the daemon, and a worker may be slow


def run(options: argparse.Namespace) -> int:
    """Print the steps and the verdict; 0 answered, 1 not."""
    try:
        address = ipaddress.ip_address(options.address)
    except ValueError:
        complain("explain", f"{options.address!r} is not an address, like 2001:db8::5")
        return exits.USAGE
    question = {"address": str(address)}
    if options.on is not None:
        question["on"] = options.on
    answer: dict[str, Any] = ControlClient(options.runtime_dir, _TIMEOUT).get("/v1/explain", **question)
    if options.json:
        json.dump(answer, sys.stdout, indent=2)
        print()
    else:
        columns = text.width()
        for number, step in enumerate(text.clean(answer["steps"]), 1):
            print("\n".join(text.wrap(f"{number}. {step}", columns, hang=3)))
    return exits.OK if answer["answered"] else exits.FAILED
