"""How many examples Hypothesis draws: the profile's number (conftest.py) where one costs a moment, fewer elsewhere."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

NIGHTLY = settings.get_current_profile_name() == "nightly"

#: Where an example costs some hundredths of a second.
dear = settings(max_examples=settings.default.max_examples // 4, deadline=None)
#: And the same examples every time, but at night: a test that fails once a month helps nobody.
fuzz = settings(
    dear,
    derandomize=not NIGHTLY,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
