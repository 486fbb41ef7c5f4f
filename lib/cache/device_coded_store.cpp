// SPDX-License-Identifier: Apache-2.0
// Codes in a basis that KV heads share, on the device (kernels/cuda/coded_layout.h).
#include "kernels/cuda/attention_coded.h"
#include "lib/cache/device_kernel_store.h"

#include <cstring>
#include <vector>

namespace million {
namespace {

class DeviceCodedStore final : public DeviceKernelStore {
 public:
  DeviceCodedStore(const DeviceStorePlan& plan, const CodeStore& store)
      : DeviceKernelStore(plan), units_(store.coded_units()) {
    const CodedUnit first = store.coded_unit(0);
    view_.codes.M = first.side.M, view_.codes.nbits = first.side.nbits;
    cuda::CodedShape& shape = view_.shape;
    shape.span = first.span, shape.rank = first.rank;
    shape.frame = plan.frame.type == KeyFrame::Type::kBlock ? plan.frame.block : kAnyFrame;
    shape.n_places = first.n_places;
    shape.cosines = plan.rope.cosines.data(), shape.sines = plan.rope.sines.data();
    shape.n_pairs = plan.rope.n_pairs, shape.adjacent = plan.rope.adjacent;
    upload_tables(plan, store);
    const int64_t strips = cuda::coded_strips(n_sinks_, static_cast<int>(plan.capacity));
    codes_ = DeviceBuffer<uint32_t>(
        device_, static_cast<size_t>(units_ * strips) * cuda::coded_strip_words(first.side.M));
    view_.codes.codes = codes_.data(), view_.codes.strips = static_cast<int>(strips);
  }

  void encode(Stream s, const uint16_t* rows, int ring_rows, int64_t begin, int64_t n) override {
    auto a = encode_args<cuda::CodedEncodeArgs>(rows, ring_rows, begin, n);
    a.key = key_;
    a.shape = view_.shape, a.codes = view_.codes;
    a.encode = encode_.data(), a.encode_scale = encode_scale_.data();
    a.coded_mean = coded_mean_.data();
    device_->check(device_->ops().coded_encode(s, a), "coded_encode");
  }

  void decode(Stream s, int64_t begin, int64_t n, uint16_t* rows, int64_t capacity) override {
    auto a = decode_args<cuda::CodedDecodeArgs>(begin, n, rows, capacity);
    a.key = key_;
    a.n_sinks = n_sinks_;
    a.shape = view_.shape, a.codes = view_.codes;
    a.coded_mean = coded_mean_.data();
    device_->check(device_->ops().coded_decode(s, a), "coded_decode");
  }

  StoreBytes bytes() const override { return {codes_.bytes(), 0, 0}; }
  const DeviceCoded* coded() const override { return &view_; }

 private:
  static constexpr int kAnyFrame = 64;  ///< values have none

  template <class T>
  static void append(std::vector<T>& to, const T* from, size_t n) {
    if (from) to.insert(to.end(), from, from + n);
  }

  /// Tables of all units, one behind the other.
  void upload_tables(const DeviceStorePlan& plan, const CodeStore& store) {
    const cuda::CodedShape& shape = view_.shape;
    const size_t rank = shape.rank, width = static_cast<size_t>(shape.span) * geometry_.head_dim;
    const size_t K = size_t{1} << view_.codes.nbits, n_places = shape.n_places;
    std::vector<int8_t> book, basis, encode;
    std::vector<float> scale, basis_scale, encode_scale, places, mean;
    std::vector<uint16_t> coded_mean;
    for (int u = 0; u < units_; ++u) {
      const CodedUnit unit = store.coded_unit(u);
      for (size_t c = 0; c < K; ++c)
        for (size_t j = 0; j < rank; ++j) book.push_back(unit.side.tables[j * K + c]);
      append(scale, unit.side.scale, rank);
      append(basis, unit.basis, width * rank);
      append(basis_scale, unit.basis_scale, rank);
      append(encode, unit.encode, width * rank);
      append(encode_scale, unit.encode_scale, rank);
      append(places, unit.places, n_places * shape.frame);
      append(mean, unit.mean, width * n_places);
      append(coded_mean, unit.coded_mean, static_cast<size_t>(shape.frame) * rank);
    }
    const auto up = [&](auto& buffer, const auto& values) {
      buffer = std::decay_t<decltype(buffer)>(device_, plan.stream, values);
    };
    up(book_, book), up(basis_, basis), up(encode_, encode);
    up(scale_, scale), up(basis_scale_, basis_scale), up(encode_scale_, encode_scale);
    up(places_, places), up(mean_, mean), up(coded_mean_, coded_mean);
    view_.codes.book = book_.data(), view_.codes.scale = scale_.data();
    view_.codes.basis = basis_.data(), view_.codes.basis_scale = basis_scale_.data();
    view_.shape.places = places_.data(), view_.shape.mean = mean_.data();
  }

  int units_;
  DeviceBuffer<int8_t> book_, basis_, encode_;
  DeviceBuffer<float> scale_, basis_scale_, encode_scale_, places_, mean_;
  DeviceBuffer<uint16_t> coded_mean_;
  DeviceBuffer<uint32_t> codes_;
  DeviceCoded view_{};
};

}  // namespace

std::unique_ptr<DeviceStore> make_device_coded_store(const DeviceStorePlan& plan,
                                                     const CodeStore& store) {
  if (store.coded_units() == 0) return nullptr;
  const bool key = plan.kind == KvKind::kKey;
  if (key != (plan.frame.type == KeyFrame::Type::kBlock)) return nullptr;
  const CodedUnit unit = store.coded_unit(0);
  if (unit.side.M == 0 || unit.rank / unit.side.M != 4) return nullptr;
  cuda::CodedShape shape{};
  shape.span = unit.span, shape.rank = unit.rank;
  shape.frame = key ? plan.frame.block : cuda::kCodedStrip;
  cuda::CodedCodesView codes{};
  codes.M = unit.side.M, codes.nbits = unit.side.nbits;
  if (!cuda::coded_fits(shape, codes, codes, plan.geometry.head_dim)) return nullptr;
  return std::make_unique<DeviceCodedStore>(plan, store);
}

}  // namespace million
