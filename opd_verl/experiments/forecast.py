"""The probe's verdict against the outcome, for a pair built to gain and one built to regress (recipes/README.md, F7).

    python -m opd_verl.experiments.forecast --seeds 0 1 2 --out runs/staged

The trainings are F7-gain and F7-regress of `opd_verl.experiments.staged`; F7-regress is also trained with the mask of
the top 20% of entropies (Capacity 5.3). A finished run is read from its file.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from opd_verl.experiments.findings import cell
from opd_verl.experiments.measure import Measurement
from opd_verl.experiments.staged import FINDINGS, run
from opd_verl.probe.config import ProbeConfig
from opd_verl.probe.result import PairResult
from opd_verl.probe.run import probe
from opd_verl.quickstart.evaluate import RESPONSE_LIMIT
from opd_verl.quickstart.paths import Paths
from opd_verl.quickstart.prepare import prepare
from opd_verl.utils.markdown import markdown_table

PAIRS = ("F7-gain", "F7-regress")
HEADS = ("pair", "verdict before (sure)", "Dest:Corr", "headroom", "accuracy before", "after OPD", "after masked OPD")


def forecast(pair: str, out: Path, seed: int) -> PairResult:
    """Prepares the pair and probes it before any distillation."""
    paths = Paths((out / f"{pair}-seed{seed}").absolute())
    prepare(paths, seed, FINDINGS[pair].pair(paths, seed))
    config = ProbeConfig(
        student=str(paths.student),
        teacher={"teacher": str(paths.teacher)},
        prompts=str(paths.data / "train.parquet"),
        out=str(paths.root / "probe"),
        max_tokens=RESPONSE_LIMIT,
        seed=seed,
    )
    return probe(config)[0]


def row(pair: str, seed: int, before: PairResult, outcome: dict[str, Measurement]) -> list[str]:
    """Returns the table's row of a pair and seed: verdict and outcome."""
    assert before.measured is not None
    verdict, values = before.verdict, before.measured.estimates
    sure = "" if verdict.sure is None else f" ({verdict.sure:.0%})"
    after = [f"{outcome[name].accuracy:.3f}" if name in outcome else "" for name in ("before", "opd", "opd_masked")]
    numbers = [values[name].text() for name in ("dest_corr", "headroom")]
    return [f"{pair}, seed {seed}", verdict.verdict + sure, *numbers, *after]


def summary(outcomes: Sequence[dict[str, Measurement]]) -> list[str]:
    """Returns the row of mean and standard deviation of the accuracies over the seeds."""
    models = ("before", "opd", "opd_masked")
    accuracies = [[outcome[name].accuracy for outcome in outcomes if name in outcome] for name in models]
    return ["mean", "", "", "", *(cell(values) if values else "" for values in accuracies)]


def main() -> None:
    """Runs both pairs for every seed, and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/staged"))
    options = parser.parse_args()
    rows = []
    for pair in PAIRS:
        outcomes = []
        for seed in options.seeds:
            before = forecast(pair, options.out, seed)
            outcomes.append(run(pair, options.out, seed))
            rows.append(row(pair, seed, before, outcomes[-1]))
            print(markdown_table(HEADS, [rows[-1]]), flush=True)
        rows.append(summary(outcomes))
    print(markdown_table(HEADS, rows), flush=True)


if __name__ == "__main__":
    main()
