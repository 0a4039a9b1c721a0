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

.PHONY: serve test test-full test-failed tested collected lint docs lock clean

serve: $(VENV)/.serve
	$(BIN)/modelhost serve $(ARGS)

# Beside each other: both wait for the processor alone, one core each.
tested:
	@$(MAKE) --no-print-directory --jobs=2 lint collected

# Once, so that the workers, which all import all tests at the same time, find the bytecode.
collected: $(VENV)/.test
	@$(BIN)/python -m pytest --collect-only -qq > /dev/null || true

# Many tests wait: for processes, threads, clocks. Those with a host in a small group of its own have it to themselves but
# for one other; those that measure what others would disturb run alone. What few tests need, a browser and other people's
# clients (`late`), is installed meanwhile, which waits for downloads and the disk. Status 5: none were selected, by ARGS.
BESIDE := --dist=loadfile --no-loadscope-reorder --numprocesses
test: $(BIN)/uv
	@status=5; \
	part() { \
	  $(BIN)/python -m pytest "$$@" $(ARGS); ended=$$?; \
	  case $$ended in 5) ;; 0) test $$status != 5 || status=0 ;; *) status=1 ;; esac; \
	}; \
	$(MAKE) --no-print-directory --jobs=4 $(CLIENTS) $(VENV)/.browser & \
	$(MAKE) --no-print-directory tested || { ended=$$?; wait; exit $$ended; }; \
	part -m "not (serial or cgroup or late)" $(BESIDE)=logical --maxprocesses=4; \
	wait $$! || status=1; \
	part -m "(cgroup or late) and not serial" $(BESIDE)=2; \
	part -m serial; \
	exit $$status

test-full: export MODELHOST_TEST_FULL := 1
test-full: .venv-ray/.made test

test-failed: tested $(CLIENTS)
	$(BIN)/python -m pytest --last-failed --last-failed-no-failures=none $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv-docs/.made
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --strict

# Installs a lock into the environment of a Python: $(call install,PYTHON,ARGUMENTS). With uv, which takes 5 s of the
# processor where pip takes 60; what it cannot reach, since it knows none of pip's settings, pip installs.
# Without bytecode, which is made of what is imported when it is.
install = $(BIN)/uv pip install --quiet --python $(1) $(2) || \
  $(BIN)/python -m pip --python $(1) install --quiet --disable-pip-version-check --no-compile $(2)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(BIN)/uv: lock/tools.txt | $(VENV)/bin/python
	$(PIP) --require-hashes -r $<
	touch $@

# --no-deps: everything is in the lock; the package itself is linked, so edits need no new install.
$(VENV)/.serve: lock/serve.txt pyproject.toml | $(BIN)/uv
	$(call install,$(BIN)/python,--require-hashes -r $<)
	$(call install,$(BIN)/python,--no-deps --no-build-isolation --editable .)
	touch $@

$(VENV)/.test: lock/test.txt $(VENV)/.serve
	$(call install,$(BIN)/python,--require-hashes -r $<)
	touch $@

# Other people's clients, which the tests drive: each lock in an environment of its own, without a pip in it.
.venv-%/.made: lock/%.txt | $(BIN)/uv
	$(PYTHON) -m venv --clear --without-pip .venv-$*
	$(call install,.venv-$*/bin/python,--require-hashes -r $<)
	touch $@

# A browser for the tests of the page, from Debian where it can be had. Where there is none they are skipped, and say so.
$(VENV)/.browser: | $(VENV)/bin/python
	@if ! command -v chromedriver && [ "$$(id -u)" = 0 ] && command -v apt-get; then \
	  echo "installing chromium and its driver for tests/browser"; \
	  apt-get -qq update && DEBIAN_FRONTEND=noninteractive timeout 300 \
	    apt-get -qq install --no-install-recommends chromium chromium-driver; \
	fi >$@.log 2>&1 || echo "tests/browser will be skipped: no browser could be installed, see $@.log"
	touch $@

# One resolution for all platforms and for Python 3.11 and newer; hashes, and no index in the files.
lock: $(VENV)/.test
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --upgrade \
	  lock/tools.in -o lock/tools.txt
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
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  pyproject.toml lock/ray.in -c lock/test.txt -o lock/ray.txt

clean:
	rm -rf $(VENV) .venv-clients .venv-mlserver .venv-docs .venv-ray build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
