#!/usr/bin/env bash
# Everything that a GPU is needed for, in one command and under 8 minutes: tests that nothing waits for the GPU, that a
# CUDA graph replays and that each backend is right on it; the embedding and the whole encoder timed. Each step has its
# limit; one that fails or runs out of time does not stop the others.
#
#   tools/gpu_suite.sh                        # on a GPU; rows go to tools/results
#   DEVICE=cpu tools/gpu_suite.sh --smoke     # tiny, on a CPU, so that no step is broken when a GPU comes; rows go to $OUT
#
# PYTHON, DEVICE and OUT may be set. Exit codes: 0 all steps passed, 1 one did not, 2 a wrong argument, 3 no GPU.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

python=${PYTHON:-python}
device=${DEVICE:-cuda}
smoke=
case ${1-} in
    "") ;;
    --smoke) smoke=1 ;;
    *) echo "gpu_suite.sh takes --smoke or nothing, not '$1'" >&2; exit 2 ;;
esac
if [[ $device == cpu && -z $smoke ]]; then
    echo "on a CPU there is only the smoke run: DEVICE=cpu tools/gpu_suite.sh --smoke" >&2
    exit 2
fi
export PYTHONPATH=$PWD:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}
named=$("$python" - "$device" <<'EOF'
import sys

import torch

if sys.argv[1] != "cpu" and not torch.cuda.is_available():
    sys.exit(3)
sys.path.insert(0, "tools")
from record import about

row = about(sys.argv[1], ())
print(f"{row['date']},{row['commit']},{row['device'].replace(',', ' ')}")
EOF
)
case $? in
    0) ;;
    3) echo "no GPU: torch finds no CUDA device. Nothing was run, and nothing of it is measured." >&2; exit 3 ;;
    *) echo "'$python' cannot import torch and this package: set PYTHON" >&2; exit 2 ;;
esac

if [[ -n $smoke ]]; then
    out=${OUT:-$(mktemp -d)}
    model=tiny:siglip rounds=2 total=1500
    embed_batches=(2) sources=(16) encoder_batches=(2) tokens=(16) dtypes=(float32 bfloat16) encoder_dtype=float32
    limits=(600 120 120 600 600)
else
    out=${OUT:-tools/results}
    model=naflexvit_base_patch16_siglip rounds=3 total=470
    embed_batches=(256 512) sources=(16 32 128) encoder_batches=(256) tokens=(256) dtypes=(float32 bfloat16)
    encoder_dtype=bfloat16
    limits=(90 120 80 110 70)
fi
mkdir -p "$out"
steps=$out/gpu_suite.csv
[[ -e $steps ]] || echo "date,commit,device,step,seconds,code" > "$steps"
started=$SECONDS
failed=0

# step NAME LIMIT COMMAND...: run a command for at most LIMIT seconds, and for no more than is left of the total
step() {
    local name=$1 limit=$2 begun=$SECONDS left code
    shift 2
    left=$((total - (SECONDS - started)))
    if ((left < limit)); then limit=$left; fi
    if ((limit < 5)); then
        echo "== $name: not run, the time is up"
        code=124
    else
        echo "== $name, at most $limit s"
        timeout --kill-after=10 "$limit" "$@"
        code=$?
    fi
    echo "$named,$name,$((SECONDS - begun)),$code" >> "$steps"
    case $code in
        0) echo "== $name: passed in $((SECONDS - begun)) s" ;;
        124 | 137) echo "== $name: out of time"; failed=1 ;;
        *) echo "== $name: failed with exit code $code"; failed=1 ;;
    esac
}

echo "$named"
NAFLEX_GPU_TESTS_ON=$device step tests "${limits[0]}" \
    "$python" -m pytest -q -n 0 -m gpu -s -p no:cacheprovider tests/test_gpu.py
for index in 0 1; do
    step "embedding ${dtypes[index]}" "${limits[index + 1]}" \
        "$python" tools/bench_embed.py --device "$device" --dtype "${dtypes[index]}" --batches "${embed_batches[@]}" \
        --sources "${sources[@]}" --sizes 4..31 --rounds "$rounds" --out "$out/bench_embed.csv"
done
encoder=("$python" tools/bench_encoder.py --model "$model" --device "$device" --dtype "$encoder_dtype"
    --rounds "$rounds" --batches "${encoder_batches[@]}" --tokens "${tokens[@]}" --out "$out/bench_encoder.csv")
step "encoder" "${limits[3]}" \
    "${encoder[@]}" --techniques "timm eager" "timm torch.compile" "ours torch.compile" "ours CUDA graphs"
step "encoder artifacts" "${limits[4]}" \
    "${encoder[@]}" --techniques "timm eager" "ours AOTInductor" "ours ONNX Runtime" "ours TensorRT"

echo "rows are in $out; python tools/write_tables.py writes the tables from tools/results"
exit "$failed"
