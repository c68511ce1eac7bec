"""Short names for well-known models. Each stands for one exact, tagged name, which is what gets recorded.

An untagged timm name can mean an ImageNet-finetuned or 518-pixel model, so no alias is left untagged. CLIP and
SigLIP models are open_clip's, because zero-shot needs their text tower; OpenAI's CLIP weights were trained with
QuickGELU, so those aliases name the `-quickgelu` architecture.
"""

ALIASES = {
    # ImageNet-supervised convolutional networks
    "resnet18": "resnet18.tv_in1k",
    "resnet34": "resnet34.tv_in1k",
    "resnet50": "resnet50.tv_in1k",
    "resnet50_a1": "resnet50.a1_in1k",
    "resnet101": "resnet101.tv_in1k",
    "resnext50": "resnext50_32x4d.tv_in1k",
    "wide_resnet50": "wide_resnet50_2.tv_in1k",
    "densenet121": "densenet121.tv_in1k",
    "regnety_16": "regnety_016.tv2_in1k",
    "convnext_t": "convnext_tiny.fb_in1k",
    "convnext_b": "convnext_base.fb_in1k",
    "convnext_b_in22k": "convnext_base.fb_in22k",
    "convnextv2_t": "convnextv2_tiny.fcmae_ft_in1k",
    "mobilenetv3_l": "mobilenetv3_large_100.ra_in1k",
    "efficientnet_b0": "efficientnet_b0.ra_in1k",
    "efficientnetv2_s": "tf_efficientnetv2_s.in1k",
    # supervised transformers
    "vit_t16": "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "vit_s16": "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "vit_b16": "vit_base_patch16_224.augreg2_in21k_ft_in1k",
    "vit_b16_in21k": "vit_base_patch16_224.augreg_in21k",
    "vit_b32": "vit_base_patch32_224.augreg_in21k_ft_in1k",
    "vit_l16": "vit_large_patch16_224.augreg_in21k_ft_in1k",
    "deit_s16": "deit_small_patch16_224.fb_in1k",
    "deit_b16": "deit_base_patch16_224.fb_in1k",
    "deit3_b16": "deit3_base_patch16_224.fb_in1k",
    "swin_t": "swin_tiny_patch4_window7_224.ms_in1k",
    "swin_b": "swin_base_patch4_window7_224.ms_in1k",
    # self-supervised transformers
    "dino_s16": "vit_small_patch16_224.dino",
    "dino_b16": "vit_base_patch16_224.dino",
    "dinov2_s14": "vit_small_patch14_dinov2.lvd142m",
    "dinov2_b14": "vit_base_patch14_dinov2.lvd142m",
    "dinov2_l14": "vit_large_patch14_dinov2.lvd142m",
    "mae_b16": "vit_base_patch16_224.mae",
    "mae_l16": "vit_large_patch16_224.mae",
    "eva02_s14": "eva02_small_patch14_224.mim_in22k",
    "eva02_b14": "eva02_base_patch14_224.mim_in22k",
    # image-text models
    "clip_rn50": "open_clip:RN50-quickgelu@openai",
    "clip_vit_b32": "open_clip:ViT-B-32-quickgelu@openai",
    "clip_vit_b16": "open_clip:ViT-B-16-quickgelu@openai",
    "clip_vit_l14": "open_clip:ViT-L-14-quickgelu@openai",
    "openclip_vit_b32": "open_clip:ViT-B-32@laion2b_s34b_b79k",
    "openclip_vit_b16": "open_clip:ViT-B-16@laion2b_s34b_b88k",
    "openclip_vit_l14": "open_clip:ViT-L-14@laion2b_s32b_b82k",
    "eva02_clip_b16": "open_clip:EVA02-B-16@merged2b_s8b_b131k",
    "siglip_b16": "open_clip:ViT-B-16-SigLIP@webli",
    "siglip2_b16": "open_clip:ViT-B-16-SigLIP2@webli",
}
"""Alias → exact name. What each alias means is fixed for good: runs are found again by it."""


def describe() -> dict[str, str]:
    """What `monoeval list models` says of each alias: its exact name, and whether features are projected.

    CLIP's image features are the embedding shared with text; SigLIP's tower pools by attention and has no
    projection after it.
    """
    return {alias: f"{name}{_projection(name)}" for alias, name in ALIASES.items()}


def _projection(name: str) -> str:
    if not name.startswith("open_clip:"):
        return ""
    return " (features as pooled)" if "SigLIP" in name else " (features projected to the text space)"
