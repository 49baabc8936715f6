from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from mirage_env.rollout import png

sides = st.integers(1, 9)


@settings(max_examples=60, deadline=None)
@given(st.one_of(
    arrays.arrays(np.uint8, st.tuples(sides, sides, st.just(3))),
    arrays.arrays(np.uint16, st.tuples(sides, sides)),
))  # fmt: skip
def test_other_readers_see_what_was_written(picture: np.ndarray) -> None:
    with Image.open(io.BytesIO(png.encode(picture))) as read:
        read.load()
        assert read.format == "PNG"
        np.testing.assert_array_equal(np.asarray(read), picture)
    back = png.decode(png.encode(picture))
    assert back.dtype == picture.dtype
    np.testing.assert_array_equal(back, picture)


def test_smooth_pictures_become_small() -> None:
    ramp = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    assert len(png.encode(np.stack([ramp] * 3, -1))) < ramp.size * 3 / 6


def test_a_cut_file_is_refused() -> None:
    data = png.encode(np.zeros((8, 8), np.uint16))
    with pytest.raises((OSError, SyntaxError)):
        png.decode(data[:40])
