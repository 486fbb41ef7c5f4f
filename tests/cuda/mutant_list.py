# SPDX-License-Identifier: Apache-2.0
"""Bugs that mutants.py plants in the kernels, each of which a test must notice.

A mutant is one edit: text that occurs once in its file (any white space matches any other), what
takes its place, and the test cases that are expected to fail. None is equivalent to the original:
a barrier that proves redundant is to be removed from the kernel, not from this list.
"""

from collections import namedtuple

# name     what is broken, in words; begins with the program: tests/cuda/test_device_<program>.cpp
# file     in kernels/cuda
# cases    Catch2 filter of the cases to run
# barrier  whether it removes what orders memory; it is then also run under the race checker
# units    kernel files to compile anew, where the file is a header that others include too
Mutant = namedtuple("Mutant", "name file old new cases barrier units")

# Program -> its kernel files, and the functions that add them to the table.
PROGRAMS = {
    "elementwise": (["elementwise.cu"], ["add_elementwise"]),
    "rows": (["attention_rows.cu"], ["add_rows_attention"]),
    "prefill": (["attention_prefill.cu"], ["add_prefill"]),
    "pq": (["pq_codes.cu"], ["add_pq"]),
    "pq_attention": (["attention_pq.cu", "attention_pq_bits4.cu", "attention_pq_bits6.cu",
                      "attention_pq_bits8.cu", "attention_pq_table.cu"], ["add_pq_attention"]),
    "groups": (["groups.cu"], ["add_groups"]),
    "coded": (["attention_coded.cu", "coded_codes.cu", "coded_queries.cu"], ["add_coded"]),
}

MUTANTS = []


def family(program, file, cases, units=None):
    """Functions that add a wrong value and a missing barrier to the list."""
    def value(name, old, new, cases=cases, units=units):
        MUTANTS.append(Mutant(f"{program}: {name}", file, old, new, cases, False, units))

    def barrier(name, old, new, cases=cases, units=units):
        MUTANTS.append(Mutant(f"{program}: {name}", file, old, new, cases, True, units))

    return value, barrier


value, barrier = family("elementwise", "elementwise.cu", "*")
value("embed takes the row of the position", "static_cast<size_t>(a.tokens[row])",
      "static_cast<size_t>(row)")
value("norm without eps", "+ a.eps)", ")")
value("norm by the sum", "sum / static_cast<float>(a.d)", "sum")
barrier("norm adds up before all warps have written",
        "scratch[threadIdx.x >> 5] = x; __syncthreads();", "scratch[threadIdx.x >> 5] = x;")
value("RoPE turns one channel back", "x1 = x0 * s + x1 * c;", "x1 = x1 * c - x0 * s;")
value("the second channel of a pair has no bias", ", x1 += a.bias[head * d + c1];", ";")
value("one sink too many", "if (position < sink_rows)", "if (position <= sink_rows)")
value("the ring is not taken around", "(position & (ring_rows - 1))", "position")
value("SiLU of the wrong sign", "exp2_fast(-1.4426950408889634f", "exp2_fast(1.4426950408889634f")
value("argmax takes the last of equals", "(x == y && i < j)", "(x == y && i > j)")
barrier("argmax without barriers",
        "__syncthreads(); if (t < step && beats", "if (t < step && beats")

value, barrier = family("rows", "attention_rows.cu", "rows:*")
value("the ring starts with the sinks", "((i + span.skip) & s.mask)", "(i & s.mask)")
value("one token too many at the end of a slice", "n + 8 >= end) s[2]", "n + 8 > end) s[2]")
value("half of the sums are not rescaled", ", w.out[c][h + 2] *= factor;", ";")
value("sums of weights are not rescaled", "w.sum[h] *= factor;", "")
value("references move without the other lanes", "for (int s = 4; s < 32; s *= 2) top[h] =",
      "for (int s = 4; s < 16; s *= 2) top[h] =")
value("codes lose their offset", "0xE400u + static_cast<uint32_t>(offset)", "0xE400u",
      "rows: keys coded*")
value("rows without a token are left as they are", "= uint4{0, 0, 0, 0}; continue;", "; continue;")
value("an empty split is joined", "if (max > -INFINITY) {", "if (true) {")
value("a warp's part of the sum keeps its reference",
      "exp2_fast(from[kHeads * D + head] - max)", "1.0f")
value("scales of the wrong group", "static_cast<size_t>(g) * n_scales",
      "static_cast<size_t>(g + 1) * n_scales", "rows: keys coded*")
barrier("rows are read before they have been copied", "__pipeline_wait_prior(0);", "")
barrier("rows are read that other lanes have copied",
        "__syncwarp();  // rows of this slice are there", "//")
barrier("rows are read that other lanes have decoded",
        "i0 - span.sinks); __syncwarp(); } if (tile + 1", "i0 - span.sinks); } if (tile + 1",
        "rows: keys coded*")
barrier("sums overwrite rows that other lanes still read",
        "__syncwarp(); store_sums<D>", "store_sums<D>")
