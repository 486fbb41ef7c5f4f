#!/usr/bin/env bats
# SPDX-License-Identifier: Apache-2.0
# What may stand for a model on a command line, and what is said when it is none.
bats_require_minimum_version 1.5.0
load common

setup() {
  common_setup
  unset HF_HUB_CACHE HF_HOME
  export HOME=$PWD
}

bench() {
  "$bin/kv-decode" bench "$@" --fill synthetic --depths 300 --steps 2 --reps 1 --codec fp16 -q \
    --json -
}

@test "a stand-in of a published shape is timed and says that it is random" {
  bench random:smollm2-135m,layers=2 >rows.jsonl
  [ "$(field rows.jsonl 'rows[0]["inputs"]["model"]')" = "random smollm2-135m of 2 layers" ]
  [ "$(field rows.jsonl 'rows[0]["metrics"]["tpot_ms"]["value"] > 0')" = True ]
  fails_with 2 'unknown shape, known: llama-2-7b' bench random:llama-9
  fails_with 4 'GiB are available; use' bench random:llama-2-13b,layers=4096,type=f16
}

@test "folders and cache names that are no models are named" {
  mkdir empty weights
  echo x >weights/model.safetensors
  fails_with 3 'empty has no config.json' bench empty
  fails_with 3 'weights alone are no model' bench weights/model.safetensors
  echo '{"architectures": ["FooForCausalLM"]}' >weights/config.json
  fails_with 3 'FooForCausalLM is not supported, known: LlamaForCausalLM' bench weights
  fails_with 3 'models--org--name, by HOME' bench org/name
  HF_HOME=$PWD/hf fails_with 3 'hf/hub/models--org--name, by HF_HOME' bench org/name
}
