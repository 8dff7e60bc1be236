# Short names for long commands; `make help` lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PRESET ?= dev
BUILD := $(if $(filter dev,$(PRESET)),build,build-$(PRESET))
WAV ?= models/nano/questions/weather_in_paris.wav

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: ## install system packages and libtorch (idempotent)
	@tools/setup.sh

build: setup ## build everything (PRESET=dev|release|asan|tsan|cuda|fuzz)
	@cmake --preset $(PRESET) > $(BUILD).log 2>&1 || { cat $(BUILD).log; exit 1; }
	@cmake --build --preset $(PRESET)

command: setup ## build the command alone, which has all services in it
	@cmake --preset $(PRESET) > $(BUILD).log 2>&1 || { cat $(BUILD).log; exit 1; }
	@cmake --build --preset $(PRESET) --target parlando

run: command ## take a spoken question through the engine (WAV=my.wav)
	@mkdir -p out
	@$(BUILD)/bin/parlando talk $(WAV) -o out/answer.wav
	@echo "Talk to it yourself: make serve, then http://127.0.0.1:7860/"

serve: command ## run the engine and open its page at http://127.0.0.1:7860
	@mkdir -p out
	@$(BUILD)/bin/parlando serve

test: build ## build and run all tests
	@tools/setup.sh --test
	@cd $(BUILD) && { ctest --output-on-failure -j 2 --output-junit tests.xml; code=$$?; python3 $(CURDIR)/tests/skipped.py tests.xml; exit $$code; }

clients: build ## run all stock clients against the engine, the large ones too (700 MB to fetch)
	@tools/setup.sh --clients
	@python3 tests/services/realtime_clients_test.py $(BUILD)/bin .
	@python3 tests/services/openapi_test.py $(BUILD)/bin . 200

door: build ## measure the front door: 200 realtime sessions, first byte of speech, what chat costs beside the engine
	@python3 tests/bench/front_door.py $(BUILD)/bin .

fuzz: build ## a million malformed or abrupt inputs to a gateway (INPUTS=… SEED=…)
	@PARLANDO_FUZZ_INPUTS=$(INPUTS) PARLANDO_FUZZ_SEED=$(SEED) $(BUILD)/tests/front_door_fuzz

images: build ## container images of all services in build/images (docker, podman or buildah; ENGINE=…)
	@tools/setup.sh --images
	@deploy/images.py --bin $(BUILD)/bin --out $(BUILD)/images $(if $(ENGINE),--engine $(ENGINE))

sbom: build ## what the images are made of, as CycloneDX: build/images/*.cdx.json
	@tools/setup.sh --images
	@deploy/images.py --bin $(BUILD)/bin --out $(BUILD)/images --trees

manifests: ## write k8s/rendered and the configurations of all deployments again (kubectl)
	@tools/setup.sh --test
	@deploy/instances.py --write
	@.deps/deploy/bin/python k8s/render.py

PROFILE ?= short
chaos: build ## real processes stopped, killed, cut off, rolled and lost while people talk; report in build/chaos.md (PROFILE=short|long, ROUNDS=n)
	@tools/setup.sh --test
	@python3 tests/chaos/suite.py $(BUILD) . --profile $(PROFILE) --rounds $(or $(ROUNDS),1) --report $(BUILD)/chaos.md

soak: build ## people talk for MINUTES (default 120), two or three faults a minute; memory must stay
	@python3 tests/chaos/soak.py $(BUILD)/bin . --minutes $(or $(MINUTES),120) --json $(BUILD)/soak.jsonl

asan: ## AddressSanitizer and UBSan over everything that does not link libtorch
	@$(MAKE) -s sanitized PRESET=asan GROUP=light

tsan: ## ThreadSanitizer over transport, HTTP and supervision (around CAF and libzmq)
	@$(MAKE) -s sanitized PRESET=tsan GROUP=transport

# UBSan's `null` is off for CAF's headers; leaks are looked for except in forked children.
sanitized: setup
	@tools/setup.sh --test
	@cmake --preset $(PRESET) > $(BUILD).log 2>&1 || { cat $(BUILD).log; exit 1; }
	@cmake --build --preset $(PRESET) --target $(GROUP)_tests
	@cd $(BUILD) && UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 TSAN_OPTIONS="halt_on_error=1 suppressions=$(CURDIR)/tests/tsan.supp" \
	  ctest --output-on-failure -j 2 -L $(GROUP)

OUTPUT ?=
bench: build ## measure tokenizer, language model (against docs/bench/lm.json), flow and vocoder (the mesh: parlando bench mesh; OUTPUT=docs/bench/lm.json keeps the figures)
	@$(BUILD)/bin/parlando bench lm --baseline docs/bench/lm.json $(if $(OUTPUT),-o $(OUTPUT))
	@for b in tokenizer flow vocoder; do $(BUILD)/bin/parlando bench $$b; done

nano: ## make the nano model from nothing: data, training, export, report
	@tools/setup.sh --nano
	@.deps/venv/bin/python -m tools.nano.make work/nano

SOURCES = git ls-files '*.cpp' '*.hpp' '*.cu'
.deps/venv/bin/clang-format: tools/check_requirements.txt
	@tools/setup.sh --check
	@touch $@

format: .deps/venv/bin/clang-format ## format the C++ sources
	@$(SOURCES) | xargs $< -i

check: .deps/venv/bin/clang-format ## what a reviewer runs: formatting, who includes whom and which library, 120 columns, headers alone
	@$(SOURCES) | xargs $< --dry-run --Werror
	@python3 tests/layout_test.py

INPUTS ?= 1000000
SEED ?= 1
FILES ?= $(shell git diff --name-only HEAD~1 -- '*.cpp')
# clang does not know all of g++'s warnings, and this clang-tidy brings no stddef.h.
tidy: setup .deps/venv/bin/clang-format ## static analysis of the sources of the last commit, by a configured tree build-tidy (FILES="…" for others)
	@cmake --preset $(PRESET) -B build-tidy -DPARLANDO_UNITY=OFF -DPARLANDO_WERROR=OFF > build-tidy.log 2>&1 || { cat build-tidy.log; exit 1; }
	@[ -z "$(FILES)" ] || .deps/venv/bin/clang-tidy -p build-tidy --quiet --extra-arg=-idirafter$$(g++ -print-file-name=include) $(FILES)

.PHONY: help setup build command run serve test clients door fuzz images sbom manifests chaos soak asan tsan sanitized bench nano format check tidy
