# SPDX-License-Identifier: Apache-2.0
# What every program promises: help, version, one error line and the right exit code.
bats_require_minimum_version 1.5.0
load common

setup() { common_setup; }
programs=(kv-dump kv-analyze pq-sweep kv-decode kv-eval)

@test "--help has usage, exit codes and examples; --version names commit or version" {
  for program in "${programs[@]}"; do
    run "$bin/$program" --help
    [ "$status" = 0 ]
    [[ "$output" == *"Usage:"* && "$output" == *"Examples:"* && "$output" == *"Exit codes:"* ]]
    run "$bin/$program" --version
    [ "$status" = 0 ]
    [[ "$output" == *"0.1"* ]]
  done
}

@test "an unknown flag is wrong use" {
  for program in "${programs[@]}"; do
    fails_with 2 'no-such-flag|required|--help' "$bin/$program" --no-such-flag
  done
}

@test "a missing model is bad input and names the file" {
  fails_with 3 'none.gguf' "$bin/kv-eval" none.gguf --text eval.txt
  fails_with 3 'none.gguf' "$bin/kv-dump" none.gguf --text eval.txt --out d.h5
  fails_with 3 'none.gguf' "$bin/pq-sweep" none.gguf --text eval.txt --codec fp16 --out s.jsonl
  fails_with 3 'none.gguf' "$bin/kv-decode" generate none.gguf --prompt x
}

@test "a model cut at any sixteenth is bad input, never a crash" {
  size=$(stat -c %s "$model")
  for part in $(seq 0 15); do
    head -c $((size * part / 16)) "$model" >cut.gguf
    fails_with 3 'cut.gguf' "$bin/kv-eval" cut.gguf --text eval.txt
  done
}

@test "a file that is no model is bad input" {
  fails_with 3 'eval.txt' "$bin/kv-eval" eval.txt --text eval.txt
}

@test "a missing or empty text is bad input" {
  : >empty.txt
  fails_with 3 'none.txt' "$bin/kv-eval" "$model" --text none.txt
  fails_with 3 'empty.txt' "$bin/kv-eval" "$model" --text empty.txt
}

@test "a text shorter than one window is bad input and names both lengths" {
  fails_with 3 '100000' "$bin/kv-eval" "$model" --text eval.txt --context 100000
}

@test "unknown methods, keys and impossible M are wrong use" {
  fails_with 2 'fp16' small kv-eval --codec fp17
  fails_with 2 'nbits' small kv-eval --codec pq:bits=8 --calib-text calib.txt
  fails_with 2 'M' small kv-eval --codec pq:M=7,nbits=8 --calib-text calib.txt
  fails_with 2 'nbits' small kv-eval --codec pq:M=16,nbits=13 --calib-text calib.txt
}

@test "calibration text equal to the evaluation text is refused unless asked for" {
  cp eval.txt copy.txt
  run --separate-stderr small kv-eval --codec uniform:bits=4,axis=channel,group=0 \
    --calib-text copy.txt
  [[ "$status" = 2 || "$status" = 3 ]]
  run small kv-eval --codec pq:M=16,nbits=4,frame=off --calib-text copy.txt --paper-protocol \
    --calib-tokens 256 --json rows.jsonl
  [ "$status" = 0 ]
  [ "$(field rows.jsonl 'rows[0]["config"]["paper_protocol"]')" = True ]
}

@test "a trained method without calibration text is wrong use" {
  fails_with 2 'calib' small kv-eval --codec pq:M=16,nbits=4
}

@test "a full disk is exit 4" {
  [ -e /dev/full ] || skip "no /dev/full"
  fails_with 4 '/dev/full|space' small kv-eval --csv /dev/full
}
