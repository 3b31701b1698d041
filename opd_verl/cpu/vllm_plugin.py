"""A vLLM plugin (entry-point group `vllm.general_plugins`), loaded by vLLM in each of its processes."""


def keep_weights_loadable() -> None:
    """On vLLM's CPU platform, keeps linear layers in the form that a weight update can write to.

    vLLM's CPU layers repack their weights after loading and drop the originals; verl's live weight sync then fails
    (`'Parameter' object has no attribute 'weight_loader'`) or updates a copy that no layer reads. This keeps
    `torch.nn.functional.linear` on the plain weights. Remove it when vLLM's CPU layers repack again after an update
    (vllm/model_executor/layers/utils.py: dispatch_cpu_unquantized_gemm).
    """
    import torch
    from vllm.model_executor.layers import utils
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return

    def keep_plain_linear(layer: torch.nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear  # pyright: ignore[reportArgumentType]

    utils.dispatch_cpu_unquantized_gemm = keep_plain_linear
