"""The READMEs state only what is there: links, paths, overrides, metrics, recipes. The front page stays short."""

import ast
import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from opd_verl.metrics.names import CONDITIONAL, METRICS

ROOT = next(folder for folder in Path(__file__).parents if (folder / "setup.py").is_file())
README = (ROOT / "README.md").read_text()
FOLDERS = ("opd_verl", "recipes", "launch", "tests", "hydra_configs", ".github")
DOCUMENTS = [
    ROOT / "README.md",
    *sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.md") if file.name != "LOG.md"),
]
"""The lab book is left out: it is history, and names files as they were."""
COMMANDS = sorted(".".join(file.relative_to(ROOT).parent.parts) for file in ROOT.glob("opd_verl/*/__main__.py"))
"""The packages that run as `python -m`."""
HYDRA = r"python -m (verl\.trainer\.main_ppo|opd_verl\.(alignment|eval|nodes|pipeline|plan|probe)|launch\.ray_submit)\b"
TOP_FOLDERS = r"(?:opd_verl|hydra_configs|recipes|launch|tests)"


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def without_code(text: str) -> str:
    """The text less its fenced blocks."""
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(document: Path) -> set[str]:
    """The names of a document's headings as GitHub links to them."""
    headings = re.findall(r"^#+ (.+)$", without_code(document.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document: Path) -> list[str]:
    """Links to files or headings that are not there."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(document.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        if not file.exists() or not file.is_relative_to(ROOT) or (anchor and anchor not in anchors(file)):
            broken.append(target)
    return broken


def missing_paths(text: str) -> list[str]:
    """Paths in backticks or in commands that are not there; `<name>` and `*` stand for any name."""
    named = re.findall(rf"`({TOP_FOLDERS}/[\w/.<>*-]+)`", text)
    named += re.findall(rf"(?:bash|python|pytest) ({TOP_FOLDERS}/[\w/.-]+)", text)
    return [path for path in named if not list(ROOT.glob(re.sub(r"<\w+>", "*", path).rstrip("/.")))]


def missing_names(text: str) -> list[str]:
    """Dotted names of ours in backticks or behind `python -m` that lead to no module, function or class."""
    named = re.findall(r"`((?:opd_verl|launch)(?:\.\w+)+)`", text) + re.findall(r"-m ((?:opd_verl|launch)[\w.]*)", text)
    return [name for name in named if not name.endswith((".py", ".sh", ".md")) and not leads_somewhere(name)]


def leads_somewhere(name: str) -> bool:
    """Whether a dotted name is a module or package of ours, or a definition at the top of one."""
    path = ROOT.joinpath(*name.split("."))
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    module, definition = path.parent.with_suffix(".py"), path.name
    if not module.is_file():
        return False
    for node in ast.parse(module.read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
        if definition in {getattr(target, "id", getattr(target, "name", None)) for target in targets}:
            return True
    return False


def command_lines(text: str) -> list[str]:
    """The lines of all bash blocks; a command in several lines is one."""
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def overrides(line: str) -> list[str]:
    """The Hydra overrides of a command line of ours; of a submitted job, those behind `--`."""
    words = shlex.split(line, comments=True)
    words = words[words.index("-m") + 2 :]
    words = words[words.index("--") + 1 :] if "--" in words else words
    return [word for word in words if "=" in word and not word.startswith("-")]


def unreadable(line: str) -> list[str]:
    """The overrides of a line that Hydra's own parser refuses."""
    refused, parser = [], OverridesParser.create()
    for override in overrides(line):
        try:
            parser.parse_overrides([override])
        except Exception as error:
            refused.append(f"{override}: {error}")
    return refused


def metric_rows(text: str) -> dict[str, str]:
    """The rows of tables whose first cell is a metric."""
    return dict(re.findall(r"^\| `([a-z_]+/[a-z0-9_/<>-]+)` \| (.+) \|$", text, flags=re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS, ids=short)
def test_links_paths_and_names_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    assert not broken_links(document)
    assert not missing_paths(text)
    assert not missing_names(text)


@pytest.mark.parametrize("document", DOCUMENTS, ids=short)
def test_hydra_reads_every_override(document: Path) -> None:
    lines = [line for line in command_lines(document.read_text()) if re.search(HYDRA, line)]
    assert not [complaint for line in lines for complaint in unreadable(line)]


def test_the_documents_hold_the_commands_that_are_parsed() -> None:
    lines = [line for document in DOCUMENTS for line in command_lines(document.read_text()) if re.search(HYDRA, line)]
    assert len(lines) > 15 and sum(len(overrides(line)) for line in lines) > 60


def test_every_metric_is_documented_with_its_meaning() -> None:
    assert metric_rows((ROOT / "opd_verl" / "metrics" / "README.md").read_text()) == METRICS | CONDITIONAL


def test_a_metric_is_logged_always_or_conditionally_but_not_both() -> None:
    assert not METRICS.keys() & CONDITIONAL.keys()


def test_every_recipe_and_command_is_on_the_front_page() -> None:
    recipes = [*(ROOT / "hydra_configs" / "recipe").glob("*.yaml"), *(ROOT / "hydra_configs/sft/recipe").glob("*.yaml")]
    assert all(f"`recipe={recipe.stem}`" in README for recipe in recipes), [recipe.stem for recipe in recipes]
    shown = {"opd_verl.quickstart"} | set(re.findall(r"^\| `python -m ([\w.]+)", README, flags=re.MULTILINE))
    assert len(COMMANDS) >= 9 and set(COMMANDS) <= shown


def test_every_package_of_a_command_has_a_readme_that_the_front_page_links() -> None:
    for command in COMMANDS:
        page = f"{command.replace('.', '/')}/README.md"
        assert (ROOT / page).is_file() and f"({page})" in README, page


def test_the_tree_of_the_front_page_names_every_package() -> None:
    (tree,) = re.findall(r"```\n(opd_verl/\n.*?)```", README, flags=re.DOTALL)
    packages = {file.parent.name for file in ROOT.glob("opd_verl/*/__init__.py")}
    modules = {file.stem for file in ROOT.glob("opd_verl/*.py")} - {"__init__"}
    assert packages == set(re.findall(r"(\w+)/(?=\s)", tree.split("hydra_configs/")[0])) - {"opd_verl"}
    assert modules <= set(re.findall(r"\w+", tree))


def test_the_front_page_takes_five_minutes() -> None:
    assert len(README.splitlines()) <= 200 and len(README.split()) <= 1800


def test_the_checks_see_what_is_wrong() -> None:
    assert missing_paths("`opd_verl/nope.py` `tests/unit/` `launch/env.sh`") == ["opd_verl/nope.py"]
    assert missing_paths("bash launch/nope.sh") == ["launch/nope.sh"]
    names = "`opd_verl.hooks.register_reward` `opd_verl.hooks.nope` `opd_verl.hooks.REWARD_HOOKS` -m opd_verl.nope"
    assert missing_names(names) == ["opd_verl.hooks.nope", "opd_verl.nope"]
    bad = "python -m opd_verl.probe models=[name=path] ok=1"
    assert [complaint.split(":")[0] for complaint in unreadable(bad)] == ["models=[name=path]"]
    assert overrides("python -m launch.ray_submit --address A=B -- recipe=opd  # a=comment") == ["recipe=opd"]


def test_broken_links_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "# A title, it is\n[a](page.md#a-title-it-is) [b](#nope) [c](nope.md) [d](../out.md) [e](https://x.y)\n"
    )
    assert broken_links(page) == ["#nope", "nope.md", "../out.md"]
