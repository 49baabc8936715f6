"""Shapes and types are checked while the tests run; every test starts from the same seeds."""

from __future__ import annotations

import os
import random

# Before torch and before mirage_env: the hook rewrites modules as they are imported.
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
from jaxtyping import install_import_hook

# An int may stand where a float is expected, as in Python's own rules for type checkers.
install_import_hook("mirage_env", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import numpy as np
import pytest
import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def same_seeds() -> None:
    """Tests that forget to pass a generator still repeat."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
