"""A training of verl's as a child process that dies with us: its noise in a file, its steps on a progress bar."""

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
"""Of a progress bar that goes to a file."""
PR_SET_PDEATHSIG = 1
SHOWN = ("opd/reverse_kl", "critic/score/mean", "train/loss")
"""Metrics beside the progress bar, as far as a training has them."""
NO_ENVIRONMENT: Mapping[str, str] = {}


def die_with_parent() -> None:
    """Asks Linux to kill this process when its parent ends: an orphan would go on writing the checkpoints."""
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
        log: what it prints is appended here.
        metrics: the file that verl's `file` logger writes.
        done, total: steps made before, and in all where that is known.
        env: added to our environment.
        remedy: what the message of a failure ends with.

    Raises:
        SystemExit: it failed; the message holds the end of its log and the log's path.
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
    """Shows the steps until the process ends."""
    started, known = time.monotonic(), 0
    pause = SECONDS_BETWEEN_LINES if not sys.stderr.isatty() else POLL_SECONDS
    with tqdm(total=total, initial=done, desc=f"{label}: starting", mininterval=pause, maxinterval=pause) as bar:
        while True:
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
