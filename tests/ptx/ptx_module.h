// SPDX-License-Identifier: Apache-2.0
// PTX as nvcc writes it, decoded once: every entry becomes an array of instructions whose names are
// enumerators and whose operands are offsets into a register file or a pool of constants. What is
// not known is kept as kUnsupported and fails, by name and line, when it is met.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace million::ptx {

/// Everything the interpreter refuses: unsupported PTX, accesses out of bounds, divergence.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};
[[noreturn]] void fail(const std::string& what, int line = 0);

enum class Type : uint8_t {
  kNone,
  kPred,
  kB8,
  kB16,
  kB32,
  kB64,
  kU8,
  kU16,
  kU32,
  kU64,
  kS8,
  kS16,
  kS32,
  kS64,
  kF16,
  kF16x2,
  kF32,
  kF32x2,
  kF64
};
int size_of(Type t);
inline bool is_signed(Type t) { return t >= Type::kS8 && t <= Type::kS64; }
inline bool is_float(Type t) { return t >= Type::kF16; }

enum class Op : uint8_t {
  kUnsupported,
  kNothing,
  // one result a lane, of sources of one type (ptx_integer.cpp, ptx_float.cpp)
  kAdd,
  kSub,
  kMul,
  kMad,
  kFma,
  kDiv,
  kRem,
  kMin,
  kMax,
  kNeg,
  kAbs,
  kAnd,
  kOr,
  kXor,
  kNot,
  kCnot,
  kShl,
  kShr,
  kSad,
  kSqrt,
  kRcp,
  kRsqrt,
  kEx2,
  kLg2,
  kSin,
  kCos,
  kTanh,
  kCopysign,
  kTestp,
  // bits
  kPopc,
  kClz,
  kBrev,
  kBfind,
  kBfe,
  kBfi,
  kPrmt,
  kLop3,
  kShf,
  kDp4a,
  kDp2a,
  // moves, comparisons, conversions
  kMov,
  kCvt,
  kCvtPack,
  kCvta,
  kSetp,
  kSet,
  kSelp,
  kSlct,
  kIsspacep,
  // memory
  kLd,
  kSt,
  kAtom,
  kRed,
  kCpAsync,
  kCpCommit,
  kCpWaitGroup,
  kCpWaitAll,
  // lanes of a warp together (ptx_collectives.cpp)
  kShfl,
  kVote,
  kRedux,
  kMma,
  kLdmatrix,
  kBarWarp,
  kActivemask,
  // control
  kBra,
  kRet,
  kBar,
  kTrap
};

enum class Space : uint8_t { kGeneric, kGlobal, kShared, kParam, kLocal, kConst };

enum class Compare : uint8_t {
  kEq,
  kNe,
  kLt,
  kLe,
  kGt,
  kGe,
  kLo,
  kLs,
  kHi,
  kHs,
  kEqu,
  kNeu,
  kLtu,
  kLeu,
  kGtu,
  kGeu,
  kNum,
  kNan
};

/// The modifier that picks among the forms of one operation.
enum class Mode : uint8_t {
  kNone,
  kLo,
  kHi,
  kWide,
  kAnd,
  kOr,
  kXor,
  kAdd,
  kMin,
  kMax,
  kInc,
  kDec,
  kExch,
  kCas,
  kUp,
  kDown,
  kBfly,
  kIdx,
  kAll,
  kAny,
  kUni,
  kBallot,
  kLeft,
  kRight,
  kFinite,
  kInfinite,
  kNumber,
  kNotANumber,
  kNormal,
  kSubnormal
};

enum class Rounding : uint8_t { kNone, kRn, kRz, kRm, kRp, kRni, kRzi, kRmi, kRpi };

/// A register, a constant, or (kVector) `count` operands of Entry::vectors from `at` on.
struct Operand {
  enum class Kind : uint8_t { kNone, kRegister, kConstant, kVector };
  Kind kind = Kind::kNone;
  uint8_t width = 0;     ///< bytes a lane: 4, 8; 1: a predicate, one bit a lane in one word
  uint8_t count = 0;     ///< of a vector
  bool negated = false;  ///< predicates
  bool narrow = false;   ///< a register of 16 bits (in a slot of 4 bytes)
  uint32_t at = 0;       ///< first word in the register file or in Entry::constants
};

