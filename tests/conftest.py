"""Settings every test runs under: one thread, the same random cases, nothing sent home."""

from __future__ import annotations

import os
import secrets
import signal

# Before anything imports torch: the order of floating-point sums, and so their bits, depends on the
# number of threads. Worker processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# A local Ray cluster without a token makes one and leaves it in the home directory, where it
# changes what later clusters ask for. This one ends with the tests.
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

# A script's background job ignores SIGINT, and so would every run that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from hypothesis import settings  # noqa: E402

# No deadline: the first example pays for imports. `--hypothesis-profile=explore` finds new cases.
settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("explore", derandomize=False, deadline=None, max_examples=1000)
settings.load_profile("ci")
