"""Drives: the reconcile loop, the supervisor, one worker thread per group."""
