# One word for each habit; `make` lists them.

# Arguments for ansible-playbook, e.g. ARGS="-i inventory/example.yml" or ARGS="-e num_vehicles=100"
ARGS ?=
# A Python of 3.11 or later for the tools; empty looks for one
PYTHON ?=
# Whose containers `make logs` and `make psql` look into
INSTANCE ?= tachograph

export PYTHON
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Ansible needs an encoding that knows all characters
export LC_ALL := C.UTF-8

.DEFAULT_GOAL := help
.PHONY: help up down destroy status support logs psql lab lab-destroy test lint unit simulate test-long docs lock venv

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{ printf "  make %-11s %s\n", $$1, $$2 }'

up: venv ## install, start and check everything, with 30 vehicles at first; ARGS="-e num_vehicles=100" for more
	@scripts/play.sh site.yml fleet.yml playbooks/self_check.yml $(ARGS)

down: venv ## stop everything; data, images and the engine stay, `make up` starts it again
	@scripts/play.sh teardown.yml $(ARGS)

destroy: venv ## remove everything the instance made, data included; the engine and packages stay
	@scripts/play.sh teardown.yml -e teardown_data=true $(ARGS)

status: venv ## what runs where, and is it well: exit status and reasons; make status json=1 for programs
	@scripts/status.sh $(if $(json),json,table) $(ARGS)

support: venv ## put what a helper needs into one archive, secrets masked
	@scripts/play.sh playbooks/support.yml $(ARGS)

logs: ## follow the logs of one kind on this machine: make logs s=consumer
	@scripts/containers.sh $(INSTANCE) logs $(s)

psql: ## open the database on this machine
	@scripts/containers.sh $(INSTANCE) psql

# How many hosts; those beyond node3 are for an inventory of your own
hosts ?= 3
lab: venv ## make three hosts on this machine for inventory/lab.yml; hosts=5 makes five
	@scripts/play.sh -i inventory/lab.yml playbooks/lab.yml -e hosts=$(hosts) $(ARGS)

lab-destroy: venv ## remove them and everything made for them
	@scripts/play.sh -i inventory/lab.yml playbooks/lab_destroy.yml $(ARGS)

test: lint ## all checks and tests, in an instance of their own
	@pytest tests

lint: venv ## ansible-lint, yamllint, ruff, mypy
	yamllint .
	ansible-lint
	ruff check .
	ruff format --check .
	mypy

unit: venv ## the tests that need no engine, in seconds
	@pytest tests/unit -m 'not long and not fleet'

# Seeds 0 to seeds-1, or the one of `seed`
seeds ?= 2000
simulate: venv ## the product against faults, by a virtual clock: make simulate seeds=100000; seed=7 replays one; defects=1 plants defects
	@PYTHONPATH=services:tests python -m simulation $(if $(defects),--defects,$(if $(seed),--seed $(seed),--seeds $(seeds)))

test-long: venv ## the tests that take long
	@pytest tests -m long

docs: venv ## make docs/settings.md from the argument specs
	@python scripts/settings_doc.py

lock: venv ## resolve requirements.in and services/requirements.in anew, with hashes
	env -u PIP_FIND_LINKS uv pip compile --quiet --upgrade --generate-hashes --custom-compile-command "make lock" \
	  --universal --python-version 3.13 --only-binary :all: --output-file services/requirements.txt services/requirements.in
	env -u PIP_FIND_LINKS uv pip compile --quiet --upgrade --generate-hashes --custom-compile-command "make lock" \
	  --universal --python-version 3.11 --output-file requirements.txt requirements.in

# What it says is for people, and `make status json=1` is for programs
venv: ## the tools, in .venv
	@scripts/venv.sh >&2
