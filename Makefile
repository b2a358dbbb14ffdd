# Everything runs in .venv, whatever environment is active. Choose another interpreter with `make PYTHON=python3.12 demo`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_FOR_USE := $(VENV)/.installed-for-use
DEMO := demo
NIGHTLY := nightly

# Of whoever calls make: these would make the environment's Python see modules from outside of it.
unexport PYTHONHOME
unexport PYTHONPATH

.DELETE_ON_ERROR:
.PHONY: demo test torture lint nightly setup image clean

# Draw cells, train on them, certify the export, predict unseen ones: all of it in $(DEMO)/. An environment that has
# everything has what the demo needs.
demo: $(or $(wildcard $(INSTALLED)),$(INSTALLED_FOR_USE))
	rm -rf $(DEMO)
	$(BIN)/python -m cervix_train.synthetic $(DEMO)/labelled --tiles 300 --seed 1
	$(BIN)/python -m cervix_train.synthetic $(DEMO)/unseen --tiles 200 --seed 2 --flat
	$(BIN)/cervix-train $(DEMO)/labelled --weights none --input-size 96 --cache $(DEMO)/features --out $(DEMO)/bundle
	$(BIN)/cervix-export --model $(DEMO)/bundle --fp16
	$(BIN)/cervix-batch $(DEMO)/unseen --model $(DEMO)/bundle --out $(DEMO)/preds.csv
	$(BIN)/python scripts/demo_summary.py $(DEMO)/preds.csv $(DEMO)/unseen/manifest.csv

# Options for pytest: make test PYTEST='-k journal'. With COVERAGE=1 it also measures what the tests reach.
test: setup
	$(BIN)/python -m pytest $(if $(COVERAGE),--cov --cov-report=term:skip-covered) $(PYTEST)

# The long campaigns, about an hour: kills, hostile files, fuzzing, a soak; told in torture/report.md. With $CERVIX_DATA also
# over real tiles, with $CERVIX_MODEL too with that bundle. One part alone, with options:
# PYTHONPATH=tests .venv/bin/python -m torture kills --help
torture: setup
	PYTHONPATH=tests $(BIN)/python -m torture

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/write_reference.py --check
	$(BIN)/python scripts/write_map.py --check
	$(BIN)/python scripts/write_tables.py --check
	@if [ -x $(BIN)/hadolint ]; then echo $(BIN)/hadolint Dockerfile; $(BIN)/hadolint Dockerfile; fi

# Does every form of a model still answer like Keras? MODEL names a bundle; without one, the demo's is made and taken.
# The history and its plot stay in $(NIGHTLY)/.
nightly: setup $(if $(MODEL),,demo)
	mkdir -p $(NIGHTLY)
	$(BIN)/cervix-parity --model $(or $(MODEL),$(DEMO)/bundle) --json $(NIGHTLY)/parity.json --junit $(NIGHTLY)/parity.xml \
	  --history $(NIGHTLY)/history.jsonl --drift-plot $(NIGHTLY)/drift.png

setup: $(INSTALLED)

$(INSTALLED): EXTRAS := cpu,train,export,rtx,report,slides,remote,ray,dev
$(INSTALLED_FOR_USE): EXTRAS := cpu,train,export,report
# pip would compile ten thousands of modules, of which the demo imports few.
$(INSTALLED_FOR_USE): PIP_FLAGS := --no-compile

$(INSTALLED) $(INSTALLED_FOR_USE): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "cervix needs Python 3.11 or newer, %s is %s: make PYTHON=python3.12" % (sys.executable, sys.version.split()[0]))'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-input --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

# Build the container image without a container engine's daemon and run one tile in it.
image: setup
	bash scripts/build_image.sh

clean:
	rm -rf $(VENV) $(DEMO) torture build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find engine edge export train tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +
