"""Makes the teacher's replicas fail in another way in each step. Python imports it where its folder is on PYTHONPATH.

`OPD_FAULTS` names a folder. A file in it says that a fault has happened, so that a restarted replica works.
"""

import os
import threading
import time
from pathlib import Path
from typing import Any

from wrapt import when_imported

WHILE_SCORING, BETWEEN_STEPS, ALL, HANGS, NAN, MIXES_UP, NAN_EVERYWHERE = range(4, 11)
"""Each fault's step. In the last, no replica can score one token of one rollout."""
FOLDER = Path(os.environ["OPD_FAULTS"])
SICK_ROLLOUT = ".00003_0_0"


def first_time(step: int, who: str = "") -> bool:
    try:
        (FOLDER / f"{step}{who}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def die() -> None:
    os._exit(1)


def spoil(state: Any) -> None:
    import torch

    with torch.inference_mode():
        state.log_q[0] = float("nan")


@when_imported("opd_verl.teacher.replica.actor")
def make_it_fail(module: Any) -> None:
    collect, attempt = module.TeacherActor.collect, module.TeacherActor._attempt

    def failing_collect(self: Any, requests: Any, spec: Any) -> Any:
        step = spec.step
        if step == HANGS and first_time(step):
            time.sleep(3600)
        if step == ALL and first_time(step, name()):
            die()
        answers = collect(self, requests, spec)
        if step == BETWEEN_STEPS and first_time(step):
            threading.Timer(0.5, die).start()
        if step == MIXES_UP and first_time(step):
            answers = answers[1:] + answers[:1]
        return answers

    def failing_attempt(self: Any, batch: Any) -> Any:
        step = batch[0].step
        if step == WHILE_SCORING and first_time(step):
            die()
        states = attempt(self, batch)
        if step == NAN and first_time(step):
            spoil(states[0])
        if step == NAN_EVERYWHERE:
            for job, state in zip(batch, states, strict=True):
                if job.request.key.endswith(SICK_ROLLOUT):
                    spoil(state)
        return states

    module.TeacherActor.collect, module.TeacherActor._attempt = failing_collect, failing_attempt


def name() -> str:
    """The replica's name; it is the same after a restart."""
    import ray

    return str(ray.get_runtime_context().get_actor_name())
