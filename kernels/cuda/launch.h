// SPDX-License-Identifier: Apache-2.0
// How the op table starts a kernel: the only place that differs between the device, the host and
// (MILLION_PTX_LAUNCH, in tests) the interpreter of the compiled PTX.
#pragma once

#include "kernels/cuda/device.h"

namespace million::cuda::MILLION_CUDA_NS {

#ifdef __CUDACC__

template <class Args>
int launch(void (*kernel)(Args), dim3 grid, dim3 block, std::size_t shared, StreamHandle stream,
           const Args& args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return 0;
  if (shared > 48 * 1024) {
    const cudaError_t e = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (e != cudaSuccess) return static_cast<int>(e);
  }
  kernel<<<grid, block, shared, static_cast<cudaStream_t>(stream)>>>(args);
  return static_cast<int>(cudaGetLastError());
}

#else

template <class Args>
int launch(void (*kernel)(Args), dim3 grid, dim3 block, std::size_t shared, StreamHandle stream,
           const Args& args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return 0;
#ifdef MILLION_PTX_LAUNCH
  (void)stream;
  ptx_launch(reinterpret_cast<void*>(kernel), grid, block, shared, &args, sizeof args);
#else
  const auto run = [=] { simt::launch(grid, block, shared, [&] { kernel(args); }); };
  if (stream)
    static_cast<simt::Queue*>(stream)->enqueue(run);
  else
    run();
#endif
  return 0;
}

#endif

}  // namespace million::cuda::MILLION_CUDA_NS
