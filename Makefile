# make demo: train PPO on a fresh machine.   make test: lint and run all tests.   Both create .venv.
# make docs: build the documentation site in site/; it opens without a server.
# make gpu-check: check one GPU in eight minutes: correctness, speed, memory; writes a table to OUT. No network.
# make bench: CPU time and memory of every method, compared with the last measurement in benchmarks/; ten minutes.
# make dashboard: TensorBoard on localhost for all runs; DIR=sweeps selects another folder, PORT=6007 another port.
PYTHON ?= python3
DIR ?= runs
PORT ?= 6006
OUT ?= gpu_check
RUN := .venv/bin/python

.PHONY: demo test lint docs bench gpu-check dashboard clean

demo: .venv/ready
	$(RUN) train.py method=ppo model=gpt2 trainer=cpu

test: .venv/ready lint
	$(RUN) -m pytest --numprocesses 2

docs: .venv/ready
	.venv/bin/pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(RUN) -m docs.generator build/docs
	.venv/bin/zensical build --strict --clean
	$(RUN) -m docs.generator.offline site

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports
	.venv/bin/pyright

bench: .venv/ready
	$(RUN) benchmarks/bench.py

gpu-check:
	$(RUN) benchmarks/gpu_check.py $(OUT)

dashboard: .venv/ready
	@test -n "$$(find -L $(DIR) -name 'events.out.tfevents.*' -print -quit 2>/dev/null)" || \
		{ echo "there are no runs in $(DIR); start one (python train.py method=ppo) or set DIR=FOLDER"; exit 2; }
	@echo "http://127.0.0.1:$(PORT)  (Ctrl-C stops it)"
	@.venv/bin/tensorboard --logdir $(DIR) --host 127.0.0.1 --port $(PORT) 2>/dev/null

.venv/ready: pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --constraint constraints.txt torch
	.venv/bin/pip install --quiet --constraint constraints.txt --editable ".[dev,gguf,search]"
	touch .venv/ready

clean:
	rm -rf .venv
