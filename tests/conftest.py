"""Examples that several test files share, materialised once a session in a child process."""

import logging
import os
import sys

# Two simulated devices, so that every test of training is also one of data parallelism. Set
# before JAX starts.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")

import pytest

logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # as compilation.prepare, and why
REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if REPOSITORY not in sys.path:
    sys.path.insert(0, REPOSITORY)


@pytest.fixture(scope="session")
def mini_root(tmp_path_factory):
    """Root of the materialised examples of tests/mini/study.gin."""
    from t5scaling.data.examples import find_all_examples
    from tests import mini

    root = str(tmp_path_factory.mktemp("examples"))
    find_all_examples([mini.SPAN, mini.PAIRS, mini.VALIDATION, mini.TEST], root)
    return root
