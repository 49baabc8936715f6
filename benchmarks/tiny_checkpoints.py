"""Random instances of the real classes, a few hundred thousand parameters each, in the exact layout of the released
checkpoints: what the tests load through the public preset path, and what you can try the full-size system's mechanics
with on a laptop. They make no pictures.

    python benchmarks/tiny_checkpoints.py FOLDER        writes the checkpoints and FOLDER/tiny-wan.yaml, then
    mirage-env demo --preset FOLDER/tiny-wan.yaml --size 64 --frames 8
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml

CODEC = {
    "channels": 48, "base_dim": 8, "decoder_base_dim": 8, "dim_mult": [1, 2, 2, 2],
    "temporal_downsample": [False, True, True], "num_res_blocks": 1, "is_residual": True, "patch_size": 2,
}  # fmt: skip
"""Channels, strides, patches and residual shortcuts of the released VAE, less wide."""
DENOISER = {
    "channels": 48, "heads": 2, "head_dim": 24, "ffn_dim": 64, "layers": 4, "memory_layers": [0, 2], "text_dim": 16,
    "learned_text": False, "prediction": "velocity", "extra_readout": False, "rays": False,
}  # fmt: skip


def wan(folder: Path, shard: str = "150KB", **transformer: Any) -> Path:
    """`Wan-AI/Wan2.2-TI2V-5B-Diffusers`: VAE, backbone in shards, UMT5 with its tokenizer, UniPC with shift 5."""
    from diffusers import (
        AutoencoderKLWan,
        UniPCMultistepScheduler,
        WanPipeline,
        WanTransformer3DModel,
    )
    from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

    from mirage_env.codec.wan import CodecConfig
    from mirage_env.config import build

    torch.manual_seed(0)
    shape = build(CodecConfig, CODEC, "tiny").shape()
    vae = AutoencoderKLWan(**shape, latents_mean=[0.1] * 48, latents_std=[1.5] * 48)
    options = dict(
        num_attention_heads=2, attention_head_dim=24, in_channels=48, out_channels=48, text_dim=16, freq_dim=32,
        ffn_dim=64, num_layers=4,
    )  # fmt: skip
    backbone = WanTransformer3DModel(**options | transformer)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)] + [(f"▁{w}", -2.0) for w in ("a", "kitchen", "walk")]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0)
    encoder = UMT5EncoderModel(
        UMT5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=5.0
    )
    pipeline = WanPipeline(
        tokenizer=tokenizer, text_encoder=encoder, vae=vae, scheduler=scheduler, transformer=backbone,
        expand_timesteps=True,
    )  # fmt: skip
    pipeline.save_pretrained(folder, max_shard_size=shard)
    return folder


def depth_anything(folder: Path, metric: bool) -> Path:
    """`depth-anything/DA3METRIC-LARGE` or `DA3-SMALL`; adds the tiny architecture to the package's own table."""
    import warnings

    from safetensors.torch import save_model

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    name = "tiny-metric" if metric else "tiny-any-view"
    factory = {"path": "benchmarks.tiny_checkpoints", "name": f"_{name.replace('-', '_')}", "args": "as_params"}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"__object__": factory}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch and omegaconf about how the package uses them
        from depth_anything_3.cfg import create_object, load_config
        from depth_anything_3.registry import MODEL_REGISTRY

        MODEL_REGISTRY[name] = str(folder / f"{name}.yaml")
        holder = torch.nn.Module()
        holder.model = create_object(load_config(MODEL_REGISTRY[name]))
    save_model(holder, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps({"model_name": name}))
    return folder


def _tiny_metric() -> torch.nn.Module:
    from depth_anything_3.model.da3 import DepthAnything3Net
    from depth_anything_3.model.dpt import DPT

    return DepthAnything3Net(_dino(alt_start=-1), DPT(32, output_dim=1, features=16, out_channels=[16] * 4))


def _tiny_any_view() -> torch.nn.Module:
    from depth_anything_3.model.cam_dec import CameraDec
    from depth_anything_3.model.cam_enc import CameraEnc
    from depth_anything_3.model.da3 import DepthAnything3Net
    from depth_anything_3.model.dualdpt import DualDPT

    head = DualDPT(64, output_dim=2, features=16, out_channels=[16] * 4)
    return DepthAnything3Net(_dino(alt_start=2), head, CameraDec(dim_in=64), CameraEnc(dim_out=32, num_heads=4))


def _dino(alt_start: int) -> torch.nn.Module:
    from depth_anything_3.model.dinov2.dinov2 import DinoV2
    from depth_anything_3.model.dinov2.vision_transformer import DinoVisionTransformer

    net = DinoV2.__new__(DinoV2)  # its constructor knows only the released sizes
    torch.nn.Module.__init__(net)
    net.name, net.out_layers = "tiny", [1, 2, 3, 4]
    net.pretrained = DinoVisionTransformer(
        img_size=518, patch_size=14, embed_dim=32, depth=5, num_heads=4, mlp_ratio=4, ffn_layer="mlp",
        alt_start=alt_start, qknorm_start=alt_start, rope_start=alt_start, cat_token=alt_start >= 0,
    )  # fmt: skip
    return net


