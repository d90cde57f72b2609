"""`portier neighbors`: the hosts known."""

from __future__ import annotations

import argparse
import ipaddress
import json
import sys
from typing import Any

from portier.cli import exits, text
from portier.system.control import ControlClient

_COLUMNS = ("address", "group", "port", "link-layer", "state", "age", "route")


def run(options: argparse.Namespace) -> int:
    """Print the hosts, by group, port and address."""
    answer = ControlClient(options.runtime_dir).get("/v1/neighbors")
    hosts = answer["neighbors"]
    if options.json:
        json.dump(answer, sys.stdout, indent=2)
        print()
    elif hosts:
        print("\n".join(render(text.clean(hosts), text.width())))
    else:
        print("no host is known yet")
    return exits.OK


def render(hosts: list[dict[str, Any]], columns: int) -> list[str]:
    """The hosts as lines of a table."""
    hosts = sorted(
        hosts, key=lambda host: (host["group"], host["port"], ipaddress.ip_address(host["address"]).packed)
    )
    rows: list[tuple[str, ...]] = [_COLUMNS]
    rows += [
        (
            host["address"],
            host["group"],
            host["port"],
            host["mac"] or "",
            host["state"],
            text.span(host["age"]),
            host["route"],
        )
        for host in hosts
    ]
    return text.table(rows, columns)
