"""Several trainings and one table across them.

    python -m opd_verl.pipeline pipeline=grpo_then_opd \\
        models.student=... models.teacher=... data.train=... data.val=...

Stages of training in order, each on what the ones before it made, and one table across them. Stopped at any point, the
same command goes on: finished stages are kept, the one that was running resumes from its last checkpoint.
"""

import logging
import warnings
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig
from rich.console import Console

from opd_verl.config.errors import ConfigError
from opd_verl.pipeline.config import PipelineConfig, parse_pipeline, schema

ConfigStore.instance().store("pipeline_schema", schema())


@hydra.main(version_base=None, config_path="pkg://hydra_configs.pipelines", config_name="pipeline")
def main(config: DictConfig) -> None:
    """A bad setting ends with its message alone."""
    from opd_verl.sampling.child import ChildError

    warnings.filterwarnings("ignore", ".*engine is not available")  # verl, of engines that nobody asked for
    logging.getLogger("verl.plugin.platform").setLevel(logging.WARNING)
    try:
        run(parse_pipeline(config))
    except (ConfigError, ChildError) as error:
        raise SystemExit(f"opd_verl: {error}") from None


def run(pipeline: PipelineConfig) -> None:
    """Checks every stage, runs them, and compares the models."""
    from opd_verl.pipeline.compare import check_eval, compare
    from opd_verl.pipeline.prepare import plan
    from opd_verl.pipeline.report import show, write_report
    from opd_verl.pipeline.run import alone, run_stages

    out, console = Path(pipeline.out), Console()
    with alone(out):
        plans = plan(pipeline)
        check_eval(pipeline, plans)
        results = run_stages(pipeline, plans)
        if pipeline.eval.enabled:
            rows = compare(pipeline, plans, results)
            write_report(rows, plans, out)
            show(rows, console)
            console.print(f"{out}: table.md, table.json, stages.png; models: {out / 'models'}")


if __name__ == "__main__":
    main()
