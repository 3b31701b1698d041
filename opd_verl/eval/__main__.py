"""`python -m opd_verl.eval models=[a,b] benchmarks=[aime24.parquet] preset=eopd teacher=PATH out=runs/eval`."""

import hydra
from omegaconf import DictConfig
from rich.console import Console

from opd_verl.config.errors import ConfigError
from opd_verl.eval.config import read_config
from opd_verl.sampling.child import ChildError


@hydra.main(config_path="pkg://hydra_configs.eval", config_name="eval", version_base=None)
def main(settings: DictConfig) -> None:
    """Evaluates, prints the table and the paths of the results. A bad setting prints only its message."""
    from opd_verl.eval.run import evaluate
    from opd_verl.eval.table import print_table

    console = Console()
    try:
        config = read_config(settings)
        rows = evaluate(config)
    except (ConfigError, ChildError) as error:
        raise SystemExit(f"opd_verl.eval: {error}") from None
    print_table(rows, config, console)
    console.print(f"{config.out}: table.md, table.json, pass_at_k.png{', entropy.png' * config.entropy}")


if __name__ == "__main__":
    main()
