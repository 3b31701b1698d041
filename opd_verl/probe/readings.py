"""Reads student and teachers at the measured tokens in three forward passes; each loads its model once.

1. Each student reads its rollouts: its top-k, log p and entropies.
2. Each teacher reads all students' rollouts: its top-k, log q, entropies, and log q at the students' top-k ids.
3. Each student reads again: log p at the teachers' top-k ids, which pass 2 has found.

OUT/reading/STUDENT/NAME/      passes 1 and 2: the student or a teacher at the rollouts of STUDENT
OUT/reading/STUDENT/again/     pass 3
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
"""One array for each rollout: float32, or int32 for ids."""


@dataclass(frozen=True)
class PairReadings:
    """Readings of a student and of a teacher at the student's rollouts."""

    student: Reading
    teacher: Reading
    log_p_at_teacher: Arrays
    """[R, k] log p at the teacher's top-k."""
    k: int


def read_pairs(
    prepared: PreparedProbe, rollouts: dict[str, list[Rollout]], config: ProbeConfig
) -> dict[tuple[str, str], PairReadings]:
    """(student, teacher): their readings. Finished readings are kept."""
    folder = Path(config.out) / "reading"
    student_settings = ReadSettings(topk=config.k, temperature=config.temperature)
    own = {
        name: Reading(requests(rollouts[name]), folder / name / name, student_settings) for name in prepared.students
    }
    for name, model in prepared.students.items():
        read(model, [own[name]], config)
    own_ids = {name: own[name].column("topk_ids") for name in own}
    teachers = {
        (student, teacher): Reading(
            requests(rollouts[student], at_ids=own_ids[student]),
            folder / student / teacher,
            ReadSettings(config.k, masses=True, temperature=config.temperature),
        )
        for student in own
        for teacher in prepared.teachers
    }
    for name, model in prepared.teachers.items():
        read(model, [reading for (_, teacher), reading in teachers.items() if teacher == name], config)
    again = {name: read_again(name, prepared, rollouts[name], teachers, config) for name in own}
    return {
        (student, teacher): PairReadings(own[student], reading, again[student][teacher], config.k)
        for (student, teacher), reading in teachers.items()
    }


def read_again(
    student: str,
    prepared: PreparedProbe,
    rollouts: list[Rollout],
    teachers: dict[tuple[str, str], Reading],
    config: ProbeConfig,
) -> dict[str, Arrays]:
    """The student's log p at each teacher's top-k, [R, k] per rollout, by teacher. One pass serves all teachers."""
    if not prepared.teachers:
        return {}
    k, names = config.k, list(prepared.teachers)
    ids = [teachers[student, name].column("topk_ids", k) for name in names]
    # The teachers' ids lie side by side in one request, [R, k * teachers]; the answer is split again below.
    joined = [np.concatenate(row, axis=1).reshape(-1) for row in zip(*ids, strict=True)]
    folder = Path(config.out) / "reading" / student / "again"
    reading = Reading(requests(rollouts, at_ids=joined), folder, ReadSettings(temperature=config.temperature))
    read(prepared.students[student], [reading], config)
    answer = reading.column("at_ids_log_probs", k * len(names))
    return {name: [row[:, k * place : k * (place + 1)] for row in answer] for place, name in enumerate(names)}


def read(model: Model, readings: list[Reading], config: ProbeConfig) -> None:
    """Makes the missing readings of one model; the log is beside the first reading."""
    log = readings[0].folder.with_name(f"{readings[0].folder.name}.log")
    read_model(model.path, model.fingerprint, readings, config.engine.trust_remote_code, log)
