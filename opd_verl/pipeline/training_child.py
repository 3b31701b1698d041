"""Runs a training of verl as a child process: its output goes to a file, its steps to a progress bar."""

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from opd_verl.tracking.metrics_file import read_steps
from opd_verl.utils.files import tail

POLL_SECONDS = 0.5
SECONDS_BETWEEN_LINES = 20.0
"""Seconds between lines of a progress bar that is written to a file."""
PR_SET_PDEATHSIG = 1
"""Linux's option of prctl: the signal that a process gets when its parent ends."""
SHOWN = ("opd/reverse_kl", "critic/score/mean", "train/loss")
"""Metrics shown beside the progress bar, if the training logs them."""
NO_ENVIRONMENT: Mapping[str, str] = {}


def die_with_parent() -> None:
    """Asks Linux to kill this process when its parent ends: an orphan would keep writing checkpoints."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def run_child(
    command: Sequence[str],
    log: Path,
    metrics: Path,
    label: str,
    done: int = 0,
    total: int | None = None,
    env: Mapping[str, str] = NO_ENVIRONMENT,
    remedy: str = "",
) -> None:
    """Runs a training to its end.

    Args:
        log: file to which the training's output is appended.
        metrics: the file that verl's `file` logger writes.
        done: steps made by earlier attempts.
        total: steps of all attempts together; None: not known.
        env: variables added to this process's environment.
        remedy: last sentence of the message of a failure.

    Raises:
        SystemExit: the training failed; the message holds the end of its log and the log's path.
    """
    environment = {**os.environ, **env, "VERL_FILE_LOGGER_PATH": str(metrics)}
    with log.open("a") as out:
        out.write(f"\n$ {shlex.join(command)}\n")
        out.flush()
        child = subprocess.Popen(command, stdout=out, stderr=out, env=environment, preexec_fn=die_with_parent)
        try:
            follow(child, metrics, label, done, total)
        finally:
            child.terminate()
            child.wait()
    if child.returncode:
        problem = f"{label} stopped with code {child.returncode}; the whole log: {log}"
        raise SystemExit(f"{tail(log)}\n\n{problem}\n{remedy}".rstrip())


def follow(child: "subprocess.Popen[bytes]", metrics: Path, label: str, done: int, total: int | None) -> None:
    """Shows the steps on a progress bar until the process ends."""
    started, known = time.monotonic(), 0
    pause = SECONDS_BETWEEN_LINES if not sys.stderr.isatty() else POLL_SECONDS
    with tqdm(total=total, initial=done, desc=f"{label}: starting", mininterval=pause, maxinterval=pause) as bar:
        while True:
            # Polled before the file is read, so that the last steps of an ended process are still shown.
            ended = child.poll() is not None
            for step in read_steps(metrics, known):
                known += 1
                bar.set_description(label, refresh=False)
                bar.set_postfix({key.split("/")[-1]: f"{step[key]:.3f}" for key in SHOWN if key in step}, refresh=False)
                bar.update()
            if ended:
                return
            if not known:
                bar.set_postfix(seconds=int(time.monotonic() - started), refresh=False)
                bar.update(0)
            time.sleep(POLL_SECONDS)
