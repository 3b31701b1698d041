"""Submits a run to a Ray cluster through its Jobs API, shows its log, and stops it with Ctrl-C.

    python -m launch.ray_submit --address http://HEAD:8265 -- recipe=opd cluster=4x8 opd.teacher.path=... \\
        trainer.default_local_dir=/shared/runs/first

The arguments after `--` are the overrides of `python -m verl.trainer.main_ppo`. The job first checks every node
(`python -m opd_verl.nodes`), then trains. The same command resumes from the last checkpoint in
trainer.default_local_dir, an absolute path on storage that all nodes share. The exit status is 0 if the job succeeded,
1 if it failed, 130 if it was stopped.

Secrets (WANDB_API_KEY, HF_TOKEN) are not sent: Ray shows a job's environment to everybody. Export them on the nodes
before `ray start`.
"""

import argparse
import asyncio
import os
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ray.job_submission import JobStatus, JobSubmissionClient

from opd_verl.config.errors import first_line
from opd_verl.tracking.secret_values import is_secret, secrets_of

NOT_SENT = [".git", ".venv", "runs", "outputs", "checkpoints", "wandb", "*.safetensors", "*.pt"]
"""Parts of the working directory that stay here, besides those that .gitignore names."""
NEEDED = ("verl", "opd_verl", "vllm")
"""Packages that the cluster's `python` must have."""
FOLDER = "trainer.default_local_dir="
POLL_SECONDS, STOP_SECONDS, AGENT_SECONDS = 1.0, 60.0, 60.0
NO_AGENT = "No available agent"
"""Part of Ray's message while a new head has no agent for jobs yet."""
CODES = {JobStatus.SUCCEEDED: 0, JobStatus.FAILED: 1, JobStatus.STOPPED: 130}
"""Exit status by the job's last state; 130 is a shell's status after Ctrl-C."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the options, and the overrides after `--`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    address = os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")
    parser.add_argument(
        "--address", default=address, help="address of Ray's Jobs API; also RAY_API_SERVER_ADDRESS (%(default)s)"
    )
    parser.add_argument("--working-dir", default=".", help="folder sent to the nodes; none: nodes have opd_verl (.)")
    parser.add_argument("--submission-id", help="name of the job (made of recipe and time)")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="variable of all the job's processes"
    )
    parser.add_argument("--no-check", action="store_true", help="trains without checking the nodes")
    parser.add_argument("--no-wait", action="store_true", help="returns when the job is submitted")
    parser.add_argument(
        "overrides", nargs="+", metavar="-- OVERRIDE", help="overrides of python -m verl.trainer.main_ppo"
    )
    options = parser.parse_args(arguments)
    problem = what_is_wrong(options.overrides, options.env, os.environ)
    if problem:
        parser.error(problem)
    return options


def what_is_wrong(overrides: Sequence[str], env: Sequence[str], environ: Mapping[str, str]) -> str | None:
    """Says why the job must not be submitted; None: nothing is wrong. Never shows the value of a secret."""
    secrets = secrets_of(environ)
    for text in (*overrides, *env):
        for name, value in secrets.items():
            if value in text:
                return f"{text.partition('=')[0]} holds the value of {name}: export it on the nodes before `ray start`"
    for item in env:
        name, separator, _ = item.partition("=")
        if not separator:
            return f"--env {item}: NAME=VALUE is expected"
        if is_secret(name):
            return f"--env {name}: a job's environment is no secret; export it on the nodes before `ray start`"
    folders = [item.removeprefix(FOLDER).strip("'\"") for item in overrides if item.startswith(FOLDER)]
    if not folders or not Path(folders[-1]).is_absolute():
        where = folders[-1] if folders else "not set"
        return f"trainer.default_local_dir ({where}) must be an absolute path on storage that all nodes share"
    return None


def entrypoint(overrides: Sequence[str], check: bool) -> str:
    """Returns the job's shell command: checks the packages, checks the nodes, trains."""
    look = f"import importlib.util as u; print(*[n for n in {NEEDED!r} if not u.find_spec(n)])"
    missing = "$(command -v python) of the cluster lacks: $missing; activate opd_verl's environment before ray start"
    commands = [f'missing=$(python -c {shlex.quote(look)}); [ -z "$missing" ] || {{ echo "{missing}"; exit 1; }}']
    if check:
        commands.append(shlex.join(["python", "-m", "opd_verl.nodes", *overrides]))
    return " && ".join([*commands, shlex.join(["exec", "python", "-m", "verl.trainer.main_ppo", *overrides])])


