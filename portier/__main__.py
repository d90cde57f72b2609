"""``python -m portier`` is the command line."""

import sys

from portier.cli import main

sys.exit(main())
