// SPDX-License-Identifier: Apache-2.0
// What a kernel test needs of a device. The same tests are linked with several harnesses: kernels
// on the host, the same under the race checker, the compiled PTX in the interpreter, and a GPU.
#pragma once

#include "kernels/cuda/device_ops.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace million::cuda::test {

const DeviceOps& ops();
const char* harness_name();  ///< "host", "race", "ptx", "gpu"
/// Large shapes only where kernels run fast enough.
bool harness_is_slow();
/// Exact size, every byte 0xFF (NaN in f16 and f32), so that unwritten memory shows.
void* device_alloc(std::size_t bytes);
void device_free(void* p);
void to_device(void* to, const void* from, std::size_t bytes);
void from_device(void* to, const void* from, std::size_t bytes);  ///< waits for the kernels

/// An array on the device.
template <class T>
class DeviceVector {
 public:
  explicit DeviceVector(std::size_t n) : n_(n), p_(static_cast<T*>(device_alloc(n * sizeof(T)))) {}
  explicit DeviceVector(const std::vector<T>& v) : DeviceVector(v.size()) {
    to_device(p_, v.data(), n_ * sizeof(T));
  }
  ~DeviceVector() { device_free(p_); }
  DeviceVector(const DeviceVector&) = delete;
  DeviceVector& operator=(const DeviceVector&) = delete;
  T* data() { return p_; }
  std::size_t size() const { return n_; }
  std::vector<T> get() const {
    std::vector<T> v(n_);
    from_device(v.data(), p_, n_ * sizeof(T));
    return v;
  }

 private:
  std::size_t n_;
  T* p_;
};

}  // namespace million::cuda::test
