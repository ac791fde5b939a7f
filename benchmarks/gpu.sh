#!/usr/bin/env bash
# Checks and measures everything that takes a GPU, in 5 to 7 minutes on an H200: bash benchmarks/gpu.sh [OUTPUT_DIR]
# DEVICE=cpu tries the script itself, with small sizes, where there is no GPU.
set -euo pipefail
mkdir -p "${1:-gpu}"
output=$(cd "${1:-gpu}" && pwd)
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
device=${DEVICE:-cuda}
base=(--config "$PWD/configs/stages.yaml")
if [ "$device" = cpu ]; then
  one=("${base[@]}" --trainer.accelerator=cpu)
  large=("${one[@]}" --data.batch_size=512)
  all=("${large[@]}" --trainer.devices=2 --trainer.strategy=ddp)
  batch=(--batch 64)
else
  one=("${base[@]}" --trainer.accelerator=gpu --trainer.devices=1 --trainer.strategy=auto)
  large=("${one[@]}" --trainer.precision=bf16-mixed --data.batch_size=8192)
  all=("${base[@]}" --config "$PWD/configs/multi_gpu.yaml")
  batch=(--batch 65536)
fi
summary=()
failed=0

# part NAME SECONDS COMMAND...: runs it, keeps what it prints, and goes on in any case.
part() {
  local name=$1 limit=$2 start=$SECONDS verdict=ok
  shift 2
  echo "== $name"
  if timeout --kill-after=5 "$limit" "$@" 2>&1 | tee "$output/$name.txt"; then :; else
    verdict="FAILED with exit status $?"
    failed=1
  fi
  summary+=("$(printf '%-12s %4d s  %s' "$name" $((SECONDS - start)) "$verdict")")
}

# solve NAME SECONDS SEEDS OPTIONS...: fails unless all problems are solved.
solve() {
  local name=$1 limit=$2 seeds=$3
  shift 3
  # shellcheck disable=SC2086 # several seeds are several words
  part "$name" "$limit" python -m benchmarks.time_to_solve --patience 5 --seeds $seeds --output "$output/$name.json" -- "$@"
}

gpu=(python -m benchmarks.gpu --device "$device")
fit=(python -m toolagent_pl fit "${one[@]}")
reader=(--trainer.accelerator="${device/cuda/gpu}" --trainer.devices=1)
rm -rf "$output/resumed"
part check 100 "${gpu[@]}" --check
part measure 120 "${gpu[@]}" --measure --output "$output/measure.json"
part compiled 120 "${gpu[@]}" --measure --modes compiled --agents reader --precision float32 "${batch[@]}" --output "$output/compiled.json"
part default 100 python -m toolagent_pl fit "${reader[@]}" --trainer.default_root_dir="$output/default"
part compiled_ppo 180 python -m toolagent_pl fit "${reader[@]}" --trainer.default_root_dir="$output/reader" --model.compile_step=true \
  --env.stages=[T0,E1] --env.unseen=[] --curriculum.stages=[T0,E1] --curriculum.ent_targets=null --trainer.max_epochs=5
solve blind 60 "0 1" "${one[@]}"
solve large 35 0 "${large[@]}"
solve all 45 0 "${all[@]}"
part stopped 30 "${fit[@]}" --trainer.default_root_dir="$output/resumed" --trainer.max_epochs=2
part resumed 40 "${fit[@]}" --trainer.default_root_dir="$output/resumed" --trainer.max_epochs=4 --ckpt_path=last

echo "== summary, also in $output"
printf '%s\n' "${summary[@]}" | tee "$output/summary.txt"
exit "$failed"
