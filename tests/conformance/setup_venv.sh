#!/usr/bin/env bash
# Makes tests/conformance/.venv with the pinned mergekit, torch and transformers that the comparisons run.
# Exits with 77 (skipped) and a clear line when the packages cannot be had.
set -euo pipefail
cd "$(dirname "$0")"

stamp=.venv/requirements.txt
if cmp -s requirements.txt "$stamp"; then
  exit 0
fi
if [ "${BRAID_PEERS:-}" != 1 ]; then
  echo "SKIPPED: set BRAID_PEERS=1 to install mergekit, torch and transformers (gigabytes) and compare with them"
  exit 77
fi
rm -rf .venv
if ! python3 -m venv .venv; then
  rm -rf .venv
  echo "SKIPPED: python3 cannot make a virtual environment here (Debian: python3-venv)"
  exit 77
fi
if ! .venv/bin/pip install --quiet --requirement requirements.txt; then
  rm -rf .venv
  echo "SKIPPED: the Python packages of tests/conformance/requirements.txt cannot be installed (no network?)"
  exit 77
fi
cp requirements.txt "$stamp"
