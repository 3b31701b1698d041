"""From initial rollouts to questions: chooses paths, reads every model along them, begins the trees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as File

import numpy as np
import pyarrow as pa

from opd_verl.alignment.config import AlignmentConfig
from opd_verl.alignment.contexts.prompts import teacher_prompt_ids
from opd_verl.alignment.prepare import PreparedAlignment
from opd_verl.alignment.readings import STUDENT, ChosenPath, PathReader, read_paths
from opd_verl.alignment.responses import Responses, initial_rollouts
from opd_verl.alignment.tree.generation_tree import GenerationTree
from opd_verl.alignment.tree.question import Path, QuestionTree, representative
from opd_verl.config.errors import ConfigError
from opd_verl.sampling.prompts import Model
from opd_verl.sampling.read import ReadSettings


@dataclass(frozen=True)
class PromptedModel:
    """The student or a teacher: a model, and the prompt that it reads before the responses to each question."""

    model: Model
    prompts: Mapping[int, Sequence[int]]
    """Row of the prompts: token ids."""


def prompted_models(
    prepared: PreparedAlignment, rows: pa.Table, usable: Sequence[int], config: AlignmentConfig
) -> dict[str, PromptedModel]:
    """STUDENT, the external teachers (they read the student's prompts), and the student with each context.

    rows: the prompts with the texts that the contexts show.
    """
    asked = prepared.job.requests["prompt_ids"].to_pylist()
    own = {number: asked[number] for number in usable}
    models = {STUDENT: PromptedModel(prepared.student, own)}
    models |= {name: PromptedModel(model, own) for name, model in prepared.teachers.items()}
    for name in config.contexts.names:
        pairs = zip(usable, rows.take(list(usable)).to_pylist(), strict=True)
        ids = {number: teacher_prompt_ids(prepared.student, row, name, config.sampling) for number, row in pairs}
        models[name] = PromptedModel(prepared.student, ids)
    return models


def choose_paths(initial: Sequence[Responses], usable: Sequence[int], config: AlignmentConfig) -> list[ChosenPath]:
    """Representative paths of the questions with a correct response: elsewhere no token changes the outcome."""
    return [
        ChosenPath(number, *initial[number][row])
        for number in usable
        for right in [[correct for _, correct in initial[number]]]
        if any(right)
        for row in representative(right, config.correct_paths, config.incorrect_paths, (config.seed, number))
    ]


def make_questions(
    prepared: PreparedAlignment,
    initial: Sequence[Responses],
    models: Mapping[str, PromptedModel],
    usable: Sequence[int],
    config: AlignmentConfig,
) -> list[QuestionTree]:
    """Trees of the initial rollouts, with every model's log-probs along the paths.

    Raises ConfigError if no question was answered.
    """
    chosen = choose_paths(initial, usable, config)
    if not chosen:
        problem = f"none of {len(usable)} questions has a correct rollout among its {config.rollouts} rollouts"
        raise ConfigError("prompts", config.prompts, problem, "take easier prompts, or a higher rollouts=")
    readers = {
        name: PathReader(prompted.model, [prompted.prompts[path.question] for path in chosen])
        for name, prompted in models.items()
    }
    settings = ReadSettings(topk=likely(config.targets.threshold, prepared.student), temperature=config.temperature)
    folder, trust = File(config.out) / "reading", config.engine.trust_remote_code
    paths = read_paths(readers, chosen, config.targets.threshold, settings, folder, trust)
    by_question = dict[int, list[Path]]()
    for before, path in zip(chosen, paths, strict=True):
        by_question.setdefault(before.question, []).append(path)
    return [begun(number, initial[number], own) for number, own in by_question.items()]


def likely(threshold: float, student: Model) -> int:
    """Most ids that can each have more than the threshold: a top-k of this size misses no such id."""
    return min(int(1.0 / threshold), len(student.tokenizer))


def begun(number: int, initial: Responses, paths: Sequence[Path]) -> QuestionTree:
    """A question whose tree has the initial rollouts."""
    tree = GenerationTree()
    tree.add(initial_rollouts(initial))
    return QuestionTree(number, tree, paths, float(np.mean([correct for _, correct in initial])))
