"""Dependencies point one way, and the public functions say what they do: read from the source, nothing is imported."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from places import HARNESS, PACKAGE

FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = (
    *("objectives", "schema", "credit", "fused", "metrics", "utils"),
    *("config", "contexts", "objective_hooks", "hooks", "rewards"),
    *("teacher", "teacher/scoring", "teacher/replica", "teacher/client"),
    *("seeded_loop", "cpu", "plugin", "tracking", "tracking/samples", "timeline", "training", "checks"),
    *("sampling", "data", "nodes", "plan", "eval", "probe", "report", "pipeline", "quickstart"),
    *("alignment/tree", "alignment/gradients", "alignment/contexts", "alignment/analysis", "alignment/pictures"),
    *("alignment", "experiments"),
)
"""Folders and single files, from the lowest: a file imports its own room and the rooms before it."""
TORCH_ONLY = (
    *("objectives", "credit", "fused", "metrics", "contexts", "objective_hooks", "config/registry"),
    *("training/token_positions", "training/update/terms"),
)
"""Tensor maths: nothing but torch, not even through another file of ours."""
TEACHER_CORE = (
    *("teacher/score", "teacher/wire", "teacher/needs", "teacher/snapshot", "teacher/replica/store"),
    *("teacher/scoring", "fused/head"),
)
"""A teacher without a cluster: neither Ray nor verl, not even through another file of ours."""
SERVER = "teacher/scoring/server_scorer"
"""The exception: it asks a Ray actor, and no file of the core imports it."""
CLUSTER = {"ray", "verl", "vllm", "hydra", "transfer_queue"}
INTERFACE_CLASSES = {"PlatformCPU"}
"""Their methods are verl's to document."""
Function = ast.FunctionDef | ast.AsyncFunctionDef


def short(path: Path) -> str:
    return str(path.relative_to(PACKAGE.parent))


def files_of(*names: str) -> list[Path]:
    """The files of folders and single modules, named by their path in the package without `.py`."""
    return [path for path in FILES for name in names if is_in(path, name)]


def is_in(path: Path, name: str) -> bool:
    return (PACKAGE / name) in (path.with_suffix(""), *path.parents)


def room_of(path: Path) -> str:
    """The innermost room that a file lies in."""
    rooms = [room for room in ROOMS if is_in(path, room)]
    assert rooms, f"{short(path)} lies in no room: add its room to ROOMS"
    return max(rooms, key=len)


