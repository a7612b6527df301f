# lab · demo · test · lint · notebooks · mini · bench        (PYTHON, PORT, IP and PIP_ARGS can be set)
PYTHON ?= python3
PORT ?= 8888
IP ?= $(if $(wildcard /.dockerenv),0.0.0.0,127.0.0.1)
PIP_ARGS ?= --constraint tests/constraints.txt
RUN := .venv/bin/python -m
export JUPYTER_PLATFORM_DIRS := 1
export TOKENIZERS_PARALLELISM := false
export CORAL_LAB_STORE ?= $(CURDIR)/build/store

.PHONY: lab demo test lint notebooks mini bench

# Prints its URL with the token. Over ssh and in a container there is no browser to open.
lab: .venv/ready
	$(RUN) jupyter lab --LabApp.default_url=/lab/tree/notebooks/00_quickstart.ipynb --ip=$(IP) --port=$(PORT) \
	  $(if $(filter 0,$(shell id -u)),--allow-root) $(if $(SSH_CONNECTION)$(wildcard /.dockerenv),--no-browser)

demo: .venv/ready
	$(RUN) coral_lab demo

test: .venv/ready
	$(RUN) pytest

lint: .venv/ready
	$(RUN) ruff check . && $(RUN) ruff format --check .

# Runs every notebook's .py from a clean kernel into its .ipynb and build/notebooks/*.html. Each figure leaves a PNG for
# where no script runs (GitHub, offline pages), which kaleido takes with the machine's Chromium.
notebooks: .venv/ready
	$(RUN) jupytext --to ipynb notebooks/[0-9]*.py
	TQDM_DISABLE=1 HF_HUB_DISABLE_PROGRESS_BARS=1 PLOTLY_RENDERER=plotly_mimetype+png $(RUN) nbconvert --to notebook --execute --inplace \
	  --ExecutePreprocessor.store_widget_state=False notebooks/[0-9]*.ipynb
	.venv/bin/python notebooks/shrink.py notebooks/[0-9]*.ipynb
	$(RUN) nbconvert --to html --output-dir build/notebooks notebooks/[0-9]*.ipynb

# Side-by-side timings and memory into benchmarks/README.md, on an idle machine; PROFILE=1 names the top costs as well.
bench: .venv/ready
	set -e; for name in encode sweeps search "search mapped" projection training objective "objective memory" store widget \
	  startup; do echo "== $$name"; .venv/bin/python benchmarks/$${name%% *}.py $${name#$${name%% *}}; done

# Trains coral-mini again, in an hour and a half on two cores; goes on where it was stopped. So small a model learns
# faster in several processes of one thread than in one of several threads.
WORKERS ?= 2
TRAIN := $(RUN) torch.distributed.run --standalone --nproc-per-node $(WORKERS) -m coral_lab train
mini: .venv/ready
	$(TRAIN) --stage base --out build/coral-mini-first
	$(TRAIN) --stage review --model build/coral-mini-first --out build/coral-mini-review
	$(TRAIN) --stage answers --model build/coral-mini-review --out build/coral-mini-answers
	$(TRAIN) --stage summary --model build/coral-mini-answers --out build/coral-mini-summary
	$(TRAIN) --stage sharpen --model build/coral-mini-summary --out build/coral-mini-sharp
	$(TRAIN) --stage sharpen --model build/coral-mini-sharp --out build/coral-mini-sharp-again \
	  --seed 1 --steps 400 --learning-rate 8e-4
	$(TRAIN) --stage references --model build/coral-mini-sharp-again --out build/coral-mini-base
	$(TRAIN) --stage contrastive --model build/coral-mini-base --out build/coral-mini-contrastive
	$(TRAIN) --stage coral --model build/coral-mini-base --out build/coral-mini

# Installing again happens only when pyproject.toml has changed: after that no network is needed.
.venv/ready: pyproject.toml tests/constraints.txt
	$(PYTHON) -m venv .venv
	$(RUN) pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e ".[dev]"
	mkdir -p .venv/share/jupyter/lab/settings
	cp notebooks/overrides.json .venv/share/jupyter/lab/settings/overrides.json
	touch .venv/ready
