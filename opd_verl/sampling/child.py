"""Runs work in a child process; when the child ends, all memory of its model is free again.

    parent:  run_child("opd_verl.sampling.generate", task, log)
    child:   carry_out(main), where main(task, terminal) does the work

The child's output goes to a log, its progress bar to the parent's terminal, and it dies with the parent.
"""

import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO, TypeVar

from opd_verl.utils.files import tail

Task = TypeVar("Task")
"""The child's task: a TypedDict of plain values, since it travels as JSON."""


class ChildError(RuntimeError):
    """A child process failed; the message shows the end of its log."""


def run_child(module: str, task: Mapping[str, object], log: Path) -> None:
    """Runs `python -m module` on a task and waits for it.

    Raises ChildError with the end of the child's log if the child fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # stdout and stderr go to the log, so the terminal needs a descriptor of its own, which the child inherits.
    terminal = os.dup(2)
    # The child reads the task's line and then waits for the end of its input: the parent's end closes it.
    with log.open("w") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", module, str(terminal)], stdin=subprocess.PIPE, stdout=out, stderr=out,
            pass_fds=(terminal,), text=True,
        )  # fmt: skip
    try:
        assert child.stdin
        child.stdin.write(json.dumps(task) + "\n")
        child.stdin.flush()
        child.wait()
    finally:
        os.close(terminal)
        child.kill()
        child.wait()
    if child.returncode:
        raise ChildError(f"{tail(log)}\n\n{module} stopped with code {child.returncode}; the whole log: {log}")


def carry_out(work: Callable[[Task, TextIO], None]) -> None:
    """Runs in the child: calls `work` with the task and the parent's terminal. A failure's traceback ends the log."""
    task: Task = json.loads(sys.stdin.readline())
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        work(task, os.fdopen(int(sys.argv[1]), "w"))
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        # An ordinary exit would let vLLM and torch tear down their threads, and they print pages behind the traceback.
        os._exit(1)


def _die_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)
