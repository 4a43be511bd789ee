# Everything runs in .venv, which is made and updated as needed.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# The lowest supported Python, where it is installed.
OLDEST = $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)

.PHONY: demo docs test lint test-slow test-oldest test-processors bench clean

demo: $(VENV)/.demo
	$(BIN)/fpatch demo

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -E -W --keep-going -q docs docs/_build/html
	@echo docs/_build/html/index.html

test: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/pytest -q -n 2 --dist worksteal

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/codespell

test-slow: $(VENV)/.test
	$(BIN)/pytest -q -m slow

test-oldest:
	$(MAKE) test VENV=.venv-oldest PYTHON=$(OLDEST) CONSTRAINTS=constraints-oldest.txt

# Other processors, imitated: the instructions that torch, oneDNN and MKL may use.
PROCESSORS = ATEN_CPU_CAPABILITY=avx2 ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 \
	MKL_ENABLE_INSTRUCTIONS=AVX2 MKL_ENABLE_INSTRUCTIONS=SSE4_2
# Whatever compares bits, or numbers with those of a reference.
BITS = tests/compose tests/create tests/implant tests/infer $(addprefix tests/,$(addsuffix .py, \
	test_golden test_laws test_stages_reference losses/test_detection_losses ops/test_detections \
	ops/test_region optim/test_population runs/test_replay runs/test_resume))

test-processors: $(VENV)/.test
	for processor in $(PROCESSORS); do \
		echo "$$processor"; env $$processor $(BIN)/pytest -q -n 2 --dist worksteal $(BITS) || exit 1; \
	done

bench: $(VENV)/.test
	for suite in benchmarks/[!hw]*.py; do $(BIN)/python $$suite || exit 1; done

$(VENV)/.demo: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -e '.[demo]' $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
	touch $@

$(VENV)/.docs: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -e '.[docs]' $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
	touch $@

$(VENV)/.test: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -e '.[test]' $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
	touch $@

clean:
	rm -rf $(VENV) .venv-oldest build *.egg-info docs/_build
