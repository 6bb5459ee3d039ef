"""The limit of time that tests have in common."""

# Seconds after which what a test waits for counts as hung. It bounds no speed: a machine with other work may be ten
# times as slow. Pytest's own limit for a test, in pyproject.toml, is longer, so that this one speaks first.
HANG_S = 600.0
