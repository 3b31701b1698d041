"""One Ray for all of these tests in a process: starting it costs four CPU seconds, and several more of waiting."""

import os
import time
from collections.abc import Iterator

import pytest
import ray
from places import PYTHONPATH
from ray._private.state import actors
from ray._private.worker import global_worker
from ray.util.placement_group import PlacementGroup, PlacementGroupID, placement_group_table, remove_placement_group

SIZE = {"CPU": 8.0, "GPU": 4.0}
"""Made up: Ray counts them, and nothing here uses a GPU."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A local Ray on which nothing runs at the start of a test file. It ends with the process."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if not ray.is_initialized():
        ray.init(
            num_cpus=int(SIZE["CPU"]),
            num_gpus=int(SIZE["GPU"]),
            include_dashboard=False,
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}},
        )
    yield
    end_everything()


def end_everything() -> None:
    """Ends all actors and placement groups, and waits until their devices are free."""
    for group in placement_group_table():
        remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(group)))
    for actor, entry in actors().items():
        if entry["State"] != "DEAD":
            global_worker.core_worker.kill_actor(ray.ActorID.from_hex(actor), True)
    deadline = time.monotonic() + 30
    while any(ray.available_resources().get(name) != count for name, count in SIZE.items()):
        assert time.monotonic() < deadline, f"left over by a test file: {ray.available_resources()}"
        time.sleep(0.1)
