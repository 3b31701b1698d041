"""`python -m opd_verl.data rollouts FILE --model M --n 4 --out OUT`: the arguments, and what they start."""

import argparse
import json
from pathlib import Path

from opd_verl.sampling.settings import OWN_REWARD, EngineSettings, RewardSettings, SamplingSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command; a default is `SamplingSettings`' or `EngineSettings`' own."""
    sampling, engine = SamplingSettings(), EngineSettings()
    add = parser.add_argument
    add("files", nargs="+", type=Path, metavar="FILE", help="verl-format parquet or jsonl")
    add("--model", required=True, help="folder or hub name")
    add("--out", required=True, type=Path, help="the rollouts file; OUT.parts holds what is finished")
    add("--limit", type=int, help="only the first prompts")
    add("--n", type=int, default=4, help="responses per prompt (%(default)s)")
    add("--temperature", type=float, default=sampling.temperature, help="0 is greedy (%(default)s)")
    add("--top-p", type=float, default=sampling.top_p, help="(%(default)s)")
    add("--top-k", type=int, default=sampling.top_k, help="-1: no limit (%(default)s)")
    add("--max-tokens", type=int, default=sampling.max_tokens, help="of a response (%(default)s)")
    add("--max-prompt-tokens", type=int, help="a longer prompt is an error")
    add("--seed", type=int, default=sampling.seed, help="(%(default)s)")
    add("--suffix", default=sampling.suffix, help="text behind the question")
    add("--chat-template-kwargs", type=json.loads, default={}, help='JSON, e.g. {"enable_thinking": false}')
    add("--prompts-per-shard", type=int, default=sampling.prompts_per_shard, help="sampled and saved together")
    add("--dtype", help="of the weights (float32 on a CPU, else auto)")
    add("--tensor-parallel-size", type=int, default=engine.tensor_parallel_size, help="GPUs (%(default)s)")
    add("--gpu-memory-utilization", type=float, default=engine.gpu_memory_utilization, help="(%(default)s)")
    add("--trust-remote-code", action="store_true", help="run the model's own code")
    add("--reward-path", default=OWN_REWARD, help="file or pkg://module of the judge (%(default)s)")
    add("--reward-name", default="compute_score", help="its function (%(default)s)")
    add("--workers", type=int, help="processes that judge (one per processor)")


def run(options: argparse.Namespace) -> Path:
    """Samples, judges, writes `options.out`. Raises ConfigError for what cannot work."""
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