struct Instruction {
  Op op = Op::kUnsupported;
  Type type = Type::kNone;  ///< of the result; of the sources where both are one
  Type from = Type::kNone;  ///< of the sources of cvt, set, dp4a's second factor
  Space space = Space::kGeneric;
  Compare compare = Compare::kEq;
  Mode mode = Mode::kNone, logic = Mode::kNone;
  Rounding rounding = Rounding::kNone;
  bool ftz = false, sat = false, approx = false, nan = false, to = false, wrap = false,
       shift_amount = false, transposed = false, guard_negated = false, relaxed_div = false,
       b_signed = false;
  uint8_t n_operands = 0, n_vector = 1, k = 0;  ///< k: inner size of mma
  std::array<Operand, 6> a;  ///< results first, in PTX order; a[0] of st is the address
  int64_t offset = 0;        ///< of the address operand
  int64_t offset2 = 0;       ///< of the second address (cp.async)
  int32_t guard = -1;        ///< word of the predicate
  int32_t target = -1;       ///< of a branch
  int32_t line = 0;
  int32_t name = 0;  ///< in Entry::names
};

/// %tid.x and so on: registers that are set when a warp starts.
struct SpecialRegister {
  int which;
  uint32_t at;
};

struct Entry {
  std::string name;
  std::vector<Instruction> code;
  std::vector<Operand> vectors;
  std::vector<std::string> names;   ///< spellings of the instructions
  std::vector<uint32_t> constants;  ///< each spread over 32 lanes
  std::vector<SpecialRegister> specials;
  uint32_t n_words = 0;  ///< of the register file of a warp
  std::size_t param_bytes = 0, static_shared = 0, local_bytes = 0;
  std::size_t dynamic_base = 0;  ///< of dynamic shared memory, behind the static part
  int shared_granule = 16;       ///< smallest access that may be to shared memory, in bytes
};

/// The entries of one PTX file, and its arrays in constant and global memory.
class Module {
 public:
  explicit Module(const std::string& text);
  const Entry* find(const std::string& name) const;
  const std::map<std::string, std::unique_ptr<Entry>>& entries() const { return entries_; }
  /// Arrays of the file: kernels may access them like allocations.
  const std::vector<std::pair<uintptr_t, std::size_t>>& arrays() const { return arrays_; }

 private:
  friend class ModuleParser;
  std::map<std::string, std::unique_ptr<Entry>> entries_;
  std::vector<std::unique_ptr<uint64_t[]>> storage_;
  std::vector<std::pair<uintptr_t, std::size_t>> arrays_;
};

/// Names of special registers, in the order of SpecialRegister::which.
inline constexpr const char* kSpecialNames[] = {"%tid.x",          "%tid.y",
                                                "%tid.z",          "%ntid.x",
                                                "%ntid.y",         "%ntid.z",
                                                "%ctaid.x",        "%ctaid.y",
                                                "%ctaid.z",        "%nctaid.x",
                                                "%nctaid.y",       "%nctaid.z",
                                                "%laneid",         "%warpid",
                                                "%nwarpid",        "%lanemask_eq",
                                                "%lanemask_lt",    "%lanemask_le",
                                                "%lanemask_gt",    "%lanemask_ge",
                                                "WARP_SZ",         "%dynamic_smem_size",
                                                "%total_smem_size"};

/// Generic addresses of what has no address on the host.
inline constexpr uint64_t kSharedWindow = 0x7E00000000000000, kLocalWindow = 0x7D00000000000000,
                          kParamWindow = 0x7C00000000000000;

// ptx_decode.cpp -------------------------------------------------------------------------------

/// Resolves the names of one entry; implemented by the parser.
class Names {
 public:
  virtual ~Names() = default;
  /// A register; or nothing.
  virtual bool register_named(const std::string& name, Operand* out) = 0;
  /// The address of a variable in its own state space; or nothing.
  virtual bool address_of(const std::string& symbol, uint64_t* out) = 0;
};

/// Decodes one statement (no guard, no semicolon) into `i`. Labels are left to the caller.
void decode(const std::string& spelling, const std::string& operands, Names& names, Entry& entry,
            Instruction& i);

std::string trim(const std::string& s);
Type type_of(const std::string& s);
/// An operand spread over the lanes.
Operand constant(Entry& entry, uint64_t value, int width);

}  // namespace million::ptx
