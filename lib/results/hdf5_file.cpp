// SPDX-License-Identifier: Apache-2.0
#include "lib/results/hdf5_file.h"

#include "lib/core/checked.h"
#include "lib/core/error.h"

#include <hdf5.h>
#include <hdf5_hl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>

#if defined(__SANITIZE_ADDRESS__)
// HDF5 1.10 forgets memory on its own error paths (broken files, failed closes).
extern "C" const char* __lsan_default_suppressions() { return "leak:libhdf5"; }
#endif

namespace million {
namespace {

static_assert(sizeof(hid_t) == sizeof(int64_t) && sizeof(hsize_t) == sizeof(uint64_t));

constexpr uint64_t kMaxAttributeBytes = uint64_t{64} << 20;
constexpr int kMaxRank = 8;

/// An HDF5 identifier with its closing function.
class Handle {
 public:
  using Close = herr_t (*)(hid_t);
  Handle(hid_t id, Close closer) : id_(id), close_(closer) {}
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  hid_t get() const { return id_; }
  explicit operator bool() const { return id_ >= 0; }
  /// Closes now; false when the library could not write what it still held.
  bool close() {
    const hid_t id = id_;
    id_ = -1;
    return close_(id) >= 0;
  }

 private:
  hid_t id_;
  Close close_;
};

/// First and last line of the library's error stack and the errno it mentions.
struct StackText {
  std::string innermost;
  int error = 0;
};

herr_t on_stack_line(unsigned, const H5E_error2_t* line, void* data) {
  auto& text = *static_cast<StackText*>(data);
  const std::string description = line->desc ? line->desc : "";
  if (text.innermost.empty()) text.innermost = description;
  const auto at = description.find("errno = ");
  if (at != std::string::npos && text.error == 0)
    text.error = std::atoi(description.c_str() + at + 8);
  return 0;
}

StackText take_stack() {
  StackText text;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, on_stack_line, &text);
  H5Eclear2(H5E_DEFAULT);
  // Some descriptions quote addresses and buffer sizes over several lines; one line is enough.
  std::replace(text.innermost.begin(), text.innermost.end(), '\n', ' ');
  return text;
}

bool out_of_space(int error) {
  return error == ENOSPC || error == EDQUOT || error == EFBIG || error == ENOMEM;
}

/// The type as it lies in the file and in memory (little-endian machines only, as the project).
Handle make_type(Hdf5Type type) {
  switch (type) {
    case Hdf5Type::kF16: {
      Handle half(H5Tcopy(H5T_IEEE_F32LE), H5Tclose);
      // sign at bit 15, 5 exponent bits from 10, 10 mantissa bits from 0: numpy's float16
      MILLION_ASSERT(H5Tset_fields(half.get(), 15, 10, 5, 0, 10) >= 0);
      MILLION_ASSERT(H5Tset_size(half.get(), 2) >= 0 && H5Tset_ebias(half.get(), 15) >= 0);
      return Handle(H5Tcopy(half.get()), H5Tclose);
    }
    case Hdf5Type::kF32:
      return Handle(H5Tcopy(H5T_IEEE_F32LE), H5Tclose);
    case Hdf5Type::kInt32:
      return Handle(H5Tcopy(H5T_STD_I32LE), H5Tclose);
    case Hdf5Type::kInt64:
      break;
  }
  return Handle(H5Tcopy(H5T_STD_I64LE), H5Tclose);
}

const char* type_name(Hdf5Type type) {
  switch (type) {
    case Hdf5Type::kF16:
      return "float16";
    case Hdf5Type::kF32:
      return "float32";
    case Hdf5Type::kInt32:
      return "int32";
    case Hdf5Type::kInt64:
      return "int64";
  }
  return "?";
}

std::string dims_text(std::span<const uint64_t> dims) {
  return fmt::format("[{}]", fmt::join(dims.begin(), dims.end(), ", "));
}

Handle open_dataset(hid_t file, const std::string& name, std::span<const uint64_t> count,
                    std::size_t item) {
  Handle access(H5Pcreate(H5P_DATASET_ACCESS), H5Pclose);
  // The cache must hold every chunk that one box touches, or chunks are read and written
  // repeatedly.
  uint64_t bytes = item;
  for (uint64_t n : count) bytes *= std::max<uint64_t>(n, 1);
  const std::size_t cache = std::clamp<uint64_t>(bytes * 2, 4u << 20, 256u << 20);
  H5Pset_chunk_cache(access.get(), 12421, cache, 1.0);
  return Handle(H5Dopen2(file, name.c_str(), access.get()), H5Dclose);
}

}  // namespace

