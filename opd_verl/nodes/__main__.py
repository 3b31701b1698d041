"""Looks at every node of the Ray cluster before the job does, with the job's own overrides.

    python -m opd_verl.nodes recipe=opd cluster=2x8 opd.teacher.path=... \\
        actor_rollout_ref.model.path=... data.train_files=...

Prints a table with a row for each node (devices, memory, disks, clock, models, data, connections, versions), then
every problem with its remedy. Exit status 1 if the job would fail, else 0; a warning does not count. It starts nothing
of verl and reserves no device; a node that does not answer is a row of its own. The cluster is the one that the job
would find: RAY_ADDRESS, ray_kwargs.ray_init.address, or what `ray start` left on this machine.
"""

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence

from opd_verl.config.errors import ConfigError


def build_parser() -> argparse.ArgumentParser:
    """Options of our own go before the overrides, which are the job's."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m opd_verl.nodes", description=__doc__, formatter_class=form)
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds that the nodes have for an answer (60)")
    parser.add_argument("overrides", nargs="+", help="of python -m verl.trainer.main_ppo")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    options = build_parser().parse_args(arguments)
    warnings.filterwarnings("ignore", ".*engine is not available")  # verl, of engines that nobody asked for
    logging.getLogger("verl.plugin.platform").setLevel(logging.WARNING)
    try:
        return examine(options.overrides, options.timeout)
    except ConfigError as error:
        print(f"opd_verl: {error}", file=sys.stderr)
        return 1


def examine(overrides: Sequence[str], seconds: float) -> int:
    """Composes the job's config, looks, prints. Returns the exit status.

    Raises:
        ConfigError: there is nothing to look at: no cluster, or no config that can be read.
    """
    from opd_verl.config.compose import compose_trainer

    config = compose_trainer(overrides)
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
    driver = look(needs.wanted())
    with connected(needs.ray_init.get("address")):
        reports = gather(nodes(get_resource_name()), needs.wanted(), seconds)
    problems = find_problems(needs, driver, reports, refusals(config))
    show(driver, reports, problems, console())
    return int(any(problem.severity is Severity.error for problem in problems))


if __name__ == "__main__":
    sys.exit(main())
