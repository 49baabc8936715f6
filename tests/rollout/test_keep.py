from __future__ import annotations

import pytest

from mirage_env.errors import InvalidValueError, UnknownNameError
from mirage_env.rollout.keep import parse_keep

EPISODE = {"reprojection_rel": 0.05, "collisions": 2, "revisit_rel": None, "return": -1.5, "frames": 65}


@pytest.mark.parametrize(
    ("expression", "kept"),
    [
        (None, True),
        ("reprojection_rel<0.1", True),
        ("reprojection_rel < 0.05", False),
        ("0.01 < reprojection_rel <= 0.05", True),
        ("reprojection_rel < 0.1 and collisions == 3", False),
        ("collisions == 3 or not frames > 100", True),
        ("return >= -1.5", True),
        ("return > -1", False),
        ("revisit_rel < 1", False),  # what is not known fulfils nothing
        ("revisit_rel >= 0 or revisit_rel < 0", False),
    ],
)
def test_comparisons(expression: str | None, kept: bool) -> None:
    assert parse_keep(expression)(EPISODE) is kept


@pytest.mark.parametrize(
    "expression",
    ["", "reprojection_rel", "1", "frames +", "__import__('os')", "frames.real > 1", "frames[0] < 1",
     "frames < (1 + 1)", "lambda: 1", "frames < 'a'", "frames in (1, 2)", "frames < True",
     "(frames := 1) < 2", "frames < 1; frames"],
)  # fmt: skip
def test_nothing_else_is_read(expression: str) -> None:
    with pytest.raises(InvalidValueError, match="keep must compare numbers of the certificate"):
        parse_keep(expression)


def test_unknown_names_are_told() -> None:
    with pytest.raises(UnknownNameError, match=r'unknown number in keep "colisions"; .* did you mean "collisions"'):
        parse_keep("colisions < 3")
