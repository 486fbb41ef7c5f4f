// SPDX-License-Identifier: Apache-2.0
// The text form of methods and the options of codecs.
#include "lib/core/error.h"
#include "tests/quant_data.h"

#include <catch2/catch.hpp>

using namespace million;

TEST_CASE("method text: sinks and window belong to the cache", "[spec]") {
  const MethodSpec m = MethodSpec::parse("pq:window=128,nbits=08,sinks=4,M=16");
  CHECK(m.key_codec == "pq:M=16,nbits=8,scope=head,frame=64");
  CHECK(m.value_codec == m.key_codec);
  CHECK(m.sinks == 4);
  CHECK(m.window == 128);
  CHECK(m.to_string() == "pq:M=16,nbits=8,scope=head,frame=64,sinks=4,window=128");
  CHECK(MethodSpec::parse(m.to_string()) == m);
  CHECK(MethodSpec::parse("fp16").to_string() == "fp16");
  CHECK(MethodSpec::parse("fp16:sinks=4").to_string() == "fp16:sinks=4");
  CHECK(MethodSpec::parse("kvquant:outliers=0.010").key_codec == "kvquant:bits=4,outliers=0.01");

  const MethodSpec two = MethodSpec::parse("pq:sinks=4", "uniform:bits=8,sinks=4,window=32");
  CHECK(two.sinks == 4);
  CHECK(two.window == 32);
  CHECK(two.to_string() ==
        "pq:M=32,nbits=8,scope=head,frame=64,sinks=4,window=32 | "
        "uniform:bits=8,axis=token,sinks=4,window=32");
  CHECK(MethodSpec::parse(two.to_string()) == two);
  for (const char* bad :
       {"pq:sinks=-1", "pq:sinks=", "pq:window=x", "pq:sinks=1,sinks=1", "pq:sinks",
        "pq:window=99999999999", "none:sinks=4", "pq:M=16,sinks=4,zz=1", ""})
    CHECK_THROWS_AS(MethodSpec::parse(bad), Error);
  CHECK_THROWS_AS(MethodSpec::parse("pq:sinks=4", "pq:sinks=0"), Error);
}

TEST_CASE("options outside their range give one line with the range", "[spec]") {
  const KvGeometry g = testdata::geometry();
  for (const char* bad : {"pq:M=3",
                          "pq:M=0",
                          "pq:M=65",
                          "pq:nbits=13",
                          "pq:nbits=0",
                          "pq:scope=token",
                          "pq:frame=mid",
                          "pq:frame=0",
                          "pq:rotate=left",
                          "pq:rank=48,M=32",
                          "pq:rank=32,M=16,rotate=none",
                          "pq:layers=16x8",
                          "pq:layers=16x8*",
                          "pq:layers=7x8*2",
                          "pq:layers=16x8*2+",
                          "pq:layers=16x13*2",
                          "pq:layers=8x8+16x8,scope=model",
                          "pq:weights=fisher",
                          "pq:weights=fisher,frame=pre,rotate=none,centre=0",
                          "pq:rows=0",
                          "pq:iters=0",
                          "uniform:bits=0",
                          "uniform:bits=1,symmetric=1",
                          "uniform:bits=9",
                          "uniform:group=7",
                          "uniform:group=0",
                          "uniform:axis=row",
                          "uniform:axis=channel,group=5000",
                          "uniform:symmetric=2",
                          "kvquant:bits=9",
                          "kvquant:outliers=0.6",
                          "kvquant:outliers=nan",
                          "kvquant:qnorm=2",
                          "pq:M=99999999999999999999"})
    try {
      make_codec(bad, KvKind::kKey, g);
      FAIL(bad);
    } catch (const Error& e) {
      CAPTURE(bad, e.what());
      CHECK(e.code() == ErrorCode::kUsage);
      CHECK(std::string(e.what()).find('\n') == std::string::npos);
    }
}
