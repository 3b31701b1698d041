"""`python -m opd_verl.probe student=PATH teacher=PATH prompts=train.parquet out=runs/probe`."""

import hydra
from omegaconf import DictConfig
from rich.console import Console

from opd_verl.config.command import read_settings
from opd_verl.config.errors import ConfigError
from opd_verl.sampling.child import ChildError


@hydra.main(config_path="pkg://hydra_configs.probe", config_name="probe", version_base=None)
def main(settings: DictConfig) -> None:
    """Probes, prints the verdicts and the paths of the results. A bad setting prints only its message."""
    from opd_verl.probe.config import ProbeConfig
    from opd_verl.probe.run import probe
    from opd_verl.probe.terminal import print_verdicts

    try:
        config = read_settings(ProbeConfig, settings, "hydra_configs/probe/probe.yaml")
        results = probe(config)
    except (ConfigError, ChildError) as error:
        raise SystemExit(f"opd_verl.probe: {error}") from None
    print_verdicts(results, config, Console())
    if not any(pair.measured for pair in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