void hdf5_init() {
  static const bool done = [] {
    H5dont_atexit();
    H5open();
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
    return true;
  }();
  (void)done;
}

Hdf5File::Hdf5File(int64_t id, std::filesystem::path path, bool writing)
    : id_(id), path_(std::move(path)), writing_(writing) {}

Hdf5File::Hdf5File(Hdf5File&& other) noexcept
    : id_(other.id_), path_(std::move(other.path_)), writing_(other.writing_) {
  other.id_ = -1;
}

Hdf5File::~Hdf5File() {
  if (id_ >= 0) H5Fclose(id_);
}

void Hdf5File::broken(const std::string& what) const {
  const StackText stack = take_stack();
  const std::string why = stack.error ? std::strerror(stack.error) : stack.innermost;
  if (writing_)
    fail(out_of_space(stack.error) ? ErrorCode::kNoResources : ErrorCode::kFailed,
         "cannot write {}: {}: {}", path_.string(), what, why);
  fail(ErrorCode::kBadInput, "{}: {}: {}; the file is damaged or incomplete, write it again",
       path_.string(), what, why.empty() ? "unreadable" : why);
}

Hdf5File Hdf5File::create(const std::filesystem::path& path) {
  hdf5_init();
  Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  // The 1.10 format checks all its metadata by checksum, the chunk index included; older ones do
  // not. Strong close: no object keeps the file open behind our back.
  H5Pset_libver_bounds(access.get(), H5F_LIBVER_V110, H5F_LIBVER_V110);
  H5Pset_fclose_degree(access.get(), H5F_CLOSE_STRONG);
  const hid_t id = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.get());
  if (id < 0) {
    const StackText stack = take_stack();
    fail(out_of_space(stack.error) ? ErrorCode::kNoResources : ErrorCode::kBadInput,
         "cannot create {}: {}", path.string(),
         stack.error ? std::strerror(stack.error) : stack.innermost.c_str());
  }
  return Hdf5File(id, path, true);
}

Hdf5File Hdf5File::open(const std::filesystem::path& path) {
  hdf5_init();
  MILLION_REQUIRE(std::filesystem::is_regular_file(path), ErrorCode::kBadInput,
                  "cannot open {}: no such file", path.string());
  const htri_t is_hdf5 = H5Fis_hdf5(path.c_str());
  H5Eclear2(H5E_DEFAULT);
  MILLION_REQUIRE(is_hdf5 > 0, ErrorCode::kBadInput,
                  "{} is not an HDF5 file, expected one written by this project", path.string());
  Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5Pset_fclose_degree(access.get(), H5F_CLOSE_STRONG);
  const hid_t id = H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get());
  Hdf5File file(id, path, false);
  if (id < 0) file.broken("cannot open");
  return file;
}

void Hdf5File::flush() {
  if (H5Fflush(id_, H5F_SCOPE_LOCAL) < 0) broken("flush");
}

void Hdf5File::close() {
  if (writing_) flush();
  const hid_t id = id_;
  id_ = -1;
  if (H5Fclose(id) < 0) broken("close");
}

// --- attributes ---

void Hdf5File::write_attribute(const std::string& name, const std::string& object, int64_t type,
                               std::span<const uint64_t> dims, const void* data) {
  Handle space(dims.empty()
                   ? H5Screate(H5S_SCALAR)
                   : H5Screate_simple(static_cast<int>(dims.size()),
                                      reinterpret_cast<const hsize_t*>(dims.data()), nullptr),
               H5Sclose);
  Handle attribute(H5Acreate_by_name(id_, object.c_str(), name.c_str(), type, space.get(),
                                     H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT),
                   H5Aclose);
  if (!attribute || H5Awrite(attribute.get(), type, data) < 0 || !attribute.close())
    broken("attribute " + name);
}

