"""SAM 3: masks of whatever words name; here of moving things and of the sky.

The model of transformers is the default. The `sam3` package holds the same network, but leaves dependencies undeclared
(triton among them) and its vocabulary file out of the wheel, hard-codes CUDA and one resolution, pins numpy below what
is used here, and reads its weights by pickle. Where it can be imported it serves as `model: sam3-package`, from a
folder with PACKAGE_WEIGHTS, made once of its sam3.pt (docs/full-size.md), and with PACKAGE_VOCABULARY; or hand over a
processor of your own: `Sam3Package`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.nn import functional as F

from mirage_env.config import build
from mirage_env.errors import InvalidValueError, MirageError, WeightsError
from mirage_env.perception.qwen3_vl import MovingThings
from mirage_env.weights.checkpoint import check_extra, find, part_bytes

PACKAGE_WEIGHTS, PACKAGE_VOCABULARY = "sam3-package.safetensors", "bpe_simple_vocab_16e6.txt.gz"
TEXT_TOKENS = 32
"""All that its text encoder reads of a phrase."""


@dataclass(frozen=True)
class Sam3Config:
    names: str | None = None
    """Weights of Qwen3-VL, which names what moves in the pictures at hand; None: only `phrases`."""
    phrases: tuple[str, ...] = ()
    """Moving things to look for in every picture."""
    sky: bool = True
    threshold: float = 0.3
    """Least score of an instance."""
    names_every: int = 16
    """Of a chunk's frames, every how many-th is asked about, counting back from the last."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1 or self.names_every < 1:
            raise InvalidValueError(f"need 0 < threshold < 1 and names_every >= 1, got {self}")


@runtime_checkable
class PhraseSegmenter(Protocol):
    """One picture and some phrases -> one mask a phrase."""

    def __call__(
        self, image: Float[Tensor, "3 H W"], phrases: Sequence[str], threshold: float
    ) -> Bool[Tensor, "p H W"]:
        """`image` in [-1, 1]; the union of all instances that score above the threshold."""


