"""The README's hooks and recipe of the user's own, as they stand there: registered, composed, checked, called."""

import re
import sys
from pathlib import Path

import pytest
import torch
import verl  # noqa: F401  (loads the plugin)
from hydra import compose, initialize_config_module
from places import ROOT

from opd_verl.checks.objective import check_names
from opd_verl.config.opd import import_plugins, parse_opd
from opd_verl.credit.inputs import RewardInputs
from opd_verl.hooks import MASK_HOOKS, REWARD_HOOKS, token_weights, total_reward

README = (ROOT / "README.md").read_text()


def block(language: str, beginning: str) -> str:
    """The README's code block of this language whose first line begins so."""
    actual = [text for text in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if beginning in text]
    assert len(actual) == 1, beginning
    return actual[0]


def test_the_hooks_take_fewer_than_15_lines() -> None:
    code = [line for line in block("python", "# my_hooks.py").splitlines() if line.strip()]
    assert len(code) < 15


def test_a_recipe_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_hooks.py").write_text(block("python", "# my_hooks.py"))
    (tmp_path / "conf" / "recipe").mkdir(parents=True)
    (tmp_path / "conf" / "recipe" / "mine.yaml").write_text(block("yaml", "conf/recipe/mine.yaml"))
    monkeypatch.syspath_prepend(tmp_path)
    with initialize_config_module("verl.trainer.config", version_base=None):
        where = f"hydra.searchpath=[file://{tmp_path / 'conf'}]"  # what --config-dir does
        config = compose("ppo_trainer", overrides=[where, "recipe=mine", "opd.teacher.path=T"])
    opd = parse_opd(config)
    try:
        import_plugins(opd)
        check_names(config, opd)
        ones = torch.ones(1, 20)
        inputs = RewardInputs(
            log_p_old=-9 * ones, log_q=-ones, mask=ones, student_entropy=ones, task_score=ones[0, :1], tokens=opd.tokens
        )
        assert total_reward(inputs, opd.rewards).eq(5.0).all()
        weights, _ = token_weights(inputs)
        assert weights is not None and weights.tolist() == [[0.0] * 16 + [1.0] * 4]
    finally:
        for registry in (REWARD_HOOKS, MASK_HOOKS):
            for name in ("clamped_reverse_kl", "after_16"):
                registry.pop(name, None)
        sys.modules.pop("my_hooks", None)
