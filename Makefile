# Every target but gpu makes what it needs of .venv first. PYTHON chooses the interpreter, TORCH the torch to install.
PYTHON ?= python3
TORCH ?= torch==2.13.0
# The oldest torch of which PyPI has a CPU build: its 2.11 and 2.12 are CUDA builds of gigabytes. With an index that has one: PIP_INDEX_URL=... OLDEST=torch==2.11.0
OLDEST ?= torch==2.13.0
VENV ?= .venv
BIN = $(VENV)/bin
PIP = @$(BIN)/pip install --quiet --disable-pip-version-check
SAY = @printf '\n\033[1m%s\033[0m\n'
WITH_TOOLS = PYTHONPATH=tools:examples:csrc $(BIN)/python -m

.PHONY: install peers demo test test-oldest sanitize bench bench-tables scaling study inner-loops neighbour accuracy arm gates gpu-report gpu attack transforms reproductions docs docs-browser lint tag wheel clean

SOURCES = $(wildcard csrc/*.py $(addprefix csrc/,$(foreach kind,*.h *.cpp *.cu *.cuh,$(kind) */$(kind) */*/$(kind))))

# For development: all that the tests, the linters and the site need.
install: $(VENV)/installed

$(VENV)/torch:
	$(SAY) "fastmeta: an environment in $(VENV), and $(TORCH) if it is not there (its download is the longest part)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --disable-pip-version-check "$(TORCH)" numpy
	@touch $@

# The kernels, compiled in place where ninja's progress can be seen; a later run compiles what has changed.
$(VENV)/native: $(VENV)/torch setup.py pyproject.toml $(SOURCES)
	$(SAY) "fastmeta: compiling the native kernels (about a minute on two cores)"
	$(PIP) "setuptools>=77" "pybind11>=2.13" ninja
	@$(BIN)/python setup.py --quiet build_ext --inplace
	$(PIP) --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/examples: $(VENV)/native
	$(SAY) "fastmeta: what the examples draw with"
	$(PIP) --no-build-isolation --editable ".[examples]"
	@touch $@

$(VENV)/installed: $(VENV)/native
	$(SAY) "fastmeta: what tests, linters and documentation need"
	$(PIP) --no-build-isolation --editable ".[dev]"
	@touch $@

# The libraries that fastmeta.integrations stands in for, for its tests. learn2learn's C files are of an old Cython: they are made anew.
peers: $(VENV)/peers

$(VENV)/peers: $(VENV)/installed tools/harness/peers.txt
	$(BIN)/pip install --quiet --no-deps --requirement tools/harness/peers.txt
	$(BIN)/pip install --quiet cython wheel
	CFLAGS=-O0 CYTHON_FORCE_REGEN=1 $(BIN)/pip install --quiet --no-deps --use-pep517 --no-build-isolation \
	    --config-settings=--global-option=build_ext learn2learn==0.2.0
	touch $@

demo: $(VENV)/examples
	$(SAY) "fastmeta: training MAML, Meta-SGD and ProtoNet (half a minute); pictures come to demo/"
	@$(BIN)/python examples/demo.py

# On all cores, a process with one thread each; tests of threads ask for more themselves, which then must not spin.
test: install
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist worksteal

# The same on the oldest torch, in an environment of its own.
test-oldest:
	$(SAY) "fastmeta: the suite on $(OLDEST)"
	$(MAKE) test VENV=build/oldest TORCH="$(OLDEST)"

# The tests of the native CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer, with a build of their own in build/sanitize.
sanitize: install
	FASTMETA_SANITIZE=1 FASTMETA_BUILD=cpu $(BIN)/pip install --quiet --no-deps --no-build-isolation --upgrade --target build/sanitize .
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
	    UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 PYTHONPATH=build/sanitize OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/pytest \
	    -k "not emulated and not triton" $(wildcard $(SANITIZED:%=tests/*/test_%.py))

SANITIZED = adam_step conv conv_adapt conv_encoders conv_forward encoder conv_grad conv_hvp conv_loss conv_meta_loss matching_log_probs mlp_adapt mlp_forward mlp_grad \
    mlp_hvp mlp_loss mlp_meta_loss mlp_threads momentum_step nan proto_log_softmax proto_loss prototypes sgd_step

