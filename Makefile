# Every target but gpu makes .venv first if it is not there. PYTHON chooses the interpreter, TORCH the torch to install.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: install peers demo test bench bench-tables scaling study accuracy gates gpu-report gpu gpu-model transforms reproductions docs docs-browser lint clean

install: $(VENV)/installed

$(VENV)/installed: setup.py pyproject.toml $(wildcard csrc/*.* csrc/*/*.*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

# The libraries that fastmeta.integrations stands in for, for its tests. learn2learn's C files are of an old Cython: they are made anew.
peers: $(VENV)/peers

$(VENV)/peers: $(VENV)/installed tests/peers.txt
	$(BIN)/pip install --quiet --no-deps --requirement tests/peers.txt
	$(BIN)/pip install --quiet cython wheel
	CFLAGS=-O0 CYTHON_FORCE_REGEN=1 $(BIN)/pip install --quiet --no-deps --use-pep517 --no-build-isolation \
	    --config-settings=--global-option=build_ext learn2learn==0.2.0
	touch $@

demo: install
	$(BIN)/python examples/demo.py

# On all cores, a process with one thread each; tests of threads ask for more themselves, which then must not spin.
test: install
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist worksteal

# Within 20 minutes; bench/results/<machine>.json, .md and figures have what came of it.
bench: install
	$(BIN)/pytest bench/ --results bench/results

# The table of README.md, from the file that it names.
bench-tables: install
	$(BIN)/python bench/result_pages.py

# The sweeps, in four minutes, to bench/results/scaling; then the pictures and the tables of docs/performance.md, of the file that it names.
scaling: install
	$(BIN)/pytest bench/bench_scaling.py --results bench/results/scaling

study: install
	$(BIN)/python bench/study.py

accuracy: install
	$(BIN)/python bench/accuracy.py

# On a machine with a GPU, by the python that has torch there: no environment of its own.
gpu:
	$(PYTHON) bench/gpu.py

gpu-model: install
	$(BIN)/python bench/model_table.py

# The machine code of every GPU kernel, and the Triton kernels in the interpreter; TRITON=3.6: by that release of Triton.
GATES = $(if $(TRITON),build/triton-$(TRITON),$(VENV))

gates: $(GATES)/installed
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(GATES)/bin/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal \
	    -k "triton$(if $(TRITON),, or gates)"

# Over the other one, from which all else comes; Triton 3.6's interpreter knows no later numpy.
build/triton-$(TRITON)/installed: $(VENV)/installed
	$(BIN)/python -m venv $(@D)
	$(@D)/bin/pip install --quiet --no-deps "triton==$(TRITON).*" "numpy<2.4"
	site=$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))"); \
	    echo "import site; site.addsitedir('$$site')" > $$($(@D)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/beneath.pth
	touch $@

gpu-report: install
	$(BIN)/python tests/gpu_report.py

transforms: install
	$(BIN)/python tests/transform_table.py

# The tables and pictures of docs/reproductions.md, and README.md's, from examples/results; trains nothing.
reproductions: install
	$(BIN)/python examples/reproductions.py

# The site, in build/site; warnings are errors.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	$(BIN)/python docs/check_links.py build/site

# In Chromium, which must be on the path; pictures in build/pictures.
docs-browser: docs
	$(BIN)/pip install --quiet playwright
	mkdir -p build/pictures && $(BIN)/python docs/check_browser.py build/site build/pictures

lint: install
	$(BIN)/ruff check . && $(BIN)/mypy fastmeta

clean:
	rm -rf $(VENV) build demo fastmeta/_C*.so
