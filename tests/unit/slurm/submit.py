"""Stands in for launch.ray_submit, whose options it takes: runs a job that waits, through Ray's Jobs API.

Stops the job and exits with 130 on SIGTERM.
"""

import argparse
import signal
import sys
import time

from ray.job_submission import JobSubmissionClient

parser = argparse.ArgumentParser()
parser.add_argument("--address")
parser.add_argument("--working-dir", choices=["none"])
parser.add_argument("overrides", nargs="*")
options = parser.parse_args()

JOB = "echo job in $PWD, secret of ${#HF_TOKEN} characters, ROCm ${ROCR_VISIBLE_DEVICES-unset}; sleep 1000"
client = JobSubmissionClient(options.address)
job = None
while job is None:
    try:
        job = client.submit_job(entrypoint=JOB)
    except RuntimeError as error:  # the head's agent is the last of Ray's processes to come up
        if "No available agent" not in str(error):
            raise
        time.sleep(1)


def stop(*_: object) -> None:
    """As launch.ray_submit does."""
    client.stop_job(job)
    while not client.get_job_status(job).is_terminal():
        time.sleep(0.5)
    print("the job is", client.get_job_status(job).value, flush=True)
    sys.exit(130)


signal.signal(signal.SIGTERM, stop)
while "secret of" not in (log := client.get_job_logs(job)):
    if client.get_job_status(job).is_terminal():
        sys.exit(log)
    time.sleep(0.5)
print(log, options.overrides, "submitted", flush=True)
while True:
    time.sleep(1)
