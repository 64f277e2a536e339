# The commands of a developer and of CI. They need Go and a C compiler. docs/testing.md lists what
# more of the tests need. Without it, tests are skipped, or fail with TEST_REQUIRE=1.

GO            ?= go
PACKAGES      ?= ./...
TEST_TIMEOUT  ?= 40m
TEST_PARALLEL ?= 2
FUZZ_RUNS     ?= 200000
DURATION      ?= 10m
SHRINK        ?= 1
KAFKA_PORT    ?= 9092
DOCKER        ?= docker
REGISTRY      ?= ghcr.io
VERSION       ?= $(shell sed -n 's/^appVersion: *"*\([^"]*\)"*$$/\1/p' charts/orders/Chart.yaml)
VULNDB        ?= https://vuln.go.dev
SBOM_DIR      ?= bin/sboms
CART_URL      ?= http://localhost:5000
ORDER_URL     ?= http://localhost:7000

# The programs whose image is published, and how each is built. A build-arg without a value comes
# from the environment if it is set there.
PROGRAMS    = cart order lag-operator lag-collector check orderctl
IMAGE       = $(REGISTRY)/ordersystem/$$program:$(VERSION)
BUILD_IMAGE = --file services/Dockerfile --build-arg PROGRAM=$$program --build-arg BASE --build-arg PIP_BASE \
	--build-arg GOPROXY --build-arg PIP_INDEX_URL --build-arg SOURCE_DATE_EPOCH=0 $(IMAGE_FLAGS) --tag $(IMAGE) .

