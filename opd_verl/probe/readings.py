"""Student and teachers at the measured tokens: three forward passes, each model loaded as rarely as it can be.

The student gives its top-k; every teacher its own and log q at the student's; the student log p at the teachers'.

OUT/reading/STUDENT/NAME/      the student or a teacher at the rollouts of STUDENT
OUT/reading/STUDENT/again/     the student at the teachers' ids
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd_verl.probe.config import ProbeConfig
from opd_verl.probe.prepare import PreparedProbe
from opd_verl.probe.rollouts import Rollout, requests
from opd_verl.sampling.prompts import Model
from opd_verl.sampling.read import Reading, ReadSettings, read_model

Arrays = list[NDArray[Any]]
"""One array for each rollout."""


@dataclass(frozen=True)
class PairReadings:
    """A student and a teacher at the student's rollouts: readings of `opd_verl.sampling.read`."""

    student: Reading
    teacher: Reading
    log_p_at_teacher: Arrays
    """[R, k] log p at the teacher's top-k."""
    k: int


def read_pairs(
    plan: PreparedProbe, rollouts: dict[str, list[Rollout]], config: ProbeConfig
) -> dict[tuple[str, str], PairReadings]:
    """(student, teacher): their pair. What is there already is not read again."""
    folder, wanted = Path(config.out) / "reading", ReadSettings(topk=config.k, temperature=config.temperature)
    own = {name: Reading(requests(rollouts[name]), folder / name / name, wanted) for name in plan.students}
    for name, model in plan.students.items():
        read(model, [own[name]], config)
    own_ids = {name: own[name].column("topk_ids") for name in own}
    teachers = {
        (student, teacher): Reading(
            requests(rollouts[student], at_ids=own_ids[student]),
            folder / student / teacher,
            ReadSettings(config.k, True, config.temperature),
        )
        for student in own
        for teacher in plan.teachers
    }
    for name, model in plan.teachers.items():
        read(model, [reading for (_, teacher), reading in teachers.items() if teacher == name], config)
    again = {name: read_again(name, plan, rollouts[name], teachers, config) for name in own}
    return {
        (student, teacher): PairReadings(own[student], reading, again[student][teacher], config.k)
        for (student, teacher), reading in teachers.items()
    }


def read_again(
    student: str,
    plan: PreparedProbe,
    rollouts: list[Rollout],
    teachers: dict[tuple[str, str], Reading],
    config: ProbeConfig,
) -> dict[str, Arrays]:
    """Teacher: log p of the student at this teacher's top-k, [R, k] of each rollout; one pass for all of them."""
    if not plan.teachers:
        return {}
    k, names = config.k, list(plan.teachers)
    ids = [teachers[student, name].column("topk_ids", k) for name in names]
    joined = [np.concatenate(row, axis=1).reshape(-1) for row in zip(*ids, strict=True)]
    folder = Path(config.out) / "reading" / student / "again"
    reading = Reading(requests(rollouts, at_ids=joined), folder, ReadSettings(temperature=config.temperature))
    read(plan.students[student], [reading], config)
    found = reading.column("at_ids_log_probs", k * len(names))
    return {name: [row[:, k * place : k * (place + 1)] for row in found] for place, name in enumerate(names)}


def read(model: Model, readings: list[Reading], config: ProbeConfig) -> None:
    """As `read_model`; the log is beside the first reading."""
    log = readings[0].folder.with_name(f"{readings[0].folder.name}.log")
    read_model(model.path, model.fingerprint, readings, config.engine.trust_remote_code, log)
