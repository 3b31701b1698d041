"""The table of the nodes and the list of problems, for a terminal and for a file."""

import sys
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from opd_verl.nodes.problems import ClusterProblem, Severity
from opd_verl.nodes.records import GIB, Disk, Machine, NodeReport

COLUMNS = (
    *("node", "address", "free devices", "device memory", "host memory", "checkpoint disk", "/dev/shm", "clock"),
    *("folder", "models", "data", "ports", "versions"),
)
UNWRAPPED = 1000
"""Width of the table in a file: more than any table needs, so that rich wraps no line."""


def console() -> Console:
    """The console of this process's output. In a file, lines are never wrapped."""
    return Console() if sys.stdout.isatty() else Console(width=UNWRAPPED, color_system=None)


def show(driver: Machine, reports: Sequence[NodeReport], problems: Sequence[ClusterProblem], to: Console) -> None:
    """The driver's versions, a row for each node, the problems with their remedies, and their number."""
    to.print(", ".join(f"{name} {version or '-'}" for name, version in driver.versions.items()), highlight=False)
    table = Table(*COLUMNS, box=box.ROUNDED if to.is_terminal else box.MARKDOWN)
    for report in reports:
        table.add_row(*map(escape, cells(driver, report)))
    to.print(table)
    for problem in problems:
        style = "bold red" if problem.severity is Severity.error else "yellow"
        to.print(
            f"[{style}]{problem.severity}[/]: {escape(', '.join(problem.nodes))}: {escape(problem.what)}",
            highlight=False,
        )
        to.print(f"    remedy: {escape(problem.remedy)}", highlight=False)
    errors = sum(problem.severity is Severity.error for problem in problems)
    to.print(f"nodes: {len(reports)}, errors: {errors}, warnings: {len(problems) - errors}", highlight=False)


def cells(driver: Machine, report: NodeReport) -> Iterator[str]:
    """One row of the table. A node that did not answer has only the cells that Ray knows."""
    node, machine = report.node, report.machine
    yield report.label
    yield node.address
    yield f"{node.free_devices} of {node.devices}" + (
        f" ({machine.devices[0].name})" if machine and machine.devices else ""
    )
    if machine is None:
        yield from ["?"] * (len(COLUMNS) - 3)
        return
    yield amount(min(device.free for device in machine.devices), machine.devices[0].total) if machine.devices else "-"
    yield amount(machine.memory_free, machine.memory_total)
    yield disk_cell(machine.checkpoints)
    yield disk_cell(machine.shm)
    clock = report.clock
    yield f"{1e3 * clock.ahead:+.1f} ± {1e3 * clock.uncertainty:.1f} ms" if clock else "?"
    yield "shared" if report.unshared is None else "not shared"
    yield f"{sum(model.problem is None for model in machine.models.values())} of {len(machine.models)}"
    yield f"{sum(size is not None for size in machine.files.values())} of {len(machine.files)}"
    yield f"{report.asked - len(report.unreachable)} of {report.asked}"
    others = [name for name, version in driver.versions.items() if machine.versions.get(name) != version]
    yield f"{', '.join(others)} differ" if others else "as here"


def amount(free: int, total: int) -> str:
    """Free and total bytes as a text in GiB."""
    return f"{free / GIB:.1f} of {total / GIB:.1f} GiB"


def disk_cell(disk: Disk | None) -> str:
    """Free and total space of a file system; "-" for none."""
    return amount(disk.free, disk.total) if disk else "-"