barrier("warps are joined before all have written",
        "store_sums<D>(mine, sums); __syncthreads();", "store_sums<D>(mine, sums);")

value, barrier = family("rows", "attention_rows.cu", "merge:*")
value("all parts weigh the same", "const float weight = exp2_fast(lse[p] - reference);",
      "const float weight = 1.0f;")
value("slices skip a part", "for (int p = slice; p < n_parts;",
      "for (int p = slice + 1; p < n_parts;")
barrier("slices are added before all have written", "__syncthreads(); if (slice != 0) return;",
        "if (slice != 0) return;")

value, barrier = family("pq_attention", "attention_pq.cuh",
                        "attend_pq: every shape,attend_pq: scores*", ["attention_pq_bits8.cu"])
value("gathers of all tiles have the skew of the first", "(u + pq_key_skew(0, tile)) % S::kTurns",
      "u % S::kTurns")
value("one token behind the end is seen",
      "fetch_keys<S>(key_codes, keys, next); const bool visible = strip * kStrip + token < ",
      "fetch_keys<S>(key_codes, keys, next); const bool visible = strip * kStrip + token <= ")
value("head 3 is rescaled like head 2", "(lane & 16) != 0 ? factor[3] : factor[2]", "factor[2]")
value("one register is not rescaled", ", acc[w][e][3] *= f1;", ";")
value("sums of weights are not rescaled", "sum[g] *= factor[g];", "")
value("all heads have the codebook of the first", "static_cast<size_t>(kv_head) * K * (S::D / 2)",
      "size_t{0}", "attend_pq: groups*")
value("an empty part is divided by nothing", "sum_all > 0.0f ? value / sum_all : 0.0f",
      "value / sum_all", "attend_pq: groups*")
value("weights of the upper half of a strip are swapped", "{to + (token & 16), to + (~token & 16)}",
      "{to, to + 16}")
value("the values' pass keeps one reference", "* 4 + g] = softmax.reference[g];",
      "* 4 + g] = softmax.reference[0];")
value("high bits of 6-bit codes are shifted too far", "pairs >> (i % 4 * 2 - 4)",
      "pairs >> (i % 4 * 2 - 3)", "attend_pq: every shape", ["attention_pq_bits6.cu"])
barrier("codebooks are read before they have been copied",
        "__pipeline_wait_prior(0); __syncthreads(); for (; strip < w.end; strip += kPqWarps) {"
        " const int next = strip + kPqWarps; float x[S::GH];",
        "__syncthreads(); for (; strip < w.end; strip += kPqWarps) {"
        " const int next = strip + kPqWarps; float x[S::GH];")
barrier("codebooks are read that other warps have copied",
        "__pipeline_wait_prior(0); __syncthreads(); for (; strip < w.end; strip += kPqWarps) {"
        " const int next = strip + kPqWarps; float x[S::GH];",
        "__pipeline_wait_prior(0); for (; strip < w.end; strip += kPqWarps) {"
        " const int next = strip + kPqWarps; float x[S::GH];")
barrier("weights are read before other lanes have written them",
        "softmax.weigh(x, memory.weights, token); __syncwarp(); sums.add_strip",
        "softmax.weigh(x, memory.weights, token); sums.add_strip")
barrier("weights overwrite those of the last strip",
        "__syncwarp();  // the last strip's weights are read"
        " softmax.weigh(x, memory.weights, token); __syncwarp(); sums.add_strip",
        "softmax.weigh(x, memory.weights, token); __syncwarp(); sums.add_strip")
barrier("sums overwrite books that other warps still read",
        "__syncthreads();  // books, scores and weights are no longer read", "")
barrier("warps are joined before all have written",
        "__syncthreads(); const Parts& parts = a.query.parts;",
        "const Parts& parts = a.query.parts;")

value, barrier = family("pq_attention", "attention_pq_table.cu", "attend_pq_table*")
value("values are not rescaled", "value *= factor;", "")
value("a table row too far", "table[(m << k.nbits) + c]", "table[(m << k.nbits) + c + 1]")
barrier("the table is read before all have filled it",
        "__syncthreads(); for (int first = begin;", "for (int first = begin;")
barrier("weights are read before all have written them",
        "sum_of[warp] = warp_total; __syncthreads();", "sum_of[warp] = warp_total;")

value, barrier = family("pq", "pq_codes.cu", "pq_encode*")
value("the last of equally near centroids", "if (distance < least[t])", "if (distance <= least[t])")
value("the ring starts behind the sinks", "(a.n_sinks + a.begin + i) & ", "(a.begin + i) & ")
value("the second channel of a pair is the first again", "book[code * d + channel]",
      "book[code * d + channel - e]")
barrier("codes are packed before all are there",
        "__syncthreads(); const PqRecords records = pq_records(a.key",
        "const PqRecords records = pq_records(a.key")

value, barrier = family("prefill", "attention_prefill.cu", "prefill: exact*,prefill: sharp*")
value("a token does not see itself", "> first + query[x][e >> 1]) s[x][t][e]",
      ">= first + query[x][e >> 1]) s[x][t][e]")
