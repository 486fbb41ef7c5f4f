// SPDX-License-Identifier: Apache-2.0
// A project that uses the installed libraries: lists the methods of the table.
#include <lib/quant/codec.h>

#include <cstdio>

int main() {
  for (const million::CodecInfo& codec : million::codec_table()) std::puts(codec.name);
  return million::codec_table().size() >= 4 ? 0 : 1;
}
