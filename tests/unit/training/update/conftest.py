"""Fixtures of these tests."""

from head_harness import micro_batch  # noqa: F401
from terms_harness import data, p  # noqa: F401
