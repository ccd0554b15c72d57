#!/bin/sh
# Everything that needs a CUDA device, in eight minutes: benchmarks/gpu.sh [FOLDER FOR THE RESULTS] [SECONDS]
# NETINV_DATA names a folder with MNIST, where there is one. PYTHON picks the interpreter.
set -u
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-}
if [ -z "$python" ]; then
  python=$here/../.venv/bin/python
  [ -x "$python" ] || python=python3
fi
exec "$python" -u "$here/gpu.py" --out "${1:-$here/results/gpu}" --budget "${2:-480}"
