// SPDX-License-Identifier: Apache-2.0
// What lib/quant/codec.h promises, checked for every line of the method table. A new codec without
// entries in families() is tested with its defaults.
#include "tests/quant_data.h"

#include "lib/core/error.h"
#include "lib/core/parallel.h"

#include <spdlog/spdlog.h>
#include <catch2/catch.hpp>

#include <cstring>
#include <functional>

using namespace million;
using testdata::decode_all;

namespace {

constexpr int kTokens = 1000;  // crosses blocks of 64, 128 and 512; the last one is not full

/// Few rows per centroid are meant here; the warning about them is noise.
[[maybe_unused]] const bool kQuiet = (spdlog::set_level(spdlog::level::err), true);

/// Specs of one codec in families of rising bits.
std::vector<std::vector<std::string>> families(const std::string& name) {
  const auto rising = [](int low, int high, const std::string& form) {
    std::vector<std::string> specs;
    for (int bits = low; bits <= high; ++bits)
      specs.push_back(fmt::format(fmt::runtime(form), bits));
    return specs;
  };
  if (name == "uniform")
    return {rising(2, 8, "uniform:bits={}"),
            // Two levels of a wide group are worse than zero: minimum and maximum.
            rising(1, 8, "uniform:bits={},group=4"),
            rising(1, 8, "uniform:bits={},axis=channel,group=8"),
            rising(2, 8, "uniform:bits={},group=16,symmetric=1"),
            rising(2, 8, "uniform:bits={},axis=channel,group=32"),
            rising(2, 8, "uniform:bits={},axis=channel,group=50,symmetric=1,rope=pre"),
            rising(2, 8, "uniform:bits={},axis=channel,group=0,rope=pre"),
            {"uniform:bits=5,axis=channel,group=0,symmetric=1"}};
  if (name == "pq")
    return {
        rising(1, 8, "pq:M=32,nbits={},frame=off,iters=4"),
        rising(1, 8, "pq:M=32,nbits={},iters=4,metric=q"),
        rising(7, 11, "pq:M=16,nbits={},scope=model,iters=2,frame=pre,rotate=none,centre=0"),
        {"pq:M=8,nbits=6,scope=layer,iters=4,rotate=perm,metric=none",
         "pq:M=64,nbits=6,scope=layer,iters=4,rotate=pca,metric=none"},
        {"pq:M=1,nbits=8,iters=2,rotate=hadamard,frame=off"},
        {"pq:M=12,nbits=6,rank=48,iters=2,frame=32", "pq:M=24,nbits=8,rank=48,iters=2,frame=32"},
        {"pq:M=16,nbits=6,iters=2,rotate=pairs,pairs=4,span=1"},
        {"pq:M=16,nbits=5,iters=2,rotate=opq,rows=600"},
        {"pq:M=4,nbits=12,scope=model,iters=1,rows=5000,frame=off,seed=7"}};
  if (name == "kvquant")
    return {rising(1, 8, "kvquant:bits={}"), rising(2, 8, "kvquant:bits={},outliers=0,qnorm=0"),
            rising(1, 8, "kvquant:bits={},outliers=0.05,qnorm=1")};
  if (name == "kivi")
    return {rising(2, 8, "kivi:bits={}"), rising(1, 8, "kivi:bits={},group=8,residual=64"),
            rising(1, 8, "kivi:bits={},group=4,residual=0")};
  if (name == "quanto")
    return {rising(2, 8, "quanto:bits={}"), rising(1, 8, "quanto:bits={},group=4,residual=50"),
            rising(1, 8, "quanto:bits={},group=4,residual=0"),
            rising(2, 8, "quanto:bits={},group=16,requant=0")};
  if (name == "q8_0") return {{"q8_0"}, {"q8_0:rotate=0"}};
  if (name == "iq4_nl") return {{"iq4_nl"}, {"iq4_nl:rotate=0"}};
  if (name == "nf4") return {{"nf4", "nf4:group=16"}};
  if (name == "fp8") return {{"fp8:format=e5m2", "fp8"}, {"fp8:format=e5m2,scale=none"}};
  if (name == "fp4") return {{"fp4", "fp4:group=8,scale=f16"}};
  if (name == "turboquant")
    return {rising(1, 8, "turboquant:bits={}"),
            rising(1, 7, "turboquant:bits={}.5,rotation=hadamard"),
            rising(2, 4, "turboquant:bits={},qjl=1")};
  if (name == "commvq") return {rising(1, 3, "commvq:bits={},iters=2")};
  return {{name}};
}

/// `ends_only`: the first and the last of each family, where a case is slow.
void for_each_spec(const std::function<void(const CodecInfo&, const std::string&, KvKind)>& body,
                   bool ends_only = false) {
  for (const CodecInfo& info : codec_table())
    for (const auto& family : families(info.name))
      for (const std::string& spec : family) {
        if (ends_only && spec != family.front() && spec != family.back()) continue;
        for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
          CAPTURE(spec, kind_name(kind));
          body(info, spec, kind);
        }
      }
}

