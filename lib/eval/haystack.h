// SPDX-License-Identifier: Apache-2.0
// Texts to hide things in: a text cut at its sentence ends, from which passages of any length are
// made with needles between the sentences.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace million {

/// A sentence to hide.
struct Needle {
  int after = 0;  ///< pieces of the passage before it
  std::string text;
};

/// A text as a ring of pieces. A piece is a sentence (ended by . ! ? … and their CJK forms, with
/// closing quotes and brackets), a paragraph without such an end, or, where 400 bytes pass without
/// either, a part ended by a space or, without spaces, by a whole code point. Runs of white space
/// become one space, as in RULER. Immutable.
class Haystack {
 public:
  /// Error(kBadInput) where `text` is no UTF-8 (names the byte) or has nothing but white space.
  explicit Haystack(std::string_view text);
  /// "The grass is green. The sky is blue. ...", the filler of passkey tests, in five pieces.
  /// Source: Landmark Attention (arXiv 2305.16300), llama/run_test.py.
  static const Haystack& filler();

  int size() const { return static_cast<int>(pieces_.size()); }
  /// Pieces `first` .. `first + n`, again from the start after the last one, with needles between.
  /// `needles` are in order of `after`, each 0 to n. Spaces at the end are dropped.
  std::string passage(int first, int n, std::span<const Needle> needles = {}) const;
  /// The k in 0 .. n for which the first k of the n pieces from `first` are nearest in bytes to
  /// `depth` (0 to 1) of them all.
  int boundary(int first, int n, double depth) const;
  /// Bytes of the first k pieces over bytes of n: the depth that was really reached.
  double share(int first, int k, int n) const;
  /// Whether the text holds `part`, ASCII case ignored.
  bool contains(std::string_view part) const;

 private:
  const std::string& piece(int i) const { return pieces_[static_cast<size_t>(i % size())]; }
  size_t bytes(int first, int k) const;

  std::vector<std::string> pieces_;  ///< with the space that follows, if one does
  std::string folded_;               ///< the text in ASCII lower case
};

}  // namespace million
