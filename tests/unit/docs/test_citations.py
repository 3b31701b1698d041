"""Citations lead somewhere: `objectives/README.md 3` is a file and a heading, a paper's short name is in the README."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

OWN = Path(__file__).relative_to(ROOT)
HISTORY = Path("recipes/LOG.md")
"""The lab book keeps what it said on its day, so only its mentions of documents elsewhere count."""
PAPERS = {"Capacity": "Rethinking the Capacity Gap", "Rethinking": "2604.13016", "EOPD": "2603.07079"}
PAPERS |= {"Unmasking": "2605.10889"}
"""Short name of each paper, and what else the README's list says of it: the arXiv id, or the title of one without."""
OUTSIDE = r"\bMETHODS\b|\bDESIGN(?:\.md)?\b|\bVERL_NOTES\b|\bPEERS\.md\b|\bSTYLE\.md\b|\.\./shared\b"
SPACE = r"[\s#]+"
"""Citations may be broken over two lines of a docstring or a comment."""
NUMBER = rf"\d+(?:(?:,{SPACE}(?:and{SPACE})?|{SPACE}(?:and|to){SPACE}|-)\d+)*"
NUMBERED = re.compile(rf"(?<![\w./-])((?:[\w-]+/)+README\.md){SPACE}({NUMBER})\b(?!\.\d)")
FINDING = re.compile(rf"((?:F\d+(?:,{SPACE}|{SPACE}and{SPACE}))*F\d+){SPACE}of{SPACE}((?:[\w-]+/)+README\.md)")
FINDING_AFTER = re.compile(rf"((?:[\w-]+/)+README\.md),{SPACE}((?:F\d+(?:,{SPACE}|{SPACE}and{SPACE}))*F\d+)")
PLACE = rf"(?:eqs?\.|equation|tables?|fig\.|figure|T){SPACE}?\d"


def documents() -> list[Path]:
    """All tracked Python, YAML and Markdown files, relative to the root."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py", "*.yaml", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = {Path(line) for line in listed.stdout.splitlines()} - {OWN}
    return sorted(path for path in paths if (ROOT / path).exists())


FILES = documents()


def resolved(cited: str, root: Path) -> Path | None:
    """The cited file: paths are relative to opd_verl/, or to the root for the folders beside it."""
    return next((root / base / cited for base in ("opd_verl", ".") if (root / base / cited).exists()), None)


def headings(path: Path) -> set[int]:
    """Numbers of a README's headings: `## 3. Top-k OPD on a support`."""
    return {int(number) for number in re.findall(r"^## (\d+)\. \S", path.read_text(), flags=re.MULTILINE)}


def numbers(cited: str) -> set[int]:
    """The headings that `2, 3 and 5 to 7` names."""
    total: set[int] = set()
    for part in re.split(r",\s*(?:and\s+)?|\s+and\s+", re.sub(SPACE, " ", cited)):
        first, *last = (int(end) for end in re.split(r" to |-", part))
        total |= set(range(first, max([first, *last]) + 1))
    return total


def dangling(text: str, root: Path) -> Iterator[str]:
    """Every citation of a README whose file, heading or finding is not there."""
    for cited, listed in NUMBERED.findall(text):
        path = resolved(cited, root)
        missing = numbers(listed) - (headings(path) if path else set())
        if missing:
            yield f"{cited} {sorted(missing)}"
    named = [(cited, listed) for listed, cited in FINDING.findall(text)] + FINDING_AFTER.findall(text)
    for cited, listed in named:
        path = resolved(cited, root)
        known = set(re.findall(r"\bF\d+\b", path.read_text())) if path else set()
        if missing := set(re.findall(r"F\d+", listed)) - known:
            yield f"{cited}, {sorted(missing)}"


def cited_papers(text: str) -> set[str]:
    """Short names of papers whose equation, table or figure is cited."""
    return {name for name in PAPERS if re.search(rf"\b{name}(?:'s)?,?{SPACE}{PLACE}", text)}


def test_every_citation_of_a_readme_leads_to_a_heading() -> None:
    complaints = [
        f"{path}: {line}" for path in FILES if path != HISTORY for line in dangling((ROOT / path).read_text(), ROOT)
    ]
    assert not complaints, "\n".join(complaints)


def test_no_document_outside_the_repository_is_mentioned() -> None:
    complaints = [
        f"{path}: {match.group()}" for path in FILES for match in re.finditer(OUTSIDE, (ROOT / path).read_text())
    ]
    assert not complaints, "\n".join(complaints)


def test_the_readme_lists_every_paper_that_is_cited() -> None:
    readme = (ROOT / "README.md").read_text()
    cited = set().union(*(cited_papers((ROOT / path).read_text()) for path in FILES))
    assert cited == PAPERS.keys()
    missing = [name for name, title in PAPERS.items() if not re.search(rf"\b{name}\b", readme) or title not in readme]
    assert not missing, missing


def test_the_tests_that_a_readme_names_exist() -> None:
    sources = "\n".join((ROOT / path).read_text() for path in FILES if path.suffix == ".py")
    defined = set(re.findall(r"def (test_\w+)", sources))
    defined |= {path.stem for path in FILES}
    for path in FILES:
        if path.suffix == ".md" and path != HISTORY:
            named = set(re.findall(r"`(test_\w+)(?:\.py)?`", (ROOT / path).read_text()))
            assert named <= defined, f"{path}: {sorted(named - defined)}"


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """A root with one README of headings 1 to 3 and finding F7."""
    folder = tmp_path / "opd_verl" / "room"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("# Room\n\n## 1. One\n\n## 2. Two\n\n## 3. Three\n\nF7: a finding\n")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "complaints"),
    [
        ("(room/README.md 3)", 0),
        ("(room/README.md 1, 2 and 3; EOPD eq. 4)", 0),
        ("see room/README.md\n    # 2.", 0),
        ("room/README.md 1 to 3, opd_verl/room/README.md 2", 0),
        ("room/README.md, F7 and F7 of room/README.md", 0),
        ("room/README.md has 40 lines", 0),
        ("(room/README.md 4)", 1),
        ("(room/README.md 1-4)", 1),
        ("(room/README.md 1, 5)", 1),
        ("see room/README.md\n    # 9.", 1),
        ("(attic/README.md 1)", 1),
        ("room/README.md, F8", 1),
        ("F7, F8 and F9 of room/README.md", 1),
    ],
)
def test_the_parser_sees_what_dangles(sample: Path, text: str, complaints: int) -> None:
    assert len(list(dangling(text, sample))) == complaints


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Capacity eq. 3", {"Capacity"}),
        ("EOPD's table 8, Rethinking\n    eq. 7", {"EOPD", "Rethinking"}),
        ("(Unmasking, tables 4 and 6)", {"Unmasking"}),
        ("the capacity of table 8", set()),
        ("Capacity is a paper", set()),
    ],
)
def test_cited_papers_are_seen(text: str, names: set[str]) -> None:
    assert cited_papers(text) == names


@pytest.mark.parametrize("text", ["METHODS 1.2", "DESIGN.md section 5", "../shared/x", "STYLE.md", "VERL_NOTES"])
def test_mentions_of_outside_documents_are_seen(text: str) -> None:
    assert re.search(OUTSIDE, text) and not re.search(OUTSIDE, "methods of a design; shared/house")
