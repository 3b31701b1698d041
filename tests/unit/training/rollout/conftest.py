"""Fixtures of these tests."""

from agent_loop_harness import worker  # noqa: F401
from terms_harness import data, p  # noqa: F401
