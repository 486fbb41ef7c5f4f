// SPDX-License-Identifier: Apache-2.0
// Dump and codebook files: what was written is read back, what is damaged is refused, and what dies
// half-way leaves nothing that looks finished.
#include "kernels/half.h"
#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/core/rng.h"
#include "lib/results/dump_file.h"
#include "lib/results/tensor_file.h"
#include "tests/scratch.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <catch2/catch.hpp>

#include <csignal>
#include <cstring>
#include <fstream>
#include <functional>

using namespace million;
namespace fs = std::filesystem;

namespace {

/// Code of the Error that `f` throws; 0 when it returns.
int error_code(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    CHECK(std::string(e.what()).find('\n') == std::string::npos);
    return static_cast<int>(e.code());
  }
  return 0;
}

DumpMeta small_meta(int n_tokens = 100) {
  DumpMeta meta;
  RopeParams rope;
  rope.n_rot = 16;
  rope.base = 100000.0f;
  rope.scaling = RopeScaling::kLinear;
  rope.factor = 2.0f;
  meta.geometry = {3, 6, 2, 16, Rope(rope)};
  meta.model = "tiny";
  meta.model_sha256 = "m";
  meta.tokenizer = "gpt-2";
  meta.compute = "f32";
  meta.text_name = "text.txt";
  meta.context = 40;
  meta.seed = 7;
  for (int i = 0; i < n_tokens; ++i) meta.tokens.push_back(i * 3);
  meta.text_sha256 = tokens_sha256(meta.tokens);
  meta.tensors = {DumpTensor::kKeyPre, DumpTensor::kKey, DumpTensor::kValue, DumpTensor::kQuery,
                  DumpTensor::kAttnOut};
  meta.layers = {0, 1, 2};
  meta.kv_heads = {0, 1};
  return meta;
}

/// Row value that names its place and is exact in f16.
float value_at(int layer, int tensor, int64_t token, int head, int channel) {
  return static_cast<float>((layer * 7 + tensor * 5 + token * 3 + head * 11 + channel) % 1024) / 8;
}

/// Adds tokens [first, first + n) of everything to a writer.
void add_rows(DumpWriter& writer, int64_t first, int n) {
  const KvGeometry& g = writer.meta().geometry;
  for (int layer = 0; layer < g.n_layers; ++layer)
    for (int t = 0; t < kDumpTensors; ++t) {
      const int heads = is_query_side(static_cast<DumpTensor>(t)) ? g.n_heads : g.n_kv_heads;
      std::vector<float> rows;
      for (int64_t i = first; i < first + n; ++i)
        for (int h = 0; h < heads; ++h)
          for (int c = 0; c < g.head_dim; ++c) rows.push_back(value_at(layer, t, i, h, c));
      writer.add(layer, static_cast<DumpTensor>(t), first, n, rows.data());
    }
}

void write_dump(const fs::path& path, DumpMeta meta = small_meta()) {
  DumpWriter writer(path, std::move(meta));
  for (int64_t at = 0; at < writer.meta().n_tokens; at += 33)
    add_rows(writer, at, static_cast<int>(std::min<int64_t>(33, writer.meta().n_tokens - at)));
  writer.finish();
}

/// Every stored number of a dump, to compare two files.
std::vector<uint16_t> all_rows(const DumpReader& dump) {
  std::vector<uint16_t> out;
  for (int layer : dump.meta().layers)
    for (DumpTensor t : dump.meta().tensors)
      for (int head : dump.meta().heads(t)) {
        const auto rows = dump.read_half(layer, t, head, 0, dump.meta().n_tokens);
        out.insert(out.end(), rows.begin(), rows.end());
      }
  return out;
}

