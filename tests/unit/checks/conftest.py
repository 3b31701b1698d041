"""Fixtures of these tests."""

from preflight_harness import files  # noqa: F401
