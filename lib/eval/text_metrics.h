// SPDX-License-Identifier: Apache-2.0
// How right a generated text is, by the metrics of LongBench and with the numbers of its code:
// every function is one comparison of a prediction with one reference, 0 to 1. A task takes the
// best over its references.
//
// Source: THUDM/LongBench, LongBench/metrics.py and eval.py; the PyPI packages it calls, rouge
// 1.0.1 and fuzzywuzzy 0.18.0; Python's difflib. Text is UTF-8; other bytes count as U+FFFD, which
// is what the original's tokenizers print. tests/golden/longbench.json holds their numbers.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace million {

/// Token F1 of question answering. Both texts become words: lower case, without ASCII punctuation
/// and the words a, an, the, cut at white space. 0 without a common word, else the harmonic mean of
/// common / predicted and common / reference words, where a word counts as often as in both.
double token_f1(std::string_view prediction, std::string_view reference);

/// ROUGE-L as the package rouge defines it, which is not the usual one. Sentences end at every ".",
/// words are cut at white space (a blank sentence is one empty word). The words on a longest common
/// subsequence of any pair of sentences form a SET; with it, and the SETS of words of both texts,
///   p = |common| / |predicted|,  r = |common| / |reference|,  f = 2 p r / (p + r + 1e-8).
/// Of several longest subsequences the one counts that the package's walk back from the end takes.
/// 0 for a text of nothing but full stops.
/// Differs: the package walks back by recursion, and in a pair of sentences of together more than
/// about 990 words Python stops it, at which LongBench's code gives 0; here the score is given.
/// Cost: words of one times words of the other, in time and in bits of memory.
double rouge_l(std::string_view prediction, std::string_view reference);

/// Classification: 1 / n when the reference is among the n labels found in the prediction, else 0.
/// Labels inside the reference are dropped from those found, by a loop of the original that erases
/// while it walks and so passes over the label behind an erased one; that is kept.
double classification_match(std::string_view prediction, std::string_view reference,
                            std::span<const std::string> classes);

/// Share of the numbers (runs of decimal digits) in the prediction that are `number`, compared as
/// text; 0 without a number. Count tasks: `number` is the reference. Retrieval tasks: it is
/// paragraph_number(reference, "Paragraph " or "段落").
double number_match(std::string_view prediction, std::string_view number);
/// Digits behind the first `marker` that has digits behind it.
std::optional<std::string> paragraph_number(std::string_view reference, std::string_view marker);

/// What stands behind fuzzywuzzy's ratio.
enum class EditRatio {
  kDifflib,  ///< without python-Levenshtein: 2 * matching characters / all, matching blocks found
             ///< by difflib (longest first, then on both sides of it; in a reference of 200 or more
             ///< characters frequent ones start no block)
  kIndel     ///< with it: 1 - (insertions + deletions) / all, by a longest common subsequence
};

/// fuzz.ratio: 0 to 100, rounded half to even; 100 for equal texts, 0 when one is empty.
int edit_ratio_percent(std::string_view a, std::string_view b, EditRatio ratio);

/// Edit similarity of code tasks: the first line of the prediction (after leading newlines) without
/// "`", "#" and "//" against the reference, edit_ratio_percent / 100. LongBench's requirements do
/// not list python-Levenshtein, so its numbers are kDifflib (THUDM/LongBench issue 96: an
/// installation that has the package for another reason gets kIndel without a word).
double code_similarity(std::string_view prediction, std::string_view reference,
                       EditRatio ratio = EditRatio::kDifflib);

/// The part that counts of a task whose answer is one line: leading newlines off, up to the next.
std::string_view first_line(std::string_view prediction);

}  // namespace million
