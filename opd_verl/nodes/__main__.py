"""Looks at every node of the Ray cluster before the job does, with the job's own overrides.

    python -m opd_verl.nodes recipe=opd cluster=2x8 opd.teacher.path=... \\
        actor_rollout_ref.model.path=... data.train_files=...

Prints a table with a row for each node (devices, memory, disks, clock, models, data, connections, versions), then
every problem with its remedy. Exit status 1 if the job would fail, else 0; a warning does not count. It starts nothing
of verl and reserves no device; a node that does not answer has its own row. It looks at the cluster that the job would
find: by RAY_ADDRESS, by ray_kwargs.ray_init.address, or by the last `ray start` on this machine.
"""

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence

from opd_verl.config.errors import ConfigError


def build_parser() -> argparse.ArgumentParser:
    """The command line: our own options come before the job's overrides."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m opd_verl.nodes", description=__doc__, formatter_class=form)
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds that the nodes have for an answer (60)")
    parser.add_argument("overrides", nargs="+", help="the job's overrides, as for python -m verl.trainer.main_ppo")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Looks at the cluster. Returns the exit status."""
    options = build_parser().parse_args(arguments)
    warnings.filterwarnings("ignore", ".*engine is not available")  # verl warns about engines that nobody asked for
    logging.getLogger("verl.plugin.platform").setLevel(logging.WARNING)
    try:
        return examine(options.overrides, options.timeout)
    except ConfigError as error:
        print(f"opd_verl: {error}", file=sys.stderr)
        return 1


def examine(overrides: Sequence[str], seconds: float) -> int:
    """Composes the job's config, looks at the nodes and prints. Returns the exit status.

    Raises:
        ConfigError: there is no cluster, or no config that can be read.
    """
    from opd_verl.config.compose import compose_trainer

    config = compose_trainer(overrides)
    # verl is imported after the config: a misspelt override is refused before the seconds that its import takes.
    from verl.utils.device import get_resource_name

    from opd_verl.config.opd import parse_opd
    from opd_verl.nodes.check import find_problems, refusals
    from opd_verl.nodes.cluster import connected, nodes
    from opd_verl.nodes.gather import gather
    from opd_verl.nodes.machine import look
    from opd_verl.nodes.needs import read_needs
    from opd_verl.nodes.problems import Severity
    from opd_verl.nodes.table import console, show

    needs = read_needs(config, parse_opd(config) if "opd" in config else None)
    driver = look(needs.checklist())
    address = needs.ray_init.get("address")
    with connected(None if address is None else str(address)):
        reports = gather(nodes(get_resource_name()), needs.checklist(), seconds)
    problems = find_problems(needs, driver, reports, refusals(config))
    show(driver, reports, problems, console())
    return int(any(problem.severity is Severity.error for problem in problems))


if __name__ == "__main__":
    sys.exit(main())
