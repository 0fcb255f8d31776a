# `make demo` shows the whole pipeline, `make test` runs the tests, `make app` opens the web page,
# `make docs` builds the documentation as a site.
# All make .venv first. Needs Python 3.11 or newer; uses uv where it is installed, else pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(shell command -v uv >/dev/null && echo uv pip install --python $(BIN)/python \
  || echo $(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS))

.PHONY: demo test audit app docs clean
demo: $(VENV)/ready
	$(BIN)/python demo.py

# With EXTRAS=1 also what needs further packages and a browser: there a test that cannot run fails.
test: $(VENV)/ready
	$(INSTALL) -r requirements-encoders.txt -r requirements-docs.txt \
	  $(if $(EXTRAS),-r requirements-extras.txt) -c requirements.lock
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	REQUIRE_EXTRAS=$(EXTRAS) $(BIN)/python -m pytest -n auto --dist worksteal

# Known vulnerabilities of the locked versions; asks the advisory database on the internet.
audit: $(VENV)/ready
	$(INSTALL) pip-audit
	$(BIN)/pip-audit --requirement requirements.lock --no-deps --disable-pip

app: $(VENV)/ready
	$(INSTALL) -r requirements-app.txt -c requirements.lock
	$(BIN)/python app.py

# Strict: a link or an anchor that leads nowhere fails.
docs: $(VENV)/ready
	$(INSTALL) -r requirements-docs.txt -c requirements.lock
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "the documentation: build/site/index.html"

$(VENV)/ready: requirements.txt requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; choose it: make PYTHON=python3.12 demo"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -r requirements.txt -c requirements.lock
	$(INSTALL) --no-deps -e .
	touch $@

clean:
	rm -rf demo_run build *.egg-info .pytest_cache .ruff_cache .mypy_cache
