"""The order of the test files: those that start many processes come first, so that two workers end at the same time."""

import pytest

SLOW = (
    "test_teacher_actor",
    "test_teacher_sharded",
    "test_teacher_server",
    "test_engine_fsdp2",
    "test_slurm",
    "test_preflight",
    "test_several_teachers",
    "test_plugin",
    "test_recipes",
)
"""From the longest; for `-n 2 --dist loadfile --no-loadscope-reorder`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts by file, and leaves the order within a file."""
    items.sort(key=lambda item: SLOW.index(item.path.stem) if item.path.stem in SLOW else len(SLOW))
