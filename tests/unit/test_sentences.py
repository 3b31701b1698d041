"""Plain sentences: a docstring begins with its subject or verb, and a variable has the name of what it holds."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(file for folder in ("opd_verl", "launch", "tests") for file in (ROOT / folder).rglob("*.py"))
FIRST_WORDS = ("Of", "What", "The same", "That", "Those", "As")
"""A docstring that begins so has its noun later, or nowhere."""
NAMES = ("one", "found")
"""Variables and arguments with these names do not say what they hold."""


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The docstring of the module, and of each class, function, constant and field in it, with its line."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else []:
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield statement.lineno, value.value.strip()


def names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every variable that is bound, and every argument, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg


def complaints(path: Path, source: str) -> list[str]:
    """Each place of a file that breaks a rule."""
    tree = ast.parse(source)
    openings = [
        f"{path}:{line}: a docstring begins with {word!r}: {text[:60]!r}"
        for line, text in docstrings(tree)
        for word in FIRST_WORDS
        if text == word or text.startswith((f"{word} ", f"{word},"))
    ]
    return openings + [f"{path}:{line}: the name {name!r}" for line, name in names(tree) if name in NAMES]


def test_every_file_has_plain_sentences_and_names() -> None:
    found_in = [line for file in FILES for line in complaints(Path(short(file)), file.read_text())]
    assert not found_in, "\n".join(found_in)


@pytest.mark.parametrize(
    "source",
    [
        '"""What a teacher gives."""',
        'class A:\n    """Of a rollout."""',
        'X = 1\n"""Those of a step."""',
        "for one in ():\n    pass",
        "def f(found): ...",
        "[one for one in ()]",
    ],
)
def test_the_rules_are_seen(source: str) -> None:
    assert complaints(Path("sample.py"), source)


def test_an_ordinary_file_passes() -> None:
    source = '"""Scores of a step."""\nwhatever = 1\n"""Whatever counts. As it is."""\n'
    source += "\ndef f(rollout):\n    return rollout.one\n"
    assert not complaints(Path("sample.py"), source)


if __name__ == "__main__":  # as a pre-commit hook: the files are the arguments
    broken = [line for name in sys.argv[1:] for line in complaints(Path(name), Path(name).read_text())]
    print(*broken, sep="\n", end="\n" if broken else "")
    sys.exit(bool(broken))
