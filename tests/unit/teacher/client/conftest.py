"""Fixtures of these tests."""

from head_harness import micro_batch  # noqa: F401
