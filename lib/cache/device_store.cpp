// SPDX-License-Identifier: Apache-2.0
#include "lib/cache/device_store.h"

#include "kernels/ops.h"
#include "lib/core/parallel.h"

#include <algorithm>
#include <vector>

namespace million {
namespace {

/// Tokens that go between host and device at once.
constexpr int64_t kPieceTokens = 512;

/// A method's own CodeStore; rows travel.
class HostStore final : public DeviceStore {
 public:
  HostStore(const DeviceStorePlan& plan, std::unique_ptr<CodeStore> store)
      : device_(plan.device),
        geometry_(plan.geometry),
        frame_(plan.frame),
        store_(std::move(store)),
        n_sinks_(plan.n_sinks) {}

  void encode(Stream s, const uint16_t* rows, int ring_rows, int64_t begin, int64_t n) override {
    const int64_t d = geometry_.head_dim, heads = geometry_.n_kv_heads;
    std::vector<uint16_t> halves(static_cast<size_t>(n) * d);
    AlignedVector<float> row(halves.size()), x(static_cast<size_t>(n) * geometry_.row());
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t done = 0; done < n;) {
        const int64_t at = (n_sinks_ + begin + done) & (ring_rows - 1);
        const int64_t run = std::min(n - done, ring_rows - at);
        device_->copy_out(s, halves.data() + done * d, rows + (h * ring_rows + at) * d,
                          static_cast<size_t>(run * d) * sizeof(uint16_t));
        done += run;
      }
      ops().f16_to_f32(halves.data(), row.data(), row.size());
      for (int64_t t = 0; t < n; ++t)
        std::copy_n(row.data() + t * d, d, x.data() + (t * heads + h) * d);
    }
    if (frame_.type != KeyFrame::Type::kPostRope)
      parallel_for(n, [&](int64_t t) {
        const int64_t position = n_sinks_ + begin + t;
        geometry_.rope.move(x.data() + t * geometry_.row(), geometry_.n_kv_heads,
                            geometry_.head_dim, frame_.position(position) - position);
      });
    store_->append(x.data(), static_cast<int>(n), n_sinks_ + begin);
  }

  void decode(Stream s, int64_t begin, int64_t n, uint16_t* rows, int64_t capacity) override {
    const int64_t d = geometry_.head_dim, heads = geometry_.n_kv_heads;
    for (int64_t end = begin + n; begin < end; begin += kPieceTokens) {
      const int64_t count = std::min(kPieceTokens, end - begin);
      std::vector<uint16_t> halves(static_cast<size_t>(heads * count * d));
      parallel_for(heads, [&](int64_t h) {
        AlignedVector<float> x(static_cast<size_t>(count) * d);
        store_->decode(static_cast<int>(h), static_cast<int>(begin),
                       static_cast<int>(begin + count), x.data());
        for (int64_t t = 0; frame_.type != KeyFrame::Type::kPostRope && t < count; ++t) {
          const int64_t position = n_sinks_ + begin + t;
          geometry_.rope.move(x.data() + t * d, 1, geometry_.head_dim,
                              position - frame_.position(position));
        }
        ops().f32_to_f16(x.data(), halves.data() + h * count * d, x.size());
      });
      for (int64_t h = 0; h < heads; ++h)
        device_->copy_in(s, rows + (h * capacity + begin) * d, halves.data() + h * count * d,
                         static_cast<size_t>(count * d) * sizeof(uint16_t));
    }
  }

  StoreBytes bytes() const override { return store_->bytes(); }
  void clear() override { store_->clear(); }
  bool on_host() const override { return true; }

 private:
  std::shared_ptr<Device> device_;
  const KvGeometry& geometry_;
  KeyFrame frame_;
  std::unique_ptr<CodeStore> store_;
  int64_t n_sinks_;
};

}  // namespace

DeviceRope::DeviceRope(const std::shared_ptr<Device>& device, Device::Stream s, const Rope& rope,
                       int64_t capacity) {
  RopeTable table(rope);
  table.ensure(capacity);
  n_pairs = table.n_pairs();
  adjacent = table.adjacent();
  const size_t n = static_cast<size_t>(capacity) * n_pairs;
  cosines = DeviceBuffer<float>(device, n);
  sines = DeviceBuffer<float>(device, n);
  device->copy_in(s, cosines.data(), table.cosines(0), n * sizeof(float));
  device->copy_in(s, sines.data(), table.sines(0), n * sizeof(float));
}

std::unique_ptr<DeviceStore> make_device_store(const DeviceStorePlan& plan, const Codec& codec,
                                               int layer) {
  std::unique_ptr<CodeStore> host = codec.make_store(layer);
  if (!codec.rewrites_codes())
    for (const auto make : {make_device_pq_store, make_device_coded_store, make_device_group_store})
      if (auto store = make(plan, *host)) return store;
  return std::make_unique<HostStore>(plan, std::move(host));
}

}  // namespace million
