"""`python -m opd_verl.alignment student=PATH teachers=[PATH] prompts=test.parquet out=runs/alignment`."""

import hydra
from omegaconf import DictConfig
from rich.console import Console

from opd_verl.config.command import read_settings
from opd_verl.config.errors import ConfigError
from opd_verl.sampling.child import ChildError


@hydra.main(config_path="pkg://hydra_configs.alignment", config_name="alignment", version_base=None)
def main(settings: DictConfig) -> None:
    """Aligns, prints the tables and the paths of all results. A bad setting ends with its message alone."""
    from opd_verl.alignment.analysis.terminal import print_analysis
    from opd_verl.alignment.config import AlignmentConfig
    from opd_verl.alignment.outputs import write_results
    from opd_verl.alignment.run import align

    try:
        config = read_settings(AlignmentConfig, settings, "hydra_configs/alignment/alignment.yaml")
        analysis = write_results(align(config), config)
    except (ConfigError, ChildError) as error:
        raise SystemExit(f"opd_verl.alignment: {error}") from None
    console = Console()
    print_analysis(analysis, console)
    console.print(
        f"tables: {config.out}/alignment.md   pictures: {config.out}/*.png   every node: {config.out}/nodes.*"
    )
    console.print(f"to train with what it suggests: {config.out}/conf/recipe/*.yaml")


if __name__ == "__main__":
    main()
