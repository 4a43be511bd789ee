# Everything runs in .venv, which is made and updated as needed.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo docs test test-slow test-oldest lint bench clean

demo: $(VENV)/.demo
	$(BIN)/fpatch demo

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -E -W --keep-going -q docs docs/_build/html
	@echo docs/_build/html/index.html

test: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/pytest -q -n 2 --dist loadfile

test-slow: $(VENV)/.test
	$(BIN)/pytest -q -m slow

test-oldest:
	$(MAKE) test VENV=.venv-oldest PYTHON=python3.12 CONSTRAINTS=constraints-oldest.txt

bench: $(VENV)/.test
	for suite in benchmarks/[!hw]*.py; do $(BIN)/python $$suite || exit 1; done

$(VENV)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -e '.[demo]' $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
	touch $@

$(VENV)/.docs: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -e '.[docs]' $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
	touch $@

$(VENV)/.test: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -e '.[test]' $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
	touch $@

clean:
	rm -rf $(VENV) .venv-oldest build *.egg-info docs/_build
