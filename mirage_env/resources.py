"""Where the files that come with the package lie, in a checkout and in an installed wheel alike."""

from __future__ import annotations

import hashlib
import subprocess
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else None
"""Top of the repository, or None when the package was installed from a wheel."""

WEIGHTS = PACKAGE / "weights"
BUILTIN_IMAGES = PACKAGE / "builtin_images"
ENVS_CONFIG = CHECKOUT / "envs_config" if CHECKOUT else PACKAGE / "envs_config"


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def revision() -> str | None:
    """Git commit of the checkout, with "+" when files differ from it; None for a wheel or where git is absent."""
    if CHECKOUT is None or not (CHECKOUT / ".git").exists():
        return None
    try:
        commit = _git("rev-parse", "HEAD")
        return f"{commit}+" if _git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    """What git says; it takes no lock, which would stay behind where this process is killed."""
    return subprocess.run(
        ["git", "--no-optional-locks", *arguments], cwd=CHECKOUT, capture_output=True, text=True, timeout=10, check=True
    ).stdout.strip()
