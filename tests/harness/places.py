"""Where the checkout's parts lie, and the path on which another process finds the package and this folder."""

from pathlib import Path

HARNESS = Path(__file__).parent
TESTS = HARNESS.parent
ROOT = TESTS.parent
PACKAGE = ROOT / "opd_verl"
PYTHONPATH = f"{ROOT}:{HARNESS}"
"""For Ray's actors: pytest's own `pythonpath` reaches this process alone."""
