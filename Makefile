# make report   set up .venv if needed, then run the five notebooks (profile nano)
# make test     set up .venv if needed, then lint and tests; make test-all also those marked long, the logs for
#               Inspect View (make test-inspect) and the pages in a browser (make test-browser)
# make test-unsloth   the same fine-tuning through Unsloth, on the CPU
# Another interpreter: make report PYTHON=python3.12. More for the runner: make report ARGS="--out runs/second -p seed=1"
PYTHON ?= python3
ARGS ?=
SEEDS ?= 1 2
BIN := .venv/bin
READY := .venv/.ready
# On top of the locked packages, each in an environment of its name (.venv-unsloth and so on). Unsloth is asked for
# without dependencies: those of 2026.10.8 and 9 cannot always be had. fsspec is the newest that datasets admits.
unsloth := --no-deps unsloth==2026.10.9 unsloth_zoo==2026.10.9 bitsandbytes==0.50.2
browser := playwright==1.65.2 axe-playwright-python==0.1.8
inspect := inspect_ai==0.3.285 fsspec==2026.2.0
# Where the programs and templates are that such an environment sees the packages of.
THERE := MONTY_BIN=$(CURDIR)/$(BIN)/monty JUPYTER_PATH=$(CURDIR)/.venv/share/jupyter
# The analysis of the default run, beside all that was made of it.
FOLDERS = $$(find runs -maxdepth 1 -name '$(1)*' | sort | paste -sd, -)
BESIDE = $(BIN)/python run_notebooks.py --only 5 -p more_runs=$(call FOLDERS,seed) -p beyond_runs=$(call FOLDERS,beyond-)
FURTHER := $(BIN)/python run_notebooks.py --reuse runs/nano --out runs/beyond
ADAPTERS := {"persistent": {}, "stateless": {}, "mixed": {"traces": ["persistent", "stateless"]}, \
  "stateless-matched": {"traces": ["stateless"], "match": "persistent"}, \
  "persistent-matched": {"traces": ["persistent"], "match": "stateless"}}
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadgroup --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup report seeds beyond test test-all test-unsloth test-inspect test-browser lab sync outputs clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /	/' | expand -t 14

setup: $(READY)  ## make .venv and install the locked packages into it

# Done again only when the lock file or the project file is newer than the last finished set-up.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	rm -f $(READY)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps -e .
	touch $(READY)

report: $(READY)  ## run the report: five notebooks, results in runs/nano
	$(BIN)/python run_notebooks.py --profile nano $(ARGS)

# What does not depend on the training is taken over: tasks, traces, and how the base and the teacher played.
seeds: $(READY)  ## two further training seeds of the default run, put beside it in notebook 05; SEEDS="1 2 3" for more
	test -f runs/nano/results/episodes.csv || $(MAKE) report
	for seed in $(SEEDS); do \
	  $(BIN)/python run_notebooks.py --to 4 --out runs/seed$$seed --reuse runs/nano -p 03_finetune.seed=$$seed || exit 1; \
	done
	$(BESIDE)

# Tasks, traces, adapters, and what was played before are taken over.
beyond: $(READY)  ## questions beyond the default run: eight caps, carry-over, runtimes not told, matched and mixed adapters
	test -f runs/nano/results/episodes.csv || $(MAKE) report
	$(FURTHER)-caps -p splits=easy -p 04_evaluate.n_easy=12 -p caps=10,20,25,30,40,50,80,100 \
	  -p 'models={"persistent": {}}'
	$(FURTHER)-carry-over -p splits=easy -p caps=25,80 -p 'models={"persistent": {}}' \
	  -p runtimes=persistent,stateless,carry-over,carry-over-announced
	$(FURTHER)-cues -p splits=easy -p 04_evaluate.n_easy=25 -p caps=80 -p 'models={"persistent": {}, "stateless": {}}' \
	  -p runtimes=persistent,stateless,persistent-untold,stateless-untold,persistent-false,stateless-false
	$(FURTHER)-adapters -p splits=easy -p 04_evaluate.n_easy=25 -p caps=80 -p 'adapters=$(ADAPTERS)' \
	  -p 'models={"persistent": {}, "stateless": {}, "mixed": {}, "stateless-matched": {}, "persistent-matched": {}}'
	$(BESIDE)

test: $(READY)  ## ruff and the tests of all that a user relies on
	$(BIN)/ruff check .
	$(PYTEST) -m "not long" $(ARGS)

test-all: $(READY)  ## the same with the exhaustive tests: every hostile block, twenty kills, real servers, a browser
	$(BIN)/ruff check .
	$(PYTEST) $(ARGS)
	$(MAKE) test-inspect test-browser

# A second environment that sees the packages of .venv, so that this one stays without what is put there.
.venv-%/.ready: $(READY)
	rm -rf $(@D)
	$(BIN)/python -m venv --without-pip $(@D)
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > "$$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/packages.pth"
	$(BIN)/python -m pip --disable-pip-version-check --python $(@D)/bin/python install $($*)
	touch $@

test-unsloth: .venv-unsloth/.ready  ## the tests that need Unsloth, on the CPU, in .venv-unsloth
	.venv-unsloth/bin/python -m pytest -q tests/gpu $(ARGS)

test-inspect: .venv-inspect/.ready  ## the tests that need inspect_ai, in .venv-inspect
	$(THERE) .venv-inspect/bin/python -m pytest -q tests/inspect $(ARGS)

# In the machine's Chromium, else in Playwright's: .venv-browser/bin/playwright install chromium
test-browser: .venv-browser/.ready  ## the run's pages and JupyterLab in a real browser, in .venv-browser
	$(THERE) .venv-browser/bin/python -m pytest -q tests/browser $(ARGS)

lab: $(READY)  ## the notebooks in JupyterLab
	$(BIN)/jupyter lab --notebook-dir=notebooks

sync: $(READY)  ## bring .ipynb and .py of each notebook to the same state (the newer one wins, outputs stay)
	$(BIN)/jupytext --sync notebooks/*.py

outputs: $(READY)  ## put the outputs and figures of the last run in runs/nano into notebooks/ and figures/
	$(BIN)/jupyter nbconvert --log-level WARN --to notebook --output-dir notebooks \
	  --ClearMetadataPreprocessor.enabled=True \
	  --ClearMetadataPreprocessor.preserve_cell_metadata_mask='tags' \
	  --ClearMetadataPreprocessor.preserve_nb_metadata_mask='kernelspec' \
	  --ClearMetadataPreprocessor.preserve_nb_metadata_mask='jupytext' \
	  --ClearMetadataPreprocessor.preserve_nb_metadata_mask='language_info' runs/nano/notebooks/*.ipynb
	$(BIN)/jupytext --quiet --update --to ipynb notebooks/*.py
	$(BIN)/python -m knapsack.analysis.publish runs/nano

clean:  ## remove .venv, the environments beside it and caches (runs/ stays)
	rm -rf .venv .venv-* .pytest_cache .ruff_cache .hypothesis *.egg-info
