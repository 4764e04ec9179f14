#!/usr/bin/env bash
# Everything that a GPU is needed for, in one command, the most telling part first: what no GPU has run yet, packs and
# towers, tested and timed; then tests that nothing waits for the GPU, that a CUDA graph replays and that each backend is
# right on it; the embedding and the whole encoder timed. Each step has its limit; one that fails or runs out of time does not stop the others. Run again, it goes on with the steps
# that have not passed at this commit on this device.
#
#   tools/gpu_suite.sh                        # on a GPU; rows go to tools/results
#   DEVICE=cpu tools/gpu_suite.sh --smoke     # tiny, on a CPU, so that no step is broken when a GPU comes; rows go to $OUT
#
# May be set: PYTHON; DEVICE; OUT, the folder of the rows; STEPS, the names of those to run; TOTAL, the seconds for all.
# NAFLEX_COMMIT names the commit of a tree without its history.
# Exit codes: 0 all steps passed, 1 one did not, 2 a wrong argument, 3 no GPU.
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
import platform
import shutil
import subprocess
import sys

import torch

if sys.argv[1] != "cpu" and not torch.cuda.is_available():
    sys.exit(3)
sys.path.insert(0, "tools")
from record import about

row = about(sys.argv[1], ("torch", "triton"))
row["python"], row["driver"] = platform.python_version(), ""
if sys.argv[1] != "cpu" and shutil.which("nvidia-smi"):
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    row["driver"] = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()[0]
columns = ("date", "commit", "device", "driver", "python", "torch", "triton")
print(",".join(row[name].replace(",", " ") for name in columns))
EOF
)
case $? in
    0) ;;
    3) echo "no GPU: torch finds no CUDA device. Nothing was run, and nothing of it is measured." >&2; exit 3 ;;
    *) echo "'$python' cannot import torch and this package: set PYTHON" >&2; exit 2 ;;
esac

names=("packed tests" encoder towers tests "embedding float32" "embedding bfloat16" "encoder artifacts" siglip2 memory)
if [[ -n $smoke ]]; then
    out=${OUT:-$(mktemp -d)}
    model=tiny:siglip rounds=2 total=${TOTAL:-1800} workers=2
    embed_batches=(2) sources=(16) encoder_batches=(2) tokens=(16) encoder_dtype=float32
    siglip2='hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=1'
    limits=(900 600 300 900 120 120 600 300 120)
    towers=(--smoke --images 2 --tokens 16)
else
    out=${OUT:-tools/results}
    model=naflexvit_base_patch16_siglip rounds=5 total=${TOTAL:-480} workers=8
    embed_batches=(256 512) sources=(16 32 128) encoder_batches=(256) tokens=(256) encoder_dtype=bfloat16
    siglip2=''
    limits=(100 100 60 160 60 60 120 60 30)
    towers=(--images 16)
fi
mkdir -p "$out"
out=$(realpath "$out")
steps=$out/gpu_suite.csv
[[ -e $steps ]] || echo "date,commit,device,driver,python,torch,triton,step,seconds,code" > "$steps"
started=$SECONDS
failed=0

# step NAME COMMAND...: run a command for at most its limit, and for no more than is left of the total
step() {
    local name=$1 begun=$SECONDS left limit code index
    shift
    for index in "${!names[@]}"; do [[ ${names[index]} == "$name" ]] && limit=${limits[index]}; done
    if [[ -n ${STEPS-} && " $STEPS " != *" ${name// /-} "* ]]; then return; fi
    if cat "$steps" tools/results/gpu_suite.csv 2> /dev/null | cut -d, -f2- | grep -q "^${named#*,},$name,[0-9]*,0$"; then
        echo "== $name: passed before"
        return
    fi
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
gpu_tests() { NAFLEX_GPU_TESTS_ON=$device step "$1" "$python" -m pytest -q -m gpu -p no:cacheprovider tests/test_gpu.py "${@:2}"; }
of_many=(-n "$workers" --dist load -v -rs --show-capture=no --tb=short)
gpu_tests "packed tests" -k "pack or towers" "${of_many[@]}"
encoder=("$python" tools/bench_encoder.py --device "$device" --dtype "$encoder_dtype" --rounds "$rounds"
    --batches "${encoder_batches[@]}" --tokens "${tokens[@]}" --out "$out/bench_encoder.csv")
step "encoder" "${encoder[@]}" --model "$model" --grids different naflex --techniques "timm eager" \
    "ours torch.compile" "ours packed, torch.compile" "ours CUDA graphs" "timm torch.compile"
step "towers" "$python" tools/bench_towers.py --device "$device" --rounds "$rounds" "${towers[@]}" --out "$out/bench_towers.csv"
gpu_tests tests -k "not (memory or pack or towers)" "${of_many[@]}"
for dtype in float32 bfloat16; do
    step "embedding $dtype" "$python" tools/bench_embed.py --device "$device" --dtype "$dtype" --rounds "$rounds" \
        --candidates "timm's loop" "timm's grid_sample" "matmul, compiled" "ours, compiled" --loop-rounds 1 \
        --loop-sources 16 --batches "${embed_batches[@]}" --sources "${sources[@]}" --sizes 4..31 --out "$out/bench_embed.csv"
done
step "encoder artifacts" "${encoder[@]}" --model "$model" --techniques \
    "timm eager" "ours AOTInductor" "ours ONNX Runtime" "ours TensorRT"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
hf_model=siglip2-base-patch16-naflex
"$python" - "$folder/$hf_model" <<EOF
import sys, transformers
transformers.Siglip2VisionConfig(${siglip2:+$siglip2, }architectures=["Siglip2VisionModel"]).save_pretrained(sys.argv[1])
EOF
encoder[1]=$PWD/${encoder[1]}
step "siglip2" env -C "$folder" "${encoder[@]}" --model "hf:$hf_model" --techniques \
    "timm eager" "timm torch.compile" "ours torch.compile"
gpu_tests memory -k memory -n 0  # of the device: nobody beside it

echo "rows are in $out; python tools/write_tables.py writes the tables from tools/results"
exit "$failed"
