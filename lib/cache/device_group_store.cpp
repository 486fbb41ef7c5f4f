// SPDX-License-Identifier: Apache-2.0
// Scalar codes in groups on the device (kernels/cuda/groups.cu), bit-equal to those of the CPU.
#include "lib/cache/device_kernel_store.h"

namespace million {
namespace {

class DeviceGroupStore final : public DeviceKernelStore {
 public:
  DeviceGroupStore(const DeviceStorePlan& plan, const GroupSide& side) : DeviceKernelStore(plan) {
    const bool channels = side.layout == GroupSide::Layout::kChannels;
    const int64_t step = channels ? side.group : 16, d = geometry_.head_dim;
    const int64_t capacity = (plan.capacity + step - 1) / step * step;
    const int64_t values = geometry_.n_kv_heads * capacity * d;
    const int64_t n_groups = values / side.group;
    codes_ = DeviceBuffer<uint8_t>(device_, static_cast<size_t>(values * side.bits / 8));
    scales_ = DeviceBuffer<uint16_t>(device_, static_cast<size_t>(n_groups * (side.zeros ? 2 : 1)));
    view_.layout =
        channels ? cuda::GroupCodesView::Layout::kChannels : cuda::GroupCodesView::Layout::kTokens;
    view_.bits = side.bits, view_.group = side.group, view_.offset = side.offset;
    view_.zeros = side.zeros;
    view_.capacity = static_cast<int>(capacity);
    view_.codes = codes_.data(), view_.scales = scales_.data();
  }

  void encode(Stream s, const uint16_t* rows, int ring_rows, int64_t begin, int64_t n) override {
    auto a = encode_args<cuda::GroupEncodeArgs>(rows, ring_rows, begin, n);
    a.symmetric = !view_.zeros;
    a.codes = view_;
    device_->check(device_->ops().group_encode(s, a), "group_encode");
  }

  void decode(Stream s, int64_t begin, int64_t n, uint16_t* rows, int64_t capacity) override {
    auto a = decode_args<cuda::GroupDecodeArgs>(begin, n, rows, capacity);
    a.codes = view_;
    device_->check(device_->ops().group_decode(s, a), "group_decode");
  }

  StoreBytes bytes() const override { return {codes_.bytes(), scales_.bytes(), 0}; }
  const cuda::GroupCodesView* groups() const override { return &view_; }

 private:
  DeviceBuffer<uint8_t> codes_;
  DeviceBuffer<uint16_t> scales_;
  cuda::GroupCodesView view_{};
};

}  // namespace

std::unique_ptr<DeviceStore> make_device_group_store(const DeviceStorePlan& plan,
                                                     const CodeStore& store) {
  const GroupSide side = store.group_shape();
  const bool bits = side.bits == 2 || side.bits == 4 || side.bits == 8;
  const bool group = side.group > 0 && side.group % 16 == 0;
  if (!bits || !group || store.group_rotation() != 0) return nullptr;
  if (plan.frame.type != KeyFrame::Type::kPostRope) return nullptr;
  return std::make_unique<DeviceGroupStore>(plan, side);
}

}  // namespace million
