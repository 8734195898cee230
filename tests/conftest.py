"""What holds for all tests.

Properties are tried on few examples, the same every time; `--hypothesis-profile=thorough` tries many others.
"""

import gc
import sys

from hypothesis import HealthCheck, settings

# How long an example takes says more about what else the machine does than about the code, and messages of every kind
# are large.
settings.register_profile(
    "few", deadline=None, max_examples=25, derandomize=True, suppress_health_check=list(HealthCheck)
)
settings.register_profile("thorough", settings.get_profile("few"), derandomize=False, max_examples=1000)
settings.load_profile("few")


def pytest_collection_finish() -> None:
    """Keep what libraries and collected tests hold out of garbage collections, of which the cache asks for many.

    And torch to one thread: the tensors of tests are tiny, and threads would mostly wait for each other.
    """
    gc.collect()
    gc.freeze()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
