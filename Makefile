# What a developer and CI do. Needed: Go and a C compiler; for the tests on a real Kafka also Java 17+ and Maven, for the Postman
# requests Node.js. Without those, their tests skip, or fail with TEST_REQUIRE=1.

GO            ?= go
PACKAGES      ?= ./...
TEST_TIMEOUT  ?= 20m
TEST_PARALLEL ?= 2
FUZZ_RUNS     ?= 200000
KAFKA_PORT    ?= 9092
CART_URL      ?= http://localhost:5000
ORDER_URL     ?= http://localhost:7000

GOLANGCI_LINT = $(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

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

.PHONY: test
test: ## Run every test, with the race detector (PACKAGES=./services/cart for one package)
	$(GO) test -race -shuffle=on -timeout=$(TEST_TIMEOUT) -p=$(TEST_PARALLEL) $(PACKAGES)

.PHONY: lint
lint: ## Check the code, the imports and go.mod
	$(GO) mod tidy -diff
	$(GO) fix -diff ./...
	$(GO) vet ./...
	$(GOLANGCI_LINT) run

.PHONY: fmt
fmt: ## Format the code, and say it as today's Go does
	$(GO) fix ./...
	$(GOLANGCI_LINT) fmt

.PHONY: fuzz
fuzz: ## Fuzz each decoder for a moment (FUZZ_RUNS=10000000 for longer)
	@for package in $$(grep -rl --include='*_test.go' '^func Fuzz' services | xargs -n1 dirname | sort -u); do \
		for target in $$(grep -rhoE '^func Fuzz[A-Za-z0-9_]+' $$package/*_test.go | cut -d' ' -f2); do \
			echo "== $$package $$target"; \
			$(GO) test -run='^$$' -fuzz="^$$target\$$" -fuzztime=$(FUZZ_RUNS)x -fuzzminimizetime=10x ./$$package || exit 1; \
		done; \
	done

.PHONY: kafka
kafka: ## Start a real Kafka with the declared topics, on KAFKA_PORT
	KAFKA_PORT=$(KAFKA_PORT) $(GO) run ./services/internal/testenv/kafkad start

.PHONY: kafka-stop
kafka-stop: ## Stop it
	$(GO) run ./services/internal/testenv/kafkad stop

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
clean: ## Remove what was built, not what was stored
	rm -rf bin docs/postman/node_modules
	$(GO) clean -testcache
