#!/bin/sh
# Find a Python that raystill can use and let it prepare .venv. Usage: sh scripts/setup.sh [--dev]
# PYTHON=/path/to/python3.12 chooses one; otherwise the first of these that is 3.11 or later is taken.
set -u
cd "$(dirname "$0")/.." || exit 4

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
    if command -v "$candidate" >/dev/null 2>&1 && is_new_enough "$candidate"; then
        exec "$candidate" scripts/setup_env.py "$@"
    fi
done

found=$("${PYTHON:-python3}" --version 2>/dev/null || echo "no ${PYTHON:-python3}")
echo "raystill needs Python 3.11 or later, and here is $found: install it, or name one: make demo PYTHON=/path/to/python3.11" >&2
exit 4