void Hdf5File::set_attribute(const std::string& name, const std::string& value,
                             const std::string& object) {
  // Above 64 KiB an attribute needs the dense storage of the newer file format.
  MILLION_ASSERT(value.size() < kMaxAttributeBytes && value.find('\0') == std::string::npos);
  Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(type.get(), value.size() + 1);
  H5Tset_cset(type.get(), H5T_CSET_UTF8);
  write_attribute(name, object, type.get(), {}, value.c_str());
}

void Hdf5File::set_attribute(const std::string& name, int64_t value, const std::string& object) {
  write_attribute(name, object, H5T_STD_I64LE, {}, &value);
}

void Hdf5File::set_attribute(const std::string& name, double value, const std::string& object) {
  write_attribute(name, object, H5T_IEEE_F64LE, {}, &value);
}

void Hdf5File::set_attribute(const std::string& name, const std::vector<int64_t>& values,
                             const std::string& object) {
  const uint64_t n = values.size();
  write_attribute(name, object, H5T_STD_I64LE, {&n, 1}, values.data());
}

bool Hdf5File::has_attribute(const std::string& name) const {
  const htri_t found = H5Aexists(id_, name.c_str());
  H5Eclear2(H5E_DEFAULT);
  return found > 0;
}

std::string Hdf5File::text_attribute(const std::string& name) const {
  Handle attribute(has_attribute(name) ? H5Aopen(id_, name.c_str(), H5P_DEFAULT) : -1, H5Aclose);
  if (!attribute) broken("attribute " + name + " is missing");
  Handle type(H5Aget_type(attribute.get()), H5Tclose);
  Handle space(H5Aget_space(attribute.get()), H5Sclose);
  const bool fixed_text = H5Tget_class(type.get()) == H5T_STRING &&
                          H5Tis_variable_str(type.get()) == 0 &&
                          H5Sget_simple_extent_npoints(space.get()) == 1;
  if (!fixed_text) broken("attribute " + name + ": expected fixed-length text");
  const std::size_t size = H5Tget_size(type.get());
  if (size > kMaxAttributeBytes) broken("attribute " + name + " is too long");
  std::string text(size, '\0');
  if (H5Aread(attribute.get(), type.get(), text.data()) < 0) broken("attribute " + name);
  text.resize(std::strlen(text.c_str()));
  return text;
}

void Hdf5File::read_attribute(const std::string& name, int64_t type, bool integer, std::size_t n,
                              void* data) const {
  Handle attribute(has_attribute(name) ? H5Aopen(id_, name.c_str(), H5P_DEFAULT) : -1, H5Aclose);
  if (!attribute) broken("attribute " + name + " is missing");
  Handle stored(H5Aget_type(attribute.get()), H5Tclose);
  Handle space(H5Aget_space(attribute.get()), H5Sclose);
  const auto points = H5Sget_simple_extent_npoints(space.get());
  if (H5Tget_class(stored.get()) != (integer ? H5T_INTEGER : H5T_FLOAT) ||
      points != static_cast<hssize_t>(n))
    broken(fmt::format("attribute {}: expected {} {} value(s)", name, n,
                       integer ? "integer" : "real"));
  if (H5Aread(attribute.get(), type, data) < 0) broken("attribute " + name);
}

int64_t Hdf5File::int_attribute(const std::string& name) const {
  int64_t value = 0;
  read_attribute(name, H5T_NATIVE_INT64, true, 1, &value);
  return value;
}

double Hdf5File::real_attribute(const std::string& name) const {
  double value = 0;
  read_attribute(name, H5T_NATIVE_DOUBLE, false, 1, &value);
  return value;
}