value("sums are not rescaled", "sum[x][y] *= factor;", "")
value("the lower row's sums are not rescaled",
      "out[x][c][2 * y] *= factor, out[x][c][2 * y + 1] *= factor;", "out[x][c][2 * y] *= factor;")
value("the ring is not taken around", "static_cast<size_t>(t & (ring_rows - 1)) * D",
      "static_cast<size_t>(t) * D")
value("rows behind the end are written", "if (row >= end) continue;", "if (row > end) continue;")
value("decoded keys replace sinks", "if (token >= a.n_sinks && token < ((i & 2)",
      "if (token < ((i & 2)", "prefill: coded*")
value("decoded rows start with the sinks", "(decoded ? from - a.n_sinks : from",
      "(decoded ? from : from", "prefill: coded*")
value("weights of exact and decoded values are swapped", "low == decoded ? 0xFFFFu",
      "low != decoded ? 0xFFFFu", "prefill: coded*,prefill: keys and*")
barrier("slabs are read before they have been copied", "__pipeline_wait_prior(kSlabs - 2);",
        "__pipeline_wait_prior(kSlabs - 1);")
barrier("slabs are read that other warps have copied",
        "__pipeline_wait_prior(kSlabs - 2); __syncthreads();",
        "__pipeline_wait_prior(kSlabs - 2);")
barrier("queries are read that other warps have written",
        "load_queries<D, R>(a, head, block_row, queries); __syncthreads();",
        "load_queries<D, R>(a, head, block_row, queries);")

value, barrier = family("groups", "groups.cu", "*")
value("symmetric codes lose their offset", "- kRound) + bias)", "- kRound))")
value("the zero is the largest value", "zero_bits = finite_half(low);",
      "zero_bits = finite_half(high);")
value("the last value of a group has no say in its range",
      "for (int i = 1; i < n; ++i)", "for (int i = 1; i < n - 1; ++i)")
value("rows lose the codes' offset", "static_cast<float>(static_cast<int>(code) - offset)",
      "static_cast<float>(static_cast<int>(code))")
value("a row behind the end is written", "u0 + t >= end) continue;", "u0 + t > end) continue;")
value("a scale for each 16 channels", "chunk * 8 / v.group)", "chunk * 16 / v.group)")

value, barrier = family("coded", "attention_coded.cu", "attention on codes*,turned*")
value("tokens before the first are seen", "if (at < begin || at >= end)",
      "if (at >= end)")
value("one register is rescaled like another head", "v[2] *= f0, v[3] *= f1;",
      "v[2] *= f0, v[3] *= f0;")
value("high bytes weigh too little", "256 * high + low", "255 * high + low")
value("all frames have the queries of the first", "w.place = 0, ++w.row;", "w.place = 0;")
value("the mean of the neighbouring token", "sum[3] + mean[t][tile].y",
      "sum[3] + mean[t][tile].x")
value("a warp without tokens has a say", "if (sums[k * heads + head] > 0.0f) top = fmaxf",
      "top = fmaxf")
barrier("books are read that other warps have copied",
        "__pipeline_wait_prior(0); __syncthreads();", "__pipeline_wait_prior(0);")
barrier("sums overwrite books that other warps still read",
        "__syncthreads();  // the books' memory is free", "")
barrier("warps are joined before all have written",
        "write_sums<P>(w, heads, warp, &s, join); __syncthreads();",
        "write_sums<P>(w, heads, warp, &s, join);")

value, barrier = family("coded", "coded_queries.cu", "attention on codes*,turned*")
value("queries are turned the wrong way", "x[1][i] = x1[i] * c - x0[i] * s;",
      "x[1][i] = x1[i] * c + x0[i] * s;")
value("low bytes without a sign", "0x5410) ^ 0x80808080u;", "0x5410);")
value("the mean's functions in the wrong order", "places + (16 * chunk + 2 * j) * frame",
      "places + (16 * chunk + j) * frame")
value("sums of high bytes begin one too high", "uint32_t kMiddle = 49152", "uint32_t kMiddle = 49151")
value("neighbours are taken for halves", "mixed ? 0x6420 : 0x3210", "0x3210")
barrier("the longest pair before all are measured",
        "__syncthreads(); const float query_step", "const float query_step")
barrier("queries are turned before they are there",
        "scale_query<kDim>(arena); __syncthreads();", "scale_query<kDim>(arena);")

value, barrier = family("coded", "coded_codes.cu", "codes in a basis are*,equally near*")
value("keys are turned on instead of back", "back ? -s.sines[at] : s.sines[at]", "s.sines[at]")
value("the last of equally near centroids", "if (distance[p] < least[p])",
      "if (distance[p] <= least[p])")
value("the mean is added twice", "value -= from_half(", "value += from_half(")
barrier("rows are read before all have been turned",
        "n, true, rows); __syncthreads();", "n, true, rows);")
