"""What every test may use."""

import os

from hypothesis import settings

pytest_plugins = ["tests.servers.plugin"]

# The same examples in every run; new ones, which a failure prints, when asked for: S3MGR_TEST_RANDOM=1.
settings.register_profile("fixed", derandomize=True)
settings.register_profile("random", derandomize=False)
settings.load_profile("random" if os.environ.get("S3MGR_TEST_RANDOM") else "fixed")
