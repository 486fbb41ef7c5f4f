// SPDX-License-Identifier: Apache-2.0
// Codes of one layer and kind on a device. Methods whose codes the device's kernels do not know
// are coded by their CodeStore on the host; their decoded rows lie on the device.
#pragma once

#include "lib/cache/method.h"
#include "lib/device/device.h"

#include <cstdint>
#include <memory>

namespace million {

/// Cosines and sines of positions [0, capacity) on a device, magnitude not included.
struct DeviceRope {
  DeviceRope(const std::shared_ptr<Device>& device, Device::Stream s, const Rope& rope,
             int64_t capacity);
  DeviceBuffer<float> cosines, sines;  ///< [capacity][n_pairs]
  int n_pairs = 0;
  bool adjacent = true;
};

/// The device's view of codes in a basis (kernels/cuda/attention_coded.cu).
struct DeviceCoded {
  cuda::CodedShape shape;
  cuda::CodedCodesView codes;
};

class DeviceStore {
 public:
  using Stream = Device::Stream;

  virtual ~DeviceStore() = default;
  /// Codes tokens behind the sinks [begin, begin + n) from exact halves after RoPE: token t of the
  /// sequence lies at row t % ring_rows of `rows` [n_kv_heads][ring_rows][d].
  virtual void encode(Stream s, const uint16_t* rows, int ring_rows, int64_t begin, int64_t n) = 0;
  /// Halves after RoPE of tokens behind the sinks [begin, begin + n) to the same rows of `rows`
  /// [n_kv_heads][capacity][d].
  virtual void decode(Stream s, int64_t begin, int64_t n, uint16_t* rows, int64_t capacity) = 0;
  virtual StoreBytes bytes() const = 0;
  virtual void clear() {}
  /// True when codes and their tables lie on the host.
  virtual bool on_host() const { return false; }
  /// How kernels read the codes; nullptr: they do not.
  virtual const cuda::PqCodesView* pq() const { return nullptr; }
  virtual const cuda::GroupCodesView* groups() const { return nullptr; }
  virtual const DeviceCoded* coded() const { return nullptr; }
};

/// What a store is made for: one kind of a layer, up to `capacity` tokens behind `n_sinks` sinks.
/// The geometry and `rope` must outlive the store.
struct DeviceStorePlan {
  std::shared_ptr<Device> device;
  Device::Stream stream;
  const KvGeometry& geometry;
  const DeviceRope& rope;
  KvKind kind;
  KeyFrame frame;  ///< values: after RoPE
  int n_sinks;
  int64_t capacity;
};

/// The store of a layer: on the device where its kernels know the codes, else on the host.
std::unique_ptr<DeviceStore> make_device_store(const DeviceStorePlan& plan, const Codec& codec,
                                               int layer);
/// The kinds of make_device_store; nullptr where the codes are of another kind.
std::unique_ptr<DeviceStore> make_device_pq_store(const DeviceStorePlan& plan,
                                                  const CodeStore& store);
std::unique_ptr<DeviceStore> make_device_coded_store(const DeviceStorePlan& plan,
                                                     const CodeStore& store);
std::unique_ptr<DeviceStore> make_device_group_store(const DeviceStorePlan& plan,
                                                     const CodeStore& store);

}  // namespace million