const CalibrationSet& data() {
  static const CalibrationSet set = testdata::calibration(testdata::geometry());
  return set;
}

/// Codecs are trained once for all cases below.
std::shared_ptr<Codec> trained(const std::string& spec, KvKind kind) {
  static std::map<std::string, std::shared_ptr<Codec>> cache;
  std::shared_ptr<Codec>& codec = cache[spec + kind_name(kind)];
  if (!codec) {
    codec = make_codec(spec, kind, data().geometry);
    codec->train(data(), 4);
  }
  return codec;
}

std::vector<float> encoded_at_once(const Codec& codec, const std::vector<float>& x) {
  const auto store = codec.make_store(1);
  store->append(x.data(), static_cast<int>(x.size()) / data().geometry.row(), 4);
  return decode_all(*store, data().geometry);
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

bool same_bag(const TensorBag& a, const TensorBag& b) {
  if (a.attributes != b.attributes || a.tensors.size() != b.tensors.size()) return false;
  for (const auto& [name, tensor] : a.tensors) {
    const auto it = b.tensors.find(name);
    if (it == b.tensors.end() || it->second.shape != tensor.shape ||
        !same_bits(it->second.data, tensor.data))
      return false;
  }
  return true;
}

/// The message of the Error that f throws with `code`.
template <class F>
std::string error_of(ErrorCode code, const F& f) {
  try {
    f();
  } catch (const Error& e) {
    CHECK(e.code() == code);
    return e.what();
  }
  FAIL("no error");
  return "";
}

}  // namespace

TEST_CASE("every codec: text parses back to the same codec", "[contract]") {
  for_each_spec([](const CodecInfo& info, const std::string& spec, KvKind kind) {
    const auto codec = make_codec(spec, kind, data().geometry);
    const auto again = make_codec(codec->spec(), kind, data().geometry);
    CHECK(again->spec() == codec->spec());
    CHECK(again->nominal_bits() == codec->nominal_bits());
    CHECK(again->block_tokens() == codec->block_tokens());
    CHECK(MethodSpec::parse(spec + (spec.find(':') == std::string::npos ? ":" : ",") + "sinks=4")
              .key_codec == codec->spec());
    CHECK(codec->spec().rfind(info.name, 0) == 0);
    CHECK(std::string(info.summary).size() > 10);
  });
}

TEST_CASE("every codec: the error is there, bounded and falls with bits", "[contract]") {
  const auto x = testdata::rows(data().geometry, kTokens);
  for (const CodecInfo& info : codec_table())
    for (const auto& family : families(info.name))
      for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
        double before = 1.0;
        for (const std::string& spec : family) {
          CAPTURE(spec, kind_name(kind), before);
          const auto codec = trained(spec, kind);
          // Keys after RoPE are trained on turned rows; the same rows unturned are no test of them.
          std::vector<float> y = x;
          const KvGeometry& g = data().geometry;
          for (int t = 0; kind == KvKind::kKey && t < kTokens; ++t)
            g.rope.rotate_to(y.data() + static_cast<int64_t>(t) * g.row(), g.n_kv_heads, g.head_dim,
                             codec->frame().position(t % 512));
          const double error = testdata::nmse(y, encoded_at_once(*codec, y), g);
          CHECK(error < before);
          CHECK(error > 0.0);
          before = error;
        }
      }
}

