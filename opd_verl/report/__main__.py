"""One HTML page about runs, and each of its charts as a PNG beside it.

    python -m opd_verl.report runs/opd runs/eopd runs/probe runs/eval --out runs/report

A run is a folder with any of metrics.jsonl, samples/step_*.json, probe.json and tokens.json of `opd_verl.probe`, and
table.json of `opd_verl.eval`. The page works offline.
"""

import argparse
from pathlib import Path

from opd_verl.config.errors import ConfigError


def main() -> None:
    """Writes the report and prints its path. A bad setting prints only its message."""
    parser = argparse.ArgumentParser(
        prog="python -m opd_verl.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path("runs/report"))
    parser.add_argument("--samples", type=int, default=6, metavar="N", help="rollouts shown of each training and probe")
    args = parser.parse_args()
    from opd_verl.report.page import PAGE, write_report
    from opd_verl.report.read import read_runs

    try:
        charts = write_report(read_runs(args.runs, args.samples), args.out)
    except ConfigError as error:
        raise SystemExit(f"opd_verl.report: {error}") from None
    print(f"{args.out / PAGE}, with {len(charts)} charts as PNG beside it")


if __name__ == "__main__":
    main()
