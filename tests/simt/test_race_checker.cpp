// SPDX-License-Identifier: Apache-2.0
// The race checker finds every planted bug at its source lines, whatever the order of threads, and
// says nothing about the same kernels without the bug.
#include <catch2/catch.hpp>

#include <algorithm>
#include <fstream>
#include <string>
#include <vector>

#include "kernels/cuda/simt/shadow.h"
#include "kernels/cuda/simt/simt.h"
#include "tests/simt/planted.h"
#include "tests/simt/race_hooks.h"

using namespace million::simt_test;

namespace {

std::vector<simt::Finding> found;

void run(const Planted& p, bool bug) {
  simt::clear_report();
  found.clear();
  simt::set_finding_sink([](const simt::Finding& f) { found.push_back(f); });
  simt::options.racecheck = true;
  simt::launch(2, p.n_threads, p.shared_bytes, [&] { p.kernel(bug); });
}

unsigned counted(Planted::Kind kind) {
  switch (kind) {
    case Planted::Kind::kRace:
      return simt::report.races;
    case Planted::Kind::kUninitialised:
      return simt::report.uninit;
    default:
      return simt::report.oob;
  }
}

}  // namespace

TEST_CASE("planted bugs are found, clean kernels are silent") {
  for (const Planted& p : planted_bugs()) {
    for (const unsigned seed : {0u, 1u, 2u, 3u}) {
      simt::options.seed = seed;
      INFO(p.name << ", seed " << seed);
      run(p, false);
      for (const simt::Finding& f : found) UNSCOPED_INFO(f.what << " at " << source_of(f.code));
      CHECK(found.empty());
      CHECK(simt::report.total() == 0);
      run(p, true);
      CHECK(counted(p.kind) > 0);
      CHECK(found.size() == simt::report.total());
    }
  }
  simt::clear_report();
}

TEST_CASE("findings name source lines") {
  const Planted& p = planted_bugs().front();
  simt::options.seed = 0;
  run(p, true);
  const auto race = std::find_if(found.begin(), found.end(), [](const simt::Finding& f) {
    return std::string(f.what) == "read after write";
  });
  REQUIRE(race != found.end());
  const simt::Finding f = *race;
  // The two statements around the missing barrier.
  std::ifstream file(MILLION_SOURCE_DIR "/tests/simt/planted.cpp");
  std::string line;
  int number = 0, function = 0;
  while (function == 0 && std::getline(file, line)) {
    ++number;
    if (line.find("void no_block_barrier_before_read") == 0) function = number;
  }
  const auto at = [&](int offset) { return "planted.cpp:" + std::to_string(function + offset); };
  INFO(source_of(f.code) << " / " << source_of(f.other_code));
  CHECK(source_of(f.code).find(at(4)) != std::string::npos);
  CHECK(source_of(f.other_code).find(at(2)) != std::string::npos);
  CHECK(f.thread != f.other_thread);
  simt::clear_report();
}

TEST_CASE("blocks on several OS threads are checked each for itself") {
  simt::options.workers = 3;
  for (const Planted& p : planted_bugs()) {
    INFO(p.name);
    run(p, false);
    CHECK(found.empty());
    run(p, true);
    CHECK(counted(p.kind) > 0);
  }
  simt::options.workers = 1;
  simt::clear_report();
}
