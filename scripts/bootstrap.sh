#!/usr/bin/env bash
# Makes .venv from a bare clone, once; later runs see that nothing changed and return at once. Needs Python 3.11 or
# 3.12 and a C++ compiler. Every version is pinned by constraints.txt.
#   PYTHON=/path/to/python3.12    which Python (default: the first of python3.11, python3.12, python3 that fits)
#   TORCH_SPEC="torch==2.13.0 ..."  which torch, with pip options if needed (default: the pinned one)
#   NO_UV=1                       pip even where uv is installed
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
PY=$VENV/bin/python
MARK=$VENV/.bootstrap
LOG=$VENV/bootstrap.log
PID=

fail() {
  echo "error: $*" >&2
  exit 2
}

stop() {
  [ -z "$PID" ] || kill -- "-$PID" 2>/dev/null || true
  echo "interrupted; the next run goes on from here" >&2
  exit 130
}
trap stop INT TERM

fits() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' >/dev/null 2>&1; }

find_python() {
  local name
  if [ -n "${PYTHON:-}" ]; then
    fits "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.11 or 3.12"
    echo "$PYTHON"
    return
  fi
  for name in python3.11 python3.12 python3 python; do
    if fits "$name"; then
      command -v "$name"
      return
    fi
  done
  fail "Python 3.11 or 3.12 is needed and none was found (if it is not on PATH: PYTHON=/path/to/python3.12 bash $0)"
}

hash_of_inputs() {
  { cat "$ROOT/constraints.txt" "$ROOT/setup.py" && echo "$ROOT"; } | { sha256sum 2>/dev/null || shasum -a 256; } | cut -d' ' -f1
}

# $1: the Python that will build
check_compiler() {
  local compiler=${CXX:-} name headers
  for name in c++ g++ clang++; do
    [ -n "$compiler" ] || ! command -v "$name" >/dev/null || compiler=$name
  done
  [ -n "$compiler" ] || fail "a C++ compiler is needed to build fairseq and none was found (Debian, Ubuntu: apt install g++)"
  # shellcheck disable=SC2086  # CXX may hold options
  echo 'int main() { return 0; }' | $compiler -x c++ -fsyntax-only - 2>/dev/null || fail "the C++ compiler $compiler does not work"
  headers=$("$1" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
  # shellcheck disable=SC2086
  printf '#include <Python.h>\nint main() { return 0; }\n' | $compiler -x c++ -fsyntax-only -I"$headers" - 2>/dev/null ||
    fail "the C++ compiler $compiler finds no Python.h in $headers: install Python's headers (Debian, Ubuntu: apt install python3-dev)"
}

# step TITLE COMMAND ...: runs it with its output in the log, shows that time goes by, stops the script if it fails
step() {
  local title=$1 start=$SECONDS shown=0 passed
  shift
  echo "  $title"
  set -m # a process group of its own, so that Ctrl-C can end all of it
  "$@" >>"$LOG" 2>&1 &
  PID=$!
  set +m
  while kill -0 "$PID" 2>/dev/null; do
    sleep 1
    passed=$((SECONDS - start))
    if [ -t 1 ]; then
      printf '\r    %d s' "$passed"
    elif [ $((passed - shown)) -ge 30 ]; then
      echo "    $passed s"
      shown=$passed
    fi
  done
  [ ! -t 1 ] || printf '\r          \r'
  if ! wait "$PID"; then
    tail -n 15 "$LOG" >&2
    echo "error: that step failed; all its output is in $LOG" >&2
    exit 1
  fi
  PID=
}

install() {
  if [ -z "${NO_UV:-}" ] && command -v uv >/dev/null; then
    uv pip install --python "$PY" "$@" && return
    echo "uv could not do it; trying pip"
  fi
  "$PY" -m pip install "$@"
}

# A virtual environment that works and stands where it was made?
usable() {
  fits "$PY" && "$PY" -c 'import pip' 2>/dev/null && head -n 1 "$VENV/bin/pip" | grep -qF "$VENV/bin/"
}

install_torch() {
  # shellcheck disable=SC2086  # TORCH_SPEC may hold options
  install $TORCH -c "$PINS" numpy cython setuptools wheel
}

pin() { # constraints.txt, with the torch that TORCH_SPEC chose in place of the pinned one
  PINS=$VENV/constraints.txt
  if [ "$TORCH" = torch ]; then
    cp "$ROOT/constraints.txt" "$PINS"
  else
    grep -v '^torch==' "$ROOT/constraints.txt" >"$PINS"
  fi
}

# build [PYTHON]: a new virtual environment with PYTHON, or without it what the present one lacks
build() {
  rm -f "$MARK"
  if [ $# -eq 1 ]; then
    echo "setting up $VENV (once; a few minutes, fairseq is compiled)"
    echo "  1/4 virtual environment with $("$1" --version 2>&1)"
    rm -rf "$VENV"
    "$1" -m venv "$VENV"
  else
    echo "bringing $VENV up to date"
  fi
  : >"$LOG"
  pin
  [ "$TORCH" != torch ] || echo "  (another build of torch, CPU or CUDA: set TORCH_SPEC or pip's usual index options)"
  step "2/4 torch and build tools" install_torch
  if [ "$TORCH" != torch ]; then
    echo "torch==$("$PY" -c 'import torch; print(torch.__version__)')" >>"$PINS"
  fi
  step "3/4 fairseq (compiled where there is no wheel of it yet: about three minutes)" \
    install --no-build-isolation -c "$PINS" fairseq-fixed
  step "4/4 this project and its tools" install --no-build-isolation -c "$PINS" -e "$ROOT[dev]"
}

complete() { (cd / && "$PY" -c 'import fairseq.libbleu, fairseq.data.data_utils_fast, torch, deep_pyramidion, pytest') >>"$LOG" 2>&1; }

main() {
  local wanted have='' chosen='' python
  wanted=$(hash_of_inputs)
  if [ -f "$MARK" ]; then
    have=$(sed -n 1p "$MARK")
    chosen=$(sed -n 2p "$MARK")
  fi
  TORCH=${TORCH_SPEC:-${chosen:-torch}}
  if [ "$have" = "$wanted" ] && [ "$TORCH" = "$chosen" ] && fits "$PY"; then
    return
  fi
  if [ -e "$VENV" ] && [ ! -f "$VENV/pyvenv.cfg" ] && [ -n "$(ls -A "$VENV")" ]; then
    fail "$VENV is there and is not a virtual environment: move it away"
  fi
  if usable; then
    "$PY" -c 'import importlib.metadata; importlib.metadata.version("fairseq-fixed")' 2>/dev/null || check_compiler "$PY"
    build
  fi
  if [ ! -f "$LOG" ] || ! usable || ! complete; then
    python=$(find_python)
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
      fail "$python has no venv module (Debian, Ubuntu: apt install python3-venv)"
    check_compiler "$python"
    build "$python"
    complete || fail "the new environment does not work; see the end of $LOG"
  fi
  printf '%s\n%s\n' "$wanted" "$TORCH" >"$MARK"
  echo "ready in $SECONDS s"
}

# two at once would spoil each other's work
if command -v flock >/dev/null; then
  exec 9<"$ROOT"
  flock 9
fi
main
