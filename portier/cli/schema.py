"""`portier schema`: the JSON Schema of the configuration, for editors and templating tools."""

from __future__ import annotations

import argparse
import sys

from portier import config
from portier.cli import exits


def run(options: argparse.Namespace) -> int:
    """Print the schema as it is shipped."""
    del options
    sys.stdout.write(config.schema())
    return exits.OK
