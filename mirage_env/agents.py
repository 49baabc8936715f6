"""In a checkout `mirage_env.agents` is the folder `agents/` at the top; a wheel has that folder in place of this."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[1] / "agents")]
