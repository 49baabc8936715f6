"""Which episodes to keep: `reprojection_rel < 0.1 and collisions <= 3`. Comparisons, and / or / not; no code is run."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from mirage_env.errors import InvalidValueError, UnknownNameError

NAMES = (
    "collisions",
    "frames",
    "invented_share",
    "remembered_share",
    "reprojection_rel",
    "reprojection_rgb",
    "return",
    "revisit_rel",
    "revisit_rgb",
    "revisits",
)
"""What an expression may name: the certificate's numbers, the number of frames and the sum of rewards."""

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
Keep = Callable[[Mapping[str, Any]], bool]


def parse_keep(expression: str | None) -> Keep:
    """The expression as a function of an episode's numbers; without one everything is kept.

    A comparison with a number that is not known (drift without revisits, say) is False. Raises InvalidValueError or
    UnknownNameError where the expression is no such comparison.
    """
    if expression is None:
        return lambda _: True
    source = expression.replace("return", "_return")  # a keyword of Python, the plain word for a sum of rewards
    try:
        tree = ast.parse(source.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _refused(expression) from None
    _check(tree, expression)
    return lambda numbers: bool(_value(tree, numbers))


def _check(node: ast.AST, expression: str) -> None:
    if isinstance(node, ast.BoolOp):
        parts: list[ast.AST] = list(node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        parts = [node.operand]
    elif isinstance(node, ast.Compare) and all(type(op) in _COMPARE for op in node.ops):
        for side in (node.left, *node.comparators):
            if isinstance(side, ast.Name):
                if side.id.removeprefix("_") not in NAMES:
                    raise UnknownNameError("number in keep", side.id, NAMES)
            elif _constant(side) is None:
                raise _refused(expression)
        parts = []
    else:
        raise _refused(expression)
    for part in parts:
        _check(part, expression)


def _value(node: ast.AST, numbers: Mapping[str, Any]) -> bool:
    if isinstance(node, ast.BoolOp):
        results = (_value(part, numbers) for part in node.values)
        return all(results) if isinstance(node.op, ast.And) else any(results)
    if isinstance(node, ast.UnaryOp):
        return not _value(node.operand, numbers)
    assert isinstance(node, ast.Compare)  # checked when the expression was parsed
    sides = [
        numbers.get(side.id.removeprefix("_")) if isinstance(side, ast.Name) else _constant(side)
        for side in (node.left, *node.comparators)
    ]
    pairs = zip(sides, node.ops, sides[1:], strict=False)
    return all(a is not None and b is not None and _COMPARE[type(op)](a, b) for a, op, b in pairs)


def _constant(node: ast.AST) -> float | None:
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        sign, node = -1, node.operand
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
        return sign * node.value
    return None


def _refused(expression: str) -> InvalidValueError:
    return InvalidValueError(
        f'keep must compare numbers of the certificate, like "reprojection_rel < 0.1 and collisions <= 3", '
        f'got "{expression}"; it may name {", ".join(NAMES)}'
    )
