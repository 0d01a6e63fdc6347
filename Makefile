# make demo    set up, then run the whole pipeline on the bundled teacher
# make test    set up, then run every test
# make check   set up, then format, lint, types, layers and the fast tests
# make bench   set up, then the quick benchmarks
# make clean   remove caches and the demo's run; other runs hold teacher outputs and are yours to delete
# make distclean   the same, and .venv
#
# PYTHON=/path/to/python3.12 chooses the Python that .venv is made from.

# TEST_WORKERS=8 runs the tests in so many processes; those of a file stay in one.

PYTHON ?=
TEST_WORKERS ?= 2
# In the order of their names: the largest files first would leave the longest test, a file of its own, to the end.
PARALLEL = -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder
VENV := .venv/bin

.PHONY: demo test check bench clean distclean setup setup-dev lock

setup:
	@PYTHON="$(PYTHON)" sh scripts/setup.sh

setup-dev:
	@PYTHON="$(PYTHON)" sh scripts/setup.sh --dev

demo: setup
	@$(VENV)/raystill run --config configs/demo.yaml

test: setup-dev
	@$(VENV)/python -m pytest -m "not soak" $(PARALLEL) $(PYTEST_ARGS)

check: setup-dev
	$(VENV)/ruff format --check .
	$(VENV)/ruff check .
	$(VENV)/mypy
	$(VENV)/lint-imports
	$(VENV)/python -m pytest -m "not ray and not vllm and not e2e and not soak and not gpu" $(PARALLEL) $(PYTEST_ARGS)

bench: setup-dev
	@$(VENV)/raystill bench all --quick

lock:
	$(VENV)/python scripts/pin_requirements.py

clean:
	rm -rf runs/demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache platform/.mypy_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean
	rm -rf .venv platform/raystill.egg-info