# Within 25 minutes; bench/results/<machine>.json, .md and figures have what came of it.
bench: install
	$(BIN)/pytest bench/ --results bench/results

# The table of README.md, from the file that it names.
bench-tables: install
	$(WITH_TOOLS) pages.result_pages

# The sweeps, in four minutes, to bench/results/scaling; then the pictures and the table of docs/performance.md, of the file that it names.
scaling: install
	$(BIN)/pytest bench/bench_scaling.py --results bench/results/scaling

study: install
	$(WITH_TOOLS) pages.scaling_page

# Memory and time of the programs of docs/unroll.md against their inner steps, in half an hour; then the page's table and picture.
inner-loops: install
	$(WITH_TOOLS) measure.against_steps
	$(WITH_TOOLS) pages.inner_loops_page

# What a busy process beside it costs a call, in two minutes.
neighbour: install
	$(WITH_TOOLS) measure.neighbour

accuracy: install
	$(WITH_TOOLS) measure.accuracy

# Every CPU kernel, compiled for ARM and run by an emulator of its instructions, against the reference; a minute. Says nothing of speed.
arm: install
	@for program in aarch64-linux-gnu-g++ qemu-aarch64; do command -v $$program >/dev/null || { \
	    echo "make arm: needs $$program (Debian, Ubuntu: apt-get install g++-aarch64-linux-gnu qemu-user)" >&2; exit 1; }; done
	OMP_NUM_THREADS=1 $(BIN)/pytest -m gate tools/arm

# On a machine with a GPU, by the python that has torch there: no environment of its own.
gpu:
	$(PYTHON) tools/gpu/acceptance.py

# What the suite leaves out: machine code of every GPU kernel, kernels on ARM and under sanitizers, rehearsals, all cells of the transforms.
# TRITON=3.6: instead of these all that concerns Triton, by that release of it.
GATES = $(if $(TRITON),build/triton-$(TRITON),$(VENV))

gates: $(GATES)/installed
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(GATES)/bin/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal \
	    $(if $(TRITON),-m "" -k triton,-m gate)

# Over the other one, from which all else comes; Triton 3.6's interpreter knows no later numpy.
build/triton-$(TRITON)/installed: $(VENV)/installed
	$(BIN)/python -m venv $(@D)
	$(@D)/bin/pip install --quiet --no-deps "triton==$(TRITON).*" "numpy<2.4"
	site=$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))"); \
	    echo "import site; site.addsitedir('$$site')" > $$($(@D)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/beneath.pth
	touch $@

gpu-report: install
	$(WITH_TOOLS) pages.gpu_page
	$(WITH_TOOLS) pages.gpu_predictions

# Random problems for so many seconds, against formulas of their own; not in CI. tools/attack/__init__.py says how to read what it finds.
SECONDS ?= 60
attack: install
	$(WITH_TOOLS) attack --seconds $(SECONDS) $(ATTACK)

transforms: install
	$(WITH_TOOLS) pages.transform_table

# The tables and pictures of docs/reproductions.md, and README.md's, from examples/results; trains nothing.
reproductions: install
	$(WITH_TOOLS) pages.reproductions

# The site, in build/site; warnings are errors.
docs: install
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=tools:csrc $(BIN)/mkdocs build
	$(WITH_TOOLS) pages.check_links build/site

# In Chromium, which must be on the path; pictures in build/pictures.
docs-browser: docs
	$(BIN)/pip install --quiet playwright
	mkdir -p build/pictures && $(WITH_TOOLS) pages.check_browser build/site build/pictures

lint: install
	$(BIN)/ruff check . && $(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(filter-out %.py,$(SOURCES)) $(wildcard $(foreach kind,*.h *.cpp,tools/emulator/$(kind) tools/arm/$(kind)))
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

# The version's section of CHANGELOG.md as an annotated tag; .github/workflows/release.yml releases a pushed one.
tag:
	bash .ci/tag

# In dist/: wheels with the native kernels for each Python found (PYTHONS), and one for every platform without them; each is tried out.
wheel:
	bash .ci/wheels

clean:
	rm -rf $(VENV) build demo dist fastmeta/_C*.so
