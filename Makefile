# `make demo` shows the whole pipeline, `make test` runs the tests, `make app` opens the demo's models
# as a web page. All make .venv first. Needs Python 3.11 or newer; uses uv where it is installed, else pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test app clean
demo: $(VENV)/ready
	$(BIN)/python demo.py

test: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

app: $(VENV)/ready
	if command -v uv >/dev/null; then \
	  uv pip install --python $(BIN)/python -r requirements-app.txt -c requirements.lock; \
	else \
	  $(BIN)/python -m pip install --disable-pip-version-check -r requirements-app.txt -c requirements.lock; \
	fi
	$(BIN)/python demo.py
	$(BIN)/python app.py --logs_dir demo_run/logs --examples demo_run/raw/qia2020/test \
	  --word_vectors demo_run/raw/word_vectors.npz

$(VENV)/ready: requirements.txt requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; choose it: make PYTHON=python3.12 demo"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	if command -v uv >/dev/null; then \
	  uv pip install --python $(BIN)/python -r requirements.txt -c requirements.lock; \
	else \
	  $(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt -c requirements.lock; \
	fi
	touch $@

clean:
	rm -rf demo_run .pytest_cache .ruff_cache
