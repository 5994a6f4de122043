# compute-agent. `make demo` and `make test` install what they need (apt, Go modules) on a bare Debian 12 machine, as root.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

export PATH := /usr/local/go/bin:/usr/local/bin:$(PATH)
export GOFLAGS ?= -buildvcs=false

BIN := bin
TOOLS := $(BIN)/tools
VERSION ?= $(shell git describe --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)

GOLANGCI_VERSION := v2.15.0
GOLANGCI := $(TOOLS)/golangci-lint-$(GOLANGCI_VERSION)

# Of the control plane that the functional tests run against: zed, epoxy or hibiscus.
RELEASE := zed
LAB := go run ./tests/functional/controlplane/cmd
FUNCTIONAL := COMPUTE_AGENT_FUNCTIONAL=1 go test -tags functional -count=1

# Against a real control plane a test can fail by a race of OpenStack's own. One that does is run once more, and the summary at the end
# tells of it in any case; when more than six fail, subtests counted, none is. Unit tests have no such excuse.
GOTESTSUM_VERSION := v1.13.0
GOTESTSUM := $(TOOLS)/gotestsum-$(GOTESTSUM_VERSION)
AGAINST_PLANE = COMPUTE_AGENT_FUNCTIONAL=1 $(GOTESTSUM) --format standard-$(1) --rerun-fails=1 --rerun-fails-max-failures=6 --packages '$(2)' -- \
  -tags functional -count=1 -exec '$(abspath tests/functional/testprogram.sh)'

.PHONY: help build test check unit race fuzz-short corpus lint functional functional-zed functional-epoxy functional-hibiscus functional-packages functional-clients functional-linuxbridge functional-all functional-ovs functional-incus bench bench-agent bench-disks bench-images tempest demo demo-down prerequisites sample sample-check tidy clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 24

prerequisites: # compiler, liblxc, the tools that the agent calls, Go
	@tests/functional/prerequisites.sh

build: ## bin/compute-agent
	go build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/compute-agent ./cmd/compute-agent

test: prerequisites check functional ## everything: unit, contract, race, and functional tests against a real control plane

check: ## what needs neither root nor a control plane: vet, unit and contract tests with the race detector
	go vet ./...
	go vet -tags functional ./tests/...
	go test -race -timeout 30m ./...

unit: ## unit and contract tests, without the race detector
	go test ./...

race: ## unit and contract tests, with the race detector
	go test -race -timeout 30m ./...

fuzz-short: ## every fuzz target for 10 seconds
	go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Dir}}{{end}}' ./... | while read -r package dir; do \
	  grep -hoE '^func Fuzz\w+' "$$dir"/*_test.go | sed 's/^func //' | while read -r target; do \
	    go test -run '^$$' -fuzz "^$$target\$$" -fuzztime 10s "$$package"; done; done

corpus: ## the hostile images in testdata anew, and those gone that no test makes, after a change of the tests that make them
	COMPUTE_AGENT_UPDATE_STORED=1 go test -count=1 -run '^(TestHostile|TestHostileArchives|TestRefused)$$' ./imagesync/...

lint: $(GOLANGCI) ## golangci-lint, the pinned version
	$(GOLANGCI) run ./...

# A mirror may not give modules at once.
INSTALL = for pause in 10 30 60 0; do GOBIN=$(abspath $(TOOLS)) go install $(1) && break; [ $$pause != 0 ] && sleep $$pause; done

$(GOLANGCI):
	mkdir -p $(TOOLS)
	$(call INSTALL,github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION))
	mv $(TOOLS)/golangci-lint $@

$(GOTESTSUM):
	mkdir -p $(TOOLS)
	$(call INSTALL,gotest.tools/gotestsum@$(GOTESTSUM_VERSION))
	mv $(TOOLS)/gotestsum $@