TEST_CASE("every codec: any split of a run gives the same codes", "[contract]") {
  constexpr int kSplitTokens = 570;  // crosses blocks of every size
  const KvGeometry g = data().geometry;
  const auto x = testdata::rows(g, kSplitTokens);
  for_each_spec([&](const CodecInfo&, const std::string& spec, KvKind kind) {
    const auto codec = trained(spec, kind);
    const auto whole = codec->make_store(1), parts = codec->make_store(1);
    whole->append(x.data(), kSplitTokens, 4);
    const auto expected = decode_all(*whole, g);
    const int block = codec->block_tokens();
    for (const int step : {block, 7 * block}) {  // one by one, and pieces that straddle blocks
      parts->clear();
      for (int t = 0; t < kSplitTokens; t += step)
        parts->append(x.data() + static_cast<int64_t>(t) * g.row(),
                      std::min(step, kSplitTokens - t), 4 + t);
      CHECK(parts->n_tokens() == kSplitTokens);
      CHECK(same_bits(decode_all(*parts, g), expected));
      CHECK(parts->bytes().total() == whole->bytes().total());
    }
    std::vector<float> middle(200 * g.head_dim);
    whole->decode(2, 351, 551, middle.data());
    CHECK(std::memcmp(middle.data(),
                      expected.data() + (2 * static_cast<int64_t>(kSplitTokens) + 351) * g.head_dim,
                      middle.size() * sizeof(float)) == 0);
  });
}

TEST_CASE("every codec: training and encoding do not depend on threads", "[contract]") {
  const auto x = testdata::rows(data().geometry, 200);
  const int before = threads();
  for_each_spec(
      [&](const CodecInfo&, const std::string& spec, KvKind kind) {
        const auto run = [&](int n) {
          set_threads(n);
          const auto codec = make_codec(spec, kind, data().geometry);
          codec->train(data(), 4);
          return std::pair(codec->save(), encoded_at_once(*codec, x));
        };
        const auto one = run(1), two = run(2);
        CHECK(same_bag(one.first, two.first));
        CHECK(same_bits(one.second, two.second));
      },
      /*ends_only=*/true);
  set_threads(before);
}

TEST_CASE("every codec: save and load give the same decode", "[contract]") {
  const auto x = testdata::rows(data().geometry, 200);
  for_each_spec([&](const CodecInfo&, const std::string& spec, KvKind kind) {
    const auto codec = trained(spec, kind);
    const TensorBag bag = codec->save();
    const auto loaded = make_codec(spec, kind, data().geometry);
    loaded->load(bag);
    CHECK(same_bag(loaded->save(), bag));
    CHECK(same_bits(encoded_at_once(*loaded, x), encoded_at_once(*codec, x)));
    CHECK(loaded->shared_bytes() == codec->shared_bytes());

    const KvKind other = kind == KvKind::kKey ? KvKind::kValue : KvKind::kKey;
    const auto refuses = [&](const std::string& text, KvKind k, const KvGeometry& g) {
      const auto codec2 = make_codec(text, k, g);
      return error_of(ErrorCode::kBadInput, [&] { codec2->load(bag); });
    };
    CHECK(refuses(spec, other, data().geometry).find("kind") != std::string::npos);
    CHECK(refuses(spec, kind, testdata::geometry(3)).find("n_layers") != std::string::npos);
    CHECK(refuses(spec, kind, testdata::geometry(2, 5e5f)).find("rope") != std::string::npos);
    const std::string another = spec == "fp16" ? "uniform:bits=7" : "fp16";
    CHECK(refuses(another, kind, data().geometry).find("codec") != std::string::npos);
    for (const auto& [name, tensor] : bag.tensors) {
      TensorBag broken = bag;
      broken.tensors[name].data.back() = NAN;
      CHECK_THROWS_AS(loaded->load(broken), Error);
      broken.tensors[name].shape = {1};
      CHECK_THROWS_AS(loaded->load(broken), Error);
      broken.tensors.erase(name);
      CHECK(error_of(ErrorCode::kBadInput, [&] { loaded->load(broken); }).find(name) !=
            std::string::npos);
    }
    TensorBag bare = bag;
    bare.attributes.erase("calibration");
    CHECK_THROWS_AS(loaded->load(bare), Error);
  });
}

TEST_CASE("every codec: empty store, one row, clear", "[contract]") {
  const KvGeometry g = data().geometry;
  const auto x = testdata::rows(g, 64);
  for_each_spec([&](const CodecInfo&, const std::string& spec, KvKind kind) {
    const auto store = trained(spec, kind)->make_store(0);
    CHECK(store->n_tokens() == 0);
    CHECK(store->bytes().codes == 0);
    store->decode(0, 0, 0, nullptr);
    store->append(x.data(), 0, 0);
    CHECK(store->n_tokens() == 0);
    store->append(x.data(), 1, 0);
    CHECK(store->n_tokens() == 1);
    const auto first = decode_all(*store, g);
    for (const float value : first) CHECK(std::isfinite(value));
    store->clear();
    CHECK(store->n_tokens() == 0);
    CHECK(store->bytes().codes == 0);
    store->append(x.data(), 1, 0);
    CHECK(same_bits(decode_all(*store, g), first));
  });
}

