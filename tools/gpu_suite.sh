#!/usr/bin/env bash
# Everything that a GPU is needed for, in one command, the most telling part first: the tests, by target and side by
# side, so that one that crashes or hangs takes no other with it; packs and vision towers, which no GPU has timed yet;
# the rest of the tests; artifacts, which have changed since they were timed; and what has not. Each step has its limit; one that fails or runs out of time does not stop the
# others. Run again, it goes on with the steps that have not passed at this commit on this device, by the rows in $OUT
# and in tools/results.
#
#   tools/gpu_suite.sh                        # on a GPU; rows go to tools/results
#   DEVICE=cpu tools/gpu_suite.sh --smoke     # tiny, on a CPU, so that no step is broken when a GPU comes; rows go to $OUT
#
# May be set: PYTHON; DEVICE; OUT, the folder of the rows; STEPS, the names of those to run, with - for a space; TOTAL,
# the seconds for all; CXX, the compiler of AOTInductor's packages, by default one that links libstdc++ as torch does.
# NAFLEX_COMMIT names the commit of a tree without its history.
# Exit codes: 0 all steps passed, 1 one did not, 2 a wrong argument, 3 no GPU. In the rows, 3 is of a step whose backend
# is not installed: it was not run, and is no failure.
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
named=$("$python" - "$device" <<'END'
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
END
)
case $? in
    0) ;;
    3) echo "no GPU: torch finds no CUDA device. Nothing was run, and nothing of it is measured." >&2; exit 3 ;;
    *) echo "'$python' cannot import torch and this package: set PYTHON" >&2; exit 2 ;;
esac

if [[ -n $smoke ]]; then
    out=${OUT:-$(mktemp -d)}
    model=tiny:siglip rounds=2 total=${TOTAL:-7200} many=1 some=1 few=1
    embed_batches=(2) sources=(16) encoder_batches=(2) tokens=(16) encoder_dtype=float32
    siglip2='hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=1'
    towers=(--smoke --images 2 --tokens 16)
else
    out=${OUT:-tools/results}
    model=naflexvit_base_patch16_siglip rounds=5 total=${TOTAL:-390} many=7 some=4 few=2
    embed_batches=(256 512) sources=(16 32 128) encoder_batches=(256) tokens=(256) encoder_dtype=bfloat16
    siglip2=''
    towers=(--images 16)
fi
mkdir -p "$out"
out=$(realpath "$out")
steps=$out/gpu_suite.csv
[[ -e $steps ]] || echo "date,commit,device,driver,python,torch,triton,step,seconds,code" > "$steps"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
started=$SECONDS
failed=0

# links_as_torch COMPILER: whether what it makes asks for the libstdc++ that torch has loaded. A copy of its own beside
# that one ends a process that loads an AOTInductor package.
links_as_torch() {
    echo '#include <regex>
    bool found(const char* text) { return std::regex_search(text, std::regex("a+")); }' > "$folder/linked.cpp"
    "$1" -shared -fPIC -o "$folder/linked.so" "$folder/linked.cpp" 2> /dev/null &&
        grep -q 'libstdc++\.so' "$folder/linked.so"
}
for compiler in ${CXX-} g++ g++-13 g++-14 g++-12; do
    if links_as_torch "$compiler"; then export CXX=$compiler; break; fi
done

# wanted NAME: whether a step is asked for and has not passed before
wanted() {
    if [[ -n ${STEPS-} && " $STEPS " != *" ${1// /-} "* ]]; then return 1; fi
    if cat "$steps" tools/results/gpu_suite.csv 2> /dev/null | cut -d, -f2- | grep -q "^${named#*,},$1,[0-9]*,0$"; then
        echo "== $1: passed before"
        return 1
    fi
}

# step LIMIT NAME COMMAND...: run a command for at most so many seconds, and for no more than is left of the total; not at
# all where less than half of its limit is
step() {
    local limit=$1 name=$2 begun=$SECONDS left code
    shift 2
    wanted "$name" || return 0
    if [[ -n $smoke ]]; then limit=1800; fi
    left=$((total - (SECONDS - started)))
    if ((left < limit / 2)); then # it would be stopped on its way, and a shorter one may still pass
        echo "== $name: not run, the time is up"
        code=124
    else
        if ((left < limit)); then limit=$left; fi
        echo "== $name, at most $limit s"
        timeout --kill-after=10 "$limit" "$@"
        code=$?
    fi
    echo "$named,$name,$((SECONDS - begun)),$code" >> "$steps"
    case $code in
        0) echo "== $name: passed in $((SECONDS - begun)) s" ;;
        124 | 137) echo "== $name: out of time" ;;
        *) echo "== $name: failed with exit code $code" ;;
    esac
    return "$code"
}

# not_here NAME WHY: leave a step out, by name
not_here() {
    wanted "$1" || return 0
    echo "== $1: not run, $2"
    echo "$named,$1,0,3" >> "$steps"
}

