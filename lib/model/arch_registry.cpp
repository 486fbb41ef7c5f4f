// SPDX-License-Identifier: Apache-2.0
#include "lib/model/arch_registry.h"

#include "lib/core/error.h"
#include "lib/core/printable.h"
#include "lib/model/gguf.h"
#include "lib/model/hf_config.h"

namespace million {
namespace {

constexpr Architecture kArchitectures[] = {
    {"llama", "LlamaForCausalLM", load_llama},
    {"mistral", "MistralForCausalLM", load_mistral},
    {"qwen2", "Qwen2ForCausalLM", load_qwen2},
};

const Architecture& find_by(std::string_view Architecture::*key, std::string_view name,
                            const std::string& file) {
  std::string known;
  for (const Architecture& a : kArchitectures) {
    if (a.*key == name) return a;
    known += (known.empty() ? "" : ", ") + std::string(a.*key);
  }
  fail(ErrorCode::kBadInput, "{}: architecture {} is not supported, known: {}", file,
       printable(name), known);
}

}  // namespace

std::span<const Architecture> architectures() { return kArchitectures; }

const Architecture& find_architecture(const GgufFile& file) {
  return find_by(&Architecture::name, file.get_string("general.architecture"), file.name());
}

const Architecture& find_architecture(const HfConfig& config) {
  const std::string name = config.architecture();
  return name.empty() ? find_by(&Architecture::name, config.get_string("model_type"), config.name())
                      : find_by(&Architecture::hf_name, name, config.name());
}

}  // namespace million