def runtime_env(working_dir: str, env: Sequence[str]) -> dict[str, object]:
    """Returns Ray's runtime environment of the job."""
    variables = dict(item.split("=", 1) for item in env)
    if working_dir == "none":
        return {"env_vars": variables}
    # verl finds the plugin by the entry point of an installed package; code that was only sent has none.
    variables.setdefault("VERL_USE_EXTERNAL_MODULES", "opd_verl.plugin")
    return {"working_dir": working_dir, "excludes": NOT_SENT, "env_vars": variables}


def connect(address: str) -> JobSubmissionClient:
    """Connects to the Jobs API.

    Raises:
        SystemExit: no cluster answers.
    """
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        remedy = "`ray start --head` there, or --address"
        raise SystemExit(f"no Ray cluster answers at {address} ({first_line(error)}): {remedy}") from None


def submit(
    client: JobSubmissionClient, *, entrypoint: str, submission_id: str, runtime_env: dict[str, object] | None = None
) -> str:
    """Submits the job. Returns its name. A head that has just started has no agent for some seconds: tries again.

    Raises:
        SystemExit: the cluster refuses the job.
    """
    until = time.monotonic() + AGENT_SECONDS
    while True:
        try:
            return client.submit_job(entrypoint=entrypoint, submission_id=submission_id, runtime_env=runtime_env)
        except (RuntimeError, ValueError, ConnectionError) as error:
            if NO_AGENT not in str(error) or time.monotonic() > until:
                raise SystemExit(f"the cluster refuses the job: {first_line(error)}") from None
            time.sleep(POLL_SECONDS)


@dataclass
class Log:
    """A job's log. Ray sends it from its beginning each time; the first `shown` characters are printed already."""

    shown: int = 0

    async def show(self, client: JobSubmissionClient, job: str) -> None:
        """Prints the rest of the log until it ends."""
        seen = 0
        async for text in client.tail_job_logs(job):
            print(text[max(self.shown - seen, 0) :], end="", flush=True)
            seen += len(text)
            self.shown = max(self.shown, seen)


def follow(client: JobSubmissionClient, job: str) -> JobStatus:
    """Shows the log until the job has ended; reconnects where the connection breaks."""
    log = Log()
    while not (status := client.get_job_status(job)).is_terminal():
        try:
            asyncio.run(log.show(client, job))
        except (ConnectionError, RuntimeError) as error:
            print(f"log interrupted ({first_line(error)}); the job goes on", file=sys.stderr)
        time.sleep(POLL_SECONDS)
    return status


def stop(client: JobSubmissionClient, job: str) -> JobStatus:
    """Stops the job, and waits until its processes are gone."""
    print(f"\nstopping {job}; the same command resumes it from its last checkpoint", file=sys.stderr, flush=True)
    try:
        client.stop_job(job)
        until = time.monotonic() + STOP_SECONDS
        while not (status := client.get_job_status(job)).is_terminal() and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
    except (ConnectionError, RuntimeError) as error:  # the cluster is gone, and the job with it
        print(f"no answer from the cluster ({first_line(error)})", file=sys.stderr)
        return JobStatus.STOPPED
    return status


def interrupt(*_: object) -> None:
    """Handles SIGTERM like Ctrl-C: a scheduler sends it before it takes the node away."""
    raise KeyboardInterrupt


def main(arguments: Sequence[str]) -> int:
    """Submits a job and shows its log; Ctrl-C stops the job. Returns the exit status."""
    options = parse(arguments)
    client = connect(options.address)
    recipe = next((item.partition("=")[2] for item in options.overrides if item.startswith("recipe=")), "verl")
    job = submit(
        client,
        entrypoint=entrypoint(options.overrides, not options.no_check),
        submission_id=options.submission_id or f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
        runtime_env=runtime_env(options.working_dir, options.env),
    )
    print(f"submitted {job} to {options.address}", flush=True)
    if options.no_wait:
        print(f"follow it: ray job logs --address {options.address} --follow {job}")
        return 0
    signal.signal(signal.SIGTERM, interrupt)
    try:
        status = follow(client, job)
    except KeyboardInterrupt:
        status = stop(client, job)
    print(f"{job}: {status.value.lower()}", flush=True)
    return CODES.get(status, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