std::vector<int64_t> Hdf5File::ints_attribute(const std::string& name) const {
  Handle attribute(has_attribute(name) ? H5Aopen(id_, name.c_str(), H5P_DEFAULT) : -1, H5Aclose);
  if (!attribute) broken("attribute " + name + " is missing");
  Handle space(H5Aget_space(attribute.get()), H5Sclose);
  const auto points = H5Sget_simple_extent_npoints(space.get());
  if (points < 0 || static_cast<uint64_t>(points) > kMaxAttributeBytes / 8)
    broken("attribute " + name + ": bad size");
  std::vector<int64_t> values(static_cast<std::size_t>(points));
  read_attribute(name, H5T_NATIVE_INT64, true, values.size(), values.data());
  return values;
}

// --- datasets ---

void Hdf5File::create_dataset(const std::string& name, Hdf5Type type,
                              const std::vector<uint64_t>& dims,
                              const std::vector<uint64_t>& chunk) {
  Handle links(H5Pcreate(H5P_LINK_CREATE), H5Pclose);
  H5Pset_create_intermediate_group(links.get(), 1);
  Handle layout(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  if (!chunk.empty()) {
    MILLION_ASSERT(chunk.size() == dims.size());
    H5Pset_chunk(layout.get(), static_cast<int>(chunk.size()),
                 reinterpret_cast<const hsize_t*>(chunk.data()));
    H5Pset_shuffle(layout.get());
    H5Pset_fletcher32(layout.get());
  }
  // No modification times: equal input gives equal bytes.
  H5Pset_obj_track_times(layout.get(), false);
  Handle space(H5Screate_simple(static_cast<int>(dims.size()),
                                reinterpret_cast<const hsize_t*>(dims.data()), nullptr),
               H5Sclose);
  const Handle file_type = make_type(type);
  Handle dataset(H5Dcreate2(id_, name.c_str(), file_type.get(), space.get(), links.get(),
                            layout.get(), H5P_DEFAULT),
                 H5Dclose);
  if (!dataset || !dataset.close()) broken("dataset " + name);
}

namespace {

/// A box [start, start + count) of a dataset and the memory that holds it.
struct Slab {
  Slab(hid_t dataset, std::span<const uint64_t> start, std::span<const uint64_t> count)
      : type(H5Dget_type(dataset), H5Tclose),
        space(H5Dget_space(dataset), H5Sclose),
        memory(H5Screate_simple(static_cast<int>(count.size()),
                                reinterpret_cast<const hsize_t*>(count.data()), nullptr),
               H5Sclose) {
    selected = H5Sselect_hyperslab(space.get(), H5S_SELECT_SET,
                                   reinterpret_cast<const hsize_t*>(start.data()), nullptr,
                                   reinterpret_cast<const hsize_t*>(count.data()), nullptr) >= 0;
  }
  Handle type, space, memory;
  bool selected = false;
};

}  // namespace

void Hdf5File::write(const std::string& name, std::span<const uint64_t> start,
                     std::span<const uint64_t> count, const void* data) {
  Handle dataset = open_dataset(id_, name, count, 4);
  if (!dataset) broken("dataset " + name);
  const Slab slab(dataset.get(), start, count);
  if (!slab.selected ||
      H5Dwrite(dataset.get(), slab.type.get(), slab.memory.get(), slab.space.get(), H5P_DEFAULT,
               data) < 0 ||
      !dataset.close())
    broken("dataset " + name);
}

void Hdf5File::read(const std::string& name, std::span<const uint64_t> start,
                    std::span<const uint64_t> count, void* data) const {
  Handle dataset = open_dataset(id_, name, count, 4);
  if (!dataset) broken("dataset " + name);
  const Slab slab(dataset.get(), start, count);
  if (!slab.selected || H5Dread(dataset.get(), slab.type.get(), slab.memory.get(), slab.space.get(),
                                H5P_DEFAULT, data) < 0)
    broken("dataset " + name);
}

bool Hdf5File::exists(const std::string& name) const {
  // H5Lexists needs every parent to exist: walk down.
  for (std::size_t at = name.find('/', 1);; at = name.find('/', at + 1)) {
    const htri_t found = H5Lexists(id_, name.substr(0, at).c_str(), H5P_DEFAULT);
    H5Eclear2(H5E_DEFAULT);
    if (found <= 0) return false;
    if (at == std::string::npos) return true;
  }
}

std::vector<uint64_t> Hdf5File::checked_dims(const std::string& name, Hdf5Type type,
                                             int rank) const {
  MILLION_ASSERT(rank <= kMaxRank);
  Handle dataset(exists(name) ? H5Dopen2(id_, name.c_str(), H5P_DEFAULT) : -1, H5Dclose);
  if (!dataset) broken("dataset " + name + " is missing");
  Handle space(H5Dget_space(dataset.get()), H5Sclose);
  Handle stored(H5Dget_type(dataset.get()), H5Tclose);
  const Handle wanted = make_type(type);
  if (H5Tequal(stored.get(), wanted.get()) <= 0)
    broken(fmt::format("dataset {}: expected {}", name, type_name(type)));
  if (H5Sget_simple_extent_ndims(space.get()) != rank)
    broken(fmt::format("dataset {}: expected rank {}", name, rank));
  std::vector<uint64_t> dims(static_cast<std::size_t>(rank));
  H5Sget_simple_extent_dims(space.get(), reinterpret_cast<hsize_t*>(dims.data()), nullptr);
  uint64_t bytes = H5Tget_size(wanted.get());
  for (uint64_t n : dims) bytes = checked_mul(bytes, n, name.c_str());
  // No filter here shrinks data, so every byte must be there; refuses made-up extents and chunks
  // that were never written (they would read as zeros).
  const uint64_t stored_bytes = H5Dget_storage_size(dataset.get());
  if (stored_bytes < bytes || stored_bytes > std::filesystem::file_size(path_))
    broken(fmt::format("dataset {} {}: {} bytes stored, expected {}", name, dims_text(dims),
                       stored_bytes, bytes));
  return dims;
}

void Hdf5File::require_dims(const std::string& name, Hdf5Type type,
                            const std::vector<uint64_t>& expected) const {
  const auto got = checked_dims(name, type, static_cast<int>(expected.size()));
  if (got != expected)
    broken(fmt::format("dataset {}: shape {}, expected {}", name, dims_text(got),
                       dims_text(expected)));
}

std::vector<std::string> Hdf5File::list(const std::string& group, std::size_t limit) const {
  Handle handle(H5Gopen2(id_, group.c_str(), H5P_DEFAULT), H5Gclose);
  H5G_info_t info{};
  if (!handle || H5Gget_info(handle.get(), &info) < 0) broken("group " + group);
  if (info.nlinks > limit)
    broken(fmt::format("group {}: {} entries, expected at most {}", group, info.nlinks, limit));
  std::vector<std::string> names;
  for (hsize_t i = 0; i < info.nlinks; ++i) {
    char text[1024];
    const ssize_t n = H5Lget_name_by_idx(handle.get(), ".", H5_INDEX_NAME, H5_ITER_INC, i, text,
                                         sizeof text, H5P_DEFAULT);
    if (n <= 0 || n >= static_cast<ssize_t>(sizeof text)) broken("group " + group + ": bad name");
    names.emplace_back(text);
  }
  return names;
}

// --- dimension scales ---

void Hdf5File::attach_scale(const std::string& dataset, int axis, const std::string& scale,
                            const std::string& label) {
  Handle data(H5Dopen2(id_, dataset.c_str(), H5P_DEFAULT), H5Dclose);
  Handle values(H5Dopen2(id_, scale.c_str(), H5P_DEFAULT), H5Dclose);
  if (!data || !values) broken("dimension scale " + scale);
  if (H5DSis_scale(values.get()) <= 0 && H5DSset_scale(values.get(), label.c_str()) < 0)
    broken("dimension scale " + scale);
  if (H5DSattach_scale(data.get(), values.get(), static_cast<unsigned>(axis)) < 0)
    broken("dimension scale " + scale);
  label_axis(dataset, axis, label);
}

void Hdf5File::label_axis(const std::string& dataset, int axis, const std::string& label) {
  Handle data(H5Dopen2(id_, dataset.c_str(), H5P_DEFAULT), H5Dclose);
  if (!data || H5DSset_label(data.get(), static_cast<unsigned>(axis), label.c_str()) < 0)
    broken("axis label of " + dataset);
}

}  // namespace million
