"""The exit codes: the contract's, and those of sysexits.h for what it does not name."""

OK = 0
FAILED = 1
STEPS = 2  # plan: there is something to do
DEGRADED = 3
NO_DAEMON = 4
USAGE = 64
BUG = 70
SYSTEM = 71
NOT_PERMITTED = 77
CONFIG = 78
INTERRUPTED = 130
PIPE = 141
