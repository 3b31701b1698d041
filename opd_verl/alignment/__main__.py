"""`python -m opd_verl.alignment student=PATH teachers=[PATH] prompts=test.parquet out=runs/alignment`."""

import hydra
from omegaconf import DictConfig

from opd_verl.errors import ConfigError
from opd_verl.hydra_settings import read_settings
from opd_verl.sampling.child import ChildError


@hydra.main(config_path="pkg://hydra_configs.alignment", config_name="alignment", version_base=None)
def main(settings: DictConfig) -> None:
    """Aligns, prints the tables and where the rest is. A bad setting ends with its message alone."""
    from opd_verl.alignment.config import AlignmentConfig
    from opd_verl.alignment.run import align

    try:
        config = read_settings(AlignmentConfig, settings, "hydra_configs/alignment/alignment.yaml")
        align(config)
    except (ConfigError, ChildError) as error:
        raise SystemExit(f"opd_verl.alignment: {error}") from None


if __name__ == "__main__":
    main()
