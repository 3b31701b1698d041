"""MiniLLM's reward-to-go at every node: student and teachers read every rollout, not the paths alone (eq. 2.10)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as File

import numpy as np

from opd_verl.alignment.readings import STUDENT, ChosenPath, PathReader, read_tokens
from opd_verl.alignment.tree.generation_tree import NOBODY, PackedRollouts
from opd_verl.alignment.tree.question import Floats, QuestionTree, reward_to_go
from opd_verl.sampling.prompts import Model


@dataclass(frozen=True)
class QuestionRollouts:
    """Rollouts of one question that were launched together."""

    question: QuestionTree
    rollouts: PackedRollouts
    prompts: Mapping[str, Sequence[int]]
    """The prompt that the student and each teacher read before the rollouts."""


def measure_rewards(
    groups: Sequence[QuestionRollouts], models: Mapping[str, Model], temperature: float, folder: File, trust: bool
) -> None:
    """Fills `QuestionTree.rewards`: one forward pass of every model over every rollout."""
    # Whether a rollout is correct plays no part in its reward-to-go.
    chosen = [
        ChosenPath(group.question.number, tokens, correct=False)
        for group in groups
        for tokens in np.split(group.rollouts.tokens, group.rollouts.ends[:-1])
    ]
    counts = [len(group.rollouts.ends) for group in groups]
    prompts = {
        name: [group.prompts[name] for group, count in zip(groups, counts, strict=True) for _ in range(count)]
        for name in models
    }
    readers = {name: PathReader(model, prompts[name]) for name, model in models.items()}
    log_probs = read_tokens(readers, chosen, temperature, folder, trust)
    begins = np.cumsum([0, *counts])
    for group, begin, end in zip(groups, begins, begins[1:], strict=False):
        for name in log_probs:
            if name != STUDENT:
                pairs = zip(log_probs[name][begin:end], log_probs[STUDENT][begin:end], strict=True)
                _add(group, name, [log_q - log_p for log_q, log_p in pairs])


def _add(group: QuestionRollouts, teacher: str, rewards: Sequence[Floats]) -> None:
    """Adds the rewards-to-go at the nodes behind tokens that the student chose, not behind the given prefixes."""
    tree, rollouts = group.question.tree, group.rollouts
    nodes = tree.locate(rollouts)
    # Every rollout is in the tree already: the tree was grown from these rollouts.
    assert (nodes != NOBODY).all()
    chose = rollouts.depths >= np.repeat(rollouts.given, rollouts.ends - rollouts.starts)
    values = np.concatenate([reward_to_go(reward) for reward in rewards])
    sums = np.bincount(nodes[chose], weights=values[chose], minlength=len(tree))
    group.question.rewards[teacher] = group.question.rewards.get(teacher, 0.0) + sums