std::string bytes_of(const fs::path& path) { return read_file(path); }
void put_bytes(const fs::path& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

/// Runs `body` in a child and returns its exit code; -signal when it was killed.
int in_child(const std::function<int()>& body) {
  const pid_t pid = fork();
  REQUIRE(pid >= 0);
  if (pid == 0) {
    // exit, not _exit: the library's own exit handlers must survive what happened.
    std::exit(body());
  }
  int status = 0;
  REQUIRE(waitpid(pid, &status, 0) == pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

/// Output of a shell command; `code` gets its exit code.
std::string shell(const std::string& command, int& code) {
  std::string out;
  FILE* pipe = popen(command.c_str(), "r");
  REQUIRE(pipe);
  char buffer[4096];
  while (const std::size_t n = fread(buffer, 1, sizeof buffer, pipe)) out.append(buffer, n);
  const int status = pclose(pipe);
  code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return out;
}

}  // namespace

TEST_CASE("a dump reads back as it was written", "[dump]") {
  Scratch dir;
  write_dump(dir / "a.h5");
  CHECK_FALSE(fs::exists(dir / "a.h5.part"));
  const DumpReader dump(dir / "a.h5");
  const DumpMeta expected = small_meta();
  const DumpMeta& meta = dump.meta();
  CHECK(meta.model == "tiny");
  CHECK(meta.tokens == expected.tokens);
  CHECK(meta.text_sha256 == expected.text_sha256);
  CHECK(meta.context == 40);
  CHECK(meta.seed == 7);
  CHECK(meta.geometry.rope.params() == expected.geometry.rope.params());
  CHECK(meta.geometry.n_heads == 6);
  for (int layer = 0; layer < 3; ++layer)
    for (DumpTensor t : meta.tensors)
      for (int head : meta.heads(t)) {
        const auto rows = dump.read(layer, t, head, 20, 90);
        REQUIRE(rows.size() == 70 * 16);
        for (int64_t i = 0; i < 70; ++i)
          for (int c = 0; c < 16; ++c)
            REQUIRE(rows[static_cast<std::size_t>(i * 16 + c)] ==
                    value_at(layer, static_cast<int>(t), i + 20, head, c));
      }
  CHECK(error_code([&] { dump.read(0, DumpTensor::kKey, 2, 0, 1); }) == 2);
  CHECK(error_code([&] { dump.read(3, DumpTensor::kKey, 0, 0, 1); }) == 2);
  CHECK(error_code([&] { dump.read(0, DumpTensor::kKey, 0, 50, 101); }) == 2);
}

TEST_CASE("equal input gives an equal file", "[dump]") {
  Scratch dir;
  write_dump(dir / "a.h5");
  write_dump(dir / "b.h5");
  CHECK(bytes_of(dir / "a.h5") == bytes_of(dir / "b.h5"));
}

TEST_CASE("a selection stores only what was asked for", "[dump]") {
  Scratch dir;
  DumpMeta meta = small_meta();
  meta.tensors = {DumpTensor::kQuery, DumpTensor::kKeyPre};
  meta.layers = {1};
  meta.kv_heads = {1};
  meta.n_tokens = static_cast<int64_t>(meta.tokens.size());
  meta.tokens.clear();  // as with --skip-tokens
  write_dump(dir / "a.h5", meta);
  const DumpReader dump(dir / "a.h5");
  CHECK(dump.meta().tokens.empty());
  CHECK(dump.meta().n_tokens == 100);
  CHECK(dump.meta().heads(DumpTensor::kQuery) == std::vector<int>{3, 4, 5});
  CHECK(dump.read(1, DumpTensor::kQuery, 4, 9, 10)[2] == value_at(1, 3, 9, 4, 2));
  CHECK_FALSE(dump.has(1, DumpTensor::kValue));
  CHECK_FALSE(dump.has(0, DumpTensor::kQuery));
  CHECK(error_code([&] { to_calibration_set(dump); }) == 3);
}

TEST_CASE("h5py reads a dump", "[dump]") {
  Scratch dir;
  write_dump(dir / "a.h5");
  int code = 0;
  shell("/usr/bin/python3 -c 'import h5py' 2>/dev/null", code);
  if (code != 0) {
    WARN("SKIPPED: /usr/bin/python3 has no h5py");
    return;
  }
  put_bytes(dir / "read.py", R"(
import sys, h5py, numpy
f = h5py.File(sys.argv[1], "r")
k = f["layers/01/k"]
assert f.attrs["format"].decode() == "million-kv-dump"
assert f.attrs["n_kv_heads"] == 2, dict(f.attrs)
assert k.dtype == numpy.float16 and k.shape == (2, 100, 16), (k.dtype, k.shape)
assert [d.label for d in k.dims] == ["kv_head", "token", "channel"]
assert k.dims[1][0].name == "/positions" and k.fletcher32 and k.shuffle
assert list(f["tokens"][:3]) == [0, 3, 6] and list(f["positions"][39:41]) == [39, 0]
print(float(k[1, 5, 3]), float(f["layers/02/q"][4, 99, 15]))
)");
  const std::string out = shell(fmt::format("/usr/bin/python3 {} {} 2>&1",
                                            (dir / "read.py").string(), (dir / "a.h5").string()),
                                code);
  INFO(out);
  CHECK(code == 0);
  CHECK(out == fmt::format("{} {}\n", value_at(1, 1, 5, 1, 3), value_at(2, 3, 99, 4, 15)));
}

TEST_CASE("a damaged dump is refused", "[dump]") {
  Scratch dir;
  write_dump(dir / "a.h5");
  const std::string whole = bytes_of(dir / "a.h5");
  const auto original = all_rows(DumpReader(dir / "a.h5"));

  SECTION("cut at every sixteenth") {
    for (std::size_t i = 0; i < 16; ++i) {
      put_bytes(dir / "b.h5", std::string_view(whole).substr(0, whole.size() * i / 16));
      INFO("sixteenth " << i);
      CHECK(error_code([&] { all_rows(DumpReader(dir / "b.h5")); }) == 3);
    }
  }
  SECTION("one flipped bit is an error or changes nothing") {
    int refused = 0, harmless = 0;
    Rng rng(1);
    for (int i = 0; i < 400; ++i) {
      std::string bytes = whole;
      const std::size_t at = rng.below(whole.size());
      bytes[at] = static_cast<char>(bytes[at] ^ (1 << rng.below(8)));
      put_bytes(dir / "b.h5", bytes);
      std::vector<uint16_t> rows;
      const int code = error_code([&] { rows = all_rows(DumpReader(dir / "b.h5")); });
      INFO("byte " << at);
      REQUIRE((code == 3 || (code == 0 && rows == original)));
      ++(code == 0 ? harmless : refused);
    }
    CHECK(refused > harmless);  // most bytes are rows, the rest unused room
  }
  SECTION("other files") {
    put_bytes(dir / "b.h5", "GGUF and then something");
    CHECK(error_code([&] { DumpReader{dir / "b.h5"}; }) == 3);
    CHECK(error_code([&] { DumpReader{dir / "missing.h5"}; }) == 3);
    save_tensors(dir / "c.h5", TensorBag{});
    CHECK(error_code([&] { DumpReader{dir / "c.h5"}; }) == 3);
    CHECK(error_code([&] { load_tensors(dir / "a.h5"); }) == 3);
  }
}

TEST_CASE("an unfinished dump does not appear", "[dump]") {
  Scratch dir;
  SECTION("killed writer") {
    const int code = in_child([&] {
      DumpWriter writer(dir / "a.h5", small_meta());
      add_rows(writer, 0, 60);
      raise(SIGKILL);
      return 0;
    });
    CHECK(code == -SIGKILL);
    CHECK_FALSE(fs::exists(dir / "a.h5"));
    CHECK(fs::exists(dir / "a.h5.part"));
    write_dump(dir / "a.h5");  // and the next run takes over
    CHECK(DumpReader(dir / "a.h5").meta().n_tokens == 100);
    CHECK_FALSE(fs::exists(dir / "a.h5.part"));
  }
  SECTION("missing rows, exception") {
    CHECK(error_code([&] {
            DumpWriter writer(dir / "a.h5", small_meta());
            add_rows(writer, 0, 60);
            writer.finish();
          }) == 1);
    CHECK(error_code([&] {
            DumpWriter writer(dir / "a.h5", small_meta());
            std::vector<float> rows(2 * 16, 1e6f);
            writer.add(0, DumpTensor::kKey, 0, 1, rows.data());
          }) == 1);
    CHECK_FALSE(fs::exists(dir / "a.h5"));
    CHECK_FALSE(fs::exists(dir / "a.h5.part"));
  }
  SECTION("disk full") {
    const int code = in_child([&] {
      const rlimit limit{1 << 20, 1 << 20};
      setrlimit(RLIMIT_FSIZE, &limit);
      signal(SIGXFSZ, SIG_IGN);
      return error_code([&] { write_dump(dir / "a.h5", small_meta(6000)); });
    });
    CHECK(code == static_cast<int>(ErrorCode::kNoResources));
    CHECK_FALSE(fs::exists(dir / "a.h5"));
    CHECK_FALSE(fs::exists(dir / "a.h5.part"));
    CHECK(error_code([&] {
            DumpMeta huge = small_meta();
            huge.tokens.clear();
            huge.n_tokens = (int64_t{1} << 31) - 1;
            huge.geometry.head_dim = 4096;
            DumpWriter{dir / "a.h5", huge};
          }) == 4);
  }
}

TEST_CASE("a dump calibrates like the rows it was written from", "[dump]") {
  Scratch dir;
  // Queries that are the rotation of constants: before RoPE every q_c is c + 1.
  DumpMeta meta = small_meta();
  meta.tensors = {DumpTensor::kKeyPre, DumpTensor::kValue, DumpTensor::kQuery};
  {
    DumpWriter writer(dir / "a.h5", meta);
    add_rows(writer, 0, 0);
    for (int layer = 0; layer < 3; ++layer)
      for (int t : {0, 2, 3}) {
        const int heads = t == 3 ? 6 : 2;
        std::vector<float> rows;
        for (int64_t i = 0; i < 100; ++i)
          for (int h = 0; h < heads; ++h) {
            std::vector<float> row(16);
            for (int c = 0; c < 16; ++c)
              row[static_cast<std::size_t>(c)] =
                  t == 3 ? static_cast<float>(c + 1) : value_at(layer, t, i, h, c);
            if (t == 3) meta.geometry.rope.rotate_to(row.data(), 1, 16, i % meta.context);
            rows.insert(rows.end(), row.begin(), row.end());
          }
        writer.add(layer, static_cast<DumpTensor>(t), 0, 100, rows.data());
      }
    writer.finish();
  }
  const CalibrationSet set = to_calibration_set(DumpReader(dir / "a.h5"));
  CHECK(set.n_tokens == 100);
  CHECK(set.context == 40);
  CHECK(set.k_pre.size() == 3);
  CHECK(half_to_float(set.v[2][(57 * 2 + 1) * 16 + 4]) == value_at(2, 2, 57, 1, 4));
  for (int c = 0; c < 16; ++c)
    CHECK(set.q_second_moment[1][static_cast<std::size_t>(16 + c)] ==
          Approx((c + 1.0) * (c + 1.0)).epsilon(2e-3));  // f16 rows: 2^-11 relative per value
}

TEST_CASE("tensor files", "[tensors]") {
  Scratch dir;
  TensorBag bag;
  bag.attributes = {{"spec", "pq:M=4"}, {"calibration", {{"n_tokens", 4096}}}};
  bag.attributes["long"] = std::string(200000, 'x');  // above HDF5's compact limit
  bag.tensors["centroids"] = {{2, 3, 4}, std::vector<float>(24, 0.5f)};
  bag.tensors["layer0/scale"] = {{1}, {-1.25f}};
  bag.tensors["none"] = {{0, 4}, {}};
  bag.tensors["large"] = {{700, 1000}, std::vector<float>(700000)};
  Rng rng(3);
  for (float& x : bag.tensors["large"].data) x = static_cast<float>(rng.normal());
  save_tensors(dir / "a.h5", bag);
  const TensorBag back = load_tensors(dir / "a.h5");
  CHECK(back.attributes == bag.attributes);
  REQUIRE(back.tensors.size() == 4);
  for (const auto& [name, tensor] : bag.tensors) {
    CHECK(back.tensors.at(name).shape == tensor.shape);
    CHECK(back.tensors.at(name).data == tensor.data);
  }
  const std::string whole = bytes_of(dir / "a.h5");
  for (std::size_t i = 0; i < 16; ++i) {
    put_bytes(dir / "b.h5", std::string_view(whole).substr(0, whole.size() * i / 16));
    CHECK(error_code([&] { load_tensors(dir / "b.h5"); }) == 3);
  }
  std::string flipped = whole;
  flipped[whole.size() / 2] = static_cast<char>(flipped[whole.size() / 2] ^ 4);
  put_bytes(dir / "b.h5", flipped);
  CHECK(error_code([&] { load_tensors(dir / "b.h5"); }) == 3);
  const int code = in_child([&] {
    const rlimit limit{1 << 20, 1 << 20};
    setrlimit(RLIMIT_FSIZE, &limit);
    signal(SIGXFSZ, SIG_IGN);
    return error_code([&] { save_tensors(dir / "full.h5", bag); });
  });
  CHECK(code == 4);
  CHECK_FALSE(fs::exists(dir / "full.h5"));
  CHECK_FALSE(fs::exists(dir / "full.h5.part"));
}
