"""Presets: `envs_config/*.yaml` -> nested frozen dataclasses. Values only, never code; unknown keys fail.

Each dataclass lives beside the class that it configures and checks itself in `__post_init__`; this file only fills it.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from mirage_env.errors import InvalidValueError, UnknownNameError
from mirage_env.resources import ENVS_CONFIG

T = TypeVar("T")


def preset_names() -> list[str]:
    """Names of the presets that come with the package."""
    return sorted(path.stem for path in ENVS_CONFIG.glob("*.yaml"))


def preset_path(name: str) -> Path:
    """File of a built-in preset; raises UnknownNameError with the names that exist."""
    if name not in preset_names():
        raise UnknownNameError("preset", name, preset_names())
    return ENVS_CONFIG / f"{name}.yaml"


def load_config(source: str | Path, cls: type[T], overrides: Sequence[str] = ()) -> T:
    """The dataclass `cls` filled from a preset's name or from a path that ends in .yaml.

    A file with `base: NAME` says only what it changes of that preset, or of the file of that name beside it.
    Overrides change what the file says, see `with_overrides`.
    Fields may be int, float, str, bool, dict, Literal, X | None, tuples of these and further dataclasses. A key that no
    field has, a missing key without default and a value of the wrong type raise InvalidValueError with the key's path.
    """
    path = Path(source) if str(source).endswith((".yaml", ".yml")) else preset_path(str(source))
    return build(cls, with_overrides(read_yaml(path), overrides), path.name)


def read_yaml(path: Path, heirs: tuple[Path, ...] = ()) -> Any:
    """What the file says, on top of what its `base` says: a preset's name, or a file beside it."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidValueError(f"no config file at {path}; built-in presets are {', '.join(preset_names())}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InvalidValueError(f"{path} cannot be read as YAML: {reason}") from error
    if not isinstance(values, dict) or "base" not in values:
        return values
    name = str(values.pop("base"))
    sibling = path.parent / (name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")
    base = sibling if sibling.is_file() and sibling != path else preset_path(name)
    if base in heirs:
        raise InvalidValueError(f"{path} is its own base, by way of {base.name}; name another one")
    return _merged(read_yaml(base, (*heirs, path)), values)


def _merged(base: Any, changes: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    return base | {key: _merged(base.get(key), value) for key, value in changes.items()}


def with_overrides(values: Any, overrides: Sequence[str], example: str = "key=value") -> Any:
    """A copy of nested mappings in which every `key=value` or `key.inner=value` is set, one after the other.

    Values are YAML; a mapping takes the place of the one that was there. What the keys may be is checked by `build`.
    InvalidValueError is raised for what is no such override, by an `example`, and for one that reaches into a value
    without keys.
    """
    for override in overrides:
        name, equals, text = override.partition("=")
        keys = [key.strip() for key in name.split(".")]
        if not equals or not all(keys):
            raise InvalidValueError(f'an override must look like {example}, got "{override}"')
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise InvalidValueError(f'the value of the override "{override}" is not YAML') from None
        values = _set({} if values is None else values, keys, value, override)
    return values


def _set(values: Any, keys: Sequence[str], value: Any, override: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise InvalidValueError(f'the override "{override}" reaches into {values!r}, which has no keys')
    first, *rest = keys
    return {**values, first: _set(values.get(first, {}), rest, value, override) if rest else value}


def build(cls: type[T], values: Any, where: str) -> T:
    """The dataclass `cls` from a mapping; `where` opens every error message."""
    if not isinstance(values, dict):
        raise InvalidValueError(f"{where} must be a mapping of {cls.__name__} fields, got {_show(values)}")
    known = {field.name: field for field in fields(cls) if field.init}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            close = get_close_matches(str(key), known, n=1)
            hint = f'; did you mean "{close[0]}"?' if close else f"; known are {', '.join(known)}"
            raise InvalidValueError(f'{where} has no key "{key}"{hint}')
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise InvalidValueError(f'{where} lacks the key "{name}"')
    hints = get_type_hints(cls)
    checked = {key: _check(hints[key], value, f"{where}: {key}") for key, value in values.items()}
    try:
        return cls(**checked)
    except InvalidValueError as error:
        raise InvalidValueError(f"{where}: {error}") from error


def _check(hint: Any, value: Any, where: str) -> Any:
    """The value as `hint` wants it, or an error that names the key."""
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint) and isinstance(hint, type):
        choose = getattr(hint, "class_for", None)  # a part of several kinds, told apart by the values themselves
        return build(choose(value) if choose and isinstance(value, dict) else hint, value, where)
    if origin is Literal:
        if not any(type(value) is type(argument) and value == argument for argument in arguments):
            raise InvalidValueError(f"{where} must be one of {', '.join(map(str, arguments))}, got {_show(value)}")
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        options = [argument for argument in arguments if argument is not type(None)]
        for option in options[:-1]:
            try:
                return _check(option, value, where)
            except InvalidValueError:
                continue
        return _check(options[-1], value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise InvalidValueError(f"{where} must be a list, got {_show(value)}")
        element_types = (arguments[0],) * len(value) if arguments[-1] is Ellipsis else arguments
        if len(value) != len(element_types):
            raise InvalidValueError(f"{where} must have {len(element_types)} entries, got {len(value)}")
        pairs = zip(element_types, value, strict=True)
        return tuple(_check(element, item, f"{where}[{i}]") for i, (element, item) in enumerate(pairs))
    if origin is dict or hint is dict:
        if not isinstance(value, dict):
            raise InvalidValueError(f"{where} must be a mapping, got {_show(value)}")
        return (
            {key: _check(arguments[1], item, f"{where}.{key}") for key, item in value.items()} if arguments else value
        )
    if hint is Any:
        return value
    if hint is float:
        return _float(value, where)
    if type(value) is not hint:  # exact, because True is also an int
        raise InvalidValueError(f"{where} must be {hint.__name__}, got {_show(value)}")
    return value


def _float(value: Any, where: str) -> float:
    try:
        if type(value) in (int, float, str):  # YAML 1.1 reads 1e-4, without a dot, as a string
            return float(value)
    except ValueError:
        pass
    raise InvalidValueError(f"{where} must be float, got {_show(value)}")


def _show(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"
