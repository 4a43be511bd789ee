#!/usr/bin/env bash
# Everything that needs a GPU: the tests, then every suite that runs on one. Under 10 minutes on a large one.
#
#     benchmarks/gpu.sh [FOLDER]
#
# Records go to FOLDER, or else to benchmarks/results/, a line as soon as it is measured. A suite that fails, or that
# takes longer than it is given, does not stop the rest.
set -u
cd "$(dirname "$0")/.."
results=${1:-benchmarks/results}
mkdir -p "$results"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export CUBLAS_WORKSPACE_CONFIG=:4096:8  # for deterministic steps; cuBLAS reads it once
python=${PYTHON:-python}
failed=()

"$python" - <<'CHECK' || exit 2
import torch
if not torch.cuda.is_available():
    raise SystemExit("benchmarks/gpu.sh: torch finds no GPU; the tests and suites without one are `make test`")
print(torch.cuda.get_device_name(), "torch", torch.__version__)
CHECK

run() {
    local name=$1 limit=$2
    shift 2
    echo "== $name"
    timeout "$limit" "$@" || failed+=("$name")
}

run tests 170 "$python" -m pytest -q tests/test_cuda.py tests/random/test_random.py tests/data/test_data.py \
    -k "cuda or gpu or device" --junitxml="$results/tests-cuda.xml"
for suite in parts:30 step:140 population:50 memory:50 random_draws:40 func:90; do
    name=${suite%:*}
    run "$name" "${suite#*:}" "$python" "benchmarks/$name.py" --device cuda --repeats 7 \
        --json "$results/$name-cuda.json"
done

if ((${#failed[@]})); then
    echo "failed: ${failed[*]}"
    exit 1
fi
