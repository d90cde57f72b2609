"""`portier schema`: the JSON Schema of the configuration, for editors and templating tools, or of what
another command prints with `--json`, for programs that read it.
"""

from __future__ import annotations

import argparse
import importlib.resources
import sys
from pathlib import Path

from portier import config
from portier.cli import exits


def run(options: argparse.Namespace) -> int:
    """Print the schema as it is shipped."""
    sys.stdout.write(config.schema() if options.of == "config" else printed(options.of))
    return exits.OK


def printed(command: str) -> str:
    """The schema of what a command prints with `--json`.  In a wheel it lies beside this module, in a source
    tree in ``schema/``."""
    name = f"portier.{command}.schema.json"
    packaged = importlib.resources.files("portier.cli") / name
    if packaged.is_file():
        return packaged.read_text("utf-8")
    return (Path(__file__).parents[2] / "schema" / name).read_text("utf-8")
