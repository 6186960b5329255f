# The two commands are `make demo` and `make test`. `make` alone lists the rest.
# What takes more than a line or two is in lab/ (python3 -m lab) or in a script.

PYTHON ?= python3
# How many NAS the demo builds, and their Debian release.
NAS ?= 1
DEBIAN ?= 12

BIN := .venv/bin
# Models that the demo and the tests fetch are kept here, so that a new lab does not fetch them again.
export NAS_ASSISTANT_MODELS ?= $(CURDIR)/.lab/cache/models
# For commands that call others of the environment in turn, as Molecule calls ansible-playbook.
IN_VENV := PATH="$(CURDIR)/$(BIN):$$PATH"

# Folders that are there: a check of a part that does not exist yet is not a failure.
PYTESTS = $(wildcard service/tests tests/unit tests/lab)
TYPED = $(wildcard service/src lab plugins)

pytest_in = $(if $(wildcard $(1)/test_*.py),$(IN_VENV) pytest $(1),@echo "no tests in $(1) yet")

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20
	@echo "  NAS=3 makes a fleet, DEBIAN=13 takes another release: make demo NAS=3 DEBIAN=13"

.PHONY: setup
setup: ## Build .venv from the lock files
	@$(PYTHON) -m lab venv

.PHONY: prepare
prepare: ## Build .venv and the lab's images, start Docker if none answers
	@$(PYTHON) -m lab prepare --debian $(DEBIAN)

.PHONY: demo
demo: prepare ## Build a lab NAS, turn it into an assistant, ask it a question over HTTPS
	@$(PYTHON) -m lab up --name demo --nas $(NAS) --debian $(DEBIAN) --inventory inventories/lab/hosts.yml
	@$(IN_VENV) $(PYTHON) -m lab timed "playbooks/site.yml" -- ansible-playbook -i inventories/lab playbooks/site.yml
	@$(PYTHON) -m lab demo-report --inventory inventories/lab
	@echo "make demo: done, the assistant answers"

.PHONY: test
test: prepare lint ## Run every check that CI runs (under 40 minutes)
	$(if $(wildcard molecule),$(IN_VENV) molecule test)
	$(IN_VENV) pytest $(PYTESTS)

.PHONY: test-vm
test-vm: setup ## Run the tests that need a virtual machine
	$(call pytest_in,tests/vm)

.PHONY: test-full
test-full: test ## Run the long tests too: drills, soaks, builds from source
	$(call pytest_in,tests/full)

.PHONY: bench
bench: setup ## Measure the service against the bare engine
	$(call pytest_in,tests/bench)

.PHONY: lint
lint: setup ## Run the linters and the type checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/yamllint --strict .
	$(IN_VENV) ansible-lint --offline
	$(BIN)/mypy --strict $(TYPED)
	@echo "make lint: done, nothing to mend"

.PHONY: lock
lock: setup ## Compile the lock files anew from requirements*.in
	@$(PYTHON) -m lab lock

.PHONY: down
down: ## Remove all that demo and tests made (not .venv and downloaded models)
	@$(PYTHON) -m lab down --all
	@rm -f inventories/lab/hosts.yml

.PHONY: clean
clean: down ## Remove .venv and downloaded models too
	rm -rf .venv .lab
	@echo "make clean: done"
