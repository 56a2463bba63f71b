#!/usr/bin/env bash
# Everything of benchmarks/RESULTS.md that TensorRT 8.6 on an H200 has measured, again, on such a host:
#   benchmarks/gpu_host.sh OUT [TARGET]        26 minutes by its steps' times; TARGET is h200@trt8.6 unless given
# PYTHON exports and runs torch, TRT_PYTHON has tensorrt, numpy and polygraphy; they may be one. A second GPU takes the
# steps that need no engine of ours, beside the others. TENSORRT_INCLUDE_DIR, TensorRT's headers, adds the plugins: their
# kernels, and a decode step that they run. STEPS="export build" does these alone, one after the other; OUT has what earlier
# ones left. Ends with status 1 where a check or a token is wrong. Logs and bundles are left in OUT.
set -euo pipefail
out=${1:?usage: gpu_host.sh OUT [TARGET]}; target=${2:-h200@trt8.6}
python=${PYTHON:-python3}; trt=${TRT_PYTHON:-$python}; bench=benchmarks/bench_tensorrt.py
mkdir -p "$out"; out=$(cd "$out" && pwd); failed=0
cd "$(dirname "$0")/.."; export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
library=$out/plugin/libmetagen_plugins.so
llm=$out/llm.bundle vit=$out/vit.bundle digits=$out/digits.bundle stepped=$out/llm-plugins.bundle
deploy() { "$1" -m metagen_deploy "${@:2}"; }

step_export() {
  deploy "$python" export text_llm_tiny -o "$llm" --target "$target" --precision fp16 &
  deploy "$python" export image_vit_base -o "$vit" --target "$target" --precision fp16 --dim batch=1:32:32 &
  deploy "$python" export image_vit_digits -o "$digits" --target "$target" --precision fp16 --precision int8 &
  for export in $(jobs -p); do wait "$export"; done
  "$python" benchmarks/greedy_tokens.py torch "$llm" "$out/tokens.npz"
}
step_build() {
  deploy "$trt" build "$llm" --target "$target" --fixed batch=1,cache=1024
  deploy "$trt" build "$vit" --target "$target" --fixed batch=1 --fixed batch=32
  deploy "$trt" build "$digits" --target "$target"
}
step_check() {
  for bundle in "$llm" "$vit" "$digits"; do deploy "$trt" check "$bundle" --backend tensorrt || failed=1; done
  "$trt" benchmarks/greedy_tokens.py engines "$llm" "$out/tokens.npz" || failed=1
  "$trt" benchmarks/check_tensorrt_session.py "$digits" "$vit" || failed=1
}
step_engines() {
  "$trt" $bench engines "$llm" --graph decoder.decode --batch 1 8
  "$trt" $bench engines "$vit" --batch 1 32
  "$trt" $bench engines "$digits" --batch 8
  "$trt" benchmarks/bench_tensorrt_session.py "$digits" --batch 8
  "$trt" benchmarks/bench_tensorrt_session.py "$vit" --batch 1 32
}
step_torch() {
  "$python" $bench torch "$llm" --graph decoder.decode --batch 1 --modes eager reduce-overhead max-autotune
  "$python" $bench torch "$vit" --batch 1 32 --modes eager reduce-overhead max-autotune
}
step_stock() {  # an engine for each size, the FP16 flag
  time_stock "$vit" classifier 1; time_stock "$vit" classifier 32
  time_stock "$digits" classifier 8; time_stock "$llm" decoder.decode 1
}
time_stock() {  # BUNDLE GRAPH BATCH
  "$python" $bench stock "$1" "$out/stock.onnx" --graph "$2" --batch "$3"
  "$trt" $bench onnx "$out/stock.onnx" --batch "$3" || failed=1
}
step_plugin() {
  cmake -S engines/plugins/cpp -B "$out/plugin" -DTENSORRT_INCLUDE_DIR="$TENSORRT_INCLUDE_DIR" -DCMAKE_BUILD_TYPE=Release -DCMAKE_CUDA_ARCHITECTURES=native
  cmake --build "$out/plugin" -j
  "$python" benchmarks/bench_grid_sample_3d.py "$library"
  "$python" benchmarks/bench_step.py "$library"
}
step_decode() {  # the engines of `build` again but for the decode step's, which are the plugins'
  rm -rf "$stepped"; cp -r "$llm" "$stepped"
  METAGEN_PLUGINS=$library deploy "$trt" build "$stepped" --target "$target" --fixed batch=1,cache=1024
  deploy "$trt" check "$stepped" --backend tensorrt || failed=1
  "$trt" benchmarks/greedy_tokens.py engines "$stepped" "$out/tokens.npz" || failed=1
  "$trt" $bench engines "$stepped" --graph decoder.decode --batch 1 8
}
step_clip() {  # on request: 5 GB of graphs, and six engines that take minutes each
  deploy "$python" export multimodal_clip -o "$out/clip.bundle" --target "$target" --precision fp16 --precision int8
  deploy "$trt" build "$out/clip.bundle" --target "$target"
  deploy "$trt" check "$out/clip.bundle" --backend tensorrt
}

run_steps() {  # what fails is told at the end, and the other steps run; never behind ||, where `set -e` does nothing
  local step status
  for step in "$@"; do
    printf '\n== %s, second %s\n' "$step" $SECONDS
    declare -F "step_$step" >/dev/null || { echo "no step '$step'; there are: export build check engines torch stock plugin decode clip" >&2; exit 2; }
    set +e
    (set -e; failed=0; "step_$step"; exit $failed); status=$?
    set -e
    [ $status = 0 ] || { failed=1; echo "== $step FAILED"; }
  done
}
list_gpus() { if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then tr , '\n' <<<"$CUDA_VISIBLE_DEVICES"; else nvidia-smi -L | sed -n 's/^GPU \([0-9]*\):.*/\1/p'; fi; }

plugins=${TENSORRT_INCLUDE_DIR:+plugin}; gpus=($(list_gpus))
if [ -n "${STEPS:-}" ]; then
  run_steps $STEPS
elif [ ${#gpus[@]} -lt 2 ]; then
  run_steps export build check engines torch stock $plugins ${plugins:+decode}
else
  run_steps export
  (failed=0; export CUDA_VISIBLE_DEVICES=${gpus[1]}; run_steps torch stock $plugins; exit $failed) > "$out/second-gpu.log" 2>&1 & second=$!
  export CUDA_VISIBLE_DEVICES=${gpus[0]}
  run_steps build check engines
  wait $second || failed=1
  printf '\n== on the second GPU, beside these\n'; cat "$out/second-gpu.log"
  if [ -n "$plugins" ]; then run_steps decode; fi
fi
echo "done after $SECONDS s$([ $failed = 0 ] || echo ', with failures')"
exit $failed
