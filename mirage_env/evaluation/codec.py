"""The codec alone: what is left of pictures that it never saw."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from mirage_env.codec.wan import to_float, to_uint8
from mirage_env.errors import InvalidValueError
from mirage_env.evaluation.metrics import psnr
from mirage_env.world_model import WorldModel

PHOTOGRAPHS = ("astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "motorcycle", "rocket")
"""What scikit-image's wheel carries that a camera took of everyday things; never trained on."""
BATCH = 32


@torch.inference_mode()
def reconstruct(model: WorldModel, pictures: UInt8[Tensor, "n H W 3"]) -> UInt8[Tensor, "n H W 3"]:
    """Every picture encoded and decoded, each as a still image."""
    results = []
    for batch in pictures.split(BATCH):
        with model.precision():
            latents = model.codec.encode(to_float(batch.to(model.device)))
            results.append(to_uint8(model.codec.decode(latents[:, None])[:, 0]).cpu())
    return torch.cat(results)


def codec_psnr(model: WorldModel, pictures: UInt8[Tensor, "n H W 3"]) -> Float[Tensor, " n"]:
    """PSNR in dB of every reconstructed picture."""
    return psnr(reconstruct(model, pictures), pictures)


def photographs(size: tuple[int, int]) -> dict[str, UInt8[Tensor, "n H W 3"]]:
    """`crops` of each of `PHOTOGRAPHS`."""
    return {name: crops(photograph(name), size) for name in PHOTOGRAPHS}


def crops(picture: UInt8[np.ndarray, "a b 3"], size: tuple[int, int]) -> UInt8[Tensor, "n H W 3"]:
    """Five crops, resized: the largest that fits, in the middle, and four of half its sides in the corners."""
    image, (height, width) = Image.fromarray(picture), size
    scale = min(image.height / height, image.width / width)
    tall, wide = height * scale, width * scale
    left, top = (image.width - wide) / 2, (image.height - tall) / 2
    boxes = [(left, top, left + wide, top + tall)]
    for y in (0.0, image.height - tall / 2):
        boxes += [(x, y, x + wide / 2, y + tall / 2) for x in (0.0, image.width - wide / 2)]
    resized = [image.resize((width, height), Image.Resampling.LANCZOS, box=box) for box in boxes]
    return torch.from_numpy(np.stack([np.asarray(x) for x in resized]))


def photograph(name: str) -> UInt8[np.ndarray, "a b 3"]:
    """One of `PHOTOGRAPHS`, uncropped."""
    try:
        from skimage import data
    except ImportError:
        raise InvalidValueError("photographs come with scikit-image; pip install 'mirage-env[eval]'") from None

    picture = data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)()
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, -1)
