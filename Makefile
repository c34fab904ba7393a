# Each of these but `clean` sets up first what it needs.
#
# make test     lint, types and the whole test suite (ARGS='-k name' for pytest)
# make demo     a worker at work on real files (FOLDER=... for others)
# make soak     a worker under a mixed load for 10 minutes (ARGS='--minutes 60' for longer)
# make chaos    faults of network, broker and processes, and a count of every message: 10 minutes
#               (ARGS='--quick': about 3)
# make fuzz     20,000 generated messages against a worker (ARGS='--messages N --seed N')
# make browser  the dashboard of examples/ in a real browser, and its picture
# make bench    this project beside other task queues: half an hour (ARGS=--quick: two minutes)
# make matrix   the tests with each Python from 3.11 on that is found, and with the oldest and the
#               newest amqpstorm (ARGS='-k "config or message"': a part of them)
# make release-check  build what would be published, install it and use it
# make lint     lint and types alone
# make setup    the virtual environment in .venv, and RabbitMQ where there is none
# make clean    remove what the others made

PYTHON ?= python3
# Tests that run at once, each with a RabbitMQ of its own: most of them wait most of the time.
JOBS ?= 3
VENV_PYTHON := .venv/bin/python
PYTEST := $(VENV_PYTHON) -u -m pytest
# mypy refuses a folder without Python files.
TYPED := $(wildcard kuyruk.py kuyruk_worker.py) \
	$(if $(wildcard tools/*.py),tools) \
	$(if $(wildcard examples/*.py examples/*/*.py),examples)

# Pythons that aren't in PATH.
PYENV := $(wildcard $(HOME)/.pyenv/versions/3.1[1-9]*/bin/python)

# $(call extra,NAME,MODULE): the extra NAME of pyproject.toml, if MODULE isn't there.
extra = @$(VENV_PYTHON) -c 'import $(2)' 2>/dev/null || $(VENV_PYTHON) -m pip install --quiet \
	--disable-pip-version-check $$($(VENV_PYTHON) -c "import tomllib; \
	print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['$(1)'])")

.PHONY: test demo soak chaos fuzz browser bench matrix release-check lint setup clean

test: lint
	@$(PYTEST) -n $(JOBS) --dist worksteal $(ARGS) || { \
	[ $$? = 1 ] && echo 'Once more, alone, what has failed beside other tests:' && \
	$(PYTEST) --last-failed --last-failed-no-failures none --maxfail 1 $(ARGS); }

demo: setup
	$(VENV_PYTHON) -u tools/demo.py $(FOLDER)

soak: setup
	$(call extra,soak,matplotlib)
	$(VENV_PYTHON) -u tools/soak.py $(ARGS)

chaos: setup
	$(VENV_PYTHON) -u tools/chaos.py $(ARGS)

fuzz: setup
	$(VENV_PYTHON) -u tools/fuzz.py $(ARGS)

browser: setup
	@PYTHON='$(PYTHON)' sh tools/setup.sh chromium
	$(call extra,browser,playwright)
	$(VENV_PYTHON) -u tools/browser_check.py

bench: setup
	$(VENV_PYTHON) -u tools/bench.py $(ARGS)

matrix: setup
	$(call extra,matrix,tox)
	$(VENV_PYTHON) -m tox run $(if $(PYENV),--discover $(PYENV)) -- $(ARGS)

release-check: setup
	$(call extra,release,twine)
	$(VENV_PYTHON) -u tools/release_check.py

lint: setup
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m mypy --strict $(TYPED)

setup:
	@PYTHON='$(PYTHON)' sh tools/setup.sh

clean:
	rm -rf .venv .venv-matrix build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
