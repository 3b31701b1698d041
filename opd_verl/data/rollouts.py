"""Sample several responses to every prompt with vLLM, and judge them; a stopped command resumes.

  python -m opd_verl.data rollouts train.parquet --model Qwen/Qwen3-8B --n 4 --out teacher.parquet

Each row keeps its prompt, and gets the lists `responses`, `response_ids`, `finished` and `scores`. OUT.parts holds the
finished shards: the same command continues behind them.
"""

import argparse
import json
from pathlib import Path

from opd_verl.sampling.settings import OWN_REWARD, EngineSettings, RewardSettings, SamplingSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `rollouts`; the defaults are those of `SamplingSettings` and `EngineSettings`."""
    sampling, engine = SamplingSettings(), EngineSettings()
    add = parser.add_argument
    add("files", nargs="+", type=Path, metavar="FILE", help="verl-format parquet or jsonl")
    add("--model", required=True, help="folder or hub name")
    add("--out", required=True, type=Path, help="rollouts file to write; OUT.parts holds finished shards")
    add("--limit", type=int, help="read only this many prompts")
    add("--n", type=int, default=4, help="responses per prompt (%(default)s)")
    add("--temperature", type=float, default=sampling.temperature, help="0 is greedy (%(default)s)")
    add("--top-p", type=float, default=sampling.top_p, help="nucleus, 0 to 1 (%(default)s)")
    add("--top-k", type=int, default=sampling.top_k, help="-1: no limit (%(default)s)")
    add("--max-tokens", type=int, default=sampling.max_tokens, help="longest response, tokens (%(default)s)")
    add("--max-prompt-tokens", type=int, help="longest prompt, tokens; a longer one is an error")
    add("--seed", type=int, default=sampling.seed, help="seed of the responses (%(default)s)")
    add("--suffix", default=sampling.suffix, help="text after the question")
    add("--chat-template-kwargs", type=json.loads, default={}, help='JSON, e.g. {"enable_thinking": false}')
    add(
        "--prompts-per-shard", type=int, default=sampling.prompts_per_shard, help="prompts per saved file (%(default)s)"
    )
    add("--dtype", help="dtype of the weights (float32 on a CPU, else auto)")
    add("--tensor-parallel-size", type=int, default=engine.tensor_parallel_size, help="GPUs per model (%(default)s)")
    add("--gpu-memory-utilization", type=float, default=engine.gpu_memory_utilization, help="of a GPU (%(default)s)")
    add("--trust-remote-code", action="store_true", help="run the model's own code")
    add("--reward-path", default=OWN_REWARD, help="file or pkg://module of the reward function (%(default)s)")
    add("--reward-name", default="compute_score", help="name of the reward function (%(default)s)")
    add("--workers", type=int, help="processes that judge (one per CPU core)")


def run(options: argparse.Namespace) -> Path:
    """Samples and judges; returns the rollouts file. Raises ConfigError for a setting that cannot work."""
    # Imported here: vLLM and transformers take seconds that the other commands need not wait.
    from opd_verl.sampling.rollouts import sample_rollouts

    settings = SamplingSettings(
        n=options.n,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        max_tokens=options.max_tokens,
        seed=options.seed,
        suffix=options.suffix,
        chat_template_kwargs=options.chat_template_kwargs,
        max_prompt_tokens=options.max_prompt_tokens,
        prompts_per_shard=options.prompts_per_shard,
    )
    engine = EngineSettings(
        dtype=options.dtype,
        tensor_parallel_size=options.tensor_parallel_size,
        gpu_memory_utilization=options.gpu_memory_utilization,
        trust_remote_code=options.trust_remote_code,
    )
    reward = RewardSettings(options.reward_path, options.reward_name)
    return sample_rollouts(
        options.model, options.files, settings, options.out, options.limit, engine, reward, options.workers
    )