GOLANGCI_LINT = $(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
HELM_DOCS     = $(or $(shell command -v helm-docs),$(GO) run github.com/norwoodj/helm-docs/cmd/helm-docs@v1.14.2)

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## Start the whole system in one process, with a Kafka of its own
	$(GO) run ./services/cmd/demo

.PHONY: build
build: ## Build the programs into ./bin
	@mkdir -p bin
	$(GO) build -trimpath -o bin/ ./services/cmd/...

# Tests mostly wait for Kafka, so more of a package run at once than there may be processors. The tests
# of lag and those on a cluster come last and alone, because they measure times.
ifeq ($(PACKAGES),./...)
TEST_ALONE = ordersystem.dev/services/lag ordersystem.dev/services/e2e/kubernetes
endif
.PHONY: test
test: ## Run every test, with the race detector (PACKAGES=./services/cart for one package)
	$(GO) test -race -shuffle=on -timeout=$(TEST_TIMEOUT) -p=$(TEST_PARALLEL) -parallel=4 \
		$$($(GO) list $(PACKAGES) | grep -vx $(or $(addprefix -e ,$(TEST_ALONE)),''))
	$(if $(TEST_ALONE),$(GO) test -race -shuffle=on -timeout=$(TEST_TIMEOUT) -p=1 $(TEST_ALONE))

.PHONY: lint
lint: ## Check the code, the imports and go.mod
	$(GO) mod tidy -diff
	$(GO) fix -diff ./...
	$(GO) vet ./...
	$(GOLANGCI_LINT) run

.PHONY: vulnerabilities
vulnerabilities: ## Look for calls of code with known vulnerabilities (VULNDB=file:///copy for another database)
	$(GO) run golang.org/x/vuln/cmd/govulncheck@v1.9.0 -db $(VULNDB) ./...

.PHONY: fmt
fmt: ## Format the code and modernise it
	$(GO) fix ./...
	$(GOLANGCI_LINT) fmt

.PHONY: fuzz
fuzz: ## Fuzz each decoder for a moment (FUZZ_RUNS=10000000 for longer)
	@for package in $$(grep -rl --include='*_test.go' '^func Fuzz' services | xargs -n1 dirname | sort -u); do \
		for target in $$(grep -rhoE '^func Fuzz[A-Za-z0-9_]+' $$package/*_test.go | cut -d' ' -f2); do \
			echo "== $$package $$target"; \
			$(GO) test -run='^$$' -fuzz="^$$target\$$" -fuzztime=$(FUZZ_RUNS)x -fuzzminimizetime=10x \
				./$$package || exit 1; \
		done; \
	done

.PHONY: faults
faults: ## Run the system under faults (DURATION=10m SEED=1; a run that fails is repeated with fewer: SHRINK)
	E2E_SEED=$(SEED) E2E_DURATION=$(DURATION) E2E_SHRINK=$(SHRINK) \
		$(GO) test ./services/e2e -count=1 -run='^TestFaultsUnderLoad$$' -v -timeout=0

.PHONY: mutants
mutants: ## Seed bugs into the last commit, one at a time, and show what catches each under faults
	$(GO) run ./services/e2e/faults/mutants

.PHONY: kafka
kafka: ## Start a real Kafka with the declared topics, on KAFKA_PORT
	KAFKA_PORT=$(KAFKA_PORT) $(GO) run ./services/cmd/kafkad start

.PHONY: kafka-stop
kafka-stop: ## Stop that Kafka; its data stays
	$(GO) run ./services/cmd/kafkad stop

.PHONY: kind
kind: ## Create the local cluster of kind-config.yaml if it does not exist
	@missing=$$(for tool in docker kind kubectl; do command -v $$tool >/dev/null || echo $$tool; done); \
		test -z "$$missing" || { \
			echo 'Not in PATH:' $$missing '(tilt/README.md says where they come from)' >&2; exit 1; }
	@docker info >/dev/null || { echo 'Docker has no daemon. Is it started?' >&2; exit 1; }
	@kind get clusters 2>/dev/null | grep -qx orders || kind create cluster --config kind-config.yaml
	@kind export kubeconfig --name orders
	@echo 'Next: tilt up, or by hand as docs/kubernetes.md says'

.PHONY: kind-delete
kind-delete: ## Delete that cluster with everything in it
	kind delete cluster --name orders

.PHONY: generate
generate: ## Write what is generated: the CRD and its Go, dashboards, alert rules
	$(GO) generate ./services/operator/...
	$(GO) run ./services/cmd/generate-monitoring

.PHONY: charts-docs
charts-docs: ## Generate the charts' README.md and files/defaults.yaml from their values
	$(HELM_DOCS) --chart-search-root charts --log-level warning
	@for chart in charts/*/; do \
		{ echo '# Generated by `make charts-docs` from values.yaml, which templates cannot read.'; \
			grep -vE '^ *(#|$$)' $${chart}values.yaml; } > $${chart}files/defaults.yaml; \
	done

.PHONY: images
images: ## Build the images (PLATFORM=linux/arm64 for another platform, BASE and PIP_BASE for other bases)
	@set -e; for program in $(PROGRAMS); do \
		DOCKER_BUILDKIT=1 $(DOCKER) build $(if $(PLATFORM),--platform=$(PLATFORM)) $(BUILD_IMAGE); \
	done

.PHONY: image-names
image-names: ## Print the names of the images
	@for program in $(PROGRAMS); do echo $(IMAGE); done

.PHONY: sbom
sbom: ## Write an SBOM of the program in each image, with its C libraries, into ./bin/sboms
	@mkdir -p $(SBOM_DIR)
	@set -e; for program in $(PROGRAMS); do \
		container=$$($(DOCKER) create --network=none $(IMAGE)); \
		$(DOCKER) cp $$container:/app $(SBOM_DIR)/$$program; \
		$(DOCKER) rm $$container >/dev/null; \
		$(GO) run ./services/cmd/sbom $(SBOM_DIR)/$$program >$(SBOM_DIR)/$$program.tmp; \
		mv $(SBOM_DIR)/$$program.tmp $(SBOM_DIR)/$$program.cdx.json; \
		rm $(SBOM_DIR)/$$program; \
	done

.PHONY: push
push: ## Build the images for amd64 and arm64 and push them to REGISTRY (needs Docker's buildx)
	@set -e; for program in $(PROGRAMS); do \
		$(DOCKER) buildx build --platform=linux/amd64,linux/arm64 --provenance=false --push $(BUILD_IMAGE); \
	done

.PHONY: bench
bench: ## Measure against the raw limits of the same machine, in the same run
	$(GO) run ./services/bench

.PHONY: bench-first-event
bench-first-event: ## Measure the first event: declared topics against dynamic ones
	$(GO) run ./services/bench first-event

.PHONY: postman
postman: ## Send the Postman requests to a running system (CART_URL, ORDER_URL)
	docs/postman/run.sh $(CART_URL) $(ORDER_URL)

.PHONY: clean
clean: ## Remove what was built, but no data
	rm -rf bin docs/postman/node_modules
	$(GO) clean -testcache
