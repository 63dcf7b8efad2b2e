"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) on the blocks of a timm ViT, by peft.

W of a linear map becomes W + (alpha / rank) · B·A, with A (rank, in) random and B (out, rank) zero at the start: the
adapted encoder begins as the encoder itself, and all else rests. On the attention's maps (qkv, proj) and the
feed-forward ones (fc1, fc2) of every block. `merge` adds them to the weights, after which the model is plain timm
again.

peft is an extra (`bfp[lora]`): it is imported here, when it is wanted, and nowhere else.
"""

from __future__ import annotations

from timm.models.vision_transformer import VisionTransformer

ADAPTED = r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"


def adapt(model: VisionTransformer, *, rank: int, alpha: int) -> None:
    """Put adapters into the model, which alone take a gradient from now on; A is drawn from torch's generator."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=ADAPTED, lora_dropout=0.0, bias="none")
    inject_adapter_in_model(config, model)


def merge(model: VisionTransformer) -> None:
    """Add the adapters to the weights and take them out of the model."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            above, _, own = name.rpartition(".")
            setattr(model.get_submodule(above), own, module.get_base_layer())
    model.requires_grad_(True)
