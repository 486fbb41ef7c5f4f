// SPDX-License-Identifier: Apache-2.0
// Plain PQ on the device: codes in strips (kernels/cuda/pq_strips.h), codebooks as halves.
#include "kernels/cuda/pq_strips.h"
#include "kernels/half.h"
#include "lib/cache/device_kernel_store.h"

#include <vector>

namespace million {
namespace {

class DevicePqStore final : public DeviceKernelStore {
 public:
  DevicePqStore(const DeviceStorePlan& plan, const CodeStore& store) : DeviceKernelStore(plan) {
    const int d = geometry_.head_dim;
    std::vector<uint32_t> book;
    AlignedVector<float> centroids;
    PqSide side{};
    for (int h = 0; h < geometry_.n_kv_heads; ++h) {
      side = store.pq_side(h, &centroids);
      const int K = 1 << side.nbits, dsub = d / side.M;
      for (int c = 0; c < K; ++c)
        for (int i = 0; i < d; i += 2) {  // channel i is value i % dsub of subspace i / dsub
          const auto value = [&](int channel) -> uint32_t {
            const int m = channel / dsub;
            return float_to_half(
                centroids[(static_cast<size_t>(m) * K + c) * dsub + channel % dsub]);
          };
          book.push_back(value(i) | value(i + 1) << 16);
        }
    }
    book_ = DeviceBuffer<uint32_t>(device_, plan.stream, book);
    const int64_t strips = (plan.capacity + cuda::kStrip - 1) / cuda::kStrip;
    codes_ = DeviceBuffer<uint32_t>(device_, static_cast<size_t>(geometry_.n_kv_heads) * strips *
                                                 cuda::pq_strip_words(side.M, side.nbits));
    view_ = {side.M, side.nbits, codes_.data(), static_cast<int>(strips), book_.data(), true};
  }

  void encode(Stream s, const uint16_t* rows, int ring_rows, int64_t begin, int64_t n) override {
    auto a = encode_args<cuda::PqEncodeArgs>(rows, ring_rows, begin, n);
    a.key = key_;
    a.codes = view_;
    device_->check(device_->ops().pq_encode(s, a), "pq_encode");
  }

  void decode(Stream s, int64_t begin, int64_t n, uint16_t* rows, int64_t capacity) override {
    auto a = decode_args<cuda::PqDecodeArgs>(begin, n, rows, capacity);
    a.key = key_;
    a.codes = view_;
    device_->check(device_->ops().pq_decode(s, a), "pq_decode");
  }

  StoreBytes bytes() const override { return {codes_.bytes(), 0, 0}; }
  const cuda::PqCodesView* pq() const override { return &view_; }

 private:
  DeviceBuffer<uint32_t> book_, codes_;
  cuda::PqCodesView view_{};
};

}  // namespace

std::unique_ptr<DeviceStore> make_device_pq_store(const DeviceStorePlan& plan,
                                                  const CodeStore& store) {
  const PqSide side = store.pq_side(0, nullptr);
  if (side.M == 0 || plan.frame.type != KeyFrame::Type::kPostRope) return nullptr;
  const int d = plan.geometry.head_dim, dsub = d / side.M;
  const bool known = (d == 64 || d == 128) && (dsub == 2 || dsub == 4) && side.nbits <= 8;
  return known ? std::make_unique<DevicePqStore>(plan, store) : nullptr;
}

}  // namespace million
