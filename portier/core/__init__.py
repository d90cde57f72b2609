"""Decides: no socket, thread, clock or third-party import; import-linter keeps it so."""
