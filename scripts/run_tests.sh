#!/usr/bin/env bash
# Lint, types and tests: bash scripts/run_tests.sh [--full] [pytest arguments]
#   --full    also the tests marked full, ten times as many drawn examples; writes docs/results/reliability.json
set -uo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT" || exit 1

marks=(-m "not full")
args=()
for arg in "$@"; do
  case $arg in
    -h | --help)
      sed -n '2,3s/^# //p' "$0"
      exit 0
      ;;
    --full) marks=(--hypothesis-profile=full --figures=docs/results/reliability.json) ;;
    *) args+=("$arg") ;;
  esac
done

bash scripts/bootstrap.sh || exit
export PATH="$ROOT/.venv/bin:$PATH" OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 # two processes share the cores
export PYTHONPYCACHEPREFIX="$ROOT/.venv/pycache" # each command of a test imports our packages anew
unset PYTHONDONTWRITEBYTECODE

failed=()
echo "ruff"
# without its cache: what is a package of ours depends on the folders beside a file, and the cache does not see those
{ ruff check --no-cache . && ruff format --no-cache --check --quiet .; } || failed+=(ruff)
echo "mypy"
mypy || failed+=(mypy)
MYPYPATH=scripts:scripts/experiments:scripts/bench mypy --scripts-are-modules --explicit-package-bases \
  scripts/*.py scripts/convert/*.py scripts/experiments/*.py scripts/bench/bench_parts || failed+=("mypy of scripts")
echo "pytest"
# a file's tests in one process, because many share a training
python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 15 --durations-min 5 ${marks[@]+"${marks[@]}"} ${args[@]+"${args[@]}"} || failed+=(pytest)

if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
echo "all passed in $((SECONDS / 60)) min $((SECONDS % 60)) s"
