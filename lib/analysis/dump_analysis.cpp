// SPDX-License-Identifier: Apache-2.0
#include "lib/analysis/dump_analysis.h"

#include "lib/core/error.h"
#include "lib/core/parallel.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

namespace million {
namespace {

/// Six significant digits: files stay small and hold no digits that f16 rows cannot carry.
double rounded(double x) {
  if (!std::isfinite(x)) return x;
  const std::string text = fmt::format("{:.6g}", x);
  double value = 0.0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

template <class Get>
Json list_of(const std::vector<ValueStats>& channels, Get get) {
  Json out = Json::array();
  for (const ValueStats& channel : channels) out.push_back(rounded(get(channel)));
  return out;
}

std::string sigma_name(double sigma) { return fmt::format("{:g}", sigma); }

Json outliers_json(const ValueStats& stats, const StatsOptions& options) {
  Json out = Json::object();
  for (std::size_t k = 0; k < options.sigmas.size(); ++k)
    out[sigma_name(options.sigmas[k])] = rounded(stats.beyond_sigma[k]);
  return out;
}

Json head_json(const HeadEntry& e, const StatsOptions& options) {
  const HeadStats& s = e.stats;
  Json channels = {
      {"min", list_of(s.channels, [](const ValueStats& c) { return c.moments.min(); })},
      {"max", list_of(s.channels, [](const ValueStats& c) { return c.moments.max(); })},
      {"mean", list_of(s.channels, [](const ValueStats& c) { return c.moments.mean(); })},
      {"sd", list_of(s.channels, [](const ValueStats& c) { return c.moments.sd(); })},
      {"kurtosis", list_of(s.channels, [](const ValueStats& c) { return c.moments.kurtosis(); })},
      {"mean_abs", list_of(s.channels, [](const ValueStats& c) { return c.mean_abs; })},
      {"beyond_median", list_of(s.channels, [](const ValueStats& c) { return c.beyond_median; })}};
  for (std::size_t k = 0; k < options.sigmas.size(); ++k)
    channels["beyond_sigma"][sigma_name(options.sigmas[k])] =
        list_of(s.channels, [k](const ValueStats& c) { return c.beyond_sigma[k]; });
  Json norms = Json::array(), spectrum = Json::array();
  for (double x : s.norm_by_bin) norms.push_back(rounded(x));
  for (double x : s.spectrum) spectrum.push_back(rounded(x));
  Json out = {{"dump", e.dump},
              {"layer", e.layer},
              {"tensor", dump_tensor_name(e.tensor)},
              {"head", e.head},
              {"min", rounded(s.all.moments.min())},
              {"max", rounded(s.all.moments.max())},
              {"mean", rounded(s.all.moments.mean())},
              {"sd", rounded(s.all.moments.sd())},
              {"kurtosis", rounded(s.all.moments.kurtosis())},
              {"median_abs", rounded(s.all.median_abs)},
              {"beyond_sigma", outliers_json(s.all, options)},
              {"beyond_median", rounded(s.all.beyond_median)},
              {"outlier_channels", s.outlier_channels},
              {"mean_to_sd", rounded(s.mean_to_sd)},
              {"top_channels", s.top_channels},
              {"top_energy", rounded(s.top_energy)},
              {"stability_shards", rounded(s.shard_stability)},
              {"norm_by_position", std::move(norms)},
              {"spectrum", std::move(spectrum)},
              {"effective_rank", rounded(s.effective_rank)},
              {"components_90", s.components_for(0.90)},
              {"components_99", s.components_for(0.99)},
              {"channels", std::move(channels)}};
  if (e.text_stability >= 0.0) out["stability_texts"] = rounded(e.text_stability);
  return out;
}

/// Means over some heads; what tables and expectations read.
struct Summary {
  std::vector<const HeadEntry*> heads;

  template <class Get>
  double mean(Get get) const {
    double sum = 0.0;
    for (const HeadEntry* e : heads) sum += get(*e);
    return sum / static_cast<double>(heads.size());
  }
  /// Mean kurtosis inside the channels, the shape that a per-channel quantizer meets.
  static double channel_kurtosis(const HeadEntry& e) {
    double sum = 0.0;
    for (const ValueStats& c : e.stats.channels) sum += c.moments.kurtosis();
    return sum / static_cast<double>(e.stats.channels.size());
  }
  /// Norm at position 0 relative to the last position bin: below or above 1 marks a sink.
  static double first_norm(const HeadEntry& e) {
    const auto& norms = e.stats.norm_by_bin;
    return norms.back() > 0.0 ? norms.front() / norms.back() : 1.0;
  }
  Json to_json(const StatsOptions& options) const;
};

Json Summary::to_json(const StatsOptions& options) const {
  double low = heads[0]->stats.all.moments.min(), high = heads[0]->stats.all.moments.max();
  std::set<int> outlier_layers;
  for (const HeadEntry* e : heads) {
    low = std::min(low, e->stats.all.moments.min());
    high = std::max(high, e->stats.all.moments.max());
    if (e->stats.outlier_channels > 0) outlier_layers.insert(e->layer);
  }
  Json out = {
      {"min", rounded(low)},
      {"max", rounded(high)},
      {"kurtosis", rounded(mean([](const auto& e) { return e.stats.all.moments.kurtosis(); }))},
      {"channel_kurtosis", rounded(mean(channel_kurtosis))},
      {"beyond_sigma", Json::object()},
      {"beyond_median", rounded(mean([](const auto& e) { return e.stats.all.beyond_median; }))},
      {"outlier_channels", rounded(mean([](const auto& e) { return e.stats.outlier_channels; }))},
      {"outlier_layers", outlier_layers.size()},
      {"mean_to_sd", rounded(mean([](const auto& e) { return e.stats.mean_to_sd; }))},
      {"top_energy", rounded(mean([](const auto& e) { return e.stats.top_energy; }))},
      {"stability_shards", rounded(mean([](const auto& e) { return e.stats.shard_stability; }))},
      {"first_norm", rounded(mean(first_norm))},
      {"effective_rank", rounded(mean([](const auto& e) { return e.stats.effective_rank; }))}};
  for (std::size_t k = 0; k < options.sigmas.size(); ++k)
    out["beyond_sigma"][sigma_name(options.sigmas[k])] =
        rounded(mean([k](const auto& e) { return e.stats.all.beyond_sigma[k]; }));
  if (heads[0]->text_stability >= 0.0)
    out["stability_texts"] = rounded(mean([](const auto& e) { return e.text_stability; }));
  return out;
}

/// Heads of the first dump by tensor, and by layer and tensor.
std::map<DumpTensor, Summary> by_tensor(const DumpAnalysis& a) {
  std::map<DumpTensor, Summary> out;
  for (const HeadEntry& e : a.heads)
    if (e.dump == 0) out[e.tensor].heads.push_back(&e);
  return out;
}
std::map<std::pair<int, DumpTensor>, Summary> by_layer(const DumpAnalysis& a) {
  std::map<std::pair<int, DumpTensor>, Summary> out;
  for (const HeadEntry& e : a.heads)
    if (e.dump == 0) out[{e.layer, e.tensor}].heads.push_back(&e);
  return out;
}

/// Statistics of all heads of one layer and tensor; reading is serial (HDF5), computing is not.
void analyze_tensor(const DumpReader& dump, int index, int layer, DumpTensor tensor,
                    StatsOptions options, std::vector<HeadEntry>& out) {
  const auto heads = dump.meta().heads(tensor);
  const int d = dump.meta().geometry.head_dim;
  options.context = dump.meta().context;
  std::vector<AlignedVector<float>> rows;
  for (int head : heads) rows.push_back(dump.read(layer, tensor, head, 0, dump.meta().n_tokens));
  std::vector<HeadEntry> entries(heads.size());
  parallel_for(static_cast<int64_t>(heads.size()), [&](int64_t i) {
    HeadEntry& e = entries[static_cast<std::size_t>(i)];
    e.dump = index;
    e.layer = layer;
    e.tensor = tensor;
    e.head = heads[static_cast<std::size_t>(i)];
    try {
      e.stats = head_stats(rows[static_cast<std::size_t>(i)], d, options);
    } catch (const Error& error) {
      fail(error.code(), "{}: layer {} {} head {}: {}", dump.path().string(), layer,
           dump_tensor_name(tensor), e.head, error.what());
    }
  });
  std::move(entries.begin(), entries.end(), std::back_inserter(out));
}

/// Compares the top channels of every head with those of the same head in the other dumps.
void compare_texts(std::vector<HeadEntry>& heads) {
  std::map<std::tuple<int, DumpTensor, int>, std::vector<HeadEntry*>> same;
  for (HeadEntry& e : heads) same[{e.layer, e.tensor, e.head}].push_back(&e);
  for (auto& [place, entries] : same) {
    for (HeadEntry* e : entries) {
      if (entries.size() < 2) continue;
      double sum = 0.0;
      for (const HeadEntry* other : entries)
        if (other != e) sum += jaccard(e->stats.top_channels, other->stats.top_channels);
      e->text_stability = sum / static_cast<double>(entries.size() - 1);
    }
  }
}

void csv_line(std::string& out, const HeadEntry& e, const std::string& channel,
              const ValueStats& s) {
  out += fmt::format("{},{},{},{},{},{:.6g},{:.6g},{:.6g},{:.6g},{:.6g},{:.6g},{:.6g}", e.dump,
                     e.layer, dump_tensor_name(e.tensor), e.head, channel, s.moments.min(),
                     s.moments.max(), s.moments.mean(), s.moments.sd(), s.moments.kurtosis(),
                     s.mean_abs, s.beyond_median);
  for (double share : s.beyond_sigma) out += fmt::format(",{:.6g}", share);
  out += '\n';
}

}  // namespace

DumpAnalysis analyze_dumps(const std::vector<DumpReader>& dumps, std::vector<DumpTensor> tensors,
                           const std::vector<int>& layers, const StatsOptions& options,
                           const std::function<void()>& on_layer) {
  DumpAnalysis out;
  out.options = options;
  std::sort(tensors.begin(), tensors.end());
  for (std::size_t i = 0; i < dumps.size(); ++i) {
    const DumpMeta& meta = dumps[i].meta();
    MILLION_REQUIRE(meta.model_sha256 == dumps[0].meta().model_sha256, ErrorCode::kBadInput,
                    "{} and {} are dumps of different models", dumps[0].path().string(),
                    dumps[i].path().string());
    out.dumps.push_back(meta);
    out.dumps.back().tokens.clear();
    for (int layer : layers) {
      for (DumpTensor tensor : tensors)
        if (dumps[i].has(layer, tensor))
          analyze_tensor(dumps[i], static_cast<int>(i), layer, tensor, options, out.heads);
      if (on_layer) on_layer();
    }
  }
  MILLION_REQUIRE(!out.heads.empty() && out.heads[0].dump == 0, ErrorCode::kUsage,
                  "{} holds none of the chosen layers and tensors", dumps[0].path().string());
  compare_texts(out.heads);
  return out;
}

Json to_json(const DumpAnalysis& a) {
  Json dumps = Json::array();
  for (const DumpMeta& meta : a.dumps)
    dumps.push_back({{"model", meta.model},
                     {"model_sha256", meta.model_sha256},
                     {"text", meta.text_name},
                     {"text_sha256", meta.text_sha256},
                     {"tokens", meta.n_tokens},
                     {"context", meta.context},
                     {"compute", meta.compute},
                     {"n_layers", meta.geometry.n_layers},
                     {"n_heads", meta.geometry.n_heads},
                     {"n_kv_heads", meta.geometry.n_kv_heads},
                     {"head_dim", meta.geometry.head_dim},
                     {"rope", meta.geometry.rope.params().to_string()}});
  Json summary = Json::object(), layers = Json::array(), heads = Json::array();
  for (const auto& [tensor, group] : by_tensor(a))
    summary[dump_tensor_name(tensor)] = group.to_json(a.options);
  for (const auto& [place, group] : by_layer(a)) {
    Json row = {{"layer", place.first}, {"tensor", dump_tensor_name(place.second)}};
    row.update(group.to_json(a.options));
    layers.push_back(std::move(row));
  }
  for (const HeadEntry& e : a.heads) heads.push_back(head_json(e, a.options));
  return {{"format", "million-kv-analysis"},
          {"version", 1},
          {"options",
           {{"sigmas", a.options.sigmas},
            {"median_factor", a.options.median_factor},
            {"top", a.options.top},
            {"shards", a.options.shards}}},
          {"dumps", std::move(dumps)},
          {"norm_bins", norm_bins(a.dumps[0].context)},
          {"summary", std::move(summary)},
          {"layers", std::move(layers)},
          {"heads", std::move(heads)}};
}

std::string to_csv(const DumpAnalysis& a) {
  std::string out =
      "dump,layer,tensor,head,channel,min,max,mean,sd,kurtosis,mean_abs,beyond_median";
  for (double sigma : a.options.sigmas) out += fmt::format(",beyond_{}sd", sigma_name(sigma));
  out += '\n';
  for (const HeadEntry& e : a.heads) {
    csv_line(out, e, "all", e.stats.all);
    for (std::size_t c = 0; c < e.stats.channels.size(); ++c)
      csv_line(out, e, std::to_string(c), e.stats.channels[c]);
  }
  return out;
}

std::string to_markdown(const DumpAnalysis& a) {
  const StatsOptions& o = a.options;
  const std::string first = sigma_name(o.sigmas.front());
  const auto row = [&](const Json& s) {
    return fmt::format(
        " {:.3g} … {:.3g} | {:.3g} | {:.3g} | {:.3g} | {:.3g} | {:.3g} | {:.3g} | {:.3g} | {} | "
        "{:.2f} | {:.3g} |\n",
        s["min"].get<double>(), s["max"].get<double>(), s["kurtosis"].get<double>(),
        s["channel_kurtosis"].get<double>(), 100.0 * s["beyond_sigma"][first].get<double>(),
        100.0 * s["beyond_median"].get<double>(), s["outlier_channels"].get<double>(),
        100.0 * s["top_energy"].get<double>(), s["stability_shards"].get<double>(),
        s.contains("stability_texts") ? fmt::format("{:.3g}", s["stability_texts"].get<double>())
                                      : "–",
        s["mean_to_sd"].get<double>(), s["effective_rank"].get<double>());
  };
  const std::string columns = fmt::format(
      " range | kurtosis | in channels | beyond {}σ % | beyond {:g}× median % | outlier channels a "
      "head | top-{} energy % | stable in text | over texts | mean/sd | effective rank |\n",
      first, o.median_factor, o.top);
  std::string rule = "---|---|---|---|---|---|---|---|---|---|---|\n";
  std::string out = "| tensor | layers with outliers |" + columns + "|---|---|" + rule;
  for (const auto& [tensor, group] : by_tensor(a)) {
    const Json s = group.to_json(o);
    std::set<int> layers;
    for (const HeadEntry* e : group.heads) layers.insert(e->layer);
    out += fmt::format("| {} | {} of {} |{}", dump_tensor_name(tensor),
                       s["outlier_layers"].get<int>(), layers.size(), row(s));
  }
  out += "\n| layer | tensor |" + columns + "|---|---|" + rule;
  for (const auto& [place, group] : by_layer(a))
    out += fmt::format("| {} | {} |{}", place.first, dump_tensor_name(place.second),
                       row(group.to_json(o)));
  return out;
}

Json surface_json(const DumpReader& dump, int layer, int head, int max_tokens) {
  const int64_t n = dump.meta().n_tokens;
  const auto d = static_cast<std::size_t>(dump.meta().geometry.head_dim);
  const int64_t width = (n + max_tokens - 1) / max_tokens;
  Json tokens = Json::array();
  for (int64_t t = 0; t < n; t += width) tokens.push_back(t);
  Json out = {{"layer", layer}, {"head", head}, {"run_tokens", width}, {"tokens", tokens}};
  for (DumpTensor tensor : {DumpTensor::kKeyPre, DumpTensor::kKey, DumpTensor::kValue}) {
    if (!dump.has(layer, tensor)) continue;
    const auto rows = dump.read(layer, tensor, head, 0, n);
    Json surface = Json::array();
    for (int64_t t = 0; t < n; t += width) {
      std::vector<double> maxima(d, 0.0);
      for (std::size_t i = static_cast<std::size_t>(t) * d;
           i < static_cast<std::size_t>(std::min(t + width, n)) * d; ++i)
        maxima[i % d] = std::max<double>(maxima[i % d], std::abs(rows[i]));
      Json line = Json::array();
      for (double x : maxima) line.push_back(rounded(x));
      surface.push_back(std::move(line));
    }
    out[dump_tensor_name(tensor)] = std::move(surface);
  }
  return out;
}

}  // namespace million
