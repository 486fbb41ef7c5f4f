// SPDX-License-Identifier: Apache-2.0
// The cache on the emulated device against the CPU's: the same rules, codes and attention, through
// window flushes, with encoding in turn and on the second stream; memory limits and faults.
#include "kernels/ops.h"
#include "lib/cache/device_cache.h"
#include "lib/core/error.h"
#include "tests/cache_data.h"

#include <spdlog/spdlog.h>
#include <catch2/catch.hpp>

#include <algorithm>

using namespace million;
using testdata::ones;
using testdata::Rows;

namespace {

[[maybe_unused]] const bool kQuiet = (spdlog::set_level(spdlog::level::err), true);

constexpr int kTokens = 300;

// Strips of codes in a basis are aligned to positions. Behind 4 sinks the encoder completes words
// whose other bytes are being read on the main stream: bytes that nobody uses yet, but a race of
// words to ThreadSanitizer.
#ifdef __SANITIZE_THREAD__
constexpr const char *kCoded = "pq:M=16,nbits=8,sinks=32", *kCodedDeep = "pq:M=16,nbits=6,sinks=64";
#else
constexpr const char *kCoded = "pq:M=16,nbits=8,sinks=4",
                     *kCodedDeep = "pq:M=16,nbits=6,sinks=70,window=16";
#endif

/// Outputs of the last layer [n][n_heads][d], tokens in pieces.
AlignedVector<float> run_device(DeviceCache& cache, const std::shared_ptr<Device>& device,
                                const Rows& rows, const std::vector<int>& pieces) {
  const KvGeometry& g = rows.g;
  const int64_t q_row = static_cast<int64_t>(g.n_heads) * g.head_dim;
  DeviceStream s(device);
  AlignedVector<float> out;
  int64_t done = 0;
  for (const int n : pieces) {
    const auto values = static_cast<size_t>(n * q_row);
    std::vector<uint16_t> halves(values);
    cache.begin(s.get(), n);
    for (int l = 0; l < g.n_layers; ++l) {
      ops().f32_to_f16(rows.q[l].data() + done * q_row, halves.data(), values);
      const DeviceBuffer<uint16_t> q(device, s.get(), halves), to(device, values);
      cache.prepare(s.get(), l);
      cache.write_rows(s.get(), l, rows.k[l].data() + done * g.row(),
                       rows.v[l].data() + done * g.row());
      cache.attend(s.get(), l, q.data(), to.data());
      device->copy_out(s.get(), halves.data(), to.data(), values * sizeof(uint16_t));
    }
    cache.end(s.get());
    out.resize(out.size() + values);
    ops().f16_to_f32(halves.data(), out.data() + out.size() - values, values);
    done += n;
  }
  return out;
}

std::vector<int> mixed(int n) {
  std::vector<int> pieces = {70, 1, 1, 100, 1};
  int done = 173;
  while (done < n) pieces.push_back(1), ++done;
  return pieces;
}

/// The whole sequence in one call: exact arithmetic on decoded rows, the truth for any cut.
AlignedVector<float> cpu(const Method& method, const Rows& rows, Protocol protocol) {
  KvCache cache(rows.g, method, protocol);
  return testdata::run(cache, rows, {rows.n});
}

/// Trained on rows of their own, as many as codebooks need.
Method make_method(const std::string& text) {
  static const Rows calibration(10);
  return testdata::make_method(text, calibration);
}

struct Case {
  const char* method;
  const char* attention;
  /// Relative to the CPU's f32. Halves of queries and outputs are 3e-4 each. Fixed point of the
  /// coded kernel adds 1e-3; a code that ties differently shows as one token's error.
  double bound;
};

}  // namespace

TEST_CASE("device cache: every method attends as the CPU, token by token and in chunks",
          "[device]") {
  const Rows rows(11, kTokens);
  const Case cases[] = {
      {"fp16", "exact", 1e-3},
      {"pq:M=32,nbits=8,frame=off,sinks=4,window=32", "fused", 2e-3},
      {"pq:M=16,nbits=6,frame=off", "fused", 2e-3},
      {kCoded, "fused", 4e-3},
      {kCodedDeep, "fused", 4e-3},
      {"kivi:bits=4,group=32,residual=64", "fused", 2e-3},
      {"kivi:bits=2,group=32,residual=128", "fused", 2e-3},
      {"uniform:bits=4,group=64,sinks=2,window=20", "fused", 2e-3},
      {"kivi:bits=3,group=32,residual=64", "decoded", 2e-3},
      {"kvquant:bits=4,outliers=0.01", "decoded", 2e-3},
      {"q4_0", "decoded", 2e-3},
      {"quanto:bits=4", "decoded", 2e-3},
  };
  for (const Case& c : cases) {
    const Method method = make_method(c.method);
    const auto expected = cpu(method, rows, Protocol::kDecodePath);
    const auto device = make_emulated_device();
    AlignedVector<float> in_turn;
    for (const bool async : {false, true}) {
      DeviceCache cache(device, rows.g, method, Protocol::kDecodePath, async, kTokens, 128);
      const auto got = run_device(cache, device, rows, mixed(kTokens));
      const double error = testdata::relative_difference(got, expected);
      UNSCOPED_INFO(c.method << (async ? ", second stream: " : ": ") << error);
      CHECK(error < c.bound);
      CHECK(cache.attention_name() == std::string(c.attention));
      if (async)
        CHECK(got == in_turn);  // the same bits
      else
        in_turn = got;
      if (!async) std::printf("device cache, %-48s %.1e\n", c.method, error);
    }
  }
}

