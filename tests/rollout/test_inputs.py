from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mirage_env.errors import ImageError, InvalidValueError
from mirage_env.rollout.inputs import Input, read_inputs


def test_a_picture_a_folder_and_nothing(pictures: Path) -> None:
    assert read_inputs("temple") == (Input("temple"),)
    assert read_inputs(None) == (Input(None),)
    assert [Path(row.image or "").name for row in read_inputs(str(pictures))] == ["p10.png", "p20.png", "p30.png"]


def test_a_manifest_says_more(pictures: Path) -> None:
    Image.fromarray(np.full((40, 60), 2500, np.uint16)).save(pictures / "d.png")
    (pictures / "m.csv").write_text(
        "image,intrinsics,depth,prompt,seed,trajectory\n"
        'p10.png,"30 30 30 20",d.png,"a hall, at night",7,\n'
        "temple,,,,,\n"
    )
    first, second = read_inputs(str(pictures / "m.csv"))
    assert first == Input(
        str(pictures / "p10.png"), (30, 30, 30, 20), str(pictures / "d.png"), "a hall, at night", seed=7
    )
    assert second == Input("temple")
    options = first.reset_options((32, 32), None)
    np.testing.assert_allclose(options["depth"], 2.5)
    # 60 x 40 is cropped to its middle 40 x 40 and scaled by 0.8.
    np.testing.assert_allclose(options["intrinsics"], [[24, 0, 16], [0, 24, 16], [0, 0, 1]])
    assert options["prompt"] == "a hall, at night"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no line after its header"),
        ("image\n", "has no line after its header"),
        ("picture\na.png\n", "has no column image"),
        ("image,speed\na.png,3\n", "has unknown columns speed; known are image, intrinsics"),
        ("image,seed\n,3\n", "line 2: the image is missing"),
        ("image,seed\na.png,x\n", "line 2: seed must be a whole number"),
        ("image,seed\na.png,-1\n", "line 2: seed must be at least 0"),
        ("image,intrinsics\na.png,1 2 3\n", "line 2: intrinsics must be fx fy cx cy"),
        ("image\na.png,b.png\n", "line 2: more fields than the header"),
    ],
)
def test_bad_manifests_are_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises((InvalidValueError, ImageError), match=message):
        read_inputs(str(tmp_path / "m.csv"))
    with pytest.raises(ImageError, match="no picture at"):
        read_inputs(str(tmp_path / "none"))
    with pytest.raises(ImageError, match="no manifest at"):
        read_inputs(str(tmp_path / "none.csv"))
