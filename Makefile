# make serve    serve models/ on 127.0.0.1:8080 (ARGS="--port 9000" adds flags)
# make test     lint, types, import contract, tests
# make test-full  the same, with the long checks at their full size
# make docs     the documentation as a site, into site/; warnings are errors
# make test-failed  the tests that failed last, one after another
# make lock     resolve the dependencies again
#
# Each does its own set-up: a virtual environment in .venv with the locked dependencies.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# On a Python that is too new for them their tests are skipped, and say so.
CLIENTS := $(shell $(PYTHON) -c 'import sys; minor = sys.version_info[1]; \
  print(*[f".venv-{name}/.made" for name, below in (("clients", 14), ("mlserver", 13), ("docs", 99)) if minor < below])')

# Where the environment forbids bytecode, each of some thousand processes that tests start would compile all that it
# imports again: a worker of pytest 15 s of the processor, a host 0.3.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: serve test test-full test-failed tested lint docs lock clean

serve: $(VENV)/.serve
	$(BIN)/modelhost serve $(ARGS)

# Beside each other: installations wait for downloads and the disk, lint only for the processor.
tested:
	@$(MAKE) --no-print-directory --jobs=3 lint $(CLIENTS)

# Many tests wait: for processes, threads, clocks. Those with a host in a small group of its own have it to themselves but
# for one other; those that measure what others would disturb run alone. Status 5: none were selected, by ARGS.
BESIDE := --dist=loadfile --numprocesses
test: tested
	@status=5; \
	part() { \
	  $(BIN)/python -m pytest "$$@" $(ARGS); ended=$$?; \
	  case $$ended in 5) ;; 0) test $$status != 5 || status=0 ;; *) status=1 ;; esac; \
	}; \
	part -m "not (serial or cgroup)" $(BESIDE)=logical --maxprocesses=4; \
	part -m "cgroup and not serial" $(BESIDE)=2; \
	part -m serial; \
	exit $$status

test-full: export MODELHOST_TEST_FULL := 1
test-full: test

test-failed: tested
	$(BIN)/python -m pytest --last-failed --last-failed-no-failures=none $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv-docs/.made
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --strict --quiet

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

# --no-deps: everything is in the lock; the package itself is linked, so edits need no new install.
$(VENV)/.serve: lock/serve.txt pyproject.toml | $(VENV)/bin/python
	$(PIP) --require-hashes -r lock/serve.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

# Without the bytecode of the test tools, most of which nobody imports.
$(VENV)/.test: lock/test.txt $(VENV)/.serve
	$(PIP) --no-compile --require-hashes -r lock/test.txt
	touch $@

# Other people's clients, which the tests drive: each lock in an environment of its own, without a pip in it and
# without the bytecode of what nobody imports (both together take 32 s; those two would add 15).
.venv-%/.made: lock/%.txt | $(VENV)/bin/python
	$(PYTHON) -m venv --clear --without-pip .venv-$*
	$(BIN)/python -m pip --python .venv-$*/bin/python install --quiet --disable-pip-version-check --no-compile \
	  --require-hashes -r $<
	touch $@

# One resolution for all platforms and for Python 3.11 and newer; hashes, and no index in the files.
lock: $(VENV)/.test
	$(PIP) uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --upgrade \
	  pyproject.toml lock/build.in -o lock/serve.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  pyproject.toml lock/build.in --group test -c lock/serve.txt -o lock/test.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --upgrade \
	  lock/clients.in -o lock/clients.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --upgrade \
	  lock/mlserver.in -o lock/mlserver.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --upgrade \
	  lock/docs.in -o lock/docs.txt

clean:
	rm -rf $(VENV) .venv-clients .venv-mlserver .venv-docs build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
