// SPDX-License-Identifier: Apache-2.0
// attend_groups against decoded rows in double: layouts, widths, groups, ragged runs.
#include "kernels/half.h"
#include "kernels/ref/ops_ref.h"
#include "tests/kernel_data.h"

#include <catch2/catch.hpp>
#include <cstring>

using namespace million;

namespace {

using Layout = GroupSide::Layout;

/// Random codes of one side, with their rows in double.
struct GroupRun {
  GroupSide side{};
  std::vector<uint8_t> codes;
  std::vector<uint16_t> scales;
  std::vector<double> rows;  ///< [n][d]

  static unsigned code_at(const uint8_t* p, int bits, int i) {
    unsigned code = 0;
    for (int b = 0; b < bits; ++b)
      code |= unsigned(p[(i * bits + b) / 8] >> ((i * bits + b) % 8) & 1) << b;
    return code;
  }
  void fill(std::size_t code_bytes, std::size_t halves) {
    codes.resize(code_bytes), scales.resize(halves);
    for (uint8_t& c : codes) c = uint8_t(g_random());
    for (uint16_t& s : scales) s = float_to_half(normal(1, 0.2f)[0]);
    side.codes = codes.data(), side.scales = scales.data();
  }
  /// kTokens and kChannels.
  GroupRun(Layout layout, int bits, int group, bool zeros, int d, int n)
      : rows(std::size_t(n * d)) {
    const bool channels = layout == Layout::kChannels;
    const int per = zeros ? 2 : 1, pad = 3;  // steps wider than one head's share, as in a store
    const int length = channels ? group : d, records = channels ? (n + group - 1) / group : n;
    const int packed = (length * bits + 7) / 8, halves = channels ? d * per : d / group * per;
    side.layout = layout, side.bits = bits, side.group = group, side.zeros = zeros;
    side.offset = zeros ? 0 : 1 << (bits - 1);
    side.code_step = (channels ? d * packed : packed) + pad;
    side.scale_step = halves + pad;
    // Exact sizes: reading behind a record is an error that the sanitizer sees.
    fill(std::size_t(records * side.code_step - (records ? pad : 0)),
         std::size_t(records * side.scale_step - (records ? pad : 0)));
    for (int t = 0; t < n; ++t)
      for (int c = 0; c < d; ++c) {
        const int record = channels ? t / group : t;
        const uint8_t* row = codes.data() + record * side.code_step + (channels ? c * packed : 0);
        const uint16_t* s =
            scales.data() + record * side.scale_step + (channels ? c : c / group) * per;
        const int code = int(code_at(row, bits, channels ? t % group : c));
        rows[std::size_t(t * d + c)] = (code - side.offset) * double(half_to_float(s[0])) +
                                       (zeros ? double(half_to_float(s[1])) : 0.0);
      }
  }
  /// kBlocks.
  GroupRun(BlockType type, int d, int n) : rows(std::size_t(n * d)) {
    const std::size_t bytes = block_shape(type).bytes, row = std::size_t(d / 32) * bytes;
    side.layout = Layout::kBlocks, side.type = type;
    side.code_step = std::ptrdiff_t(row) + 5;
    fill(std::size_t(n) * (row + 5), 0);
    side.scales = nullptr;
    for (int t = 0; t < n; ++t) {
      uint8_t* at = codes.data() + t * side.code_step;
      for (int b = 0; b < d / 32; ++b)
        for (std::size_t half = 0; half < (type == BlockType::kQ4_1 ? 2u : 1u); ++half) {
          const uint16_t value = float_to_half(normal(1, 0.05f)[0]);
          std::memcpy(at + std::size_t(b) * bytes + 2 * half, &value, 2);
        }
      const auto decoded = ref::dequant_row(type, at, d);
      std::copy(decoded.begin(), decoded.end(), rows.begin() + t * d);
    }
  }
};

void check(const Ops* op, const GroupRun& k, const GroupRun& v, int group, int d, int n) {
  REQUIRE(group_side_fits(k.side, d, true));
  REQUIRE(group_side_fits(v.side, d, false));
  const auto q = normal(std::size_t(group * d), 1.0f / std::sqrt(float(d)));
  const auto want = ref::attend(group, d, n, q.data(), k.rows.data(), v.rows.data());
  Group result(group, d);
  op->attend_groups({group, d, n, q.data(), k.side, v.side, result.state.data(), result.acc()});
  REQUIRE(result.intact());
  if (n == 0) {
    REQUIRE(result.state[0].sum == 0.0f);
    return;
  }
  REQUIRE(relative_norm(result.out(), want.out) < 1e-5);
  REQUIRE(result.lse_error(want.lse) < 1e-4);
}

}  // namespace

