"""The order of the test files, and how long each test took: `.durations/`."""

import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from places import ROOT, TESTS

SLOW = (
    *("teacher/client/test_pool.py", "training/update/test_engine.py"),
    *("launch/test_slurm.py", "hydra_configs/test_clusters.py"),
    *("teacher/scoring/test_sharded.py", "plan/test_plan.py"),
    *("nodes/test_cluster.py", "test_plugin.py"),
    *("teacher/client/test_several.py", "hydra_configs/test_recipes.py"),
    *("teacher/scoring/test_server_scorer.py", "pipeline/test_run.py"),
    *("launch/test_env.py", "checks/test_preflight.py"),
)
"""Files of tests/unit that take longest, and come first, so that two workers end at the same time: by turns a file that
waits for processes of Ray or pip and a file that keeps one core busy. For `-n 2 --dist loadfile
--no-loadscope-reorder`."""
CPU = pytest.StashKey[float]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts by file, and leaves the order within a file."""
    slow = {TESTS / "unit" / name: place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: slow.get(item.path, len(slow)))


def cpu_seconds() -> float:
    """CPU seconds of this process and of its children that have ended; Ray's processes are not among them."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(item.ru_utime + item.ru_stime for item in usage)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Notes the CPU clock at the start of a test."""
    item.stash[CPU] = cpu_seconds()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Gives the last report of a test its CPU seconds; xdist carries user_properties to the first process."""
    report: Any = yield
    if call.when == "teardown":
        report.user_properties.append(("cpu_seconds", cpu_seconds() - item.stash[CPU]))
    return report


class Durations:
    """Collects what the tests of a run took, and writes it down; lives in the process that prints."""

    def __init__(self, suite: str) -> None:
        self.path = ROOT / ".durations" / f"{suite}.json"
        self.start = time.monotonic()
        self.tests: dict[str, dict[str, float]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Adds up setup, call and teardown; a module's fixture counts for the test that needs it first."""
        test = self.tests.setdefault(report.nodeid, {"seconds": 0.0, "cpu_seconds": 0.0})
        test["seconds"] += report.duration
        test["cpu_seconds"] += sum(value for name, value in report.user_properties if name == "cpu_seconds")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Writes the file and prints one line."""
        files: dict[str, dict[str, float]] = {}
        for nodeid, test in self.tests.items():
            file = files.setdefault(nodeid.partition("::")[0], {"seconds": 0.0, "cpu_seconds": 0.0})
            for key, value in test.items():
                file[key] += value
        cpu = sum(test["cpu_seconds"] for test in self.tests.values())
        total = {"seconds": time.monotonic() - self.start, "cpu_seconds": cpu}
        longest = {name: dict(sorted(part.items(), key=lambda item: -item[1]["cpu_seconds"]))
                   for name, part in (("files", files), ("tests", self.tests))}  # fmt: skip
        self.path.parent.mkdir(exist_ok=True)
        self.path.write_text(json.dumps({"total": total, **longest}, indent=1))
        terminalreporter.write_line(
            f"{self.path.stem}: {len(self.tests)} tests in {total['seconds']:.0f} s, {total['cpu_seconds']:.0f} CPU s; "
            f"each one's: {self.path.relative_to(ROOT)}"
        )


def pytest_configure(config: pytest.Config) -> None:
    """A run of a whole folder of tests/ is written under the folder's name, any other as `part`."""
    if not hasattr(config, "workerinput"):
        folders = {Path(argument).resolve() for argument in config.args}
        whole = next((folder for folder in (TESTS / "unit", TESTS / "e2e") if folders == {folder}), None)
        config.pluginmanager.register(Durations(whole.name if whole else "part"), "durations")
