"""The README states only what is there."""

import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from opd_verl.metrics.names import CONDITIONAL, METRICS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_readme_lists_every_metric_with_its_meaning() -> None:
    rows = dict(re.findall(r"^\| `([a-z_]+/[a-z0-9_/<>-]+)` \| (.+) \|$", README, flags=re.MULTILINE))
    assert rows == METRICS | CONDITIONAL


def test_a_metric_is_logged_always_or_conditionally_but_not_both() -> None:
    assert not METRICS.keys() & CONDITIONAL.keys()


def test_every_path_and_link_in_the_documents_exists() -> None:
    for document in [ROOT / "README.md", *ROOT.glob("recipes/**/*.md")]:
        text = document.read_text()
        linked = re.findall(r"\]\(([^)#]+)\)", text)
        for target in linked:
            assert target.startswith("http") or (document.parent / target).exists(), f"{document}: {target}"
        named = re.findall(r"`((?:opd_verl|hydra_configs|recipes|launch|tests)/[\w/.-]+)`", text)
        for path in named:
            assert (ROOT / path).exists(), f"{document}: {path}"


def test_every_recipe_is_in_the_readme() -> None:
    for recipe in (ROOT / "hydra_configs" / "recipe").glob("*.yaml"):
        assert f"`recipe={recipe.stem}`" in README, recipe.stem


def commands() -> list[str]:
    """Hydra commands of the README, without comments; a command in several lines is one."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    hydra = r"python -m (verl\.trainer\.main_ppo|opd_verl\.(alignment|eval|pipeline|plan|probe))\b"
    return [line for line in lines if re.search(hydra, line)]


@pytest.mark.parametrize("command", commands())
def test_hydra_reads_every_override(command: str) -> None:
    words = shlex.split(command, comments=True)
    overrides = [word for word in words[words.index("-m") + 2 :] if "=" in word and not word.startswith("-")]
    assert OverridesParser.create().parse_overrides(overrides)
