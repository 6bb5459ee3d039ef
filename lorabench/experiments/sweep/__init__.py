"""`lorabench sweep`: a search over settings, each trial a launch of its own. Begin with `command.py`; `ledger.py` says
who runs which trial, and `worker.py` has them run."""
