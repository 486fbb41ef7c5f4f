# SPDX-License-Identifier: Apache-2.0
# What the app-level tests share. MILLION_BIN, MILLION_PYTHON and MILLION_MODEL come from CTest.
# shellcheck shell=bash disable=SC2034

root=$(cd "$BATS_TEST_DIRNAME/../.." && pwd)
bin=${MILLION_BIN:-$root/build/release/apps}
python=${MILLION_PYTHON:-/usr/bin/python3}
model=${MILLION_MODEL:-$root/data/models/SmolLM2-135M-Instruct.Q4_1.gguf}
export PYTHONDONTWRITEBYTECODE=1 OMP_WAIT_POLICY=passive

# Two texts of a few hundred tokens; every test works in a folder of its own.
common_setup() {
  [ -f "$model" ] || skip "no model at $model (data/fetch.sh brings it)"
  cd "$BATS_TEST_TMPDIR" || return 1
  local i
  for i in $(seq 60); do
    echo "Package number $i is installed by the administrator, who then reads its manual page."
  done >eval.txt
  for i in $(seq 200); do
    echo "In line $i the server of department $((i * 7 % 11)) answers $((i * i)) requests a day."
  done >calib.txt
}

# small PROGRAM ARGS...: one window of 128 tokens, quiet.
small() {
  local program=$1
  shift
  "$bin/$program" "$model" --text eval.txt --context 128 --windows 1 --no-distortion -q "$@"
}

# field FILE PYTHON_EXPRESSION: evaluates the expression with `rows`, the records of a JSONL file.
field() {
  "$python" -c 'import json, sys
rows = [json.loads(line) for line in open(sys.argv[1]) if line.strip()]
print(eval(sys.argv[2]))' "$1" "$2"
}

# fails_with CODE PATTERN COMMAND...: exit code, and one error line that matches.
fails_with() {
  local code=$1 pattern=$2
  shift 2
  run --separate-stderr "$@"
  # shellcheck disable=SC2154
  if [ "$status" != "$code" ] || ! grep -qiE -- "$pattern" <<<"$stderr" ||
    [ "$(grep -c . <<<"$stderr")" -gt 2 ]; then
    echo "expected exit $code and one line with /$pattern/, got exit $status and: $stderr"
    return 1
  fi
}
