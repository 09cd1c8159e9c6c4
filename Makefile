# Two commands do everything on a bare machine (Python >= 3.10 with venv): `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
LABEL := .venv-label
DEPLOY := .venv-deploy
BIN := $(VENV)/bin
# so many processes share the tests, each with one thread: `make test JOBS=8` on a larger machine
JOBS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
# glibc gives freed memory back to the system and asks for it again in every iteration; on a CPU that is a third of the
# time of a training, so keep it
export MALLOC_TRIM_THRESHOLD_ = 16000000000
export MALLOC_MMAP_THRESHOLD_ = 8000000000
export MALLOC_TOP_PAD_ = 536870912

.PHONY: demo test test-slow test-label test-deploy docs notebooks links coverage faults fuzz soak bench lint types clean help

help:
	@echo "make demo        train, evaluate and apply the quick-start bundle, with pictures in demo/"
	@echo "make test        lint, spelling, types and the default tests"
	@echo "make test-slow   the tests that take minutes"
	@echo "make test-label  every bundle in MONAI Label's server, in an environment of its own"
	@echo "make test-deploy every bundle in MONAI Deploy's operator, in an environment of its own"
	@echo "make docs        the documentation, in docs/_build/html; a warning is an error"
	@echo "make links       whether the addresses in the documentation answer; needs a network"
	@echo "make notebooks   run the notebooks again and keep their outputs"
	@echo "make coverage    the default tests, and which lines of the package they miss"
	@echo "make faults      all rows of the table of faults in docs/reliability.md"
	@echo "make fuzz        load 300 damaged files of each format: no trace, and no other voxels where there is a checksum"
	@echo "make soak        50 kills of a training and an inference, with nothing lost (10 minutes and more)"
	@echo "make bench       the table of docs/performance.md (10 to 15 minutes)"
	@echo "make clean       remove what make made"

demo: $(VENV)/installed-bundle
	$(BIN)/python docs/demo.py

test: lint types
	$(PYTEST)

coverage: $(VENV)/installed-dev
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage report

faults: $(VENV)/installed-dev
	$(BIN)/python tests/faults/table.py

fuzz: $(VENV)/installed-dev
	$(BIN)/python tests/faults/fuzz.py

docs: $(VENV)/installed-docs
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

# those within the repository are looked at by `make test`
links: $(VENV)/installed-docs
	$(BIN)/python -m sphinx -b linkcheck docs docs/_build/links

notebooks: $(VENV)/installed-docs
	cd docs/notebooks && $(CURDIR)/$(BIN)/python -c "import sys, nbclient, nbformat; \
	[nbformat.write(nbclient.execute(nbformat.read(name, 4), record_timing=False, coalesce_streams=True), name) \
	for name in sys.argv[1:]]" *.ipynb

test-slow: $(VENV)/installed-dev $(VENV)/installed-docs
	$(PYTEST) -m slow

soak: $(VENV)/installed-bundle
	OMP_NUM_THREADS=1 $(BIN)/python tests/soak/soak.py --kills 50 --seed 0

# measures in fresh processes, each with its own settings of the heap
bench: $(VENV)/installed-dev
	$(BIN)/python tests/benchmarks/table.py

test-label: $(LABEL)/installed
	$(LABEL)/bin/python -m pytest -m monailabel tests/bundles/test_label.py
	$(LABEL)/bin/python -m pytest tests/data/test_dicom.py  # with its older pydicom

test-deploy: $(DEPLOY)/installed
	$(DEPLOY)/bin/python -m pytest -m deploy tests/bundles/test_deploy.py

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(VENV)/installed-dev
	$(BIN)/mypy --num-workers $(JOBS)

clean:
	rm -rf $(VENV) $(LABEL) $(DEPLOY) demo build dist docs/_build *.egg-info

# `make demo` installs what bundles need, `make test` the tools besides
$(VENV)/installed-%: setup.cfg pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[$*]"
	touch $@

# MONAI Label wants older versions of some packages than the rest
$(LABEL)/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv $(LABEL)
	$(LABEL)/bin/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[bundle,label]" pytest
	touch $@

$(DEPLOY)/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv $(DEPLOY)
	$(DEPLOY)/bin/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[bundle,deploy]" filelock pytest
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
