// SPDX-License-Identifier: Apache-2.0
// One PTX statement to one Instruction. A table says which modifiers and operands each name takes;
// a modifier that stands in no list makes the statement unsupported, so that none is overlooked.
#include "tests/ptx/ptx_module.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <sstream>

namespace million::ptx {
namespace {

/// Operand letters: d result, t source of `type`, f source of `from`, s 32 bits, p predicate,
/// g register of any width, a address, v vector of registers, i integer constant, _ absent;
/// ? makes the next one optional, * ignores all operands.
struct Form {
  const char* name;
  Op op;
  const char* modifiers;
  const char* operands;
};

constexpr Form kForms[] = {
    {"add", Op::kAdd, "rn ftz sat", "dtt"},
    {"sub", Op::kSub, "rn ftz sat", "dtt"},
    {"mul", Op::kMul, "rn ftz sat lo hi wide", "dtt"},
    {"mad", Op::kMad, "rn ftz sat lo hi wide", "dttd"},
    {"fma", Op::kFma, "rn ftz sat", "dttt"},
    {"div", Op::kDiv, "rn ftz approx full", "dtt"},
    {"rem", Op::kRem, "", "dtt"},
    {"min", Op::kMin, "ftz NaN", "dtt?t"},
    {"max", Op::kMax, "ftz NaN", "dtt?t"},
    {"neg", Op::kNeg, "ftz", "dt"},
    {"abs", Op::kAbs, "ftz", "dt"},
    {"and", Op::kAnd, "", "dtt"},
    {"or", Op::kOr, "", "dtt"},
    {"xor", Op::kXor, "", "dtt"},
    {"not", Op::kNot, "", "dt"},
    {"cnot", Op::kCnot, "", "dt"},
    {"shl", Op::kShl, "", "dts"},
    {"shr", Op::kShr, "", "dts"},
    {"sad", Op::kSad, "", "dttt"},
    {"sqrt", Op::kSqrt, "rn approx ftz", "dt"},
    {"rcp", Op::kRcp, "rn approx ftz", "dt"},
    {"rsqrt", Op::kRsqrt, "approx ftz", "dt"},
    {"ex2", Op::kEx2, "approx ftz", "dt"},
    {"lg2", Op::kLg2, "approx ftz", "dt"},
    {"sin", Op::kSin, "approx ftz", "dt"},
    {"cos", Op::kCos, "approx ftz", "dt"},
    {"tanh", Op::kTanh, "approx", "dt"},
    {"copysign", Op::kCopysign, "", "dtt"},
    {"testp", Op::kTestp, "finite infinite number notanumber normal subnormal", "pt"},
    {"popc", Op::kPopc, "", "st"},
    {"clz", Op::kClz, "", "st"},
    {"brev", Op::kBrev, "", "dt"},
    {"bfind", Op::kBfind, "shiftamt", "st"},
    {"bfe", Op::kBfe, "", "dtss"},
    {"bfi", Op::kBfi, "", "dttss"},
    {"prmt", Op::kPrmt, "", "dttt"},
    {"lop3", Op::kLop3, "", "dttts"},
    {"shf", Op::kShf, "l r wrap clamp", "dtts"},
    {"dp4a", Op::kDp4a, "", "ssss"},
    {"dp2a", Op::kDp2a, "lo hi", "ssss"},
    {"mov", Op::kMov, "", "dt"},
    {"cvt", Op::kCvt, "rn rz rm rp rni rzi rmi rpi ftz sat", "gf?f"},
    {"cvt.pack", Op::kCvtPack, "sat", "sff?s"},
    {"cvta", Op::kCvta, "to", "dt"},
    {"setp", Op::kSetp, "ftz", "p_tt?p"},
    {"set", Op::kSet, "ftz", "dff"},
    {"selp", Op::kSelp, "", "dttp"},
    {"slct", Op::kSlct, "ftz", "dttf"},
    {"isspacep", Op::kIsspacep, "", "pg"},
    {"ld", Op::kLd, "v2 v4 nc ca cg cs lu cv volatile weak relaxed acquire cta gpu sys", "va"},
    {"ldu", Op::kLd, "v2 v4", "va"},
    {"st", Op::kSt, "v2 v4 wb cg cs wt volatile weak relaxed release cta gpu sys", "av"},
    {"atom", Op::kAtom,
     "relaxed acquire release acq_rel cta gpu sys noftz and or xor add min max inc dec exch cas",
     "dat?t"},
    {"red", Op::kRed, "relaxed release cta gpu sys noftz and or xor add min max inc dec", "_at"},
    {"cp.async", Op::kCpAsync, "ca cg", "aai?s"},
    {"cp.async.commit_group", Op::kCpCommit, "", ""},
    {"cp.async.wait_group", Op::kCpWaitGroup, "", "i"},
    {"cp.async.wait_all", Op::kCpWaitAll, "", ""},
    {"shfl.sync", Op::kShfl, "up down bfly idx", "s_ssss"},
    {"vote.sync", Op::kVote, "all any uni ballot", "gps"},
    {"redux.sync", Op::kRedux, "and or xor add min max", "dts"},
    {"activemask", Op::kActivemask, "", "s"},
    {"mma.sync", Op::kMma, "aligned m16n8k16 m16n8k32 row col", "vvvv"},
    {"ldmatrix.sync", Op::kLdmatrix, "aligned m8n8 x1 x2 x4 trans", "va"},
    {"bar.warp.sync", Op::kBarWarp, "", "s"},
    {"bar.sync", Op::kBar, "aligned", "i?i"},
    {"barrier.sync", Op::kBar, "aligned", "i?i"},
    {"barrier.cta.sync", Op::kBar, "aligned", "i?i"},
    {"bra", Op::kBra, "uni", "*"},
    {"ret", Op::kRet, "uni", ""},
    {"exit", Op::kRet, "", ""},
    {"trap", Op::kTrap, "", ""},
    {"brkpt", Op::kTrap, "", ""},
    {"membar", Op::kNothing, "cta gl sys", "*"},
    {"fence", Op::kNothing, "sc acq_rel acquire release cta gpu sys", "*"},
    {"prefetch", Op::kNothing, "L1 L2", "*"},
    {"prefetchu", Op::kNothing, "L1", "*"},
    {"nanosleep", Op::kNothing, "", "*"},
};

struct ModeName {
  const char* name;
  Mode mode;
};
constexpr ModeName kModes[] = {{"lo", Mode::kLo},
                               {"hi", Mode::kHi},
                               {"wide", Mode::kWide},
                               {"and", Mode::kAnd},
                               {"or", Mode::kOr},
                               {"xor", Mode::kXor},
                               {"add", Mode::kAdd},
                               {"min", Mode::kMin},
                               {"max", Mode::kMax},
                               {"inc", Mode::kInc},
                               {"dec", Mode::kDec},
                               {"exch", Mode::kExch},
                               {"cas", Mode::kCas},
                               {"up", Mode::kUp},
                               {"down", Mode::kDown},
                               {"bfly", Mode::kBfly},
                               {"idx", Mode::kIdx},
                               {"all", Mode::kAll},
                               {"any", Mode::kAny},
                               {"uni", Mode::kUni},
                               {"ballot", Mode::kBallot},
                               {"l", Mode::kLeft},
                               {"r", Mode::kRight},
                               {"finite", Mode::kFinite},
                               {"infinite", Mode::kInfinite},
                               {"number", Mode::kNumber},
                               {"notanumber", Mode::kNotANumber},
                               {"normal", Mode::kNormal},
                               {"subnormal", Mode::kSubnormal}};
constexpr const char* kCompares[] = {"eq", "ne",  "lt",  "le",  "gt",  "ge",  "lo",  "ls",  "hi",
                                     "hs", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"};
constexpr const char* kRoundings[] = {"", "rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi"};

std::vector<std::string> split(const std::string& s, char by) {
  std::vector<std::string> parts;
  std::stringstream in(s);
  for (std::string part; std::getline(in, part, by);) parts.push_back(part);
  return parts;
}

bool in_list(const char* list, const std::string& word) {
  std::istringstream in(list);
  for (std::string w; in >> w;)
    if (w == word) return true;
  return false;
}

/// The form with the longest name that starts `spelling`; `parts` keeps what follows it.
const Form* find_form(std::vector<std::string>& parts) {
  static const std::map<std::string, const Form*> by_name = [] {
    std::map<std::string, const Form*> forms;
    for (const Form& form : kForms) forms[form.name] = &form;
    return forms;
  }();
  for (std::size_t n = std::min<std::size_t>(parts.size(), 3); n > 0; --n) {
    std::string name = parts[0];
    for (std::size_t k = 1; k < n; ++k) name += "." + parts[k];
    const auto found = by_name.find(name);
    if (found == by_name.end()) continue;
    parts.erase(parts.begin(), parts.begin() + static_cast<std::ptrdiff_t>(n));
    return found->second;
  }
  return nullptr;
}

bool read_space(const std::string& word, Instruction& i) {
  const std::string name = word.substr(0, word.find("::"));
  constexpr const char* kSpaces[] = {"", "global", "shared", "param", "local", "const"};
  for (int k = 1; k < 6; ++k)
    if (name == kSpaces[k]) {
      // cp.async names both of its spaces; they are known.
      if (i.space == Space::kGeneric) i.space = static_cast<Space>(k);
      return word.find("::cluster") == std::string::npos;
    }
  return false;
}

bool read_comparison(const std::string& word, Instruction& i) {
  if (i.op != Op::kSetp && i.op != Op::kSet) return false;
  for (std::size_t k = 0; k < std::size(kCompares); ++k)
    if (word == kCompares[k]) {
      i.compare = static_cast<Compare>(k);
      return true;
    }
  i.logic = word == "and" ? Mode::kAnd : word == "or" ? Mode::kOr : Mode::kXor;
  return word == "and" || word == "or" || word == "xor";
}

void read_modifier(const Form& form, const std::string& word, Instruction& i) {
  if (read_comparison(word, i) || read_space(word, i)) return;
  if (word.rfind("L1::", 0) == 0 || (word.rfind("L2::", 0) == 0 && word != "L2::cache_hint"))
    return;
  if (!in_list(form.modifiers, word)) throw Error("unsupported instruction (." + word + ")");
  for (const ModeName& m : kModes)
    if (word == m.name) i.mode = m.mode;
  for (int k = 1; k < 9; ++k)
    if (word == kRoundings[k]) i.rounding = static_cast<Rounding>(k);
  i.ftz |= word == "ftz";
  i.sat |= word == "sat";
  i.approx |= word == "approx";
  i.relaxed_div |= word == "approx";
  i.nan |= word == "NaN";
  i.to |= word == "to";
  i.wrap |= word == "wrap";
  i.shift_amount |= word == "shiftamt";
  i.transposed |= word == "trans";
  if (word == "m16n8k16") i.k = 16;
  if (word == "m16n8k32") i.k = 32;
  if (word == "v2") i.n_vector = 2;
  if (word == "v4") i.n_vector = 4;
}

/// Types of d, a, b, c. `from` is that of a, and `b_signed` tells the one of b.
bool known_mma(const std::vector<Type>& types, Instruction& i) {
  if (types.size() != 4 || types[0] != types[3]) return false;
  const auto byte = [](Type t) { return t == Type::kS8 || t == Type::kU8; };
  i.from = types[1];
  i.b_signed = is_signed(types[2]);
  if (i.k == 32) return types[0] == Type::kS32 && byte(types[1]) && byte(types[2]);
  const bool sum = types[0] == Type::kF32 || types[0] == Type::kF16;
  return sum && types[1] == Type::kF16 && types[2] == Type::kF16;
}

void check_types(const std::vector<Type>& types, Instruction& i) {
  if (!types.empty()) i.type = types.front(), i.from = types.back();
  if (i.op == Op::kMma && !known_mma(types, i))
    throw Error("unsupported instruction (mma of these types)");
  if (i.op == Op::kCvtPack && types.size() < 2) throw Error("unsupported instruction (cvt.pack)");
  if (i.op == Op::kCvtPack) i.from = types[1];
}

/// Commas outside brackets; `|` joins two results.
std::vector<std::string> split_operands(const std::string& text, bool pairs) {
  std::vector<std::string> parts;
  std::string part;
  int depth = 0;
  for (const char c : text) {
    depth += (c == '{' || c == '[') - (c == '}' || c == ']');
    if (depth == 0 && (c == ',' || (pairs && c == '|'))) {
      parts.push_back(trim(part));
      part.clear();
    } else {
      part += c;
    }
  }
  if (!trim(part).empty()) parts.push_back(trim(part));
  return parts;
}

bool immediate(const std::string& s, uint64_t* value) {
  if (s.size() > 2 && s[0] == '0' && std::strchr("fFdD", s[1])) {
    *value = std::stoull(s.substr(2), nullptr, 16);
    return true;
  }
  if (s.empty() || !(std::isdigit(static_cast<unsigned char>(s[0])) || s[0] == '-')) return false;
  std::size_t end = 0;
  *value = s[0] == '-' ? static_cast<uint64_t>(std::stoll(s, &end, 0)) : std::stoull(s, &end, 0);
  return end == s.size() || s.substr(end) == "U";
}

class OperandReader {
 public:
  OperandReader(Names& names, Entry& entry, Instruction& i) : names_(names), entry_(entry), i_(i) {}

  Operand read(char letter, const std::string& text, int index) {
    switch (letter) {
      case 'd':
        return scalar(text, result_width());
      case 't':
        return i_.op == Op::kMov ? move_source(text) : scalar(text, slot(i_.type));
      case 'f':
        return convert_source(text);
      case 's':
        return scalar(text, 4);
      case 'p':
        return scalar(text, 1);
      case 'g':
        return scalar(text, 0);
      case 'i':
        return integer(text);
      case 'a':
        return address(text, index);
      default:
        return values(text);
    }
  }

 private:
  static int slot(Type t) { return t == Type::kPred ? 1 : size_of(t) == 8 ? 8 : 4; }
  int result_width() const {
    if (i_.mode == Mode::kWide) return size_of(i_.type) == 4 ? 8 : 4;
    return slot(i_.type);
  }
  Operand convert_source(const std::string& text) {
    const Operand o = scalar(text, 0, slot(i_.from));
    if (i_.op != Op::kCvt && o.width != slot(i_.from)) throw Error("operand width of " + text);
    return o;
  }
  Operand move_source(const std::string& text) {
    return text[0] == '{' ? values(text) : scalar(text, slot(i_.type));
  }

  /// width 0: any register; `constant_width` for constants.
  Operand scalar(const std::string& text, int width, int constant_width = 8) {
    if (text == "_") return {};
    if (text[0] == '{' && i_.op == Op::kMov) return values(text);
    if (text[0] == '!') {
      Operand o = scalar(text.substr(1), width);
      o.negated = true;
      return o;
    }
    Operand o;
    if (names_.register_named(text, &o)) {
      if (width != 0 && o.width != width) throw Error("operand width of " + text);
      return o;
    }
    uint64_t value = 0;
    if (!immediate(text, &value) && !sum(text, &value)) throw Error("unknown operand " + text);
    return constant(entry_, value, width != 0 ? width : constant_width);
  }

  Operand integer(const std::string& text) {
    uint64_t value = 0;
    if (!immediate(text, &value)) throw Error("operand that is no constant: " + text);
    return constant(entry_, value, 4);
  }

  Operand values(const std::string& text) {
    const int width = i_.op == Op::kMov || i_.op == Op::kLd || i_.op == Op::kSt ? 0 : 4;
    if (text[0] != '{') return scalar(text, width, slot(i_.type));
    Operand o;
    o.kind = Operand::Kind::kVector;
    const std::vector<std::string> parts = split_operands(text.substr(1, text.size() - 2), false);
    std::vector<Operand> read;
    for (const std::string& part : parts) read.push_back(scalar(part, width, slot(i_.type)));
    o.at = static_cast<uint32_t>(entry_.vectors.size());
    o.count = static_cast<uint8_t>(read.size());
    entry_.vectors.insert(entry_.vectors.end(), read.begin(), read.end());
    return o;
  }

  /// symbol, or symbol + constant
  bool sum(const std::string& text, uint64_t* value) {
    const std::size_t plus = text.find('+', 1);
    if (!names_.address_of(trim(text.substr(0, plus)), value)) return false;
    uint64_t more = 0;
    if (plus != std::string::npos) {
      if (!immediate(trim(text.substr(plus + 1)), &more)) return false;
      *value += more;
    }
    return true;
  }

  Operand address(const std::string& text, int index) {
    if (text[0] != '[') throw Error("address " + text);
    const std::string inside = trim(text.substr(1, text.size() - 2));
    const std::size_t plus = inside.find('+', 1);
    uint64_t offset = 0;
    if (plus != std::string::npos && !immediate(trim(inside.substr(plus + 1)), &offset))
      throw Error("address " + text);
    (i_.op == Op::kCpAsync && index == 1 ? i_.offset2 : i_.offset) = static_cast<int64_t>(offset);
    const Operand o = scalar(trim(inside.substr(0, plus)), 0);
    if (o.width < 4) throw Error("address " + text);
    return o;
  }

  Names& names_;
  Entry& entry_;
  Instruction& i_;
};

void read_operands(const Form& form, const std::string& text, Names& names, Entry& entry,
                   Instruction& i) {
  const bool pair = i.op == Op::kSetp || i.op == Op::kShfl;
  std::vector<std::string> parts = split_operands(text, pair);
  const bool has_pair = pair && text.find('|') != std::string::npos;
  OperandReader reader(names, entry, i);
  std::size_t next = 0;
  bool optional = false;
  for (const char* letter = form.operands; *letter != '\0'; ++letter) {
    if (*letter == '*') return;
    if (*letter == '?') {
      optional = true;
      continue;
    }
    Operand& o = i.a[i.n_operands];
    if (*letter == '_') {  // the second result
      if (has_pair) o = reader.read('p', parts.at(next++), 1);
      ++i.n_operands;
      continue;
    }
    if (next >= parts.size()) {
      if (optional) break;
      throw Error("too few operands");
    }
    o = reader.read(*letter, parts[next++], i.n_operands);
    ++i.n_operands;
  }
  if (next != parts.size()) throw Error("unsupported instruction (operands)");
}

}  // namespace

std::string trim(const std::string& s) {
  const std::size_t a = s.find_first_not_of(" \t\r\n"), b = s.find_last_not_of(" \t\r\n");
  return a == std::string::npos ? "" : s.substr(a, b - a + 1);
}

Type type_of(const std::string& s) {
  constexpr const char* kNames[] = {"",    "pred",  "b8",  "b16",   "b32", "b64", "u8",
                                    "u16", "u32",   "u64", "s8",    "s16", "s32", "s64",
                                    "f16", "f16x2", "f32", "f32x2", "f64"};
  for (std::size_t k = 1; k < std::size(kNames); ++k)
    if (s == kNames[k]) return static_cast<Type>(k);
  return Type::kNone;
}

int size_of(Type t) {
  switch (t) {
    case Type::kB8:
    case Type::kU8:
    case Type::kS8:
      return 1;
    case Type::kB16:
    case Type::kU16:
    case Type::kS16:
    case Type::kF16:
      return 2;
    case Type::kB64:
    case Type::kU64:
    case Type::kS64:
    case Type::kF64:
    case Type::kF32x2:
      return 8;
    default:
      return 4;
  }
}

Operand constant(Entry& entry, uint64_t value, int width) {
  Operand o;
  o.kind = Operand::Kind::kConstant;
  o.width = static_cast<uint8_t>(width);
  o.at = static_cast<uint32_t>(entry.constants.size());
  if (width == 1) {
    entry.constants.push_back(value != 0 ? ~0u : 0u);
    entry.constants.push_back(0);  // keeps the others aligned to 8 bytes
    return o;
  }
  for (int lane = 0; lane < 32; ++lane) {
    entry.constants.push_back(static_cast<uint32_t>(value));
    if (width == 8) entry.constants.push_back(static_cast<uint32_t>(value >> 32));
  }
  return o;
}

void decode(const std::string& spelling, const std::string& operands, Names& names, Entry& entry,
            Instruction& i) {
  std::vector<std::string> parts = split(spelling, '.');
  const Form* form = find_form(parts);
  if (!form) throw Error("unsupported instruction");
  i.op = form->op;
  std::vector<Type> types;
  for (const std::string& part : parts) {
    const Type type = type_of(part);
    if (type != Type::kNone)
      types.push_back(type);
    else
      read_modifier(*form, part, i);
  }
  check_types(types, i);
  read_operands(*form, operands, names, entry, i);
}

}  // namespace million::ptx
