#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Decoding and prefill beside llama.cpp on this machine: builds llama.cpp from the source
# distribution of llama-cpp-python, then runs both programs in turn, round by round, alone on the
# machine, and prints one table. Not part of reproduce.sh: it downloads and builds another project
# (about 10 minutes on two cores) and wants the machine for itself.
#
# Usage: experiments/06_llama_cpp/run.sh            after one ./reproduce.sh
# Environment: PROFILE=quick|full (depths to 8192 | 32768 and 131072 of ours), ROUNDS, THREADS
# shellcheck source=experiments/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
unset OMP_WAIT_POLICY  # timings alone on the machine: spinning threads answer faster

readonly package=llama-cpp-python version=0.3.36
readonly archive=llama_cpp_python-$version
readonly sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
readonly peer=$root/out/llama.cpp
here=experiments/06_llama_cpp
: "${ROUNDS:=$(pick 3 5)}" "${THREADS:=$(nproc)}"

# The library and our driver on it; only what is missing.
build_peer() {
  mkdir -p "$peer"
  if [ ! -f "$peer/$archive.tar.gz" ]; then
    echo "llama.cpp: fetching $package $version" >&2
    /usr/bin/python3 -m venv "$peer/venv"
    "$peer/venv/bin/pip" -q download --no-deps --no-binary "$package" -d "$peer" \
      "$package==$version"
  fi
  echo "$sha256  $peer/$archive.tar.gz" | sha256sum --quiet -c - >&2
  [ -d "$peer/$archive" ] || tar -xzf "$peer/$archive.tar.gz" -C "$peer"
  local source=$peer/$archive/vendor/llama.cpp
  if [ ! -f "$peer/build/bin/libllama.so" ]; then
    echo "llama.cpp: building, log in $peer/build.log" >&2
    # GCC 12 loses AMX tile configurations, so AMX stays off; everything else that
    # the CPU has is on.
    cmake -S "$source" -B "$peer/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
      -DGGML_AMX_TILE=OFF -DGGML_AMX_INT8=OFF -DGGML_AMX_BF16=OFF -DLLAMA_CURL=OFF \
      -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
      -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_TOOLS=OFF >"$peer/build.log" 2>&1
    cmake --build "$peer/build" --target llama >>"$peer/build.log" 2>&1
  fi
  if [ ! "$peer/llama_speed" -nt "$here/llama_speed.cpp" ]; then
    g++ -O2 -std=c++17 "-I$source/include" "-I$source/ggml/include" "$here/llama_speed.cpp" \
      -o "$peer/llama_speed" "-L$peer/build/bin" -lllama -lggml -lggml-base -lggml-cpu \
      "-Wl,-rpath,$peer/build/bin"
  fi
}

# llama TYPE FLASH DEPTH STEPS PROMPT: one record.
llama() {
  "$peer/llama_speed" "$MODEL" "$1" "$2" "$THREADS" "$3" "$4" "$5" >>"$OUT/llama.jsonl"
}

readonly methods=(
  fp16
  "pq:M=32,nbits=8,frame=off,sinks=4,window=128"
  "pq:M=16,nbits=8,frame=off,sinks=4,window=128"
  "pq:M=16,nbits=8,sinks=4,window=128"
  "kivi:bits=4" "kivi:bits=2" q8_0 q4_0
)
readonly types=("f16 0" "f16 1" "q8_0 1" "q4_0 1" "q4_1 1" "q5_0 1")
depths=$(pick "1024,8192" "1024,8192,32768")
steps=$(pick 8 16)
readonly depths steps

build_peer
rm -f "$OUT"/*.jsonl
codecs=()
for method in "${methods[@]}"; do codecs+=(--codec "$method"); done
for ((round = 1; round <= ROUNDS; ++round)); do
  echo "round $round of $ROUNDS" >&2
  # llama.cpp multiplies weights with activations of 8 bits, so ours do here, too.
  run kv-decode bench "$MODEL" "${calibration[@]}" --fill synthetic --depths "$depths" \
    --steps "$steps" --reps 1 --threads "$THREADS" --decode-compute int8 --skip-mass 0 \
    "${codecs[@]}" \
    --json "$OUT/ours-$round.jsonl" >/dev/null
  for depth in ${depths//,/ }; do
    for type in "${types[@]}"; do
      # shellcheck disable=SC2086
      llama $type "$depth" "$steps" 0
    done
  done
done
# A prompt of 512 tokens behind 8192: ours really prefills, theirs deepens a short state.
for ((round = 1; round <= $(pick 1 3); ++round)); do
  run kv-decode bench "$MODEL" --text "$EVAL_TEXT" "${calibration[@]}" --depths 8192,8704 \
    --steps 1 --reps 1 --threads "$THREADS" --codec fp16 --codec "${methods[1]}" \
    --codec "${methods[3]}" --json "$OUT/prefill-$round.jsonl" >/dev/null
  for type in "f16 0" "f16 1" "q8_0 1"; do
    # shellcheck disable=SC2086
    llama $type 8192 0 512
  done
done
# Ours alone: where codes begin to pay, deep contexts, spikes while blocks are encoded, and values
# left out on real text.
readonly four=(--codec fp16 --codec "${methods[1]}" --codec "${methods[2]}" --codec "${methods[3]}")
bench() {
  local name=$1
  shift
  run kv-decode bench "$MODEL" "${calibration[@]}" --threads "$THREADS" --decode-compute int8 \
    "${four[@]}" "$@" --json "$OUT/$name.jsonl" >/dev/null
}
bench crossover --fill synthetic --depths 256,512,1024,2048,4096 --steps 8 --reps "$ROUNDS"
bench spikes --fill synthetic --depths 8192 --steps 256 --reps 1
bench skipped --text "$EVAL_TEXT" --depths "$(pick 8192 8192,32768)" --steps 8 --reps "$ROUNDS"
if [ "$PROFILE" = full ]; then
  bench deep --fill synthetic --depths 131072 --steps 8 --reps "$ROUNDS"
fi
/usr/bin/python3 "$here/table.py" "$OUT" | tee "$OUT/table.md"
