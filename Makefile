# make demo | test | quick | check | bench | matrix | punch | clients | scale | scenes | simulate | pod | protos | native | setup | clean     (each sets up what it needs)
# Of the interpreters that will do, the distribution's comes first: it is built with profile-guided optimisation, which
# one built by hand mostly lacks, and the whole mesh is a third slower on such a one.
PYTHON ?= $(shell for p in /usr/bin/python3.1[1-9] python3; do \
	$$p -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: help setup system native demo test quick check bench matrix punch clients scale scenes simulate pod protos clean

help:           ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

setup: $(STAMP) ## virtual environment with everything; leaves .venv/bin/causeway
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || test -n "$(PYTHON)" || sh lab/system.sh python3-venv
	@test -x $(BIN)/python || $(or $(PYTHON),/usr/bin/python3) -m venv $(VENV) || { echo "Causeway needs Python 3.11 or newer with venv: apt-get install python3-venv, or make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

system:         # Debian packages for the simulated networks and the bench's peers, where permitted
	@sh lab/system.sh

native: setup system ## the tunnel's data path compiled, where there is a C compiler; else it is interpreted
	@$(BIN)/python deploy/native.py

demo: native    ## two nodes, two relays, killed under a download
	$(BIN)/causeway demo

test: native    ## all tests
	sh tests/run.sh all

quick: setup    ## the fast subset, under a minute
	sh tests/run.sh quick

check: setup    ## ruff format + lint, mypy --strict
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: native   ## side by side with peers, ratios in one run
	$(BIN)/python -m bench

matrix: native  ## every fault × every kind of connection: stalls and losses, in under half an hour
	$(BIN)/python -m lab.matrix

punch: native   ## every pair of NATs, 20 tries each: who gets a direct path, and how soon
	$(BIN)/python -m tests.e2e.punch --json out/punch.json

clients: native ## well-known clients and servers through a mesh, over a direct and a relayed path
	$(BIN)/python -m lab.clients

scale: native   ## 10,000 connections, 5,000 UDP flows ten times, storms, vanished and slow clients: memory and descriptors
	$(BIN)/python -m tests.e2e.scale

scenes: native  ## what the mesh does by itself, each promised figure met or missed, in about five minutes
	$(BIN)/python -m tests.e2e.scenes --brief

simulate: setup ## the DHT with 10,000 nodes in one process, without and with liars; draws out/simulate*.svg
	$(BIN)/python -m lab.simulate --picture out/simulate.svg
	$(BIN)/python -m lab.simulate --malicious 0.2 --picture out/simulate-malicious.svg

pod: native     ## the four containers under podman, checked and taken down (root)
	CAUSEWAY_REQUIRE_PODMAN=1 $(BIN)/python -m pytest tests/deploy

protos: setup   ## regenerate protos/*_pb2*.py from protos/*.proto
	PATH="$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I . --python_out=. --grpc_python_out=. --mypy_out=. --mypy_grpc_out=. protos/*.proto

clean:          ## forget everything that was built
	rm -rf $(VENV) build out services/tunnel/_native *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
