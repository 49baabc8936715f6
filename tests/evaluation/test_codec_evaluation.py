from __future__ import annotations

import numpy as np
import torch

from mirage_env.evaluation.codec import PHOTOGRAPHS, codec_psnr, crops, photographs, reconstruct
from mirage_env.evaluation.metrics import psnr


def test_crops_are_the_middle_and_the_four_corners():
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:32, :48], picture[:32, 48:], picture[32:, :48], picture[32:, 48:] = 10, 20, 30, 40
    middle, *corners = crops(picture, (16, 16))
    assert [int(c[8, 8, 0]) for c in corners] == [10, 20, 30, 40]
    assert middle[0, 0, 0] == 10 and middle[-1, -1, 0] == 40
    whole = crops(picture, (32, 48))[0]
    assert whole.shape == (32, 48, 3) and whole[2, 2, 0] == 10 and whole[-3, -3, 0] == 40


def test_photographs_need_no_download():
    pictures = photographs((32, 48))
    assert tuple(pictures) == PHOTOGRAPHS
    assert all(x.shape == (5, 32, 48, 3) and x.float().std() > 10 for x in pictures.values())


def test_the_codec_is_scored_on_its_own_reconstruction(model, make_walk):
    pictures = make_walk([0.0, 0.1]).truth.rgb
    again = reconstruct(model, pictures)
    assert again.shape == pictures.shape
    assert torch.equal(codec_psnr(model, pictures), psnr(again, pictures))