def load(weights: str, options: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Sam3:
    """A `MaskModel`."""
    return _load(Sam3Transformers, weights, options, device, dtype)


def load_package(weights: str, options: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Sam3:
    """The same by the `sam3` package."""
    return _load(Sam3Package.from_folder, weights, options, device, dtype)


def _load(
    segmenter: Callable[[Path, torch.device, torch.dtype], PhraseSegmenter],
    weights: str,
    options: dict[str, Any],
    device: torch.device,
    dtype: torch.dtype,
) -> Sam3:
    check_extra("sam3", "transformers")
    config = build(Sam3Config, options, "perception.masks.options")
    names = None if config.names is None else MovingThings(find(config.names), device, dtype)
    return Sam3(segmenter(find(weights), device, dtype), names, config)


class Sam3(nn.Module):
    """Implements `MaskModel`: names what moves, then masks it, and the sky, frame by frame."""

    def __init__(
        self,
        segmenter: PhraseSegmenter,
        names: Callable[[UInt8[np.ndarray, "H W 3"]], tuple[str, ...]] | None = None,
        config: Sam3Config | None = None,
    ):
        super().__init__()
        self.segmenter, self.names, self.config = segmenter, names, config or Sam3Config()

    @torch.inference_mode()
    def forward(self, images: Float[Tensor, "T 3 H W"]) -> tuple[Bool[Tensor, "T H W"], Bool[Tensor, "T H W"] | None]:
        moving = list(self.config.phrases)
        if self.names is not None:
            for t in range(len(images) - 1, -1, -self.config.names_every):
                moving += self.names(_to_rgb(images[t]))
        moving = list(dict.fromkeys(moving))
        phrases = moving + ["sky"] * self.config.sky
        nothing = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool, device=images.device)
        if not phrases:
            return nothing, None
        masks = torch.stack([self.segmenter(image, phrases, self.config.threshold) for image in images])
        dynamic = masks[:, : len(moving)].any(1) if moving else nothing
        return dynamic, masks[:, -1] if self.config.sky else None


class Sam3Transformers(nn.Module):
    """The released model by transformers, without its processors, which need torchvision."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype):
        super().__init__()
        from transformers import AutoTokenizer, Sam3Model

        part_bytes(folder, "model")
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = Sam3Model.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True)
        except (OSError, ValueError) as error:
            reason = str(error).split("\n")[0]
            raise WeightsError(f"{folder} cannot be read as SAM 3 ({reason}); fetch it again") from None
        self.model = model.to(device).eval().requires_grad_(False)
        self.side_px = int(self.model.config.vision_config.backbone_config.image_size)

    @torch.inference_mode()
    def forward(self, image: Float[Tensor, "3 H W"], phrases: Sequence[str], threshold: float) -> Bool[Tensor, "p H W"]:
        """The picture is encoded once, then asked about phrase by phrase."""
        square = F.interpolate(image[None].float(), size=(self.side_px,) * 2, mode="bilinear", antialias=True)
        dtype = next(self.model.parameters()).dtype
        features = self.model.get_vision_features(square.clamp(-1.0, 1.0).to(dtype))
        words = self.tokenizer(
            list(phrases), padding="max_length", max_length=TEXT_TOKENS, truncation=True, return_tensors="pt"
        ).to(image.device)
        masks = []
        for i in range(len(phrases)):
            output = self.model(
                vision_embeds=features,
                input_ids=words["input_ids"][i : i + 1],
                attention_mask=words["attention_mask"][i : i + 1],
            )
            score = output.pred_logits[0].float().sigmoid() * output.presence_logits[0].float().sigmoid()
            found = output.pred_masks[0][(score > threshold).flatten()].float().sigmoid()
            mask = torch.zeros(image.shape[1:], dtype=torch.bool, device=image.device)
            if len(found):
                whole = F.interpolate(found[None], size=image.shape[1:], mode="bilinear", align_corners=False)[0]
                mask = (whole > 0.5).any(0)
            masks.append(mask)
        return torch.stack(masks)


class Sam3Package:
    """A `PhraseSegmenter` by a `Sam3Processor` of the `sam3` package."""

    def __init__(self, processor: Any):
        missing = [name for name in ("set_image", "set_text_prompt") if not hasattr(processor, name)]
        if missing:
            raise InvalidValueError(
                f"expected a Sam3Processor of the sam3 package, got {type(processor).__name__} without {missing[0]}"
            )
        self.processor = processor

    @classmethod
    def from_folder(cls, folder: Path, device: torch.device, dtype: torch.dtype) -> Sam3Package:
        """The package's network in the precision that it chooses; raises `MirageError` where it cannot run."""
        if device.type != "cuda":
            raise MirageError(f"the sam3 package runs on CUDA alone, not on {device}; take model: sam3, its port")
        try:
            from sam3.model.sam3_image_processor import Sam3Processor
            from sam3.model_builder import build_sam3_image_model
        except ImportError as error:
            raise MirageError(f"the sam3 package cannot be imported ({error}); take model: sam3, its port") from None
        for name in (PACKAGE_WEIGHTS, PACKAGE_VOCABULARY):
            if not (folder / name).is_file():
                raise WeightsError(f"the sam3 package needs {folder / name}; docs/full-size.md says how to make it")
        vocabulary = str(folder / PACKAGE_VOCABULARY)
        model = build_sam3_image_model(vocabulary, str(device), load_from_HF=False)
        try:
            load_model(model, folder / PACKAGE_WEIGHTS)
        except (SafetensorError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise WeightsError(f"{folder / PACKAGE_WEIGHTS} does not fit ({reason}); make it anew") from None
        return cls(Sam3Processor(model.requires_grad_(False), device=str(device)))

    def __call__(
        self, image: Float[Tensor, "3 H W"], phrases: Sequence[str], threshold: float
    ) -> Bool[Tensor, "p H W"]:
        self.processor.confidence_threshold = threshold
        state = self.processor.set_image(Image.fromarray(_to_rgb(image)))
        masks = [self.processor.set_text_prompt(phrase, state)["masks"].flatten(0, -3) for phrase in phrases]
        return torch.stack([mask.bool().any(0) for mask in masks]).to(image.device)


def _to_rgb(image: Float[Tensor, "3 H W"]) -> UInt8[np.ndarray, "H W 3"]:
    return ((image.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).movedim(0, -1).cpu().numpy()