TEST_CASE("every codec: bytes are those of the codes and little more", "[contract]") {
  const KvGeometry g = data().geometry;
  const auto x = testdata::rows(g, kTokens);
  for_each_spec([&](const CodecInfo&, const std::string& spec, KvKind kind) {
    const auto codec = trained(spec, kind);
    const auto store = codec->make_store(1);
    store->append(x.data(), kTokens, 4);
    const double values = static_cast<double>(kTokens) * g.row();
    const double bits = static_cast<double>(store->bytes().total()) * 8 / values;
    CAPTURE(bits, codec->nominal_bits());
    // The data here is not the calibration data: the share of key outliers differs a little.
    CHECK(bits >= codec->nominal_bits() * 0.98);
    // At most a block beyond the last token, list of blocks, outliers of other data.
    CHECK(bits <= codec->nominal_bits() * 1.15 + 0.35);
    if (codec->needs_training()) CHECK(codec->shared_bytes() > 0);
  });
}

TEST_CASE("every codec: sinks take no part in training", "[contract]") {
  CalibrationSet other = data();
  for (auto* side : {&other.k_pre, &other.v})
    for (auto& layer : *side)
      for (int64_t t = 0; t < other.n_tokens; ++t)
        for (int c = 0; other.position(t) < 4 && c < other.geometry.row(); ++c)
          layer[t * other.geometry.row() + c] = float_to_half(300.0f);
  for_each_spec([&](const CodecInfo&, const std::string& spec, KvKind kind) {
    if (!trained(spec, kind)->needs_training()) return;
    const auto codec = make_codec(spec, kind, data().geometry);
    codec->train(other, 4);
    CHECK(same_bag(codec->save(), trained(spec, kind)->save()));
    codec->train(other, 0);
    CHECK(!same_bag(codec->save(), trained(spec, kind)->save()));
  });
}

TEST_CASE("every codec: bad calibration is named", "[contract]") {
  const KvGeometry g = data().geometry;
  CalibrationSet nan = data();
  for (auto* side : {&nan.k_pre, &nan.v}) side->at(1)[77 * g.row() + 2 * g.head_dim + 5] = 0x7E00;
  const CalibrationSet few = testdata::calibration(g, 2, 512);
  const CalibrationSet shape = testdata::calibration(testdata::geometry(1));
  for_each_spec([&](const CodecInfo&, const std::string& spec, KvKind kind) {
    const auto codec = make_codec(spec, kind, g);
    error_of(ErrorCode::kBadInput, [&] { codec->train(shape, 0); });
    if (!codec->needs_training()) return;
    CHECK(error_of(ErrorCode::kBadInput, [&] {
            codec->train(nan, 4);
          }).find("layer 1, head 2, token 77") != std::string::npos);
    CHECK(error_of(ErrorCode::kBadInput, [&] { codec->train(few, 1); }).find("at least") !=
          std::string::npos);
  });
}

TEST_CASE("every codec: wrong text names what is known", "[contract]") {
  const KvGeometry g = data().geometry;
  const auto usage = [&](const std::string& spec) {
    return error_of(ErrorCode::kUsage, [&] { make_codec(spec, KvKind::kKey, g); });
  };
  for (const CodecInfo& info : codec_table()) {
    const std::string name = info.name;
    for (const char* bad : {":colour=red", ":=3", ":colour", ":,"}) {
      const std::string message = usage(name + bad);
      for (const OptionInfo& option : info.options)
        CHECK(message.find(option.key) != std::string::npos);
    }
    for (const OptionInfo& option : info.options) {
      CHECK(usage(fmt::format("{}:{}=", name, option.key)).find(option.key) != std::string::npos);
      CHECK(usage(fmt::format("{}:{}=many", name, option.key)).find("many") != std::string::npos);
      CHECK(usage(fmt::format("{0}:{1}={2},{1}={2}", name, option.key, option.fallback))
                .find("twice") != std::string::npos);
    }
    CHECK(usage("nonsense").find(name) != std::string::npos);
  }
  CHECK_THROWS_AS(make_codec("fp16", KvKind::kKey, KvGeometry{}), Error);
}
