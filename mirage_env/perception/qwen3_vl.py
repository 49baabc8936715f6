"""Qwen3-VL: which things in a picture may move by themselves. Its words are what SAM 3 then looks for."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import nn

from mirage_env.errors import WeightsError
from mirage_env.weights.checkpoint import part_bytes

MOST = 3
QUESTION = (
    "Name the categories of things in this picture that move by themselves or are being moved right now, such as "
    f"person, dog or car: at most {MOST}, singular, separated by commas. Answer Nothing if there are none."
)
_PIXELS = 640 * 640


class MovingThings(nn.Module):
    """Names at most three categories of moving things, or none."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype):
        super().__init__()
        from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        part_bytes(folder, "model")
        try:  # the processor's parts one by one: as a whole it insists on torchvision
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self.processor = Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)
            model = Qwen3VLForConditionalGeneration.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, local_files_only=True
            )
        except (OSError, ValueError) as error:
            reason = str(error).split("\n")[0]
            raise WeightsError(f"{folder} cannot be read as Qwen3-VL ({reason}); fetch it again") from None
        self.model = model.to(device).eval().requires_grad_(False)

    @torch.inference_mode()
    def forward(self, rgb: UInt8[np.ndarray, "H W 3"]) -> tuple[str, ...]:
        """Categories in the picture, always the same for the same picture."""
        picture = Image.fromarray(rgb)
        picture.thumbnail((int(_PIXELS**0.5),) * 2)
        device = self.model.device
        image = self.processor(images=[picture], return_tensors="pt").to(device)
        merged = self.processor.merge_size**2
        pads = "<|image_pad|>" * (int(image["image_grid_thw"][0].prod()) // merged)
        text = f"<|im_start|>user\n<|vision_start|>{pads}<|vision_end|>{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
        words = self.tokenizer(text, return_tensors="pt").to(device)
        is_image = (words["input_ids"] == self.model.config.image_token_id).long()
        answer = self.model.generate(**words, **image, mm_token_type_ids=is_image, max_new_tokens=24, do_sample=False)
        told = answer[0, words["input_ids"].shape[1] :]
        return categories(self.tokenizer.decode(told, skip_special_tokens=True))


def categories(answer: str) -> tuple[str, ...]:
    """At most three names out of an answer; a sentence where a list was asked for yields none."""
    names = [re.sub(r"[^\w -]", "", part).strip().lower() for part in re.split(r"[,\n;]", answer)]
    names = [name for name in names if name and name != "nothing" and len(name.split()) <= MOST]
    return tuple(dict.fromkeys(names))[:MOST]
