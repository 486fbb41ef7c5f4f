// SPDX-License-Identifier: Apache-2.0
// Flags of kv-decode's subcommands and what they load.
#pragma once

#include "apps/app_main.h"
#include "lib/eval/method_factory.h"
#include "lib/model/generator.h"
#include "lib/results/run_record.h"

#include <memory>
#include <string>
#include <vector>

namespace million {

struct DecodeFlags {
  std::string command;  ///< generate | chat | bench
  std::string model, prompt, prompt_file, system, text, calib_text, codebooks, csv;
  std::string compute = "f32", decode_compute = "int8x2", fill = "text", backend = "cpu";
  std::string positions = "plain";
  std::vector<std::string> codecs;
  std::string codec_k, codec_v;
  int n_predict = 128, top_k = 0, chunk = 1024, calib_tokens = 10240, calib_context = 2048;
  int steps = 16, repeats = 3, ctx = 0;
  float temperature = 0.0f, top_p = 1.0f, skip_mass = -1.0f;
  std::vector<int> depths = {128, 1024, 4096};
  bool as_chat = false, no_chat_template = false, no_default_system = false, ignore_end = false;
  bool print_ids = false, sync_encode = false;

  void add_to(CLI::App& app);
};

struct DecodeInputs {
  std::shared_ptr<Device> device;  ///< of --backend, held so that it is made once
  std::shared_ptr<const Model> model;
  TokenText calib_text;
  EngineOptions options;
  std::vector<Method> methods;  ///< at least one
  uint64_t seed = 1;

  /// For one method. Error(kUsage) when several were given.
  Generator generator(const DecodeFlags& flags) const;
};

std::unique_ptr<DecodeInputs> load_decode_inputs(const DecodeFlags& flags,
                                                 const AppContext& context);

}  // namespace million
