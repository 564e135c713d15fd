"""`python -m tests.cluster.skewed`: a broker on a machine whose clock is wrong by SKEW_SECONDS."""

import os
import sys
import time

_true_time, _skew = time.time, float(os.environ["SKEW_SECONDS"])


def _wrong_time() -> float:
    return _true_time() + _skew


time.time = _wrong_time

from agentwrit.broker.__main__ import main  # noqa: E402  # whoever takes the time from there takes the wrong one

sys.exit(main())
