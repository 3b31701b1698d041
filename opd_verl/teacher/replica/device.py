"""Limits an actor to the GPUs that Ray gave it."""

import os

import ray

NOSET = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
"""Ray's variable: if it is set, Ray does not touch an actor's CUDA_VISIBLE_DEVICES."""


def see_own_gpus_only() -> None:
    """Sets CUDA_VISIBLE_DEVICES to the GPUs that Ray gave this actor, where the user's NOSET keeps Ray from doing so.

    Otherwise every replica would load on GPU 0. Must run before CUDA is initialised; does nothing outside an actor.
    """
    if os.environ.get(NOSET, "0").lower() in ("", "0", "false") or not ray.is_initialized():
        return
    if ids := ray.get_runtime_context().get_accelerator_ids().get("GPU", []):
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(ids)
