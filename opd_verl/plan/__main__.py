"""Device memory that a run needs, and whether the run fits, from the composed config and the models' configs alone.

    python -m opd_verl.plan recipe=opd cluster=4x8 student=Qwen/Qwen3-1.7B teacher=Qwen/Qwen3-8B device=h100

All other arguments are the job's own Hydra overrides. Reads no weights and touches no device; exits with 1 where the
run does not fit, and says which key to change. Memory and times are counted with responses of full length, or of
`response_tokens=` tokens where you give a mean. Seconds come from data sheets and assumed efficiencies: use them to
compare settings.
"""

import sys
from collections.abc import Sequence

from opd_verl.config.compose import compose_trainer
from opd_verl.config.errors import ConfigError
from opd_verl.plan import memory, report
from opd_verl.plan.arguments import checked, split
from opd_verl.plan.phases import phases
from opd_verl.plan.planner import plan_run
from opd_verl.plan.seconds import step_seconds
from opd_verl.plan.verdict import misfits


def main(arguments: Sequence[str]) -> int:
    """Prints the plan. Returns the exit status: 1 where the run does not fit."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0 if arguments else 2
    try:
        own, overrides = split(arguments)
        device, length = checked(own)
        run = plan_run(compose_trainer(overrides), device, length)
    except ConfigError as error:
        raise SystemExit(f"opd_verl: {error}") from None
    by_phase = phases(run)
    cache = by_phase["rollout"][memory.CACHE]
    print(*report.layout_lines(run), "", report.memory_table(by_phase, run.device.memory_gib), "", sep="\n")
    spent = step_seconds(run.trainer, run.server, run.student, run.device, cache, run.teachers)
    print(report.time_table(spent), "", *report.teacher_lines(run, sum(spent.values())), sep="\n")
    print(report.cache_line(run, cache), report.traffic_line(run), "", sep="\n")
    wrong = misfits(run, by_phase)
    print(*wrong, sep="\n") if wrong else print(f"fits on {device}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
