"""Tests that need programs which are not everywhere."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest


def skip_for_want_of(lacking: Sequence[str]) -> None:
    """Skip a test if it lacks something; where CI runs, nothing may be lacking."""
    if not lacking:
        return
    if os.environ.get("CI"):
        pytest.fail(f"for want of {', '.join(lacking)}")
    pytest.skip(f"for want of {', '.join(lacking)}")