def sam3(folder: Path) -> Path:
    """`facebook/sam3` as transformers loads it, with its CLIP tokenizer."""
    from transformers import CLIPTokenizer, Sam3Config, Sam3Model
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    torch.manual_seed(0)
    letters = list(bytes_to_unicode().values())
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: i for i, token in enumerate(vocabulary)}, merges=[])
    side, patch, width = 112, 14, 32
    grid, end = side // patch, len(vocabulary) - 1
    layer = {"hidden_size": width, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 2 * width}
    vit = {
        "model_type": "sam3_vit_model", "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": side, "patch_size": patch, "window_size": grid // 2,
        "global_attn_indexes": [1], "pretrain_image_size": side // 2,
    }  # fmt: skip
    text = {
        "model_type": "clip_text_model", "vocab_size": end + 1, "hidden_size": width, "intermediate_size": 2 * width,
        "projection_dim": width, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32,
        "hidden_act": "gelu", "bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end,
    }  # fmt: skip
    vision = {
        "model_type": "sam3_vision_model", "backbone_config": vit, "fpn_hidden_size": width,
        "backbone_feature_sizes": [[4 * grid] * 2, [2 * grid] * 2, [grid] * 2], "scale_factors": [4.0, 2.0, 1.0, 0.5],
    }  # fmt: skip
    config = Sam3Config(
        vision_config=vision, text_config=text, geometry_encoder_config=layer, detr_encoder_config=layer,
        detr_decoder_config={**layer, "num_queries": 10},
        mask_decoder_config={"hidden_size": width, "num_upsampling_stages": 3, "num_attention_heads": 2},
    )  # fmt: skip
    Sam3Model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def qwen3_vl(folder: Path) -> Path:
    """`Qwen/Qwen3-VL-2B-Instruct`: model, tokenizer and image preprocessing."""
    from transformers import Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration
    from transformers.convert_slow_tokenizer import bytes_to_unicode
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    torch.manual_seed(0)
    letters = list(bytes_to_unicode().values())
    names = [f"<|{name}|>" for name in ("im_start", "vision_start", "vision_end", "image_pad", "video_pad")]
    tokenizer = Qwen2Tokenizer(
        vocab={letter: i for i, letter in enumerate(letters)}, merges=[], eos_token="<|im_end|>",
        pad_token="<|endoftext|>", unk_token="<|endoftext|>", additional_special_tokens=names,
    )  # fmt: skip
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("im_end", "endoftext", "vision_start")}
    pads = {f"{kind}_token_id": tokenizer.convert_tokens_to_ids(f"<|{kind}_pad|>") for kind in ("image", "video")}
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True, "rope_theta": 5e6,
        },
        "eos_token_id": ids["im_end"], "pad_token_id": ids["endoftext"],
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": 16,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32, "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }  # fmt: skip
    config = Qwen3VLConfig(
        text_config=text, vision_config=vision, vision_start_token_id=ids["vision_start"],
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"), tie_word_embeddings=True, **pads,
    )  # fmt: skip
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sizes = {"shortest_edge": 32 * 32, "longest_edge": 128 * 128}
    Qwen2VLImageProcessorPil(
        patch_size=16, temporal_patch_size=2, merge_size=2, size=sizes, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder)
    return folder


def preset(path: Path, checkpoint: Path, **changes: Any) -> Path:
    """A YAML that is the full-size preset but for the shapes of the tiny checkpoint."""
    values = {
        "base": "wan2.2-ti2v-5b",
        "weights": str(checkpoint),
        "codec": CODEC,
        "denoiser": DENOISER | changes.pop("denoiser", {}),
        "sampler": {"steps": 2} | changes.pop("sampler", {}),
        "perception": {"depth": None, "masks": None} | changes.pop("perception", {}),
        **changes,
    }
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def main(folder: Annotated[Path, typer.Argument(help="Where the checkpoints go.")]) -> None:
    """Write every checkpoint and a training-free preset that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    free = {"denoiser": {"memory_layers": [], "preceding": 0, "references": 0}, "sampler": {"replace": 0.5}}
    masks = {"weights": str(sam3(folder / "sam3")), "options": {"names": str(qwen3_vl(folder / "qwen3-vl"))}}
    path = preset(folder / "tiny-wan.yaml", wan(folder / "wan"), perception={"depth": None, "masks": masks}, **free)
    typer.echo(f"mirage-env demo --preset {path} --size 64 --frames 8")


if __name__ == "__main__":
    typer.run(main)
