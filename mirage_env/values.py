"""Values on disk: dataclasses, named tuples, arrays and tensors as one safetensors file. No code is ever loaded.

Tensors are the file's tensors, everything else is JSON in its metadata, and classes are named in it. Who reads says
which classes may appear, so a file can only ask for what its reader expects.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mirage_env.errors import InvalidValueError, OutputError, SavedWorldError

T = TypeVar("T")
FORMAT = "mirage-env value 1"


def classes_in(*roots: Any) -> dict[str, type]:
    """The dataclasses and named tuples that values of these types are made of, as far as their annotations say."""
    found: dict[str, type] = {}
    left = list(roots)
    while left:
        kind = left.pop()
        left += get_args(kind)
        if isinstance(kind, type) and _is_record(kind) and found.get(kind.__name__) is not kind:
            found[kind.__name__] = kind
            left += get_type_hints(kind).values()
    return found


def moved(value: T, device: torch.device | str) -> T:
    """The value with its tensors on the device."""
    return _moved(value, device)


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{f.name: _moved(getattr(value, f.name), device) for f in fields(value)})
    if isinstance(value, tuple):
        inner = [_moved(one, device) for one in value]
        return type(value)(*inner) if hasattr(value, "_fields") else type(value)(inner)
    return value


def write_values(
    path: str | Path, values: Mapping[str, Any], about: Mapping[str, Any], classes: Mapping[str, type]
) -> Path:
    """Writes a file of named values and of JSON `about` them. It appears whole or not at all: an interruption leaves
    the old file as it was.

    Raises InvalidValueError for what is neither data nor of one of the `classes`, and OutputError.
    """
    target = Path(path).expanduser()
    tensors: dict[str, Tensor] = {}
    packed = {name: _packed(value, tensors, classes) for name, value in values.items()}
    tensors["format"] = torch.zeros(0)  # a file needs one
    content = save(tensors, {"format": FORMAT, "about": json.dumps(about), "values": json.dumps(packed)})
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}-", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise OutputError(f"cannot write {target} ({error.strerror or error}); choose another place") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return target


class StoredValues:
    """A file that `write_values` wrote; raises SavedWorldError for one that is missing, damaged or of another kind."""

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        with self._telling(), safe_open(self.path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise SavedWorldError(f"{self.path} is no world that this version of mirage-env saved")
            # copies: what safetensors hands out is the file itself, and that may be replaced or cut short any time
            self._tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
            self._packed: dict[str, Any] = json.loads(metadata["values"])
            self.about: dict[str, Any] = json.loads(metadata["about"])

    def read(self, name: str, classes: Mapping[str, type]) -> Any:
        """The value of that name, in which nothing but the `classes` may appear."""
        with self._telling():
            return _unpacked(self._packed[name], self._tensors, classes)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except SavedWorldError:
            raise
        except FileNotFoundError:
            raise SavedWorldError(f"no saved world at {self.path}") from None
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            why = " ".join(str(error).split())
            raise SavedWorldError(f"the saved world {self.path} is damaged or none ({why})") from None


def _is_record(kind: type) -> bool:
    return is_dataclass(kind) or (issubclass(kind, tuple) and hasattr(kind, "_fields"))


def _packed(value: Any, tensors: dict[str, Tensor], classes: Mapping[str, type]) -> Any:
    """JSON for the value; its arrays and tensors are put into `tensors`."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (Tensor, np.ndarray)):
        name = str(len(tensors))
        tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
        tensors[name] = tensor.detach().cpu().contiguous().clone()  # a file holds no two views of one storage
        return {"tensor" if isinstance(value, Tensor) else "array": name}
    if _is_record(kind := type(value)):
        if classes.get(kind.__name__) is not kind:
            raise InvalidValueError(
                f"a {kind.__name__} cannot be saved: nothing says that it may be read; a task or a world names the "
                "classes of its state in state_class"
            )
        return {
            "class": kind.__name__,
            "fields": {n: _packed(getattr(value, n), tensors, classes) for n in _names(kind)},
        }
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _packed(inner, tensors, classes) for key, inner in value.items()}}
    if type(value) in (tuple, list):
        return {type(value).__name__: [_packed(inner, tensors, classes) for inner in value]}
    raise InvalidValueError(
        f"a {type(value).__name__} cannot be saved; a state is made of numbers, strings, arrays, tensors, tuples, "
        "mappings and classes of them"
    )


def _unpacked(packed: Any, tensors: Mapping[str, Tensor], classes: Mapping[str, type]) -> Any:
    if not isinstance(packed, dict):
        return packed
    (kind, inner), *rest = packed.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "array":
        return tensors[inner].numpy()
    if kind == "class":
        if inner not in classes:
            raise SavedWorldError(f"a {inner} was saved, which is nothing that belongs here")
        values = {name: _unpacked(one, tensors, classes) for name, one in rest[0][1].items()}
        for name, hint in get_type_hints(classes[inner]).items():
            if name in values and not _fits(values[name], hint):
                raise TypeError(f"{name} of its {inner} is a {type(values[name]).__name__}")
        return classes[inner](**values)
    if kind == "dict":
        return {name: _unpacked(one, tensors, classes) for name, one in inner.items()}
    return {"tuple": tuple, "list": list}[kind](_unpacked(one, tensors, classes) for one in inner)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value that was read is what an annotation says; annotations that cannot be asked allow everything."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if hint is None:
        return value is None
    if kind is tuple and inner:
        if not isinstance(value, tuple):
            return False
        each = inner[:1] * len(value) if inner[-1] is ... else inner
        return len(each) == len(value) and all(map(_fits, value, each))
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    try:
        return hint is Any or isinstance(value, kind)
    except TypeError:  # a protocol, a literal
        return True


def _names(kind: Any) -> Iterable[str]:
    return kind._fields if hasattr(kind, "_fields") else [f.name for f in fields(kind)]
