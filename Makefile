# make demo    a swarm of four agents pulls a real model on this machine
# make test    every test; prints what it skipped and why
# make check   ruff, mypy, pyright, import-linter
# make sim     the simulator's figures (RNG_SEED=n WORLD=name replays a world)
# make fuzz    every parser under a coverage-guided fuzzer (SECONDS=60 each)
# make proto   compiles csi/proto after a change there
# make bench   every figure that README quotes (namespaces need root)
# make manifests    deploy/kubernetes, rendered from the chart
# make image-check  runs the Dockerfile's steps in a chroot, and its agent (root, network, minutes)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SIZE ?= 1GiB
SECONDS ?= 60

.PHONY: demo test check fuzz proto sim bench manifests image-check format clean

$(VENV)/.done: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[agent,csi,kubernetes,hf,s3,gs,az,fsspec,sign,test,check]'
	touch $@

demo: $(VENV)/.done
	$(BIN)/python -m bench.demo --size $(SIZE)

test: $(VENV)/.done
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports

fuzz: $(VENV)/.done
	$(BIN)/pip install --quiet --disable-pip-version-check 'atheris>=3.0'
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

proto: $(VENV)/.done
	$(BIN)/pip install --quiet --disable-pip-version-check grpcio-tools==1.85.1 mypy-protobuf==5.1.0
	cd src && ../$(BIN)/python -m grpc_tools.protoc -I . --python_out=. \
	    --plugin=protoc-gen-mypy=../$(BIN)/protoc-gen-mypy --mypy_out=. damselfly/csi/proto/*.proto

sim: $(VENV)/.done
	$(BIN)/python -m bench.simulator $(if $(RNG_SEED),--rng-seed $(RNG_SEED)) $(if $(WORLD),--world $(WORLD))

bench: $(VENV)/.done
	$(BIN)/python -m bench

manifests: $(VENV)/.done
	$(BIN)/python -m deploy.manifests

image-check: $(VENV)/.done
	$(BIN)/python -m deploy.image_check

format: $(VENV)/.done
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .demo build dist *.egg-info src/*.egg-info
