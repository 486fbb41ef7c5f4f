// SPDX-License-Identifier: Apache-2.0
// Rotations, files, threads and random numbers: what every layer above takes for granted.
#include "lib/core/checked.h"
#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/core/huge_pool.h"
#include "lib/core/parallel.h"
#include "lib/core/rng.h"
#include "lib/core/rope.h"
#include "lib/core/spill_buffer.h"
#include "tests/scratch.h"

#include <catch2/catch.hpp>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <thread>
#include <vector>

using namespace million;
namespace fs = std::filesystem;

namespace {

std::vector<float> random_row(int n, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> row(n);
  for (float& x : row) x = static_cast<float>(rng.normal());
  return row;
}

double dot(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

}  // namespace

TEST_CASE("RoPE scalings give the frequencies of the published formulas") {
  // Worked out in Python from the papers' formulas (Llama-3.1: factor 8, 1, 4, 8192; YaRN: factor
  // 16, 4096, 32, 1), independently of this code.
  struct Case {
    int pair;
    double llama3, yarn;
  };
  const Case cases[] = {{0, 1.0, 1.0},
                        {20, 0.016560440080994446, 0.05623413251903491},
                        {28, 0.003211445994752591, 0.012653141956046181},
                        {32, 0.0005248461609929547, 0.005673076923076923},
                        {36, 7.78465527393245e-05, 0.002379136375805323},
                        {48, 6.647869871181235e-06, 6.25e-05},
                        {63, 3.068925988914511e-07, 7.217387404309114e-06}};
  RopeParams llama3;
  llama3.n_rot = 128;
  llama3.base = 500000.0f;
  llama3.scaling = RopeScaling::kLlama3;
  llama3.factor = 8.0f;
  llama3.original_context = 8192;
  RopeParams yarn;
  yarn.n_rot = 128;
  yarn.scaling = RopeScaling::kYarn;
  yarn.factor = 16.0f;
  yarn.original_context = 4096;
  const Rope a(llama3), b(yarn);
  for (const Case& c : cases) {
    CHECK(a.inv_freq()[c.pair] == Approx(c.llama3).epsilon(1e-5));
    CHECK(b.inv_freq()[c.pair] == Approx(c.yarn).epsilon(1e-5));
  }
  CHECK(a.magnitude() == 1.0f);
  CHECK(b.magnitude() == Approx(1.2772588722));  // 0.1 ln 16 + 1
  RopeParams linear;
  linear.n_rot = 64;
  linear.scaling = RopeScaling::kLinear;
  linear.factor = 4.0f;
  CHECK(Rope(linear).inv_freq()[3] == Approx(std::pow(10000.0, -6.0 / 64.0) / 4.0));
}

TEST_CASE("rotations keep norms, add up, and make scores depend on distance alone") {
  for (RopePairs pairs : {RopePairs::kAdjacent, RopePairs::kHalves})
    for (int n_rot : {64, 48}) {
      RopeParams p;
      p.n_rot = n_rot;
      p.pairs = pairs;
      const Rope rope(p);
      const auto q = random_row(64, 1), k = random_row(64, 2);
      const auto at = [&](std::vector<float> x, int64_t position) {
        rope.rotate_to(x.data(), 1, 64, position);
        return x;
      };
      CHECK(dot(at(q, 977), at(q, 977)) == Approx(dot(q, q)).epsilon(1e-5));
      CHECK(dot(at(q, 900), at(k, 860)) == Approx(dot(at(q, 40), at(k, 0))).margin(2e-4));
      auto moved = at(k, 500);
      rope.move(moved.data(), 1, 64, -500);
      CHECK(dot(moved, k) == Approx(dot(k, k)).epsilon(1e-5));
      for (int c = n_rot; c < 64; ++c) CHECK(at(k, 123)[c] == k[c]);  // the rest passes through
    }
}

TEST_CASE("the table of angles equals the direct rotation") {
  RopeParams p;
  p.n_rot = 64;
  const Rope rope(p);
  RopeTable table(rope);
  table.ensure(10);
  table.ensure(5000);
  for (int64_t position : {0, 9, 10, 4999})
    for (int i = 0; i < 32; ++i) {
      const double angle = static_cast<double>(static_cast<float>(position) * rope.inv_freq()[i]);
      CHECK(table.cosines(position)[i] == Approx(std::cos(angle)).margin(1e-6));
      CHECK(table.sines(position)[i] == Approx(std::sin(angle)).margin(1e-6));
    }
}

TEST_CASE("impossible rotations are refused") {
  RopeParams p;
  p.n_rot = 63;
  CHECK_THROWS_WITH(Rope(p), Catch::Contains("even"));
  p.n_rot = 64;
  p.scaling = RopeScaling::kYarn;
  CHECK_THROWS_WITH(Rope(p), Catch::Contains("original context"));
  p.scaling = RopeScaling::kNone;
  p.freq_factors = {1.0f};
  CHECK_THROWS_WITH(Rope(p), Catch::Contains("frequency factors"));
}

TEST_CASE("files appear whole, lines are appended whole, a torn line stays alone") {
  const Scratch folder;
  const fs::path file = folder.path() / "x.txt";
  write_file_atomic(file, "one");
  write_file_atomic(file, "two");
  CHECK(read_file(file) == "two");
  CHECK(std::distance(fs::directory_iterator(folder.path()), {}) == 1);  // no .part left
  const fs::path lines = folder.path() / "rows.jsonl";
  append_line(lines, "{\"a\":1}");
  std::ofstream(lines, std::ios::app) << "{\"torn";
  append_line(lines, "{\"b\":2}");
  CHECK(read_file(lines) == "{\"a\":1}\n{\"torn\n{\"b\":2}\n");
  CHECK_THROWS_WITH(read_file(folder.path() / "none"), Catch::Contains("none"));
  CHECK_THROWS_WITH(read_file(file, 2), Catch::Contains("at most 2"));
  CHECK_THROWS_AS(read_file(folder.path()), Error);
  CHECK_THROWS_WITH(require_free_space(file, std::numeric_limits<uint64_t>::max(), "a test"),
                    Catch::Contains("a test needs"));
}

TEST_CASE("SHA-256 equals the published test vectors") {
  CHECK(sha256_of("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(sha256_of("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  const Scratch folder;
  write_file_atomic(folder.path() / "abc", "abc");
  CHECK(sha256_of_file(folder.path() / "abc") == sha256_of("abc"));
}

TEST_CASE("size arithmetic does not wrap") {
  CHECK(checked_mul(1ull << 31, 1ull << 32, "x") == 1ull << 63);
  CHECK_THROWS_WITH(checked_mul(1ull << 32, 1ull << 32, "tensor"), Catch::Contains("tensor"));
  CHECK_THROWS_AS(checked_add(~0ull, 1, "x"), Error);
}

TEST_CASE("parallel loops visit everything once, pass errors on, and nest as serial loops") {
  const int before = threads();
  for (int n_threads : {1, 2, 5}) {
    set_threads(n_threads);
    std::vector<std::atomic<int>> seen(1000);
    parallel_for(1000, [&](int64_t i) { ++seen[i]; });
    std::atomic<bool> aligned{true};  // Catch's own assertions are not for several threads
    parallel_ranges(1000, 16, [&](int64_t begin, int64_t end) {
      if (begin % 16 != 0 || (end % 16 != 0 && end != 1000)) aligned = false;
      for (int64_t i = begin; i < end; ++i) ++seen[i];
    });
    parallel_for(10,
                 [&](int64_t i) { parallel_for(100, [&](int64_t j) { ++seen[i * 100 + j]; }); });
    CHECK(aligned);
    for (const auto& s : seen) CHECK(s == 3);
    const auto breaks = [](int64_t i) {
      if (i == 7) fail(ErrorCode::kFailed, "body {} broke", i);
    };
    CHECK_THROWS_WITH(parallel_for(50, breaks), Catch::Contains("body 7 broke"));
    parallel_for(0, [](int64_t) { FAIL("no body for an empty loop"); });
    for (auto& s : seen) s = 0;
    parallel_runs(1000, [&](int64_t i) { ++seen[i]; });
    CHECK(std::all_of(seen.begin(), seen.end(), [](const auto& s) { return s == 1; }));
    parallel_runs(0, [](int64_t) { FAIL("no body for an empty loop"); });
    CHECK_THROWS_WITH(parallel_runs(50, breaks), Catch::Contains("body 7 broke"));
    parallel_ranges(0, 8, [](int64_t, int64_t) { FAIL("no body for an empty range"); });
  }
  set_threads(before);
  CHECK_THROWS_WITH(set_threads(0), Catch::Contains("--threads"));
}

TEST_CASE("random streams repeat, differ, and have the moments of their distribution") {
  Rng a(7), b(7), other(7, 1);
  CHECK(a.next() == b.next());
  CHECK(Rng(7).next() != other.next());
  double sum = 0.0, square = 0.0;
  constexpr int kDraws = 100000;
  for (int i = 0; i < kDraws; ++i) {
    const double x = a.normal();
    sum += x;
    square += x * x;
  }
  CHECK(sum / kDraws == Approx(0.0).margin(0.015));  // 5 standard errors
  CHECK(square / kDraws == Approx(1.0).margin(0.025));
}

TEST_CASE("a spill buffer is a vector, on the heap or in a file without a name") {
  const Scratch folder;
  SpillBuffer<uint16_t> small(100, folder.path());
  CHECK(!small.spilled());
  small.push_back(7);
  CHECK(small.size() == 101);
  CHECK(small[100] == 7);
  const size_t n = kSpillBytes / sizeof(uint16_t);
  SpillBuffer<uint16_t> large(n, folder.path());
  REQUIRE(large.spilled());
  CHECK(fs::is_empty(folder.path()));
  CHECK(std::all_of(large.begin(), large.end(), [](uint16_t x) { return x == 0; }));
  for (size_t i = 0; i < n; ++i) large[i] = static_cast<uint16_t>(i * 31);
  large.release();  // lets pages go, not values
  const auto right = [n](const SpillBuffer<uint16_t>& b) {
    if (b.size() != n) return false;
    for (size_t i = 0; i < n; ++i)
      if (b[i] != static_cast<uint16_t>(i * 31)) return false;
    return true;
  };
  CHECK(right(large));
  SpillBuffer<uint16_t> copy = large;
  large[5] = 1;
  CHECK(right(copy));
  SpillBuffer<uint16_t> moved = std::move(copy);
  CHECK(right(moved));
  moved = SpillBuffer<uint16_t>();
  CHECK(moved.empty());
}

TEST_CASE("a spill buffer says what it needs when disk or folder are missing") {
  const Scratch folder;
  try {
    SpillBuffer<float> buffer(size_t{1} << 50, folder.path());
    FAIL("4 PiB were found");
  } catch (const Error& e) {
    CHECK(e.code() == ErrorCode::kNoResources);
    CHECK_THAT(e.what(), Catch::Contains("TMPDIR"));
  }
  CHECK_THROWS_WITH(SpillBuffer<float>(kSpillBytes, folder / "absent"), Catch::Contains("absent"));
}

TEST_CASE("pooled blocks do not overlap and come back, from several threads") {
  struct Block {
    unsigned char* at;
    std::size_t bytes;
    unsigned char mark;
  };
  const auto work = [](uint64_t seed) {
    Rng rng(seed);
    std::vector<Block> held;
    bool intact = true;
    for (int step = 0; step < 3000; ++step) {
      if (held.size() < 200 && rng.uniform() < 0.6) {
        const std::size_t sizes[] = {64, 4096, 4100, 24576, 98304, 131072, 200000, 3u << 20};
        const std::size_t bytes = sizes[step % (step % 500 == 0 ? 8 : 7)];
        auto* at = static_cast<unsigned char*>(huge_allocate(bytes));
        intact = intact && reinterpret_cast<std::uintptr_t>(at) % 64 == 0;
        held.push_back({at, bytes, static_cast<unsigned char>(step)});
        std::memset(at, held.back().mark, bytes);
      } else if (!held.empty()) {
        std::swap(held[static_cast<std::size_t>(rng.uniform() * double(held.size()))], held.back());
        const Block b = held.back();
        held.pop_back();
        for (std::size_t i : {std::size_t{0}, b.bytes / 2, b.bytes - 1})
          intact = intact && b.at[i] == b.mark;
        huge_free(b.at, b.bytes);
      }
    }
    for (const Block& b : held) huge_free(b.at, b.bytes);
    return intact;
  };
  bool results[2] = {};
  std::thread other([&] { results[1] = work(2); });
  results[0] = work(1);
  other.join();
  CHECK(results[0]);
  CHECK(results[1]);
}