TEST_CASE("attention on scalar codes: every width, keys by channel, values by token") {
  for (const Ops* op : levels())
    for (int bits = 1; bits <= 8; ++bits)
      for (int group : {1, 3, 4, 8, 16})
        for (int n : {0, 1, 31, 32, 33, 63, 64, 65, 128, 200}) {
          if (group != 3 && n != 65) continue;
          INFO(op->name << " bits=" << bits << " group=" << group << " n=" << n);
          check(op, GroupRun(Layout::kChannels, bits, 32, true, 64, n),
                GroupRun(Layout::kTokens, 9 - bits, 32, true, 64, n), group, 64, n);
        }
}

TEST_CASE("attention on scalar codes: groups, zero points, head dimensions") {
  struct Case {
    Layout layout;
    int bits, group, d;
    bool zeros;
  };
  for (const Ops* op : levels())
    for (const Case& c : {Case{Layout::kChannels, 2, 128, 64, true},
                          {Layout::kChannels, 4, 64, 128, false},
                          {Layout::kChannels, 4, 96, 96, true},
                          {Layout::kTokens, 4, 64, 64, false},
                          {Layout::kTokens, 3, 16, 128, true},
                          {Layout::kTokens, 2, 32, 256, true},
                          {Layout::kTokens, 5, 96, 96, false}})
      for (int n : {5, 64, 130, 257}) {
        INFO(op->name << " bits=" << c.bits << " group=" << c.group << " d=" << c.d << " n=" << n);
        check(op, GroupRun(c.layout, c.bits, c.group, c.zeros, c.d, n),
              GroupRun(Layout::kTokens, 4, c.d == 256 ? 32 : 16, true, c.d, n), 3, c.d, n);
      }
}

TEST_CASE("attention on llama.cpp's blocks") {
  for (const Ops* op : levels())
    for (BlockType type : {BlockType::kQ8_0, BlockType::kQ4_0, BlockType::kQ4_1})
      for (int d : {32, 64, 128, 256})
        for (int n : {1, 63, 64, 65, 130}) {
          INFO(op->name << " type=" << int(type) << " d=" << d << " n=" << n);
          check(op, GroupRun(type, d, n), GroupRun(BlockType::kQ4_0, d, n), 3, d, n);
          check(op, GroupRun(BlockType::kQ8_0, d, n), GroupRun(type, d, n), 4, d, n);
        }
}

TEST_CASE("shapes without a kernel for scalar codes are told apart") {
  const GroupRun fits(Layout::kTokens, 4, 32, true, 64, 1);
  CHECK(group_side_fits(fits.side, 64, true));
  GroupSide odd = fits.side;
  odd.group = 8;
  CHECK_FALSE(group_side_fits(odd, 64, true));
  CHECK_FALSE(group_side_fits(fits.side, 80, true));
  GroupSide channels = fits.side;
  channels.layout = Layout::kChannels;
  CHECK(group_side_fits(channels, 64, true));
  CHECK_FALSE(group_side_fits(channels, 64, false));
  GroupSide block = fits.side;
  block.layout = Layout::kBlocks, block.type = BlockType::kQ5_0;
  CHECK_FALSE(group_side_fits(block, 64, true));
}
