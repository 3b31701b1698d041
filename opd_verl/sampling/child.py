"""Work in a process of its own, so that the memory of a model is given back when it ends.

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
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from opd_verl.utils.files import tail


class ChildError(RuntimeError):
    """A child failed; the message has the end of its log."""


def run_child(module: str, task: dict[str, Any], log: Path) -> None:
    """Runs `python -m module` on a task (JSON) and waits for it.

    Raises ChildError with the end of its log if it fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    terminal = os.dup(2)
    # The child reads the task's line and then waits for the end of its input, which comes with the parent's end.
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


def carry_out(work: Callable[[dict[str, Any], TextIO], None]) -> None:
    """In the child: calls `work` with the task and the parent's terminal; a failure's trace is the log's end."""
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        work(task, os.fdopen(int(sys.argv[1]), "w"))
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # libraries that are torn down by force write pages behind the trace


def _die_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)
