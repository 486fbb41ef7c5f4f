// SPDX-License-Identifier: Apache-2.0
// The interpreter's warps and memory: divergence, collectives, bounds, alignment, races, counts.
#include "tests/ptx/ptx_text.h"

#include <catch2/catch.hpp>
#include <random>

namespace million::ptx::test {
namespace {

using Catch::Contains;

constexpr uint32_t m32(int v) { return static_cast<uint32_t>(v); }

std::vector<uint64_t> ramp(std::size_t n) {
  std::vector<uint64_t> v(n);
  for (std::size_t k = 0; k < n; ++k) v[k] = k;
  return v;
}
const std::string kDynamic = ".extern .shared .align 128 .b8 dyn[];\n";

/// Four bytes of shared memory a thread: r9 is the address of the thread's own, r8 of its
/// neighbour's.
const std::string kOwnWord =
    "mov.u32 r7, dyn; shl.b32 r9, t, 2; add.u32 r9, r9, r7;\n"
    "xor.b32 r8, t, 1; shl.b32 r8, r8, 2; add.u32 r8, r8, r7;\n";
const std::string kStoreOwn = "st.shared.u32 [r9], t;\n";
const std::string kLoadNeighbour =
    "ld.shared.u32 d, [r8]; cvt.u64.u32 D, d; st.global.u64 [P], D;\n";

}  // namespace

TEST_CASE("divergent branches and loops come together again") {
  // Lane t runs t rounds; then all are together for the ballot.
  Program loop(
      "mov.u32 r1, 0;\nmov.u32 r2, 0;\n"
      "$L1:\nsetp.ge.u32 p, r1, t;\n@p bra $L2;\n"
      "and.b32 r3, r1, 1;\nsetp.eq.u32 q, r3, 0;\n@q bra $L3;\nadd.u32 r2, r2, 100;\nbra.uni $L4;\n"
      "$L3:\nadd.u32 r2, r2, 1;\n$L4:\nadd.u32 r1, r1, 1;\nbra $L1;\n"
      "$L2:\nactivemask.b32 r4;\nsetp.eq.u32 p, r4, -1;\n@!p add.u32 r2, r2, 1000;\n"
      "cvt.u64.u32 D, r2;\nst.global.u64 [P], D;");
  const std::vector<uint64_t> got = loop.run(ramp(32), 32);
  for (uint64_t t = 0; t < 32; ++t) CHECK(got[t] == (t + 1) / 2 + t / 2 * 100);
  // Lanes that leave early do not hold up barriers.
  Program leave("setp.gt.u32 p, t, 40;\n@p ret;\nbar.sync 0;\nst.global.u64 [P], 7;");
  const std::vector<uint64_t> left = leave.run(ramp(64), 64);
  for (uint64_t t = 0; t < 64; ++t) CHECK(left[t] == (t > 40 ? t : 7));
}

TEST_CASE("blocks, partial warps and special registers") {
  for (const unsigned workers : {1u, 2u}) {
    Program p(
        "mov.u32 r1, %ctaid.x; mov.u32 r2, %ntid.x; mad.lo.u32 r3, r1, r2, t;\n"
        "mad.wide.u32 P, r3, 8, Q; mov.u32 r4, %nctaid.x; mul.lo.u32 r4, r4, 1000;\n"
        "mov.u32 r5, %laneid; add.u32 r4, r4, r5; cvt.u64.u32 D, r4; st.global.u64 [P], D;");
    p.interpreter.options.workers = workers;
    const std::vector<uint64_t> got = p.run(std::vector<uint64_t>(3 * 40), 40, 0, 3);
    for (std::size_t k = 0; k < got.size(); ++k) REQUIRE(got[k] == 3000 + k % 40 % 32);
    CHECK(p.counts().launches == 1);
  }
}

TEST_CASE("shuffles, votes, reductions") {
  const auto run = [](const std::string& body) {
    return Program(body + "cvt.u64.u32 D, d; st.global.u64 [P], D;").run(ramp(32), 32);
  };
  const auto bfly = run("shfl.sync.bfly.b32 d|p, t, 5, 31, -1;\n@!p mov.u32 d, 99;\n");
  const auto up = run("shfl.sync.up.b32 d|p, t, 3, 0, -1;\n@!p mov.u32 d, 99;\n");
  const auto down = run("shfl.sync.down.b32 d|p, t, 3, 31, -1;\n@!p mov.u32 d, 99;\n");
  const auto eights = run("shfl.sync.idx.b32 d, t, 2, 0x181F, -1;\n");  // within 8 lanes
  const auto ballot = run("setp.gt.u32 p, t, 15; vote.sync.ballot.b32 d, p, -1;\n");
  const auto any = run("setp.eq.u32 p, t, 15; vote.sync.any.pred q, p, -1; selp.u32 d, 1, 0, q;\n");
  const auto all = run("setp.eq.u32 p, t, 15; vote.sync.all.pred q, p, -1; selp.u32 d, 1, 0, q;\n");
  const auto most = run("sub.u32 r1, t, 40; redux.sync.max.s32 d, r1, -1;\n");
  const auto sum = run("redux.sync.add.u32 d, t, -1;\n");
  for (uint64_t t = 0; t < 32; ++t) {
    CHECK(bfly[t] == (t ^ 5));
    CHECK(up[t] == (t < 3 ? 99 : t - 3));
    CHECK(down[t] == (t > 28 ? 99 : t + 3));
    CHECK(eights[t] == (t & 24) + 2);
    CHECK(ballot[t] == 0xFFFF0000);
    CHECK((any[t] == 1 && all[t] == 0));
    CHECK(most[t] == 0xFFFFFFF7);
    CHECK(sum[t] == 496);
  }
  // A collective in a branch that names the lanes that take it.
  const auto half =
      run("setp.lt.u32 p, t, 16;\nmov.u32 d, 0;\n@p redux.sync.add.u32 d, t, 0xFFFF;\n");
  CHECK((half[0] == 120 && half[31] == 0));
}

TEST_CASE("collectives without their lanes are refused") {
  const std::string half = "setp.lt.u32 p, t, 16;\n@p bra $L1;\nbra $L2;\n$L1:\n";
  Program missing(half + "shfl.sync.bfly.b32 d, t, 1, 31, -1;\n$L2:\nret;");
  CHECK_THROWS_WITH(missing.run(ramp(32), 32), Contains("never arrive") && Contains("shfl.sync"));
  Program gone("setp.lt.u32 p, t, 16;\n@p ret;\nbar.warp.sync -1;");
  CHECK_THROWS_WITH(gone.run(ramp(32), 32), Contains("lanes that have left"));
  Program absent("setp.lt.u32 p, t, 16;\n@p shfl.sync.idx.b32 d, t, 20, 31, 0xFFFF;");
  CHECK_THROWS_WITH(absent.run(ramp(32), 32), Contains("reads lane 20"));
}

TEST_CASE("mma.m16n8k16 with f32 and f16 sums") {
  // a[r][k] = r - k, b[k][n] = k + 2 n, c = 1: exact in f16 products and f32 sums.
  std::string body = "shr.u32 r1, t, 2; and.b32 r2, t, 3; shl.b32 r2, r2, 1;\n";
  const auto half_pair = [](const std::string& to, const std::string& low,
                            const std::string& high) {
    return "cvt.rn.f32.s32 r30, " + low + "; cvt.rn.f32.s32 r31, " + high + "; cvt.rn.f16x2.f32 " +
           to + ", r31, r30;\n";
  };
  for (int k = 0; k < 4; ++k)  // a: row r1 + 8 (k % 2), columns r2 + 8 (k / 2) and the next
    body += "add.s32 r3, r1, " + std::to_string(8 * (k % 2)) +
            "; sub.s32 r3, r3, r2; sub.s32 r3, r3, " + std::to_string(8 * (k / 2)) +
            "; sub.s32 r4, r3, 1;\n" + half_pair("r1" + std::to_string(k), "r3", "r4");
  for (int k = 0; k < 2; ++k)  // b: rows r2 + 8 k and the next, column r1
    body += "shl.b32 r3, r1, 1; add.s32 r3, r3, r2; add.s32 r3, r3, " + std::to_string(8 * k) +
            "; add.s32 r4, r3, 1;\n" + half_pair("r2" + std::to_string(k), "r3", "r4");
  const auto exact = [](int r, int n) {
    double sum = 1;
    for (int k = 0; k < 16; ++k) sum += (r - k) * (k + 2 * n);
    return sum;
  };
  Program wide(
      body +
      "mov.f32 r5, 0f3F800000;\n"
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {r6,r7,r8,r9}, {r10,r11,r12,r13}, "
      "{r20,r21}, {r5,r5,r5,r5};\n"
      "add.u64 P, P, P; sub.u64 P, P, Q;\n"  // 16 bytes a thread
      "st.global.v4.f32 [P], {r6, r7, r8, r9};");
  Program narrow(body +
                 "mov.b32 r5, 0x3C003C00;\n"
                 "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {r6,r7}, {r10,r11,r12,r13}, "
                 "{r20,r21}, {r5,r5};\n"
                 "st.global.v2.b32 [P], {r6, r7};");
  const std::vector<uint64_t> f32 = wide.run(std::vector<uint64_t>(64), 32);
  const std::vector<uint64_t> f16 = narrow.run(std::vector<uint64_t>(32), 32);
  for (std::size_t t = 0; t < 32; ++t)
    for (std::size_t k = 0; k < 4; ++k) {
      const double sum =
          exact(static_cast<int>(t / 4 + k / 2 * 8), static_cast<int>(t % 4 * 2 + k % 2));
      CHECK(static_cast<uint32_t>(f32[2 * t + k / 2] >> 32 * (k % 2)) ==
            bits(static_cast<float>(sum)));
      const auto h = std::bit_cast<uint16_t>(static_cast<_Float16>(sum));
      CHECK(static_cast<uint16_t>(f16[t] >> 16 * k) == h);
    }
  CHECK(wide.counts().mma == 1);
}

TEST_CASE("mma.m16n8k32 of bytes") {
  // Element e of a row's or a column's 32 bytes: a[r][k] = 7 r - k, b[k][n] = 3 k - 40 n, as bytes.
  std::string body = "shr.u32 r1, t, 2; and.b32 r2, t, 3; shl.b32 r2, r2, 2;\n";
  const auto four = [&](const std::string& to, int row, int at, int by_row, int by_k) {
    body += "add.s32 r3, r1, " + std::to_string(row) + "; mul.lo.s32 r3, r3, " +
            std::to_string(by_row) + "; add.s32 r4, r2, " + std::to_string(at) +
            "; mad.lo.s32 r3, r4, " + std::to_string(by_k) + ", r3;\n";
    for (int e = 0; e < 4; ++e)  // r3: the first of the four
      body += "add.s32 r5, r3, " + std::to_string(e * by_k) + "; bfi.b32 " + to + ", r5, " + to +
              ", " + std::to_string(8 * e) + ", 8;\n";
  };
  for (int k = 0; k < 4; ++k) four("r1" + std::to_string(k), k % 2 * 8, k / 2 * 16, 7, -1);
  for (int k = 0; k < 2; ++k) four("r2" + std::to_string(k), 0, 16 * k, -40, 3);
  for (const bool with_sign : {true, false}) {
    const std::string type = with_sign ? "s8" : "u8";
    Program p(body + "mov.u32 r5, 5;\nmma.sync.aligned.m16n8k32.row.col.s32.s8." + type +
              ".s32 {r6,r7,r8,r9}, {r10,r11,r12,r13}, {r20,r21}, {r5,r5,r5,r5};\n"
              "add.u64 P, P, P; sub.u64 P, P, Q;\nst.global.v4.u32 [P], {r6, r7, r8, r9};");
    const std::vector<uint64_t> got = p.run(std::vector<uint64_t>(64), 32);
    for (uint32_t t = 0; t < 32; ++t)
      for (uint32_t e = 0; e < 4; ++e) {
        const int r = static_cast<int>(t / 4 + e / 2 * 8), n = static_cast<int>(t % 4 * 2 + e % 2);
        int sum = 5;
        for (int k = 0; k < 32; ++k) {
          const int a = static_cast<int8_t>(7 * r - k), b = 3 * k - 40 * n;
          sum += a * (with_sign ? static_cast<int>(static_cast<int8_t>(b)) : b & 255);
        }
        CHECK(static_cast<uint32_t>(got[2 * t + e / 2] >> 32 * (e % 2)) == m32(sum));
      }
  }
}

TEST_CASE("ldmatrix, plain and transposed") {
  // Thread t stores row t % 8 of matrix t / 8: elements 100 * t + column.
  std::string store =
      "mov.u32 r7, dyn; shl.b32 r9, t, 4; add.u32 r9, r9, r7; mul.lo.u32 r1, t, 100;\n";
  for (int c = 0; c < 8; ++c)
    store += "add.u32 r2, r1, " + std::to_string(c) + "; st.shared.u16 [r9+" +
             std::to_string(2 * c) + "], r2;\n";
  store += "bar.warp.sync -1;\n";
  for (const bool transposed : {false, true}) {
    Program p(store + "ldmatrix.sync.aligned.m8n8.x4" + (transposed ? ".trans" : "") +
                  ".shared.b16 {r10, r11, r12, r13}, [r9];\n"
                  "add.u64 P, P, P; sub.u64 P, P, Q; st.global.v4.b32 [P], {r10, r11, r12, r13};",
              kDynamic);
    const std::vector<uint64_t> got = p.run(std::vector<uint64_t>(64), 32, 512);
    for (uint32_t t = 0; t < 32; ++t)
      for (uint32_t x = 0; x < 4; ++x)
        for (uint32_t h = 0; h < 2; ++h) {
          const uint32_t row = transposed ? t % 4 * 2 + h : t / 4;
          const uint32_t column = transposed ? t / 4 : t % 4 * 2 + h;
          const auto value = static_cast<uint16_t>(got[2 * t + x / 2] >> (32 * (x % 2) + 16 * h));
          CHECK(value == static_cast<uint16_t>(100 * (8 * x + row) + column));
        }
    CHECK(p.counts().by_opcode.size() > 0);
  }
}

TEST_CASE("memory: widths, signs, vectors, spaces") {
  Program bytes(
      "st.global.u32 [P], 0x8180; ld.global.s8 r1, [P]; ld.global.u8 r2, [P+1];\n"
      "st.global.v2.u32 [P], {r1, r2};");
  CHECK(bytes.run({0}, 1)[0] == (0x81ull << 32 | 0xFFFFFF80));
  Program arrays(
      "ld.const.u32 r1, [table+4]; mov.u64 R1, table; cvta.const.u64 R1, R1;\n"
      "ld.u32 r2, [R1+8]; ld.global.u16 r3, [halves+2]; add.u32 r1, r1, r2;\n"
      "add.u32 d, r1, r3; cvt.u64.u32 D, d; st.global.u64 [P], D;",
      ".const .align 4 .u32 table[3] = {1, 20, 300};\n"
      ".global .align 2 .u16 halves[2] = {1, 4000};\n");
  CHECK(arrays.run({0}, 1)[0] == 4320);
  Program local(
      ".local .align 16 .b8 depot[16];\n.reg .b64 %SP, %SPL;\n"
      "mov.u64 %SPL, depot; cvta.local.u64 %SP, %SPL; st.local.u32 [%SPL+4], t;\n"
      "bar.warp.sync -1; ld.u32 d, [%SP+4]; cvt.u64.u32 D, d; st.global.u64 [P], D;");
  CHECK(local.run(std::vector<uint64_t>(32), 32)[31] == 31);
  // Static shared memory before the dynamic arena; generic addresses; isspacep.
  Program shared(
      ".shared .align 4 .b8 fixed[256];\n"
      "mov.u32 r1, fixed; mov.u32 r2, dyn; sub.u32 r3, r2, r1; setp.ne.u32 p, r3, 256;\n"
      "@p trap; shl.b32 r4, t, 2; add.u32 r1, r1, r4; st.shared.u32 [r1], t;\n"
      "cvt.u64.u32 A, r1; cvta.shared.u64 A, A; isspacep.shared q, A;\n"
      "ld.u32 d, [A]; @!q mov.u32 d, 99; cvt.u64.u32 D, d; st.global.u64 [P], D;",
      kDynamic);
  CHECK(shared.run(std::vector<uint64_t>(64), 64, 16)[63] == 63);
}

TEST_CASE("atomics") {
  Program p(
      "atom.global.add.u32 d, [Q], 2; red.global.max.u32 [Q+8], t; setp.eq.u32 p, t, 7;\n"
      "atom.global.cas.b32 d, [Q+16], 5, t; @p atom.global.exch.b32 d, [Q+24], t;\n"
      "mov.f32 r1, 0f3F800000; red.global.add.f32 [Q+32], r1; atom.global.inc.u32 r2, [Q+40], 9;\n"
      "mov.u32 r3, dyn; @p st.shared.u32 [r3], 0; bar.sync 0; atom.shared.add.u32 r4, [r3], 1;\n"
      "bar.sync 0; ld.shared.u32 r5, [r3]; @p st.global.u32 [Q+48], r5;",
      kDynamic);
  const std::vector<uint64_t> got = p.run({0, 0, 5, 0, 0, 0, 0}, 64, 4);
  CHECK(got == std::vector<uint64_t>{128, 63, 0, 7, bits(64.0f), 4, 64});
  CHECK(p.counts().races == 0);
}

TEST_CASE("bounds and alignment") {
  Program read("ld.global.u64 D, [P+8];");
  CHECK_THROWS_WITH(read.run(ramp(4), 4), Contains("out of bounds") && Contains("thread 3"));
  Program write("st.global.u32 [Q+-4], t;");
  CHECK_THROWS_WITH(write.run(ramp(4), 4), Contains("written out of bounds"));
  Program shared("mov.u32 r1, dyn; st.shared.u32 [r1+64], t;", kDynamic);
  CHECK_THROWS_WITH(shared.run(ramp(1), 1, 64), Contains("byte 64 of 64"));
  CHECK_NOTHROW(shared.run(ramp(1), 1, 68));
  Program skew("ld.global.v2.u64 {A, B}, [Q+8];");
  CHECK_THROWS_WITH(skew.run(ramp(4), 1),
                    Contains("misaligned access of 16") || Contains("bounds"));
  Program byte("ld.global.u32 d, [Q+2];");
  CHECK_THROWS_WITH(byte.run(ramp(1), 1), Contains("misaligned access of 4"));
  Program nothing("ld.param.u64 D, [data+8];");
  CHECK_THROWS_WITH(nothing.run(ramp(1), 1), Contains("arguments out of bounds"));
}

TEST_CASE("cp.async: nothing arrives before it is waited for") {
  const std::string copy =
      "mov.u32 r1, dyn; shl.b32 r2, t, 3; add.u32 r1, r1, r2; cp.async.ca.shared.global [r1], [P], "
      "8;\n"
      "cp.async.commit_group;\n";
  const std::string back = "ld.shared.u64 D, [r1]; st.global.u64 [P], D;";
  Program waits(copy + "cp.async.wait_group 0;\n" + back, kDynamic);
  CHECK(waits.run(ramp(32), 32, 256) == ramp(32));
  Program never(copy, kDynamic);
  CHECK_THROWS_WITH(never.run(ramp(32), 32, 256), Contains("leaves before"));
  Program early(copy + "cp.async.wait_group 1;\n" + back + "cp.async.wait_all;", kDynamic);
  CHECK(early.run(ramp(32), 32, 256)[5] == ~0ull);
  Program part(
      "mov.u32 r1, dyn; cp.async.ca.shared.global [r1], [Q], 8, 4; cp.async.wait_all;\n" + back,
      kDynamic);
  CHECK(part.run({~0ull}, 1, 8)[0] == 0xFFFFFFFF);
  Program others(copy + "cp.async.wait_all;\nxor.b32 r1, r1, 8;\n" + back, kDynamic);
  CHECK_THROWS_WITH(others.run(ramp(32), 32, 256), Contains("race"));
}

TEST_CASE("races on shared memory") {
  const auto run = [](const std::string& body, unsigned threads) {
    return Program(kOwnWord + body, kDynamic)
        .run(std::vector<uint64_t>(threads), threads, 4 * threads);
  };
  CHECK_THROWS_WITH(run(kStoreOwn + kLoadNeighbour, 32), Contains("race") && Contains("ld.shared"));
  CHECK_NOTHROW(run(kStoreOwn + "bar.warp.sync -1;\n" + kLoadNeighbour, 32));
  CHECK(run(kStoreOwn + "bar.sync 0;\n" + kLoadNeighbour, 64)[63] == 62);
  // Between warps, __syncwarp orders nothing.
  const std::string other_warp = "xor.b32 r8, t, 32; shl.b32 r8, r8, 2; add.u32 r8, r8, r7;\n";
  CHECK_THROWS_WITH(run(kStoreOwn + other_warp + "bar.warp.sync -1;\n" + kLoadNeighbour, 64),
                    Contains("race"));
  CHECK_NOTHROW(run(kStoreOwn + other_warp + "bar.sync 0;\n" + kLoadNeighbour, 64));
  // Write after read, in a warp and between warps; two writers of one word.
  const std::string read_first = kStoreOwn + "bar.sync 0;\n" + kLoadNeighbour;
  CHECK_THROWS_WITH(run(read_first + kStoreOwn, 32), Contains("race") && Contains("st.shared"));
  CHECK_NOTHROW(run(read_first + "bar.warp.sync -1;\n" + kStoreOwn, 32));
  CHECK_THROWS_WITH(run("st.shared.u32 [r7], t;\n", 2), Contains("race"));
  CHECK_NOTHROW(run(kStoreOwn + "ld.shared.u32 d, [r9];\n" + kStoreOwn, 64));
  // Shuffles do not order memory.
  CHECK_THROWS_WITH(run(kStoreOwn + "shfl.sync.bfly.b32 d, t, 1, 31, -1;\n" + kLoadNeighbour, 32),
                    Contains("race"));
  // Neighbouring bytes and halves of one word are apart.
  CHECK_NOTHROW(
      run("mov.u32 r1, dyn; add.u32 r1, r1, t; st.shared.u8 [r1], t; ld.shared.u8 d, [r1];\n", 32));
}

TEST_CASE("counts: bank conflicts, sectors, unwritten memory") {
  const auto wavefronts = [](const std::string& access, int stride) {
    Program p("mov.u32 r1, dyn; mul.lo.u32 r2, t, " + std::to_string(stride) +
                  "; add.u32 r1, r1, r2;\n" + access,
              kDynamic);
    p.run({0}, 32, 4096);
    CHECK(p.counts().shared_requests == 1);
    return p.counts().shared_wavefronts;
  };
  CHECK(wavefronts("ld.shared.u32 d, [r1];", 0) == 1);  // one word for all
  CHECK(wavefronts("ld.shared.u32 d, [r1];", 4) == 1);
  CHECK(wavefronts("ld.shared.u32 d, [r1];", 8) == 2);
  CHECK(wavefronts("ld.shared.u32 d, [r1];", 12) == 1);
  CHECK(wavefronts("ld.shared.u32 d, [r1];", 128) == 32);
  CHECK(wavefronts("st.shared.u8 [r1], 0;", 1) == 1);
  CHECK(wavefronts("ld.shared.v2.u32 {r3, r4}, [r1];", 8) == 2);
  CHECK(wavefronts("ld.shared.v4.u32 {r3, r4, r5, r6}, [r1];", 16) == 4);
  CHECK(wavefronts("ld.shared.v4.u32 {r3, r4, r5, r6}, [r1];", 32) == 8);
  const auto sectors = [](const std::string& address) {
    Program p(address + "ld.global.u32 d, [P];");
    p.run(std::vector<uint64_t>(32 * 8), 32);
    return p.counts().global_sectors;
  };
  // Arrays of std::vector begin at 16 bytes, so that one more sector may be touched.
  CHECK(sectors("mad.wide.u32 P, t, 4, Q; and.b64 P, P, -32; add.u64 P, P, 32;\n") <= 5);
  CHECK(sectors("mul.lo.u32 r1, t, 32; cvt.u64.u32 A, r1; add.u64 P, Q, A;\n") == 32);
  CHECK(sectors("mov.u64 P, Q;\n") == 1);
  Program unwritten("mov.u32 r1, dyn; ld.shared.u32 d, [r1];", kDynamic);
  unwritten.run({0}, 32, 4);
  CHECK(unwritten.counts().unwritten == 32);
}

TEST_CASE("what is unsupported fails by name where it is met, not before") {
  const std::string skipped = "setp.lt.u32 p, t, 99;\n@p bra $L1;\n";
  for (const char* statement :
       {"call.uni (r1), helper, (r2)", "add.rz.f32 d, a, b", "bfe.f32 d, a, b, c",
        "match.any.sync.b32 d, a, -1", "bar.red.popc.u32 d, 0, p", "fma.rn.bf16 h, ha, hb, hc",
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {r1,r2,r3,r4}, {r1,r2,r3,r4}, {r1,r2}, "
        "{r1,r2,r3,r4}"}) {
    INFO(statement);
    const std::string text = std::string(statement) + ";\n$L1:\nmov.u32 d, 1;";
    CHECK_NOTHROW(Program(skipped + text).run({0}, 1));
    const std::string name = std::string(statement).substr(0, std::string(statement).find(' '));
    Program met(text);
    CHECK_THROWS_WITH(met.run({0}, 1),
                      Contains("unsupported") && Contains(name) && Contains("PTX line 13"));
  }
  Program trap("trap;");
  CHECK_THROWS_WITH(trap.run({0}, 1), Contains("trap"));
  CHECK_THROWS_WITH(trap.interpreter.launch("other", {}, {}, 0, nullptr, 0),
                    Contains("no entry other"));
}

TEST_CASE("warps in random order see the same") {
  for (const unsigned seed : {0u, 1u, 2u, 3u}) {
    Program p(kOwnWord + kStoreOwn + "bar.sync 0;\n" + kLoadNeighbour, kDynamic);
    p.interpreter.options.seed = seed;
    const std::vector<uint64_t> got = p.run(std::vector<uint64_t>(256), 256, 1024);
    for (uint64_t t = 0; t < 256; ++t) REQUIRE(got[t] == (t ^ 1));
  }
}

}  // namespace million::ptx::test
