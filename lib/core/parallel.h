// SPDX-License-Identifier: Apache-2.0
// One pool for the whole process: OpenMP, because FAISS and Debian's oneDNN bring libgomp anyway
// and two pools fight over two cores.
#pragma once

#include <cstdint>
#include <functional>

namespace million {

/// Number of worker threads for parallel_for; n >= 1. Also pins OpenBLAS and FAISS to one thread
/// inside a parallel region, so results do not depend on it.
void set_threads(int n);
int threads();

/// Calls body(i) for i in [0, n), spread over the threads in chunks of one (dynamic). Serial when
/// called from inside a parallel region. The first exception thrown by a body is rethrown here.
void parallel_for(int64_t n, const std::function<void(int64_t)>& body);

/// parallel_for in which a thread takes neighbouring indices one after the other and helps others
/// only when its own share is done: for bodies that profit from what the one before left behind.
void parallel_runs(int64_t n, const std::function<void(int64_t)>& body);

/// Calls body(begin, end) once per thread on contiguous, nearly equal parts of [0, n) whose borders
/// are multiples of `grain`. For loops whose bodies are too small for parallel_for.
void parallel_ranges(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

}  // namespace million