TEST_CASE("device cache: all-distorted as on the CPU, and a cleared cache starts anew",
          "[device]") {
  const Rows rows(12, 200);
  for (const char* text : {"pq:M=32,nbits=8,frame=off", "pq:M=16,nbits=8,sinks=4", "q8_0"}) {
    const Method method = make_method(text);
    const auto expected = cpu(method, rows, Protocol::kAllDistorted);
    const auto device = make_emulated_device();
    DeviceCache cache(device, rows.g, method, Protocol::kAllDistorted, false, 200, 200);
    for (int round = 0; round < 2; ++round) {
      const double error =
          testdata::relative_difference(run_device(cache, device, rows, {200}), expected);
      INFO(text);
      CHECK(error < 2e-3);
      cache.clear();
    }
  }
}

TEST_CASE("device cache: keys and values of different shapes take two passes", "[device]") {
  const Rows rows(13, 200);
  Method method = make_method("pq:M=32,nbits=8,frame=off");
  method.value_codec = make_method("pq:M=16,nbits=4,frame=off").value_codec;
  method.spec.value_codec = method.value_codec->spec();
  const auto expected = cpu(method, rows, Protocol::kDecodePath);
  const auto device = make_emulated_device();
  DeviceCache cache(device, rows.g, method, Protocol::kDecodePath, true, 200, 64);
  const auto got = run_device(cache, device, rows, ones(200));
  CHECK(testdata::relative_difference(got, expected) < 2e-3);
  CHECK(cache.attention_name() == std::string("fused"));
}

TEST_CASE("devices that are too old or have too little shared memory are named", "[device]") {
  CHECK_THROWS_WITH(make_emulated_device({.compute_major = 7, .compute_minor = 5}),
                    Catch::Contains("7.5") && Catch::Contains("8.0 is needed") &&
                        Catch::Contains("--backend cpu"));
  CHECK_THROWS_WITH(make_emulated_device({.shared_per_block = 64 * 1024}),
                    Catch::Contains("64 KiB") && Catch::Contains("96 are needed"));
  CHECK_NOTHROW(make_emulated_device({.shared_per_block = 99 * 1024, .compute_major = 12}));
}

TEST_CASE("device cache: what does not fit is refused before it is allocated", "[device]") {
  const Rows rows(14, 16);
  const Method method = make_method("fp16");
  const auto device = make_emulated_device({.memory_bytes = 1 << 20});
  const auto message = [&](int64_t capacity) -> std::string {
    try {
      const DeviceCache cache(device, rows.g, method, Protocol::kDecodePath, false, capacity, 16);
    } catch (const Error& e) {
      CHECK(e.code() == ErrorCode::kNoResources);
      return e.what();
    }
    return "";
  };
  CHECK_THAT(message(1 << 20), Catch::Contains("enough for about") && Catch::Contains("fp16"));
  CHECK(message(64).empty());
  CHECK(device->used_bytes() == 0);
}

TEST_CASE("device cache: any allocation may fail, and nothing stays behind", "[device][faults]") {
  const Rows rows(15, 100);
  for (const char* text : {"pq:M=16,nbits=8,sinks=4", "kivi:bits=4,group=32,residual=32", "q4_0"}) {
    const Method method = make_method(text);
    int failures = 0;
    for (int fault = 0;; ++fault) {
      const auto device = make_emulated_device({.fail_allocation = fault});
      bool failed = false;
      try {
        DeviceCache cache(device, rows.g, method, Protocol::kDecodePath, true, 100, 32);
      } catch (const Error& e) {
        failed = true;
        CHECK(e.code() == ErrorCode::kNoResources);
        CHECK_THAT(e.what(), Catch::Contains("bytes asked for"));
      }
      CHECK(device->used_bytes() == 0);
      if (!failed) break;
      ++failures;
    }
    CHECK(failures > 10);
  }
}

TEST_CASE("device cache: more tokens than it was made for are refused", "[device]") {
  const Rows rows(16, 40);
  const auto device = make_emulated_device();
  DeviceCache cache(device, rows.g, make_method("fp16"), Protocol::kDecodePath,
                    false, 32, 32);
  CHECK_NOTHROW(run_device(cache, device, rows, {32}));
  CHECK_THROWS_WITH(run_device(cache, device, rows, {1}), Catch::Contains("was made for 32"));
}
