"""A regular install carries the configs and the entry points, and works from any folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pip install .` into a folder of its own, dependencies left out."""
    source, target = tmp_path_factory.mktemp("source") / "checkout", tmp_path_factory.mktemp("site")
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    for name in files.stdout.split():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(target)]
    subprocess.run([*pip, str(source)], check=True)
    return target


def test_regular_install_has_code_configs_and_entry_points(installed: Path) -> None:
    entry_points = next(installed.glob("opd_verl-*.dist-info/entry_points.txt")).read_text()
    assert "[verl.plugins]" in entry_points and "[vllm.general_plugins]" in entry_points
    recipes = {path.name for path in (ROOT / "hydra_configs/recipe").glob("*.yaml")}
    assert {path.name for path in (installed / "hydra_configs/recipe").glob("*.yaml")} == recipes
    assert (installed / "hydra_configs/cluster/local_cpu.yaml").exists()
    modules = {path.relative_to(ROOT) for path in (ROOT / "opd_verl").rglob("*.py")}
    assert modules == {path.relative_to(installed) for path in (installed / "opd_verl").rglob("*.py")}


def test_recipe_switch_works_from_the_regular_install(installed: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(installed), "HYDRA_FULL_ERROR": "1"}
    command = [sys.executable, "-m", "verl.trainer.main_ppo", "recipe=opd", "cluster=local_cpu", "--info", "searchpath"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "opd-recipe://hydra_configs" in done.stdout, done.stderr[-2000:]
    where = "import hydra_configs, opd_verl; print(hydra_configs.__file__, opd_verl.__file__)"
    result = subprocess.run(
        [sys.executable, "-c", where], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.stdout.split() == [
        str(installed / "hydra_configs/__init__.py"),
        str(installed / "opd_verl/__init__.py"),
    ]
