// SPDX-License-Identifier: Apache-2.0
// What every codec carries besides its parameters: its canonical text, the cache it was made for
// and where its training came from; written to and checked against the attributes of a codebook
// file.
#pragma once

#include "lib/quant/codec.h"

#include <string>
#include <string_view>

namespace million {

struct SpecParts {
  std::string_view name, options;
};
/// "pq:M=32" -> {"pq", "M=32"}.
SpecParts split_spec(std::string_view spec);
/// Line of the method table. Error(kUsage) naming the known codecs.
const CodecInfo& find_codec(std::string_view name);
/// "NAME" or "NAME:key=value,...", the same text for the same method.
std::string canonical_spec(std::string_view name, const Options& options);

class CodecIdentity {
 public:
  CodecIdentity(std::string_view name, const Options& options, KvKind kind,
                const KvGeometry& geometry)
      : spec_(canonical_spec(name, options)), kind_(kind), geometry_(geometry) {}

  const std::string& spec() const { return spec_; }
  KvKind kind() const { return kind_; }
  const KvGeometry& geometry() const { return geometry_; }

  /// Checks that `data` belongs to this cache shape and keeps its description for the file.
  /// `gradients`: the codec uses them, so the file names what there was. Error(kBadInput) when the
  /// shapes differ.
  void trained_on(const CalibrationSet& data, int sinks, bool gradients = false);
  /// Attributes of save(): spec, kind, geometry, rope, sinks and calibration.
  Json attributes() const;
  /// Error(kBadInput) when the file was made for another spec, kind, cache shape or RoPE.
  void loaded_from(const TensorBag& bag);

 private:
  std::string spec_;
  KvKind kind_;
  KvGeometry geometry_;
  int sinks_ = 0;
  CalibrationInfo info_;
};

/// Calibration described in a codebook file. Error(kBadInput) when an attribute is missing.
CalibrationInfo calibration_info(const TensorBag& bag);

/// The tensor `name` of exactly `shape`. Error(kBadInput) when it is missing, has another shape or
/// holds NaN or Inf.
const NamedTensor& require_tensor(const TensorBag& bag, const std::string& name,
                                  const std::vector<std::size_t>& shape);

}  // namespace million
