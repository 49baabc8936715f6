# make demo [IMAGE=my.jpg] [OUT=folder]   an image becomes a walk: video, depth, poses and a contact sheet
# make test                               lint, types and tests
# Both set up .venv by themselves, once. PYTHON=python3.12 chooses the interpreter.

VENV ?= .venv
OUT ?= mirage-out
PY := $(VENV)/bin/python

.PHONY: help demo test lint format clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# //p' Makefile | head -3

demo: $(VENV)/.core
	@$(VENV)/bin/mirage-env demo $(if $(IMAGE),--image "$(IMAGE)") --out "$(OUT)"

test: lint
	@$(PY) -m pytest

lint: $(VENV)/.dev
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

format: $(VENV)/.dev
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

define install
@echo "Installing $(1) into $(VENV) (once; a few minutes)"
@$(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt -e "$(1)"
endef

$(VENV)/.core: pyproject.toml constraints.txt | $(PY)
	$(call install,.)
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(PY)
	$(call install,.[dev])
	@touch $@ $(VENV)/.core

$(PY):
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
		if $$python -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))" 2>/dev/null; then \
			echo "Making $(VENV) with $$($$python --version)"; exec $$python -m venv "$(VENV)"; fi; done; \
	echo "Mirage env needs Python 3.11, 3.12 or 3.13 and found none; install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1
