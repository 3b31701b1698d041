"""One alignment: contexts, rollouts, trees, targeted rollouts, tables. What is finished is kept, whatever is killed.

OUT/contexts, rollouts, reading, targeted      what the models said
OUT/nodes.parquet, nodes.jsonl                 every node of every path, for every teacher
OUT/alignment.json, alignment.md, *.png        results
OUT/conf/                                      what they suggest for training
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path as File

import pyarrow as pa
import pyarrow.parquet as pq

from opd_verl.alignment.config import AlignmentConfig
from opd_verl.alignment.contexts.prepare import PreparedContexts, prepare_contexts
from opd_verl.alignment.contexts.screening import screen_contexts
from opd_verl.alignment.gather import PromptedModel, Responses, initial_rollouts, make_questions, prompted_models
from opd_verl.alignment.gradients.node_table import MINILLM, question_nodes, schema
from opd_verl.alignment.launch import Launcher, generations
from opd_verl.alignment.minillm import QuestionRollouts, measure_rewards
from opd_verl.alignment.prepare import AlignmentInputs, open_inputs
from opd_verl.alignment.responses import judged_responses
from opd_verl.alignment.tree.enrich import Launched, Spent, add, enrich, say
from opd_verl.alignment.tree.question import Question
from opd_verl.sampling.generate import generate_in_child
from opd_verl.sampling.rollouts import MADE_WITH, Generate, Sampler
from opd_verl.utils.files import json_digest, write_json


@dataclass(frozen=True, eq=False)
class AlignmentResult:
    """What was measured."""

    nodes: pa.Table
    questions: Sequence[Question]
    initial: int
    """Initial rollouts."""
    spent: Spent
    """On targeted ones."""
    plan: AlignmentInputs


def align(config: AlignmentConfig, generate: Generate = generate_in_child) -> AlignmentResult:
    """Builds a tree for every question and holds every teacher against it.

    Raises ConfigError before anything is sampled if a setting, model or file cannot work, and ChildError if a model's
    process fails.
    """
    plan, out = open_inputs(config), File(config.out)
    sampler = Sampler(config.sampling, config.engine, config.reward, config.workers, generate)
    prepared = prepare_contexts(plan.student, plan.rows, config.contexts, sampler, out / "contexts")
    seconds = sample_initial(plan, sampler, out)
    initial = list(judged_responses(plan.job.out))
    screen(plan, prepared, initial, sampler, config)
    speaking = prompted_models(plan, prepared.rows, prepared.usable, config)
    questions = make_questions(plan, initial, speaking, prepared.usable, config)
    started = (len(initial) * config.rollouts, seconds)
    spent, kept = grow(questions, *make_launcher(plan, questions, speaking, config, generate), started, config)
    if MINILLM in config.objectives:
        rewards(questions, initial, kept, speaking, config)
    tables = [question_nodes(one, config.nodes) for one in questions]
    return AlignmentResult(
        pa.concat_tables([schema(config.nodes).empty_table(), *tables]), questions, started[0], spent, plan
    )


def grow(
    questions: Sequence[Question],
    launcher: Launcher,
    before: Sequence[File],
    started: tuple[int, float],
    config: AlignmentConfig,
) -> tuple[Spent, list[Launched]]:
    """Adds targeted rollouts to the trees; gives them where MiniLLM needs them: those of a large run take gigabytes.

    Args:
        before: folders of earlier generations.
        started: initial rollouts, and the seconds that they took.
    """
    kept = list[Launched]()

    def keep(one: Launched) -> Launched:
        if MINILLM in config.objectives:
            kept.append(one)
        return one

    for folder in before:
        for one in launcher.earlier(folder):
            add(questions, keep(one))
    spent = enrich(
        questions, lambda window, wanted: keep(launcher(window, wanted)), config.targets, config.budget, started, say
    )
    return spent, kept


def sample_initial(plan: AlignmentInputs, sampler: Sampler, out: File) -> float:
    """The initial rollouts of every question, and the seconds that they took."""
    timer, started = out / "rollouts" / "initial.seconds.json", time.monotonic()
    sampler.run([plan.job])
    if not timer.exists():
        write_json(timer, time.monotonic() - started)
    return float(json.loads(timer.read_text()))


def screen(
    plan: AlignmentInputs,
    prepared: PreparedContexts,
    initial: Sequence[Responses],
    sampler: Sampler,
    config: AlignmentConfig,
) -> None:
    """Tables 8 and 9, if they are asked for."""
    if config.contexts.screen:
        rates = [sum(correct for _, correct in one) / len(one) for one in initial]
        folder = File(config.out) / "contexts"
        screen_contexts(plan.student, prepared, config.contexts, sampler, folder, rates, config.resamples)


def make_launcher(
    plan: AlignmentInputs,
    questions: Sequence[Question],
    speaking: Mapping[str, PromptedModel],
    config: AlignmentConfig,
    generate: Generate,
) -> tuple[Launcher, list[File]]:
    """The launcher, and the folders of earlier generations on the same initial rollouts.

    What is ordered depends on who was read along the paths, and on these settings.
    """
    tree = (pq.read_schema(plan.job.out).metadata or {})[MADE_WITH].decode()
    voice = {name: [one.model.fingerprint, one.prompts] for name, one in speaking.items()}
    settings = [
        asdict(config.targets),
        asdict(config.budget),
        config.correct_paths,
        config.incorrect_paths,
        config.seed,
    ]
    own, before = generations(File(config.out) / "targeted" / json_digest(tree)[:8], json_digest([voice, settings]))
    asked = plan.job.requests["prompt_ids"].to_pylist()
    numbered = {one.number: one for one in questions}
    return Launcher(numbered, plan.student, plan.rows, asked, config, generate, own), before


def rewards(
    questions: Sequence[Question],
    initial: Sequence[Responses],
    launched: Sequence[Launched],
    speaking: Mapping[str, PromptedModel],
    config: AlignmentConfig,
) -> None:
    """MiniLLM's, of every rollout."""
    groups = [
        QuestionRollouts(question, rollouts, {name: one.prompts[question.number] for name, one in speaking.items()})
        for question in questions
        for rollouts in [
            initial_rollouts(initial[question.number]),
            *(one.rollouts[question.number] for one in launched if question.number in one.rollouts),
        ]
    ]
    folder, trust = File(config.out) / "reading" / "rollouts", config.engine.trust_remote_code
    models = {name: one.model for name, one in speaking.items()}
    measure_rewards(groups, models, config.temperature, folder, trust)
