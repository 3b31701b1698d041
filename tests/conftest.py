"""The order of the test files: those that start many processes come first, so that two workers end at the same time."""

import pytest
from places import TESTS

SLOW = (
    "teacher/client/test_pool.py",
    "teacher/scoring/test_sharded.py",
    "teacher/scoring/test_server_scorer.py",
    "training/update/test_engine.py",
    "launch/test_slurm.py",
    "checks/test_preflight.py",
    "teacher/client/test_several.py",
    "test_plugin.py",
    "hydra_configs/test_recipes.py",
)
"""From the longest; for `-n 2 --dist loadfile --no-loadscope-reorder`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts by file, and leaves the order within a file."""
    slow = {TESTS / "unit" / name: place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: slow.get(item.path, len(slow)))
