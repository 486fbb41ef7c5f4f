// SPDX-License-Identifier: Apache-2.0
// The whole runtime as one file, for programs built by hand.
#include "kernels/cuda/simt/collectives.cpp"
#include "kernels/cuda/simt/fiber.cpp"
#include "kernels/cuda/simt/scheduler.cpp"
#include "kernels/cuda/simt/shadow.cpp"