# gpu_tests LIMIT NAME WORKERS CHOSEN: a step of tests. Each worker compiles for itself: pools of compilers of their own,
# as many as there are cores in each, take longer to start than the graphs here take to compile.
gpu_tests() {
    NAFLEX_GPU_TESTS_ON=$device TORCHINDUCTOR_COMPILE_THREADS=1 step "$1" "$2" "$python" -m pytest -m gpu \
        -p no:cacheprovider -n "$3" --dist load -v -rs --show-capture=no --tb=short tests/test_gpu.py -k "$4"
}

# beside COMMAND...: start a step beside others, each line it says with its name ahead
beside() {
    ("$@" 2>&1 | sed -u "s/^/$3: /") &
    running+=($!)
}
running=()
together() {
    local each
    for each in ${running[@]+"${running[@]}"}; do wait "$each" || failed=1; done
    running=()
}

has_cuda_provider=$("$python" -c 'import onnxruntime as ort; print(*ort.get_available_providers())' 2> /dev/null)
if [[ $device == cpu || $has_cuda_provider == *CUDAExecutionProvider* ]]; then has_onnx=1; else has_onnx=; fi
has_trt=$("$python" -c 'from importlib.util import find_spec as find
print("yes" if find("tensorrt") or find("tensorrt_rtx") else "")')
no_onnx="this onnxruntime has no CUDA provider: install onnxruntime-gpu"
no_trt="neither tensorrt nor tensorrt-rtx is installed"

echo "$named, CXX=${CXX-}"
beside gpu_tests 170 "tests aot" "$many" "artifacts and aot and not towers"
beside gpu_tests 170 "tests compile" "$some" "artifacts and compile"
beside gpu_tests 170 "tests live" "$some" "not artifacts and not kernel and not memory"
beside gpu_tests 120 "tests kernels" "$few" "kernels_give"
together
encoder=("$python" tools/bench_encoder.py --device "$device" --dtype "$encoder_dtype" --rounds "$rounds"
    --batches "${encoder_batches[@]}" --tokens "${tokens[@]}" --out "$out/bench_encoder.csv")
step 90 "encoder packed" "${encoder[@]}" --model "$model" --grids different naflex --techniques "timm eager" \
    "ours torch.compile" "ours packed, torch.compile" || failed=1
step 60 "towers" "$python" tools/bench_towers.py --device "$device" --rounds "$rounds" "${towers[@]}" \
    --out "$out/bench_towers.csv" || failed=1
if [[ -n $has_onnx ]]; then
    gpu_tests 120 "tests onnx" $((2 * many)) "onnx" || failed=1
else
    not_here "tests onnx" "$no_onnx"
fi
if [[ -n $has_trt ]]; then
    gpu_tests 120 "tests trt" "$few" "artifacts and trt" || failed=1
else
    not_here "tests trt" "$no_trt"
fi
gpu_tests 150 "tests aot of towers" "$many" "artifacts and aot and towers" || failed=1
gpu_tests 30 "tests memory" 0 memory || failed=1 # of the device: nobody beside it
step 150 "encoder packed aot" "${encoder[@]}" --model "$model" --techniques "timm eager" "ours packed AOTInductor" ||
    failed=1
if [[ -n $has_onnx ]]; then
    step 90 "encoder onnx" "${encoder[@]}" --model "$model" --techniques \
        "timm eager" "ours ONNX Runtime" "ours packed ONNX Runtime" || failed=1
else
    not_here "encoder onnx" "$no_onnx"
fi
if [[ -n $has_trt ]]; then
    step 90 "encoder trt" "${encoder[@]}" --model "$model" --techniques "timm eager" "ours TensorRT" || failed=1
else
    not_here "encoder trt" "$no_trt"
fi
step 150 "encoder aot" "${encoder[@]}" --model "$model" --techniques "timm eager" "ours AOTInductor" || failed=1
step 80 "encoder padded" "${encoder[@]}" --model "$model" --techniques \
    "timm eager" "timm torch.compile" "ours torch.compile" "ours CUDA graphs" || failed=1
if wanted siglip2; then # of a configuration that is written for it, as a model of transformers is named by a folder
    hf_model=siglip2-base-patch16-naflex
    "$python" - "$folder/$hf_model" <<END
import sys, transformers
transformers.Siglip2VisionConfig(${siglip2:+$siglip2, }architectures=["Siglip2VisionModel"]).save_pretrained(sys.argv[1])
END
    encoder_there=("$python" "$PWD/${encoder[1]}" "${encoder[@]:2}")
    step 60 siglip2 env -C "$folder" "${encoder_there[@]}" --model "hf:$hf_model" --techniques \
        "timm eager" "timm torch.compile" "ours torch.compile" || failed=1
fi
embedding=("$python" tools/bench_embed.py --device "$device" --rounds "$rounds" --loop-rounds 1 --loop-sources 16
    --batches "${embed_batches[@]}" --sources "${sources[@]}" --sizes 4..31 --out "$out/bench_embed.csv" --candidates
    "timm's loop" "timm's grid_sample" "matmul, compiled" "ours, compiled")
for dtype in bfloat16 float32; do
    step 60 "embedding $dtype" "${embedding[@]}" --dtype "$dtype" || failed=1
done

echo "rows are in $out; python tools/write_tables.py writes the tables from tools/results"
exit "$failed"
