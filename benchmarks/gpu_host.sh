#!/usr/bin/env bash
# Everything of benchmarks/RESULTS.md that TensorRT 8.6 on an H200 has measured, again, on such a host:
#   benchmarks/gpu_host.sh OUT [TARGET]        about 15 minutes; TARGET is h200@trt8.6 unless given
# PYTHON exports and runs torch, TRT_PYTHON has tensorrt, numpy and polygraphy; they may be one.
# Ends with status 1 where a check or a token is wrong. Logs and bundles are left in OUT.
set -euo pipefail
out=${1:?usage: gpu_host.sh OUT [TARGET]}; target=${2:-h200@trt8.6}
python=${PYTHON:-python3}; trt=${TRT_PYTHON:-$python}
cd "$(dirname "$0")/.."; export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$out"; out=$(cd "$out" && pwd); failed=0
deploy() { "$1" -m metagen_deploy "${@:2}"; }
say() { printf '\n== %s\n' "$*"; }

say "export"
deploy "$python" export text_llm_tiny -o "$out/llm.bundle" --target "$target" --precision fp16
deploy "$python" export image_vit_base -o "$out/vit.bundle" --target "$target" --precision fp16 --dim batch=1:32:32
deploy "$python" export image_vit_digits -o "$out/digits.bundle" --target "$target" --precision fp16 --precision int8
"$python" benchmarks/greedy_tokens.py torch "$out/llm.bundle" "$out/tokens.npz"

say "build"
deploy "$trt" build "$out/llm.bundle" --target "$target" --fixed batch=1,cache=1024
deploy "$trt" build "$out/vit.bundle" --target "$target" --fixed batch=1 --fixed batch=32
deploy "$trt" build "$out/digits.bundle" --target "$target"

say "check"
for name in llm vit digits; do deploy "$trt" check "$out/$name.bundle" --backend tensorrt || failed=1; done
"$trt" benchmarks/greedy_tokens.py engines "$out/llm.bundle" "$out/tokens.npz" || failed=1
"$trt" benchmarks/check_tensorrt_session.py "$out/digits.bundle" "$out/vit.bundle" || failed=1

say "times"
bench=benchmarks/bench_tensorrt.py
"$trt" $bench engines "$out/llm.bundle" --graph decoder.decode --batch 1 8
"$trt" $bench engines "$out/vit.bundle" --batch 1 32
"$trt" $bench engines "$out/digits.bundle" --batch 8
"$trt" benchmarks/bench_tensorrt_session.py "$out/digits.bundle" --batch 8
"$trt" benchmarks/bench_tensorrt_session.py "$out/vit.bundle" --batch 1 32
"$python" $bench torch "$out/llm.bundle" --graph decoder.decode --batch 1 --modes reduce-overhead
"$python" $bench torch "$out/vit.bundle" --batch 1 32 --modes reduce-overhead
exit $failed
