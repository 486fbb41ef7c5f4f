// SPDX-License-Identifier: Apache-2.0
// Puts the table together: each kernel file adds its own functions.
#include "kernels/cuda/launch.h"

namespace million::cuda {
namespace MILLION_CUDA_NS {

void add_elementwise(DeviceOps& ops);
void add_rows_attention(DeviceOps& ops);
void add_prefill(DeviceOps& ops);
void add_pq(DeviceOps& ops);
void add_pq_attention(DeviceOps& ops);
void add_coded(DeviceOps& ops);
void add_groups(DeviceOps& ops);

namespace {

DeviceOps make_table(const char* name) {
  DeviceOps ops{};
  ops.name = name;
  add_elementwise(ops);
  add_rows_attention(ops);
  add_prefill(ops);
  add_pq(ops);
  add_pq_attention(ops);
  add_coded(ops);
  add_groups(ops);
  return ops;
}

}  // namespace
}  // namespace MILLION_CUDA_NS

#ifdef __CUDACC__
const DeviceOps& native_ops() {
  static const DeviceOps ops = native::make_table("native");
  return ops;
}
#else
const DeviceOps& emulated_ops() {
  static const DeviceOps ops = MILLION_CUDA_NS::make_table("emulated");
  return ops;
}
#endif

}  // namespace million::cuda
