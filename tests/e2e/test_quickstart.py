"""The README's first command, with two training steps: models that meet the contract, a table, a picture, a model."""

import json
import subprocess
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM

from opd_verl.quickstart.paths import Paths


def test_the_quickstart_ends_with_a_table_a_picture_and_a_model(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "opd_verl.quickstart", "--steps", "2", "--out", str(tmp_path / "my runs")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    paths = Paths(tmp_path / "my runs" / "seed0", "opd_topk")
    result = json.loads(paths.table.read_text())
    assert result["teacher"]["accuracy"] >= 0.9 and result["before"]["accuracy"] < 0.4
    assert result["after"]["reverse_kl"] < result["before"]["reverse_kl"]
    for shown in (f"{result['after']['accuracy']:.1%}", "gap recovery rate", str(paths.picture.name)):
        assert shown in done.stdout
    assert paths.picture.read_bytes().startswith(b"\x89PNG")
    assert AutoModelForCausalLM.from_pretrained(paths.distilled(2)).config.model_type == "qwen3"
    assert paths.log.stat().st_size > 0 and "step:1 - " not in done.stdout, "verl's noise belongs in the log"
