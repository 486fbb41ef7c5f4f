// SPDX-License-Identifier: Apache-2.0
// Attention of single queries on a device: which kernels run for a method's codes, and their
// parts. All launches of a step are the same whatever the length of the sequence, so that a step
// can be captured and replayed.
#pragma once

#include "lib/cache/device_store.h"

#include <cstdint>
#include <memory>

namespace million {

class DeviceAttention {
 public:
  enum class Mode {
    kExact,    ///< halves only
    kPq,       ///< plain PQ codes by the tensor-core kernel, exact rows beside
    kCoded,    ///< codes in a basis, exact rows beside
    kGroups,   ///< scalar codes and exact rows in one kernel
    kDecoded,  ///< codes that no kernel reads: decoded rows, exact rows beside
  };
  /// What a layer has. Views of the state: the whole sequence; exact rows beside decoded ones; the
  /// decoded rows alone.
  struct LayerView {
    cuda::ExactRows k, v;
    const DeviceStore *k_store = nullptr, *v_store = nullptr;
    uint16_t *decoded_k = nullptr, *decoded_v = nullptr;
    int decoded_rows = 0;
    const cuda::SequenceState *whole = nullptr, *beside_decoded = nullptr, *decoded = nullptr;
  };

  /// Stores of any layer (all have the same shape); nullptr: nothing is coded. `capacity` tokens at
  /// most, of which a step meets `exact_tokens` exact ones.
  DeviceAttention(std::shared_ptr<Device> device, const KvGeometry& geometry,
                  const DeviceStore* k_store, const DeviceStore* v_store, int64_t capacity,
                  int64_t exact_tokens);

  Mode mode() const { return mode_; }
  float scale_log2() const;
  /// out [n_heads][d] of one query q [n_heads][d], halves.
  void attend_one(Device::Stream s, const LayerView& layer, const uint16_t* q, uint16_t* out);

 private:
  Mode choose(const DeviceStore* k, const DeviceStore* v) const;
  cuda::QueryArgs query(const uint16_t* q, const cuda::SequenceState* state, int n_splits,
                        int first) const;
  void plan_pq(const cuda::PqAttendArgs& args);
  void plan_coded(const DeviceCoded& k, int64_t capacity);
  cuda::PqAttendArgs pq_args(const DeviceStore& k, const DeviceStore& v) const;
  void attend_rows(Device::Stream s, const LayerView& layer, const cuda::QueryArgs& query,
                   bool codes) const;
  void attend_codes(Device::Stream s, const LayerView& layer, const uint16_t* q) const;
  void attend_coded(Device::Stream s, const LayerView& layer, const uint16_t* q) const;

  std::shared_ptr<Device> device_;
  const KvGeometry& geometry_;
  Mode mode_ = Mode::kExact;
  DeviceStream beside_;  ///< exact rows, while codes are read on the caller's stream
  DeviceEvent forked_, joined_;
  int coded_splits_ = 0, exact_splits_ = 0;
  int coded_parts_ = 0;             ///< those that coded tokens have in rows_
  DeviceBuffer<float> rows_, lse_;  ///< parts: coded ones, then exact ones
  bool two_pass_ = false;           ///< kPq: a block cannot hold both codebooks
  DeviceBuffer<uint8_t> scratch_;
  /// kCoded: queries of all frames; parts in the codes' coordinates, and their sums.
  cuda::TurnedQueries turned_{};
  DeviceBuffer<uint32_t> turned_words_;
  DeviceBuffer<float> turned_step_, coded_rows_, coded_lse_, sums_, sums_lse_;
  DeviceBuffer<int32_t> turned_bias_;
};

}  // namespace million
