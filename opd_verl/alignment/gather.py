"""From initial rollouts to questions: paths are chosen, models read along them, trees begun."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as File

import numpy as np
import pyarrow as pa

from opd_verl.alignment.config import AlignmentConfig
from opd_verl.alignment.contexts.prompts import teacher_prompt_ids
from opd_verl.alignment.prepare import AlignmentInputs
from opd_verl.alignment.readings import STUDENT, ChosenPath, PathReader, read_paths
from opd_verl.alignment.tree.generation_tree import GenerationTree, Ints, PackedRollouts
from opd_verl.alignment.tree.question import Path, Question, representative
from opd_verl.config.errors import ConfigError
from opd_verl.sampling.prompts import Model
from opd_verl.sampling.read import ReadSettings

Responses = Sequence[tuple[Ints, bool]]
"""Tokens of each, and whether it is correct."""


@dataclass(frozen=True)
class PromptedModel:
    """The student or a teacher: a model, and what it reads before the responses to each question."""

    model: Model
    prompts: Mapping[int, Sequence[int]]
    """Row of the prompts: token ids."""


def prompted_models(
    plan: AlignmentInputs, rows: pa.Table, usable: Sequence[int], config: AlignmentConfig
) -> dict[str, PromptedModel]:
    """STUDENT, the external teachers, which read what it reads, and the student behind each context.

    rows: with the texts that the contexts show.
    """
    asked = plan.job.requests["prompt_ids"].to_pylist()
    own = {number: asked[number] for number in usable}
    found = {STUDENT: PromptedModel(plan.student, own)} | {
        name: PromptedModel(model, own) for name, model in plan.teachers.items()
    }
    for name in config.contexts.names:
        pairs = zip(usable, rows.take(list(usable)).to_pylist(), strict=True)
        ids = {number: teacher_prompt_ids(plan.student, row, name, config.sampling) for number, row in pairs}
        found[name] = PromptedModel(plan.student, ids)
    return found


def choose_paths(initial: Sequence[Responses], usable: Sequence[int], config: AlignmentConfig) -> list[ChosenPath]:
    """Representative paths of the questions that were answered at all: at the others no token makes a difference."""
    return [
        ChosenPath(number, *initial[number][row])
        for number in usable
        for right in [[correct for _, correct in initial[number]]]
        if any(right)
        for row in representative(right, config.correct_paths, config.incorrect_paths, (config.seed, number))
    ]


def make_questions(
    plan: AlignmentInputs,
    initial: Sequence[Responses],
    speaking: Mapping[str, PromptedModel],
    usable: Sequence[int],
    config: AlignmentConfig,
) -> list[Question]:
    """Trees of the initial rollouts, and what every voice says along the paths.

    Raises ConfigError where no question was answered.
    """
    chosen = choose_paths(initial, usable, config)
    if not chosen:
        problem = f"none of {len(usable)} questions has a correct one among its {config.rollouts} rollouts"
        raise ConfigError("prompts", config.prompts, problem, "take easier prompts, or a higher rollouts=")
    readers = {
        name: PathReader(one.model, [one.prompts[path.question] for path in chosen]) for name, one in speaking.items()
    }
    wanted = ReadSettings(topk=likely(config.targets.threshold, plan.student), temperature=config.temperature)
    folder, trust = File(config.out) / "reading", config.engine.trust_remote_code
    paths = read_paths(readers, chosen, config.targets.threshold, wanted, folder, trust)
    found = dict[int, list[Path]]()
    for one, path in zip(chosen, paths, strict=True):
        found.setdefault(one.question, []).append(path)
    return [begun(number, initial[number], own) for number, own in found.items()]


def likely(threshold: float, student: Model) -> int:
    """As many ids as can have more than the threshold each."""
    return min(int(1.0 / threshold), len(student.tokenizer))


def begun(number: int, initial: Responses, paths: Sequence[Path]) -> Question:
    """A question whose tree has the initial rollouts."""
    tree = GenerationTree()
    tree.add(initial_rollouts(initial))
    return Question(number, tree, paths, float(np.mean([correct for _, correct in initial])))


def initial_rollouts(responses: Responses) -> PackedRollouts:
    """Launched with nothing given."""
    return PackedRollouts.of(
        [tokens for tokens, _ in responses], [0] * len(responses), [correct for _, correct in responses]
    )
