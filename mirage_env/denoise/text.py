"""Words -> what the backbone's cross-attention reads: UMT5, as Wan was trained with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mirage_env.errors import WeightsError
from mirage_env.weights.checkpoint import free_bytes, part_bytes

TEXT_TOKENS = 512
"""Always this many, zeros after the last word: cross-attention has no mask, so that the length changes the output."""


class PromptEncoder:
    """Embeds prompts with a checkpoint's `tokenizer` and `text_encoder`.

    The encoder is larger than the backbone, and a world has one prompt: it is read when a new prompt comes, used once,
    on the CPU where the device has no room for it, and let go; the embedding (8 MB at full size) is kept.
    """

    def __init__(self, checkpoint: Path, device: torch.device | str, dtype: torch.dtype):
        self.checkpoint, self.device, self.dtype = checkpoint, torch.device(device), dtype
        self._known: dict[str, Tensor] = {}

    def __call__(self, prompt: str | None) -> Float[Tensor, "1 l d"]:
        """The prompt's embedding; None is the empty prompt, which training's text dropout showed too."""
        prompt = prompt or ""
        if prompt not in self._known:
            (self._known[prompt],) = self.each([prompt])
        return self._known[prompt]

    def each(self, prompts: Iterable[str | None]) -> Iterator[Float[Tensor, "1 l d"]]:
        """The embedding of every prompt in turn: the encoder is read once for all of them, and nothing is kept."""
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean
        from transformers import AutoTokenizer, UMT5EncoderModel

        part_bytes(self.checkpoint / "text_encoder", "model")
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.checkpoint / "tokenizer", local_files_only=True)
            encoder = UMT5EncoderModel.from_pretrained(
                self.checkpoint / "text_encoder", dtype=self.dtype, use_safetensors=True, local_files_only=True
            )
        except (OSError, ValueError) as error:
            reason = str(error).split("\n")[0]
            raise WeightsError(
                f"the text encoder of {self.checkpoint} cannot be read ({reason}); fetch it again"
            ) from None
        room = sum(p.nbytes for p in encoder.parameters()) * 1.1
        roomy = free_bytes(self.device) > room  # beside all that is there already
        place = self.device if roomy else torch.device("cpu")
        encoder = encoder.to(place).eval()
        for prompt in prompts:
            words = tokenizer(
                [prompt_clean(prompt or "")],
                padding="max_length",
                max_length=TEXT_TOKENS,
                truncation=True,
                add_special_tokens=True,
                return_attention_mask=True,
                return_tensors="pt",
            ).to(place)
            with torch.inference_mode():
                states = encoder(words.input_ids, words.attention_mask).last_hidden_state
            yield (states * words.attention_mask[..., None]).float().to(self.device, copy=True)
