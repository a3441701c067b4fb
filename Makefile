# The tasks of ./dev for people who type make. `make` alone lists them.
.PHONY: help train test quick slow lowest docs check bench menu
help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
train: ## the default recipe: digits, 2-bit weights, 2-bit activations
	./dev train
test: ## the tests, 3 to 7 minutes on two cores
	./dev test
quick: ## the tests of the lower floors, about a minute
	./dev test -m quick
slow: ## the long tests, on real data where it is present
	./dev test -m slow
lowest: ## the tests with the lowest version of every dependency, on Python 3.11
	./dev lowest
docs: ## the site of docs/, into site/
	./dev docs
check: ## formatter, linter, type checker
	./dev check
bench: ## every benchmark: step, memory, operation, data, export, peers; up to 3 hours on 2 quiet cores
	./dev python -m benchmarks.operation
	./dev python -m benchmarks.pipeline
	./dev python -m benchmarks.artefact_time
	./dev python -m benchmarks.profile_step
	./dev python -m benchmarks.step_time
	./dev python -m benchmarks.peers
	./dev python -m benchmarks.tables
menu: ## every quantizer at 4, 3 and 2 bits, 3 seeds, hours: CHECKPOINT=resnet20.safetensors DATA=folder of CIFAR-10; can be interrupted
	./dev python -m benchmarks.menu --checkpoint $(CHECKPOINT) --data $(DATA)
	./dev python -m benchmarks.tables
	./dev python docs/draw_quantizers.py
