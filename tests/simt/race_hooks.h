// SPDX-License-Identifier: Apache-2.0
// The race checker of kernels/cuda/simt/shadow.h for a test program: kernels compiled with
// -fsanitize=thread, linked without it but with race_hooks.cpp, call its hooks at every access.
// Findings are printed with their source lines; a program that has any at its end exits with 3.
#pragma once

#include <string>

namespace million::simt_test {

/// "file.cu:12 < caller.cu:34" of a return address, where the program has debug information.
std::string source_of(const void* code);

}  // namespace million::simt_test
