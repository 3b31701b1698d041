"""Several trainings in a row and one table across them.

    python -m opd_verl.pipeline pipeline=grpo_then_opd \\
        models.student=... models.teacher=... data.train=... data.val=...

Each stage trains on models of earlier stages. After a stop the same command continues: finished stages are kept, and
the stage that was running resumes from its last checkpoint.
"""

import logging
import warnings

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from opd_verl.config.errors import ConfigError
from opd_verl.pipeline.config import parse_pipeline, schema

ConfigStore.instance().store("pipeline_schema", schema())


@hydra.main(version_base=None, config_path="pkg://hydra_configs.pipelines", config_name="pipeline")
def main(config: DictConfig) -> None:
    """Runs the pipeline. A bad setting prints only its message."""
    # Imported here: torch and transformers take seconds, and Hydra refuses a misspelt key before them.
    from opd_verl.pipeline.run import run_pipeline
    from opd_verl.sampling.child import ChildError

    warnings.filterwarnings("ignore", ".*engine is not available")  # verl warns of each engine that is not installed
    logging.getLogger("verl.plugin.platform").setLevel(logging.WARNING)
    try:
        run_pipeline(parse_pipeline(config))
    except (ConfigError, ChildError) as error:
        raise SystemExit(f"opd_verl: {error}") from None


if __name__ == "__main__":
    main()
