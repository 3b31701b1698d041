"""Dependencies point one way, and the public functions say what they do: read from the source, nothing is imported."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import PACKAGE

FILES = sorted(PACKAGE.rglob("*.py"))
PURE_FOLDERS = ("objectives", "fused", "metrics")
PURE_MODULES = (
    "packing",
    "inputs",
    "contexts",
    "selection",
    "weights",
    "shaping",
    "mixing",
    "objective_hooks",
    "registry",
    "terms",
)
PURE = [
    *(file for folder in PURE_FOLDERS for file in sorted((PACKAGE / folder).glob("*.py"))),
    *(PACKAGE / f"{name}.py" for name in PURE_MODULES),
]
"""Tensor maths: torch, and each other."""
TEACHER_CORE = [
    PACKAGE / "fused" / "head.py",
    *(
        PACKAGE / "teacher" / f"{name}.py"
        for name in ("score", "wire", "scorer", "body", "reader", "batching", "store", "snapshot")
    ),
]
"""A teacher without a cluster: neither Ray nor verl, not even through another file of ours."""
INTERFACE_CLASSES = {"PlatformCPU"}
"""Their methods are verl's to document."""
Function = ast.FunctionDef | ast.AsyncFunctionDef


def short(path: Path) -> str:
    return str(path.relative_to(PACKAGE.parent))


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


def imported(path: Path) -> set[str]:
    """Every dotted name a file imports, wherever in the file: `from a.b import c` counts as `a.b` and `a.b.c`."""
    found: set[str] = set()
    for node in what_runs(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{short(path)}:{node.lineno}: a relative import; this test reads absolute ones"
            assert node.module is not None
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def top_level(path: Path) -> set[str]:
    """The packages a file imports, less the standard library's and our own."""
    return {name.split(".")[0] for name in imported(path)} - set(sys.stdlib_module_names) - {"opd_verl"}


def our_files(path: Path) -> set[Path]:
    """The files of ours that a file imports, with the `__init__` of every package above them."""
    found: set[Path] = set()
    for name in imported(path):
        if name.split(".")[0] != "opd_verl":
            continue
        parts = name.split(".")[1:]
        for depth in range(len(parts) + 1):
            base = PACKAGE.joinpath(*parts[:depth])
            found |= {file for file in (base / "__init__.py", base.with_suffix(".py")) if file.is_file()}
    return found


def closure(path: Path) -> set[Path]:
    """A file and all files of ours that importing it loads."""
    found, todo = set(), [path]
    while todo:
        file = todo.pop()
        if file not in found:
            found.add(file)
            todo += our_files(file)
    return found


def public_functions(path: Path) -> Iterator[tuple[str, Function]]:
    """Functions of the module and methods of its public classes; no closures, no names with an underscore."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield node.name, node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and node.name not in INTERFACE_CLASSES:
            for item in node.body:
                if isinstance(item, Function) and not item.name.startswith("_"):
                    yield f"{node.name}.{item.name}", item


def unannotated(function: Function, is_method: bool) -> list[str]:
    """Arguments without a type, and `return`."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args]
    is_static = any(isinstance(item, ast.Name) and item.id == "staticmethod" for item in function.decorator_list)
    named = named[1:] if is_method and not is_static else named
    every = [*named, *arguments.kwonlyargs, *filter(None, [arguments.vararg, arguments.kwarg])]
    missing = [argument.arg for argument in every if argument.annotation is None]
    return missing if function.returns is not None else [*missing, "return"]


def test_the_files_that_the_rules_name_are_there() -> None:
    assert all(path.is_file() for path in (*PURE, *TEACHER_CORE))
    assert all(sum(path.parent.name == folder for path in PURE) >= 3 for folder in PURE_FOLDERS)


def test_the_reader_sees_late_imports_and_leaves_out_those_for_types(tmp_path: Path) -> None:
    lines = ["import a", "if TYPE_CHECKING:", "    import b", "def f():", "    from c.d import e"]
    lines += ["if other:", "    import g", "if TYPE_CHECKING:", "    import h", "else:", "    import i"]
    (tmp_path / "sample.py").write_text("\n".join(lines))
    assert imported(tmp_path / "sample.py") == {"a", "c.d", "c.d.e", "g", "h", "i"}


@pytest.mark.parametrize("path", PURE, ids=short)
def test_tensor_maths_imports_torch_only(path: Path) -> None:
    assert top_level(path) <= {"torch"}
    outside = our_files(path) - {*PURE, PACKAGE / "__init__.py"}
    assert not outside, f"imports {[short(file) for file in outside]}"


@pytest.mark.parametrize("path", TEACHER_CORE, ids=short)
def test_the_teachers_core_runs_without_ray_and_verl(path: Path) -> None:
    loaded = {
        short(file): top_level(file) & {"ray", "verl", "vllm", "hydra", "transfer_queue"} for file in closure(path)
    }
    assert not {file: found for file, found in loaded.items() if found}


@pytest.mark.parametrize("path", FILES, ids=short)
def test_the_package_imports_no_tests(path: Path) -> None:
    tests = {file.stem for file in Path(__file__).parent.glob("*.py")}
    assert not top_level(path) & (tests | {"tests", "pytest", "conftest"})


@pytest.mark.parametrize("path", FILES, ids=short)
def test_public_functions_have_a_docstring_and_full_annotations(path: Path) -> None:
    complaints = []
    for name, function in public_functions(path):
        missing = [f"a type for {argument}" for argument in unannotated(function, is_method="." in name)]
        missing += [] if ast.get_docstring(function) else ["a docstring"]
        complaints += [f"{short(path)}:{function.lineno} {name} lacks {item}" for item in missing]
    assert not complaints


@pytest.mark.parametrize("path", FILES, ids=short)
def test_every_module_and_public_class_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{short(path)}: no docstring"
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{short(path)}:{node.lineno} {node.name}: no docstring"