functional: prerequisites $(GOTESTSUM) ## functional tests: Linux bridge, then Open vSwitch; RELEASE=epoxy or hibiscus for another control plane
	tests/functional/prerequisites.sh tests
	$(MAKE) --no-print-directory functional-$(RELEASE)

functional-zed:
	$(LAB) -net linuxbridge run $(MAKE) --no-print-directory functional-packages functional-linuxbridge
	$(LAB) -net ovs run $(MAKE) --no-print-directory functional-ovs

functional-epoxy functional-hibiscus: functional-%:
	$(LAB) -release $* run $(MAKE) --no-print-directory functional-clients functional-all

# These need a control plane that is up. Their time is for a machine that others use, too.
functional-packages: # which have little to do with OpenStack: none is run once more
	$(FUNCTIONAL) -p 1 -timeout 30m $$(find . -name '*_functional_test.go' -not -path './tests/*' -printf '%h\n' | sort -u)

functional-clients: $(GOTESTSUM) # of the packages, those that speak with the control plane
	$(call AGAINST_PLANE,quiet,./rpc/rabbit ./internal/nova/conductor ./internal/openstack/...) -p 1 -timeout 20m

functional-linuxbridge: $(GOTESTSUM)
	$(call AGAINST_PLANE,verbose,./tests/functional) -timeout 70m -skip '^TestIncus$$'

functional-all: $(GOTESTSUM)
	$(call AGAINST_PLANE,verbose,./tests/functional) -timeout 90m -skip '^TestIncus$$'

functional-ovs: $(GOTESTSUM)
	$(call AGAINST_PLANE,verbose,./tests/functional) -timeout 20m -run '^Test(Boot|Ports|Reboot)'

functional-incus: prerequisites ## images to and from a real Incus, out of the backports to Debian 12; LXD is among the functional tests
	tests/functional/prerequisites.sh tests
	$(LAB) run env $(FUNCTIONAL) -v -timeout 20m -run '^TestIncus$$' ./tests/functional

bench: bench-agent bench-disks bench-images ## everything that is measured, a table each; on a machine with nothing else to do

bench-agent: prerequisites ## start, boot and delete, messages, memory and operations, beside the distribution's nova-compute
	go run ./tests/functional/bench

bench-disks: prerequisites ## root disks: ready, deleted, a second one of a small and a large image
	$(FUNCTIONAL) -run '^$$' -bench . -benchtime 12x -p 1 ./internal/storage/overlay ./internal/storage/dir ./internal/storage/btrfs

bench-images: prerequisites ## import of an image beside curl, xz and tar, which take turns
	COMPUTE_AGENT_SPEED_ROUNDS=7 COMPUTE_AGENT_TEST_IMAGES=$${COMPUTE_AGENT_TEST_IMAGES:-/var/lib/compute-agent-lab/images} \
	  $(FUNCTIONAL) -v -timeout 30m -run '^TestImportSpeed$$' ./imagesync

tempest: prerequisites ## OpenStack's Tempest as the judge of the compute API, against two agents; TEMPEST='-regex ...' for a part
	tests/functional/prerequisites.sh tempest
	go run ./tests/functional/tempest $(TEMPEST)

demo: prerequisites ## control plane, agent, a server from a real image, a ping and a command inside
	@go run ./tests/functional/demo up

demo-down: ## end the demo and leave nothing; KEEP_CACHE=1 keeps the control plane's files for the next time
	@go run ./tests/functional/demo down

sample: build ## etc/compute-agent.conf.sample and docs/options.md from the option registry
	$(BIN)/compute-agent config sample > etc/compute-agent.conf.sample
	$(BIN)/compute-agent config sample --markdown > docs/options.md

sample-check: build # fails when an option changed and its documents did not
	$(BIN)/compute-agent config sample | diff -u etc/compute-agent.conf.sample -
	$(BIN)/compute-agent config sample --markdown | diff -u docs/options.md -

tidy: ## go.mod and go.sum
	go mod tidy

clean:
	rm -rf $(BIN)
