// SPDX-License-Identifier: Apache-2.0
#include "lib/cache/device_attention.h"

#include "kernels/cuda/attention_coded.h"
#include "kernels/cuda/attention_pq.h"
#include "lib/core/error.h"

#include <algorithm>
#include <cmath>

namespace million {
namespace {

/// Tokens that are worth a part of their own.
constexpr int64_t kPartTokens = 256;

/// Parts that give every multiprocessor a block, as long as there are tokens for them.
int splits_for(const DeviceInfo& info, int blocks_each, int64_t tokens) {
  const int64_t wanted = (info.n_multiprocessors + blocks_each - 1) / std::max(1, blocks_each);
  return static_cast<int>(std::clamp<int64_t>((tokens + kPartTokens - 1) / kPartTokens, 1,
                                              std::max<int64_t>(1, wanted)));
}

}  // namespace

DeviceAttention::DeviceAttention(std::shared_ptr<Device> device, const KvGeometry& geometry,
                                 const DeviceStore* k_store, const DeviceStore* v_store,
                                 int64_t capacity, int64_t exact_tokens)
    : device_(std::move(device)),
      geometry_(geometry),
      beside_(device_),
      forked_(device_),
      joined_(device_) {
  mode_ = choose(k_store, v_store);
  const DeviceInfo& info = device_->info();
  const int heads = geometry.n_kv_heads;
  const bool beside = mode_ != Mode::kExact && mode_ != Mode::kGroups;
  coded_splits_ = beside ? splits_for(info, heads, capacity) : 0;
  exact_splits_ = splits_for(info, heads, beside ? exact_tokens : capacity);
  coded_parts_ = mode_ == Mode::kCoded ? 1 : coded_splits_;
  const auto parts = static_cast<size_t>(geometry.n_heads) * (coded_parts_ + exact_splits_);
  rows_ = DeviceBuffer<float>(device_, parts * geometry.head_dim);
  lse_ = DeviceBuffer<float>(device_, parts);
  if (mode_ == Mode::kPq) plan_pq(pq_args(*k_store, *v_store));
  if (mode_ == Mode::kCoded) plan_coded(*k_store->coded(), capacity);
}

/// Shapes of plain PQ, without what changes from layer to layer.
cuda::PqAttendArgs DeviceAttention::pq_args(const DeviceStore& k, const DeviceStore& v) const {
  cuda::PqAttendArgs a{};
  a.query = query(nullptr, nullptr, coded_splits_, 0);
  a.k = *k.pq(), a.v = *v.pq();
  a.two_pass = two_pass_;
  a.scratch = scratch_.data();
  return a;
}

void DeviceAttention::plan_pq(const cuda::PqAttendArgs& args) {
  cuda::PqAttendArgs a = args;
  two_pass_ =
      !cuda::pq_has_kernel(a) || cuda::pq_shared_bytes(a) > device_->info().shared_per_block;
  a.two_pass = two_pass_;
  if (two_pass_) scratch_ = DeviceBuffer<uint8_t>(device_, cuda::pq_scratch_bytes(a));
}

void DeviceAttention::plan_coded(const DeviceCoded& k, int64_t capacity) {
  const auto heads = static_cast<size_t>(geometry_.n_heads),
             frame = static_cast<size_t>(k.shape.frame);
  const size_t frames = static_cast<size_t>(capacity) / frame + 2;
  const size_t rank = k.shape.rank, parts = heads * coded_splits_;
  turned_words_ = DeviceBuffer<uint32_t>(device_, heads * frames * k.codes.M * 2);
  turned_step_ = DeviceBuffer<float>(device_, heads * frames);
  turned_bias_ = DeviceBuffer<int32_t>(device_, k.shape.n_places > 0 ? heads * frames * frame : 0);
  turned_ = {turned_words_.data(), turned_step_.data(), turned_bias_.data(),
             static_cast<int>(frames)};
  coded_rows_ = DeviceBuffer<float>(device_, parts * rank);
  coded_lse_ = DeviceBuffer<float>(device_, parts);
  sums_ = DeviceBuffer<float>(device_, heads * rank);
  sums_lse_ = DeviceBuffer<float>(device_, heads);
}

DeviceAttention::Mode DeviceAttention::choose(const DeviceStore* k, const DeviceStore* v) const {
  if (!k || !v) return Mode::kExact;
  if (k->pq() && v->pq()) {
    cuda::PqAttendArgs a = pq_args(*k, *v);
    for (const bool two : {false, true}) {
      a.two_pass = two;
      if (cuda::pq_has_kernel(a) && cuda::pq_shared_bytes(a) <= device_->info().shared_per_block)
        return Mode::kPq;
    }
  }
  if (k->coded() && v->coded()) {
    const DeviceCoded &ck = *k->coded(), &cv = *v->coded();
    const bool alike = ck.shape.span == cv.shape.span && ck.shape.rank == cv.shape.rank;
    if (alike && cuda::coded_fits(ck.shape, ck.codes, cv.codes, geometry_.head_dim))
      return Mode::kCoded;
  }
  if (k->groups() && v->groups()) return Mode::kGroups;
  return Mode::kDecoded;
}

float DeviceAttention::scale_log2() const {
  return 1.4426950408889634f / std::sqrt(static_cast<float>(geometry_.head_dim));
}

cuda::QueryArgs DeviceAttention::query(const uint16_t* q, const cuda::SequenceState* state,
                                       int n_splits, int first) const {
  return {1,
          geometry_.n_heads,
          geometry_.n_kv_heads,
          geometry_.head_dim,
          q,
          state,
          scale_log2(),
          n_splits,
          {rows_.data(), lse_.data(), coded_parts_ + exact_splits_, first}};
}

void DeviceAttention::attend_rows(Device::Stream s, const LayerView& layer,
                                  const cuda::QueryArgs& query_args, bool codes) const {
  cuda::RowsAttendArgs a{};
  a.query = query_args;
  a.k = layer.k, a.v = layer.v;
  if (codes) a.k_codes = *layer.k_store->groups(), a.v_codes = *layer.v_store->groups();
  device_->check(device_->ops().attend_rows(s, a), "attend_rows");
}

/// kCoded: in the codes' coordinates, then their sum back to channels as part 0.
void DeviceAttention::attend_coded(Device::Stream s, const LayerView& layer,
                                   const uint16_t* q) const {
  const cuda::DeviceOps& ops = device_->ops();
  const DeviceCoded &k = *layer.k_store->coded(), &v = *layer.v_store->coded();
  cuda::QueryArgs query_args = query(q, layer.whole, coded_splits_, 0);
  device_->check(ops.turn_queries(s, {query_args, k.shape, k.codes, turned_}), "turn_queries");
  query_args.parts = {coded_rows_.data(), coded_lse_.data(), coded_splits_, 0};
  device_->check(ops.attend_coded(s, {query_args, k.shape, k.codes, v.codes, turned_,
                                      static_cast<int>(device_->info().shared_per_block)}),
                 "attend_coded");
  cuda::MergeArgs m{};
  m.parts = query_args.parts;
  m.batch = 1, m.n_heads = geometry_.n_heads, m.width = k.shape.rank;
  m.out_rows = sums_.data(), m.out_lse = sums_lse_.data();
  device_->check(ops.merge_parts(s, m), "merge_parts");
  device_->check(ops.coded_rows(s, {1, geometry_.n_heads, geometry_.n_kv_heads, geometry_.head_dim,
                                    v.shape, v.codes, sums_.data(), sums_lse_.data(),
                                    query(q, layer.whole, 1, 0).parts}),
                 "coded_rows");
}

/// Parts of coded tokens that have kernels of their own.
void DeviceAttention::attend_codes(Device::Stream s, const LayerView& layer,
                                   const uint16_t* q) const {
  if (mode_ == Mode::kPq) {
    cuda::PqAttendArgs a = pq_args(*layer.k_store, *layer.v_store);
    a.query = query(q, layer.whole, coded_splits_, 0);
    device_->check(device_->ops().attend_pq(s, a), "attend_pq");
  } else if (mode_ == Mode::kCoded) {
    attend_coded(s, layer, q);
  } else if (mode_ == Mode::kDecoded) {
    LayerView rows = layer;
    rows.k = {nullptr, layer.decoded_k, 0, layer.decoded_rows};
    rows.v = {nullptr, layer.decoded_v, 0, layer.decoded_rows};
    attend_rows(s, rows, query(q, layer.decoded, coded_splits_, 0), false);
  }
}

void DeviceAttention::attend_one(Device::Stream s, const LayerView& layer, const uint16_t* q,
                                 uint16_t* out) {
  const cuda::SequenceState* state = mode_ == Mode::kDecoded ? layer.beside_decoded : layer.whole;
  const cuda::QueryArgs exact = query(q, state, exact_splits_, coded_parts_);
  if (coded_parts_ == 0) {
    attend_rows(s, layer, exact, mode_ == Mode::kGroups);
  } else {  // two branches of the step, which meet in the merge
    device_->record(forked_.get(), s);
    device_->wait(beside_.get(), forked_.get());
    attend_rows(beside_.get(), layer, exact, false);
    device_->record(joined_.get(), beside_.get());
    attend_codes(s, layer, q);
    device_->wait(s, joined_.get());
  }
  cuda::MergeArgs m{};
  m.parts = {rows_.data(), lse_.data(), coded_parts_ + exact_splits_, 0};
  m.batch = 1, m.n_heads = geometry_.n_heads, m.width = geometry_.head_dim;
  m.out = out;
  device_->check(device_->ops().merge_parts(s, m), "merge_parts");
}

}  // namespace million