def only_for_types(node: ast.AST) -> bool:
    """Whether this is `if TYPE_CHECKING:` without an else, which never runs."""
    if not isinstance(node, ast.If) or node.orelse:
        return False
    return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def what_runs(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all below it, less what only a type checker reads."""
    if not only_for_types(node):
        yield node
        for child in ast.iter_child_nodes(node):
            yield from what_runs(child)


@cache
def imported(path: Path) -> set[str]:
    """Every dotted name a file imports, wherever in the file: `from a.b import c` counts as `a.b` and `a.b.c`."""
    collected: set[str] = set()
    for node in what_runs(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            collected |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{short(path)}:{node.lineno}: a relative import; this test reads absolute ones"
            assert node.module is not None
            collected |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return collected


def top_level(path: Path) -> set[str]:
    """The packages a file imports, less the standard library's and our own."""
    return {name.split(".")[0] for name in imported(path)} - set(sys.stdlib_module_names) - {"opd_verl"}


@cache
def our_files(path: Path) -> set[Path]:
    """The files of ours that a file imports, with the `__init__` of every package above them."""
    collected: set[Path] = set()
    for name in imported(path):
        if name.split(".")[0] != "opd_verl":
            continue
        parts = name.split(".")[1:]
        for depth in range(len(parts) + 1):
            base = PACKAGE.joinpath(*parts[:depth])
            collected |= {file for file in (base / "__init__.py", base.with_suffix(".py")) if file.is_file()}
    return collected


def closure(path: Path) -> set[Path]:
    """A file and all files of ours that importing it loads."""
    collected, todo = set(), [path]
    while todo:
        file = todo.pop()
        if file not in collected:
            collected.add(file)
            todo += our_files(file)
    return collected


def public_functions(path: Path) -> Iterator[tuple[str, Function]]:
    """Functions of the module and methods of its public classes; no closures, no names with an underscore."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield node.name, node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and node.name not in INTERFACE_CLASSES:
            for item in node.body:
                if isinstance(item, Function) and not item.name.startswith("_"):
                    yield f"{node.name}.{item.name}", item


def stands_for_another(path: Path) -> set[str]:
    """The protocols of a file: their methods are documented where they are written, in verl or Ray."""
    classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    return {node.name for node in classes if any(ast.unparse(base).startswith("Protocol") for base in node.bases)}


def unannotated(function: Function, is_method: bool) -> list[str]:
    """Arguments without a type, and `return`."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args]
    is_static = any(isinstance(item, ast.Name) and item.id == "staticmethod" for item in function.decorator_list)
    named = named[1:] if is_method and not is_static else named
    every = [*named, *arguments.kwonlyargs, *filter(None, [arguments.vararg, arguments.kwarg])]
    missing = [argument.arg for argument in every if argument.annotation is None]
    return missing if function.returns is not None else [*missing, "return"]


def forbidden(paths: list[Path], allowed: set[str] | None = None, refused: set[str] | None = None) -> list[str]:
    """Imports of files, and of all that they load, which are not among the allowed ones or are among the refused."""
    complaints = []
    for path in paths:
        for loaded in sorted(closure(path)):
            names = top_level(loaded)
            wrong = (names - allowed if allowed is not None else set()) | names & (refused or set())
            complaints += [f"{short(path)} loads {short(loaded)}, which imports {name}" for name in sorted(wrong)]
    return complaints


def cycles(graph: dict[Path, set[Path]]) -> list[list[Path]]:
    """Groups of files that import each other, by Kahn's algorithm: what can never be removed."""
    left = {path: set(targets) & graph.keys() - {path} for path, targets in graph.items()}
    while leaves := [path for path, targets in left.items() if not targets]:
        left = {path: targets - set(leaves) for path, targets in left.items() if path not in leaves}
    return [sorted(left)] if left else []


def test_the_rules_name_what_is_there() -> None:
    for name in (*ROOMS, *TORCH_ONLY, *TEACHER_CORE, SERVER):
        assert files_of(name), f"{name} is no folder and no file of opd_verl"
    assert len(ROOMS) == len(set(ROOMS))


def test_the_reader_sees_late_imports_and_leaves_out_those_for_types(tmp_path: Path) -> None:
    lines = ["import a", "if TYPE_CHECKING:", "    import b", "def f():", "    from c.d import e"]
    lines += ["if other:", "    import g", "if TYPE_CHECKING:", "    import h", "else:", "    import i"]
    (tmp_path / "sample.py").write_text("\n".join(lines))
    assert imported(tmp_path / "sample.py") == {"a", "c.d", "c.d.e", "g", "h", "i"}


def test_tensor_maths_imports_torch_only() -> None:
    complaints = forbidden(files_of(*TORCH_ONLY), allowed={"torch"})
    assert not complaints, "\n".join(complaints)


def test_the_teachers_core_runs_without_ray_and_verl() -> None:
    server = files_of(SERVER)
    complaints = forbidden([path for path in files_of(*TEACHER_CORE) if path not in server], refused=CLUSTER)
    assert not complaints, "\n".join(complaints)


def upward(path: Path, targets: set[Path]) -> list[str]:
    """Which of the imported files lie in a room above the file's own."""
    room = room_of(path)
    # `a/__init__.py` comes along with every file of `a`, and holds a docstring alone.
    named = sorted(target for target in targets if target.name != "__init__.py")
    above = [target for target in named if ROOMS.index(room_of(target)) > ROOMS.index(room)]
    return [f"{short(path)} ({room}) imports {short(target)} ({room_of(target)})" for target in above]


def test_a_room_imports_only_the_rooms_before_it() -> None:
    rooms = [path for path in FILES if path != PACKAGE / "__init__.py"]
    complaints = [line for path in rooms for line in upward(path, our_files(path))]
    assert not complaints, "\n".join(complaints)


def test_an_arrow_back_up_is_seen() -> None:
    scorer, pool = PACKAGE / "teacher" / "scoring" / "scorer.py", PACKAGE / "teacher" / "client" / "pool.py"
    assert upward(scorer, {pool}) and not upward(pool, {scorer}) and not upward(scorer, {scorer})
    assert not upward(scorer, {PACKAGE / "training" / "__init__.py"})


def test_no_files_import_each_other() -> None:
    """Late imports count: a cycle that is broken by one is still a cycle to a reader."""
    rings = cycles({path: {target for target in our_files(path) if target.name != "__init__.py"} for path in FILES})
    assert not rings, "\n".join(" <-> ".join(map(short, ring)) for ring in rings)


def test_a_cycle_is_seen() -> None:
    a, b, c, d = map(Path, "abcd")
    assert cycles({a: {b}, b: {c}, c: {b}, d: set()}) == [[a, b, c]]
    assert cycles({a: {b, a}, b: {d}, c: {b}, d: set()}) == []


def test_the_package_imports_no_tests() -> None:
    tests = {path.stem for path in HARNESS.glob("*.py")} | {"tests", "pytest", "conftest"}
    complaints = [f"{short(path)} imports {name}" for path in FILES for name in sorted(top_level(path) & tests)]
    assert not complaints, "\n".join(complaints)


def test_public_functions_have_a_docstring_and_full_annotations() -> None:
    complaints = []
    for path in FILES:
        protocols = stands_for_another(path)
        for name, function in public_functions(path):
            missing = [f"a type for {argument}" for argument in unannotated(function, is_method="." in name)]
            documented = ast.get_docstring(function) or name.partition(".")[0] in protocols
            missing += [] if documented else ["a docstring"]
            complaints += [f"{short(path)}:{function.lineno} {name} lacks {item}" for item in missing]
    assert not complaints, "\n".join(complaints)


def test_every_module_and_public_class_has_a_docstring() -> None:
    complaints = []
    for path in FILES:
        tree = ast.parse(path.read_text())
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
        complaints += [] if ast.get_docstring(tree) else [f"{short(path)}: no docstring"]
        complaints += [f"{short(path)}:{node.lineno} {node.name}: no docstring"
                       for node in classes if not ast.get_docstring(node)]  # fmt: skip
    assert not complaints, "\n".join(complaints)


def test_a_folders_init_holds_nothing_but_its_docstring() -> None:
    """Importing one file of a folder then loads no other."""
    inits = [path for path in FILES if path.name == "__init__.py" and path.parent != PACKAGE]
    complaints = [short(path) for path in inits if len(ast.parse(path.read_text()).body) > 1]
    assert not complaints, "\n".join(complaints)


def test_any_stands_only_at_the_edge() -> None:
    """At most five uses of `Any` per thousand lines, imports left out; 1.4 on 2026-11-28."""
    sources = [file.read_text() for file in FILES]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    uses = sum(isinstance(node, ast.Name) and node.id == "Any" for node in nodes)
    assert 0 < 1000 * uses <= 5 * sum(len(source.splitlines()) for source in sources)
