# make demo: from a fresh machine to a PPO run.   make test: the whole suite.   Both make their own .venv.
# make docs: the documentation site in site/, to be opened as a file.
# make dashboard: TensorBoard over all runs, for this machine alone; DIR=sweeps looks elsewhere, PORT=6007 moves it.
PYTHON ?= python3
DIR ?= runs
PORT ?= 6006
RUN := .venv/bin/python

.PHONY: demo test lint docs dashboard clean

demo: .venv/ready
	$(RUN) train.py method=ppo model=gpt2 trainer=cpu

test: .venv/ready lint
	$(RUN) -m pytest --numprocesses 2

docs: .venv/ready
	.venv/bin/pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(RUN) -m docs.generator build/docs
	.venv/bin/zensical build --strict --clean

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports
	.venv/bin/pyright

dashboard: .venv/ready
	@test -n "$$(find -L $(DIR) -name 'events.out.tfevents.*' -print -quit 2>/dev/null)" || \
		{ echo "no runs to look at in $(DIR); start one (python train.py method=ppo) or say DIR=FOLDER"; exit 2; }
	@echo "http://127.0.0.1:$(PORT)  (Ctrl-C stops it)"
	@.venv/bin/tensorboard --logdir $(DIR) --host 127.0.0.1 --port $(PORT) 2>/dev/null

.venv/ready: pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --constraint constraints.txt torch
	.venv/bin/pip install --quiet --constraint constraints.txt --editable ".[dev,gguf,search]"
	touch .venv/ready

clean:
	rm -rf .venv
