# Two commands are all a newcomer needs: `make demo` and `make test`.
# Both set themselves up in .venv from the hashed pins in requirements/.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := -m pip --disable-pip-version-check --quiet

# A lock is the whole answer, so nothing is left to resolve. With its dependencies looked at, pip would also refuse a lock
# as soon as a newer release appears of a package that another one asks for with an extra. `pip check` sees what lacks.
LOCKED := $(PIP) install --no-deps --require-hashes --requirement

.PHONY: demo test soak postgres extras bench mutants lint types layers lock clean

# -- set-up ---------------------------------------------------------------------------------------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "AgentWrit needs Python 3.11 or newer: set PYTHON=/path/to/python3.11")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.broker: $(BIN)/python requirements/broker.txt pyproject.toml
	@echo "Setting up $(VENV) (once)"
	@$(BIN)/python $(LOCKED) requirements/broker.txt
	@$(BIN)/python $(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.broker requirements/dev.txt
	@echo "Adding what the tests need (once)"
	@$(BIN)/python $(LOCKED) requirements/dev.txt
	@$(BIN)/python $(PIP) check
	@touch $@

$(VENV)/.mutation: $(VENV)/.dev requirements/mutation.txt
	@echo "Adding what changes the code (once)"
	@$(BIN)/python $(LOCKED) requirements/mutation.txt
	@$(BIN)/python $(PIP) check
	@touch $@

# Others' client of the same protocol, as it was published: it must work with our broker as it is.
.venv-published/.done: requirements/published-client.txt $(BIN)/python
	@echo "Setting up .venv-published (once)"
	@$(PYTHON) -m venv .venv-published
	@.venv-published/bin/python $(LOCKED) $<
	@.venv-published/bin/python $(PIP) check
	@touch $@

# Others' resource servers, which know OAuth and nothing of us.
.venv-standards/.done: requirements/standards.txt $(BIN)/python
	@echo "Setting up .venv-standards (once)"
	@$(PYTHON) -m venv .venv-standards
	@.venv-standards/bin/python $(LOCKED) $<
	@.venv-standards/bin/python $(PIP) check
	@touch $@

# -- run ------------------------------------------------------------------------------------------

demo: $(VENV)/.broker
	@$(BIN)/agentwrit dev -- $(BIN)/python examples/order_worker.py --customer cust-7291 --order ord-4823

# -- prove ----------------------------------------------------------------------------------------

# Processes are started by the thousand: Python may note down what it has compiled, also where it is told not to as a rule.
test soak postgres: export PYTHONDONTWRITEBYTECODE =

# Several at a time; and then by themselves those that say how soon something is done. Both parts run, and either may fail.
define run-tests
@$(BIN)/python -m pytest -m "not alone" $(1); beside_others=$$?; \
$(BIN)/python -m pytest -m alone -n0 $(1) && exit $$beside_others
endef

test: lint types layers .venv-published/.done .venv-standards/.done
	$(run-tests)

# The same races, crashes and random histories as in `make test`, fifty times as many, in fifty times the time.
soak: $(VENV)/.dev .venv-published/.done
	@AGENTWRIT_SOAK=50 $(BIN)/python -m pytest -n0 --timeout=12000 --override-ini=faulthandler_timeout=0 \
		tests/e2e tests/attacks tests/model tests/cluster tests/history

# Small changes to the code, one at a time, each of which a test has to notice. It takes hours, a part or a module less:
# make mutants PARTS=domain, or PARTS=domain:scope,grant. A run that was stopped is gone on with.
PARTS := domain services storage client delivery

mutants: $(VENV)/.mutation
	@$(BIN)/python -m tests.mutation $(PARTS)

# What brokers do on PostgreSQL, with another version of it: AGENTWRIT_POSTGRES_BIN=/usr/lib/postgresql/18/bin make postgres
postgres: $(VENV)/.dev
	$(call run-tests,tests/cluster tests/history tests/storage)

# Each framework's sample with nothing installed but its extra, in the versions that the index has today.
EXTRAS := langchain=frameworks/langchain_support pydantic-ai=frameworks/pydantic_ai_support \
	openai-agents=frameworks/openai_refund celery=frameworks/celery_orders mcp=mcp_orders

extras: $(VENV)/.dev
	@set -e; for pair in $(EXTRAS); do \
		rm -rf .venv-extra; $(PYTHON) -m venv .venv-extra; \
		.venv-extra/bin/python $(PIP) install ".[$${pair%%=*}]"; \
		echo "agentwrit[$${pair%%=*}], $$(.venv-extra/bin/python -m pip list --format=freeze | wc -l) packages"; \
		$(BIN)/agentwrit dev -- .venv-extra/bin/python "examples/$${pair#*=}.py"; \
	done; rm -rf .venv-extra

# What things cost, each beside its floor. Needs wrk.
bench: $(VENV)/.dev
	@$(BIN)/python -m benchmarks
	@$(BIN)/python -m benchmarks.sampling

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.dev
	@$(BIN)/mypy

layers: $(VENV)/.dev
	@$(BIN)/lint-imports

# -- maintain -------------------------------------------------------------------------------------

# Needs uv. The lock files carry pins and hashes, and no index address.
LOCK := uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url --quiet

lock:
	@$(LOCK) --extra postgres --group dev pyproject.toml --output-file requirements/dev.txt
	@$(LOCK) --extra postgres --group build --constraint requirements/dev.txt pyproject.toml --output-file requirements/broker.txt

	@$(LOCK) --group mutation --constraint requirements/dev.txt --output-file requirements/mutation.txt
	@$(LOCK) --group standards --output-file requirements/standards.txt
	@# From another directory: here the name would mean this project itself.
	@cd $(or $(TMPDIR),/tmp) && echo "agentwrit==0.3.0" | $(LOCK) - --output-file $(CURDIR)/requirements/published-client.txt

clean:
	@rm -rf $(VENV) .venv-published .venv-standards .venv-extra .mutants .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist
