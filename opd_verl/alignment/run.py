"""One alignment: contexts, rollouts, trees, targeted rollouts, tables. A run that is killed keeps its finished parts.

OUT/contexts, rollouts, reading, targeted      responses and log-probs of the models
OUT/nodes.parquet, nodes.jsonl                 every node of every path, for every teacher
OUT/alignment.json, alignment.md, *.png        results
OUT/conf/                                      recipes that the results suggest for training
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
from opd_verl.alignment.gather import PromptedModel, make_questions, prompted_models
from opd_verl.alignment.gradients.node_table import MINILLM, question_nodes, schema
from opd_verl.alignment.launcher import Launcher, generations
from opd_verl.alignment.minillm import QuestionRollouts, measure_rewards
from opd_verl.alignment.prepare import PreparedAlignment, prepare_alignment
from opd_verl.alignment.responses import Responses, initial_rollouts, judged_responses
from opd_verl.alignment.tree.enrich import Launched, Spent, add, enrich, say
from opd_verl.alignment.tree.question import QuestionTree
from opd_verl.sampling.generate import generate_in_child
from opd_verl.sampling.rollouts import MADE_WITH, Generate, Sampler
from opd_verl.utils.files import json_digest, write_json


@dataclass(frozen=True, eq=False)
class AlignmentResult:
    """The node table, and what it cost."""

    nodes: pa.Table
    questions: Sequence[QuestionTree]
    initial: int
    """Number of initial rollouts."""
    spent: Spent
    """Cost of the targeted rollouts."""
    prepared: PreparedAlignment


def align(config: AlignmentConfig, generate: Generate = generate_in_child) -> AlignmentResult:
    """Builds a tree for every question and compares every teacher with it.

    Raises ConfigError before anything is sampled if a setting, model or file cannot work, and ChildError if a model's
    process fails.
    """
    prepared, out = prepare_alignment(config), File(config.out)
    sampler = Sampler(config.sampling, config.engine, config.reward, config.workers, generate)
    contexts = prepare_contexts(prepared.student, prepared.rows, config.contexts, sampler, out / "contexts")
    seconds = sample_initial(prepared, sampler, out)
    initial = list(judged_responses(prepared.job.out))
    screen(prepared, contexts, initial, sampler, config)
    models = prompted_models(prepared, contexts.rows, contexts.usable, config)
    questions = make_questions(prepared, initial, models, contexts.usable, config)
    started = (len(initial) * config.rollouts, seconds)
    launcher, before = make_launcher(prepared, questions, models, config, generate)
    spent, kept = grow(questions, launcher, before, started, config)
    if MINILLM in config.objectives:
        rewards(questions, initial, kept, models, config)
    tables = [question_nodes(question, config.nodes) for question in questions]
    nodes = pa.concat_tables([schema(config.nodes).empty_table(), *tables])
    return AlignmentResult(nodes, questions, started[0], spent, prepared)


def grow(
    questions: Sequence[QuestionTree],
    launcher: Launcher,
    before: Sequence[File],
    started: tuple[int, float],
    config: AlignmentConfig,
) -> tuple[Spent, list[Launched]]:
    """Adds targeted rollouts to the trees, and returns them for MiniLLM, which reads them all again.

    Without MiniLLM the list is empty: the rollouts of a large run take gigabytes.

    Args:
        before: folders of earlier generations.
        started: number and seconds of the initial rollouts.
    """
    kept = list[Launched]()

    def keep(launched: Launched) -> Launched:
        if MINILLM in config.objectives:
            kept.append(launched)
        return launched

    for folder in before:
        for launched in launcher.earlier(folder):
            add(questions, keep(launched))
    spent = enrich(
        questions, lambda window, wanted: keep(launcher(window, wanted)), config.targets, config.budget, started, say
    )
    return spent, kept


def sample_initial(prepared: PreparedAlignment, sampler: Sampler, out: File) -> float:
    """Samples the initial rollouts of every question; returns the seconds that sampling and judging took."""
    timer, started = out / "rollouts" / "initial.seconds.json", time.monotonic()
    sampler.run([prepared.job])
    # A resumed run finds its rollouts at once: only the first run's time tells the cost of a rollout.
    if not timer.exists():
        write_json(timer, time.monotonic() - started)
    return float(json.loads(timer.read_text()))


def screen(
    prepared: PreparedAlignment,
    contexts: PreparedContexts,
    initial: Sequence[Responses],
    sampler: Sampler,
    config: AlignmentConfig,
) -> None:
    """Writes tables 8 and 9 if the settings ask for them; the initial rollouts give the baseline."""
    if config.contexts.screen:
        rates = [sum(correct for _, correct in responses) / len(responses) for responses in initial]
        folder = File(config.out) / "contexts"
        screen_contexts(prepared.student, contexts, config.contexts, sampler, folder, rates, config.resamples)


def make_launcher(
    prepared: PreparedAlignment,
    questions: Sequence[QuestionTree],
    models: Mapping[str, PromptedModel],
    config: AlignmentConfig,
    generate: Generate,
) -> tuple[Launcher, list[File]]:
    """The launcher, and the folders of earlier generations on the same initial rollouts.

    The models along the paths and the settings below decide what is ordered, so they name the generation.
    """
    tree = (pq.read_schema(prepared.job.out).metadata or {})[MADE_WITH].decode()
    read = {name: [prompted.model.fingerprint, prompted.prompts] for name, prompted in models.items()}
    settings = [
        asdict(config.targets),
        asdict(config.budget),
        config.correct_paths,
        config.incorrect_paths,
        config.seed,
    ]
    own, before = generations(File(config.out) / "targeted" / json_digest(tree)[:8], json_digest([read, settings]))
    asked = prepared.job.requests["prompt_ids"].to_pylist()
    numbered = {question.number: question for question in questions}
    return Launcher(numbered, prepared.student, prepared.rows, asked, config, generate, own), before


def rewards(
    questions: Sequence[QuestionTree],
    initial: Sequence[Responses],
    launched: Sequence[Launched],
    models: Mapping[str, PromptedModel],
    config: AlignmentConfig,
) -> None:
    """Measures MiniLLM's reward-to-go of every rollout."""
    groups = [
        QuestionRollouts(question, rollouts, {name: model.prompts[question.number] for name, model in models.items()})
        for question in questions
        for rollouts in [
            initial_rollouts(initial[question.number]),
            *(done.rollouts[question.number] for done in launched if question.number in done.rollouts),
        ]
    ]
    folder, trust = File(config.out) / "reading" / "rollouts", config.engine.trust_remote_code
    measure_rewards(groups, {name: model.model for name, model in models.items()}, config.temperature, folder, trust)
