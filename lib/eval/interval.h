// SPDX-License-Identifier: Apache-2.0
// How sure a score of few samples is: intervals for rights and wrongs, and for means.
#pragma once

#include <cstdint>
#include <span>

namespace million {

struct Interval {
  double low = 0.0, high = 0.0;
};

/// Two-sided normal quantile of 95 %.
inline constexpr double kZ95 = 1.959963984540054;

/// Wilson's score interval of `hits` out of `n`: unlike mean ± z·se it stays inside [0, 1] and has
/// width at 0 % and 100 %, where short needle grids live. n = 0 gives [0, 1]. 0 <= hits <= n.
/// Source: Wilson 1927, as in Brown, Cai, DasGupta 2001.
Interval wilson_interval(int64_t hits, int64_t n, double z = kZ95);

/// Sample standard deviation (n - 1) over sqrt(n), as lm-evaluation-harness prints beside a mean.
/// NaN for fewer than two values: one sample says nothing about the spread.
double mean_stderr(std::span<const double> values);

/// Percentile bootstrap of the mean for scores between 0 and 1 (F1, ROUGE-L, fractions found):
/// `draws` resamples of the same size, seeded, so that a row repeats. No values: [NaN, NaN].
/// Cost O(draws * n). Source: Efron 1979.
Interval bootstrap_interval(std::span<const double> values, uint64_t seed, int draws = 2000,
                            double level = 0.95);

}  // namespace million
