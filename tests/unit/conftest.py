"""Property tests under one profile, whatever else the machine does."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "lorabench",
    # Slow examples are no failures. What a test's examples share, a folder or a model, they overwrite or only read.
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("lorabench")
