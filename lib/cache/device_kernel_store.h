// SPDX-License-Identifier: Apache-2.0
// What the stores have in common whose codes are made and read by kernels.
#pragma once

#include "lib/cache/device_store.h"

#include <cstdint>
#include <memory>

namespace million {

class DeviceKernelStore : public DeviceStore {
 protected:
  explicit DeviceKernelStore(const DeviceStorePlan& plan)
      : device_(plan.device),
        geometry_(plan.geometry),
        key_(plan.kind == KvKind::kKey),
        n_sinks_(plan.n_sinks) {}

  /// Arguments of an encoder (PqEncodeArgs, ...) for the rows of DeviceStore::encode.
  template <class Args>
  Args encode_args(const uint16_t* rows, int ring_rows, int64_t begin, int64_t n) const {
    Args a{};
    a.batch = 1, a.n_kv_heads = geometry_.n_kv_heads, a.head_dim = geometry_.head_dim;
    a.ring = rows, a.ring_rows = ring_rows;
    a.n_sinks = n_sinks_, a.begin = static_cast<int>(begin), a.n = static_cast<int>(n);
    return a;
  }
  /// Arguments of a decoder for the rows of DeviceStore::decode.
  template <class Args>
  Args decode_args(int64_t begin, int64_t n, uint16_t* rows, int64_t capacity) const {
    Args a{};
    a.to = {1,
            geometry_.n_kv_heads,
            geometry_.head_dim,
            static_cast<int>(begin),
            static_cast<int>(n),
            rows,
            static_cast<int>(capacity)};
    return a;
  }

  std::shared_ptr<Device> device_;
  const KvGeometry& geometry_;
  bool key_;
  int n_sinks_;
};

}  // namespace million
