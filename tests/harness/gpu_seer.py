"""An actor that says which GPUs it sees. In a module of its own, which Ray's processes import without pytest."""

import os

import ray

from opd_verl.teacher.replica.device import see_own_gpus_only


class Seer:
    """Reports what it sees, before and after."""

    def seen(self) -> list[str | None]:
        before = os.environ.get("CUDA_VISIBLE_DEVICES")
        see_own_gpus_only()
        return [before, os.environ.get("CUDA_VISIBLE_DEVICES"), *ray.get_runtime_context().get_accelerator_ids()["GPU"]]
