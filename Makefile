# make demo: from a fresh machine to a PPO run.   make test: the whole suite.   Both make their own .venv.
PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: demo test lint clean

demo: .venv/ready
	$(RUN) train.py method=ppo model=gpt2 trainer=cpu

test: .venv/ready lint
	$(RUN) -m pytest --numprocesses 2

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports
	.venv/bin/pyright

.venv/ready: pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --constraint constraints.txt torch
	.venv/bin/pip install --quiet --constraint constraints.txt --editable ".[dev,gguf,search]"
	touch .venv/ready

clean:
	rm -rf .venv
