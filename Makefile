# The two commands are `make demo` and `make test`. `make` alone lists the rest.
# What takes more than a line or two is in lab/ (python3 -m lab) or in a script.

PYTHON ?= python3
# How many NAS the demo builds, and their Debian release.
NAS ?= 1
DEBIAN ?= 12
# A folder with roles of others that the bench compares with, as tests/bench/peers.py says; none is part of this project.
PEERS ?=
# Other servers of models to compare with, as options of tests/bench/bench_engines.py; none is part of this project.
RIVALS ?=

BIN := .venv/bin
# The models of the tests that run without a NAS.
export NAS_ASSISTANT_MODELS ?= $(CURDIR)/.lab/models
# For commands that call others of the environment in turn, as Molecule calls ansible-playbook.
IN_VENV := PATH="$(CURDIR)/$(BIN):$$PATH"

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

.PHONY: models
models: setup ## Fetch the small models of the tests into .lab/models
	@$(IN_VENV) ansible-playbook -i localhost, lab/models.yml
	@$(PYTHON) -m lab minilm $(NAS_ASSISTANT_MODELS)

.PHONY: test
test: prepare lint models ## Run every check that CI runs (45 minutes)
	$(IN_VENV) pytest service/tests
	$(IN_VENV) molecule test
	$(IN_VENV) pytest --numprocesses 2 --dist loadgroup tests/unit tests/lab tests/integration

.PHONY: test-vm
test-vm: prepare ## Run the tests that need a kernel or a CPU of their own, on a virtual machine
	$(IN_VENV) pytest tests/vm

.PHONY: test-full
# Molecule's tests leave out what takes long and differs little, unless this is set.
test-full: export NAS_ASSISTANT_FULL = 1
test-full: test ## Run the long tests too: interrupted runs, a fleet, the other Debian
	$(IN_VENV) molecule test --scenario-name fleet
	$(IN_VENV) pytest tests/full

.PHONY: bench
bench: models ## Measure the service against the bare engine, the demo cold and warm, a run without change
	@$(PYTHON) -m lab engine
	@mkdir -p .lab/bench
	$(BIN)/python tests/bench/bench_demo.py .lab/bench/demo.json
	$(IN_VENV) python tests/bench/bench_snapshots.py .lab/bench/snapshots.json
	$(IN_VENV) python tests/bench/bench_backup.py .lab/bench/backup.json
	$(IN_VENV) python tests/bench/bench_base.py .lab/bench/base.json $(PEERS)
	$(IN_VENV) python tests/bench/bench_fleet.py .lab/bench/fleet.json $(PEERS)
	$(IN_VENV) python tests/bench/bench_front.py .lab/bench/front.json
	$(IN_VENV) python tests/bench/bench_neighbour.py .lab/bench/neighbour.json
	$(IN_VENV) python tests/bench/bench_queue.py .lab/bench/queue.json
	$(IN_VENV) python tests/bench/bench_network.py .lab/bench/network.json
	$(IN_VENV) python tests/bench/bench_pressure.py .lab/bench/pressure.json
	PYTHONPATH=$(CURDIR)/service/src $(BIN)/python tests/bench/bench_forecast.py .lab/bench/forecast.json $(NAS_ASSISTANT_MODELS)/smollm2-135m-instruct-q4_1.gguf $(NAS_ASSISTANT_MODELS)/gemma-3-270m-q4_k_m.gguf
	PYTHONPATH=$(CURDIR)/service/src $(BIN)/python tests/bench/bench_speculation.py $(NAS_ASSISTANT_MODELS)/gemma-3-270m-q4_k_m.gguf .lab/bench/speculation.json
	PYTHONPATH=$(CURDIR)/service/src $(BIN)/python tests/bench/bench_weights.py $(NAS_ASSISTANT_MODELS)/smollm2-135m-instruct-q4_1.gguf .lab/bench/weights.json
	PYTHONPATH=$(CURDIR)/service/src $(BIN)/python tests/bench/bench_weights.py $(NAS_ASSISTANT_MODELS)/gemma-3-270m-q4_k_m.gguf .lab/bench/weights-gemma.json
	PYTHONPATH=$(CURDIR)/service/src $(BIN)/python tests/bench/bench_service.py $(NAS_ASSISTANT_MODELS)/smollm2-135m-instruct-q4_1.gguf .lab/bench/service.json
	PYTHONPATH=$(CURDIR)/service/src $(BIN)/python tests/bench/bench_service.py $(NAS_ASSISTANT_MODELS)/gemma-3-270m-q4_k_m.gguf .lab/bench/service-gemma.json
	PYTHONPATH=$(CURDIR)/service/src $(BIN)/python tests/bench/bench_engines.py $(NAS_ASSISTANT_MODELS)/gemma-3-270m-q4_k_m.gguf .lab/bench/engines.json $(RIVALS)

.PHONY: lint
lint: setup ## Run the linters and the type checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/yamllint --strict .
	$(IN_VENV) ansible-lint --offline
	$(BIN)/antsibull-changelog lint
	set -e; for part in "lab tests/lab" tests/unit tests/integration tests/full tests/vm tests/bench; do $(BIN)/mypy --strict $$part; done
	$(BIN)/mypy --explicit-package-bases plugins
	cd service && ../$(BIN)/mypy
	@out=$$($(IN_VENV) pytest --collect-only -qq tests/unit tests/lab tests/integration) || { echo "$$out"; exit 1; }
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
