# From a bare machine to the result: `make study`, and to trust in it: `make test`.
# Both make .venv when it is missing and use it again when it is there.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: study test lint clean

study: $(VENV)/.installed
	$(RUN) run.py study --gin_file=gin/studies/quick.gin
	@echo "report: runs/quick/report.html"

test: $(VENV)/.installed
	$(RUN) -m tests.outside
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pytest --numprocesses=3 --dist=loadfile --no-loadscope-reorder

lint: $(VENV)/.installed
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info[:2] >= (3, 11) or sys.exit("error: Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	PYTHONWARNINGS=ignore $(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
