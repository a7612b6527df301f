# lab · demo · test · lint · fuzz · docs · notebooks · wheel · mini · bench · mutants   (PYTHON, PORT, IP, WORKERS, PIP_ARGS, SEED and
# COUNT can be set)
PYTHON ?= python3
PORT ?= 8888
IP ?= 127.0.0.1
WORKERS ?= 2
SEED ?= 0
RUN := .venv/bin/python -m
export JUPYTER_PLATFORM_DIRS := 1
export TOKENIZERS_PARALLELISM := false
export NO_MKDOCS_2_WARNING := 1
export CORAL_LAB_STORE ?= $(CURDIR)/build/store

.PHONY: lab demo test lint fuzz docs notebooks wheel mini bench mutants

# Prints its URL with the token, which an empty JUPYTER_TOKEN does not switch off. Over ssh and in a container there is no
# browser to open. It listens to this machine alone; in a container say IP=0.0.0.0, behind `docker run -p 127.0.0.1:8888:8888`.
lab: .venv/ready
	$(if $(JUPYTER_TOKEN),,env -u JUPYTER_TOKEN) $(RUN) jupyter lab --LabApp.default_url=/lab/tree/notebooks/00_quickstart.ipynb --ip=$(IP) --port=$(PORT) \
	  $(if $(filter 0,$(shell id -u)),--allow-root) $(if $(SSH_CONNECTION)$(wildcard /.dockerenv),--no-browser)

demo: .venv/ready
	$(RUN) coral_lab.cli demo

# Workers of one thread each are done sooner than one worker with all threads: most tests' tensors are small.
test: .venv/ready
	OMP_NUM_THREADS=1 $(RUN) pytest -n $(WORKERS) --dist worksteal

lint: .venv/ready
	$(RUN) ruff check . && $(RUN) ruff format --check . && $(RUN) mypy

# COUNT odd inputs of every kind, each read or refused in one line; says what became of them.
fuzz: COUNT ?= 20000
fuzz: .venv/ready
	OMP_NUM_THREADS=1 $(RUN) tests.fuzz $(COUNT)

# The documentation as pages under build/site, with the notebooks as they were executed; needs no network.
docs: .venv/ready
	$(RUN) mkdocs build --strict --quiet --config-file docs/mkdocs.yml

# Runs every notebook's .py from a clean kernel into its .ipynb and build/notebooks/*.html. Each figure leaves a PNG for
# where no script runs (GitHub, offline pages), which kaleido takes with the machine's Chromium.
notebooks: .venv/ready
	$(RUN) jupytext --to ipynb notebooks/[0-9]*.py
	TQDM_DISABLE=1 HF_HUB_DISABLE_PROGRESS_BARS=1 PLOTLY_RENDERER=plotly_mimetype+png $(RUN) nbconvert --to notebook --execute --inplace \
	  --ExecutePreprocessor.store_widget_state=False notebooks/[0-9]*.ipynb
	.venv/bin/python notebooks/shrink.py notebooks/[0-9]*.ipynb
	$(RUN) nbconvert --to html --TemplateExporter.extra_template_basedirs=notebooks --template offline \
	  --output-dir build/notebooks notebooks/[0-9]*.ipynb

# Builds the wheel into build/dist, and tries it in an environment of its own, with the base dependencies alone and away
# from this checkout. That environment takes as much room as .venv and goes again.
wheel:
	rm -rf build/dist build/wheel && mkdir -p build/wheel/away && $(PYTHON) -m venv build/wheel/env
	build/wheel/env/bin/python -m pip install --quiet --disable-pip-version-check build
	build/wheel/env/bin/python -m build --outdir build/dist .
	build/wheel/env/bin/python -m pip install --quiet --disable-pip-version-check --constraint tests/constraints.txt build/dist/*.whl
	cp tests/smoke_wheel.py build/wheel/away && cd build/wheel/away && env -u CORAL_LAB_STORE ../env/bin/python -I smoke_wheel.py
	rm -rf build/wheel

# Side-by-side timings and memory into benchmarks/README.md, on an idle machine; PROFILE=1 names the top costs as well.
bench: .venv/ready
	set -e; for name in encode encode_large "encode_large orders" quick_path quantize sweeps search "search mapped" projection training objective "objective memory" train_memory train_costs store tables ann sharded large_map saved_map widget \
	  startup beside; do echo "== $$name"; .venv/bin/python benchmarks/$${name%% *}.py $${name#$${name%% *}}; done

# Small changes to single expressions, a sample of COUNT drawn by SEED, that the tests of their own file should notice; about
# an hour, goes on where it was stopped. Not part of CI.
mutants: COUNT ?= 300
mutants: .venv/ready
	OMP_NUM_THREADS=1 .venv/bin/python tests/mutants.py $(SEED) $(COUNT)

# Trains coral-mini again, from scratch, every stage in turn; goes on where it was stopped.
mini: .venv/ready
	$(RUN) coral_lab.cli mini --stage all --out build

# Installing again happens only when pyproject.toml has changed: after that no network is needed. A torch that is in .venv
# already (for CPU only, say) stays. Bytecode is compiled by all cores, not by pip one file after another; some packages
# ship templates that are no Python.
.venv/ready: pyproject.toml tests/constraints.txt
	$(PYTHON) -m venv .venv
	if $(RUN) pip --quiet show torch 2>/dev/null >&2; then grep -v '^torch' tests/constraints.txt; else cat tests/constraints.txt; fi \
	  > .venv/constraints.txt
	$(RUN) pip install --quiet --disable-pip-version-check --no-compile --constraint .venv/constraints.txt $(PIP_ARGS) -e ".[dev]"
	$(RUN) compileall -qq -j 0 .venv/lib || true
	mkdir -p .venv/share/jupyter/lab/settings
	cp notebooks/overrides.json .venv/share/jupyter/lab/settings/overrides.json
	touch .venv/ready
