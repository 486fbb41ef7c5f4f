// SPDX-License-Identifier: Apache-2.0
// Cuts a PTX file into entries, variables and statements, and gives names their places: registers
// in a warp's register file, variables in their state space.
#include "tests/ptx/ptx_module.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <sstream>

namespace million::ptx {

void fail(const std::string& what, int line) {
  throw Error(line > 0 ? what + " (PTX line " + std::to_string(line) + ")" : what);
}

namespace {

std::size_t align_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }

/// ".shared .align 4 .b8 name[128] = {1, 2}" and its like.
struct Declaration {
  Type type = Type::kNone;
  std::size_t align = 0, count = 1;
  bool unsized = false;
  std::string name, initial;
  std::size_t bytes() const { return count * static_cast<std::size_t>(size_of(type)); }
};

Declaration read_declaration(const std::string& text) {
  Declaration d;
  const std::size_t equal = text.find('=');
  if (equal != std::string::npos) d.initial = trim(text.substr(equal + 1));
  std::istringstream in(text.substr(0, equal));
  for (std::string word; in >> word;) {
    if (word == ".align") {
      in >> d.align;
    } else if (word == ".ptr") {  // "alignment and space of what it points to"
      d.align = 0;
    } else if (word[0] == '.') {
      if (const Type t = type_of(word.substr(1)); t != Type::kNone) d.type = t;
    } else {
      d.name = word.substr(0, word.find('['));
      for (std::size_t b = word.find('['); b != std::string::npos; b = word.find('[', b + 1)) {
        d.unsized |= word[b + 1] == ']';
        if (!d.unsized) d.count *= std::stoull(word.substr(b + 1));
      }
    }
  }
  if (d.type == Type::kNone || d.name.empty()) throw Error("declaration " + text);
  if (d.align == 0) d.align = static_cast<std::size_t>(size_of(d.type));
  return d;
}

std::string without_comments(const std::string& text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t p = 0; p < text.size(); ++p) {
    if (text.compare(p, 2, "//") == 0) {
      p = std::min(text.find('\n', p), text.size() - 1);
    } else if (text.compare(p, 2, "/*") == 0) {
      const std::size_t end = std::min(text.find("*/", p), text.size() - 2);
      out.append(static_cast<std::size_t>(
                     std::count(text.begin() + static_cast<std::ptrdiff_t>(p),
                                text.begin() + static_cast<std::ptrdiff_t>(end), '\n')),
                 '\n');
      p = end + 1;
      continue;
    }
    out += text[p];
  }
  return out;
}

}  // namespace

/// Variables of the file that every entry sees.
struct FileVariables {
  std::vector<Declaration> shared;
  std::vector<std::string> dynamic;
  std::map<std::string, uint64_t> addresses;  ///< constant and global arrays, on the host
};

/// Reads the body of one entry.
class EntryParser : public Names {
 public:
  EntryParser(Entry& entry, const FileVariables& file) : entry_(entry), file_(file), scopes_(1) {
    for (const Declaration& d : file.shared) add_shared(d);
  }

  void add_param(const std::string& text) {
    const Declaration d = read_declaration(text);
    entry_.param_bytes = align_up(entry_.param_bytes, d.align);
    variables_[d.name] = entry_.param_bytes;
    entry_.param_bytes += d.bytes();
  }

  /// From behind the opening brace to behind its closing one.
  std::size_t body(const std::string& text, std::size_t p, int* line) {
    std::string statement;
    bool empty = true;  // nothing but blanks since the last statement
    int braces = 0, first_line = *line;
    const auto restart = [&] { statement.clear(), empty = true; };
    for (; p < text.size(); ++p) {
      const char c = text[p];
      if (c == '\n') ++*line;
      if (empty) first_line = *line;
      if (c == '{' && empty) {
        scopes_.emplace_back();
      } else if (c == '}' && braces == 0) {
        scopes_.pop_back();
        if (scopes_.empty()) break;
      } else if (c == ';') {
        add(trim(statement), first_line);
        restart();
      } else if (c == ':' && braces == 0 && is_label(statement, text[p + 1])) {
        if (!labels_.emplace(trim(statement), entry_.code.size()).second)
          fail("label " + trim(statement) + " stands twice", *line);
        restart();
      } else {
        braces += (c == '{') - (c == '}');
        empty &= std::isspace(static_cast<unsigned char>(c)) != 0;
        if (!empty) statement += c;
      }
    }
    finish();
    return p + 1;
  }

  bool register_named(const std::string& name, Operand* out) override {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      auto found = scope->find(name);
      if (found == scope->end()) {  // one of a range
        const std::size_t digits = name.find_last_not_of("0123456789") + 1;
        const auto range = scope->find(name.substr(0, digits) + "<");
        if (range == scope->end() || digits == name.size()) continue;
        found = scope->emplace(name, Register{range->second.type, {}}).first;
      }
      Register& r = found->second;
      if (r.place.kind == Operand::Kind::kNone) r.place = new_register(r.type);
      *out = r.place;
      return true;
    }
    return special(name, out);
  }

  bool address_of(const std::string& symbol, uint64_t* out) override {
    if (const auto own = variables_.find(symbol); own != variables_.end()) {
      *out = own->second;
      return true;
    }
    if (std::count(file_.dynamic.begin(), file_.dynamic.end(), symbol) > 0) {
      dynamic_used_ = true;
      *out = entry_.dynamic_base = align_up(entry_.static_shared, 128);
      return true;
    }
    const auto common = file_.addresses.find(symbol);
    if (common != file_.addresses.end()) *out = common->second;
    return common != file_.addresses.end();
  }

 private:
  struct Register {
    Type type;
    Operand place;
  };

  static bool is_label(const std::string& statement, char next) {
    const std::string s = trim(statement);
    return next != ':' && !s.empty() && s.find_first_of(" \t.{") == std::string::npos;
  }

  Operand new_register(Type type) {
    Operand o;
    o.kind = Operand::Kind::kRegister;
    o.narrow = size_of(type) == 2;
    o.width = static_cast<uint8_t>(type == Type::kPred ? 1 : size_of(type) == 8 ? 8 : 4);
    if (o.width == 1) {  // predicates share lines of 32 words
      if (n_predicates_++ % 32 == 0) predicates_at_ = entry_.n_words, entry_.n_words += 32;
      o.at = predicates_at_ + (n_predicates_ - 1) % 32;
    } else {
      o.at = entry_.n_words;
      entry_.n_words += 8u * o.width;
    }
    return o;
  }

  bool special(const std::string& name, Operand* out) {
    for (std::size_t k = 0; k < std::size(kSpecialNames); ++k)
      if (name == kSpecialNames[k]) {
        Operand& o = specials_[name];
        if (o.kind == Operand::Kind::kNone) {
          o = new_register(Type::kU32);
          entry_.specials.push_back({static_cast<int>(k), o.at});
        }
        *out = o;
        return true;
      }
    return false;
  }

  void add_shared(const Declaration& d) {
    if (dynamic_used_) throw Error("static shared memory declared behind a use of the dynamic one");
    entry_.static_shared = align_up(entry_.static_shared, d.align);
    variables_[d.name] = entry_.static_shared;
    entry_.static_shared += d.bytes();
  }

  void add_registers(const std::string& text) {
    const std::size_t at = text.find('.', 4);
    const Type type = type_of(trim(text.substr(at + 1, text.find_first_of(" \t", at) - at - 1)));
    if (type == Type::kNone) throw Error("registers " + text);
    std::istringstream in(text.substr(text.find_first_of(" \t", at)));
    for (std::string name; std::getline(in, name, ',');) {
      const std::size_t range = name.find('<');
      scopes_.back()[trim(range == std::string::npos ? name : name.substr(0, range + 1))] =
          Register{type, {}};
    }
  }

  void add(const std::string& s, int line) {
    if (s.empty()) return;
    if (s.rfind(".reg", 0) == 0) {
      add_registers(s);
    } else if (s.rfind(".local", 0) == 0) {
      const Declaration d = read_declaration(s);
      entry_.local_bytes = align_up(entry_.local_bytes, d.align);
      variables_[d.name] = entry_.local_bytes;
      entry_.local_bytes += d.bytes();
    } else if (s.rfind(".shared", 0) == 0) {
      add_shared(read_declaration(s));
    } else if (s[0] != '.') {  // else .pragma, .loc
      add_instruction(s, line);
    }
  }

  void add_instruction(std::string s, int line) {
    Instruction i;
    i.line = line;
    std::string guard;
    if (s[0] == '@') {
      const std::size_t end = s.find_first_of(" \t\n");
      guard = s.substr(1, end - 1);
      s = trim(s.substr(end));
    }
    const std::size_t end = std::min(s.find_first_of(" \t\n{["), s.size());
    const std::string spelling = s.substr(0, end), operands = trim(s.substr(end));
    std::string name = spelling;
    try {
      decode(spelling, operands, *this, entry_, i);
      if (i.op == Op::kBra) branches_.emplace_back(entry_.code.size(), operands);
      note_granule(i);
    } catch (const std::exception& e) {
      i = Instruction{};
      i.line = line;
      name = std::string(e.what()) + ": " + spelling + " " + operands;
    }
    if (!guard.empty()) {
      i.guard_negated = guard[0] == '!';
      Operand o;
      if (!register_named(guard.substr(i.guard_negated ? 1 : 0), &o)) fail("guard " + guard, line);
      i.guard = static_cast<int32_t>(o.at);
    }
    const auto [known, fresh] = names_.emplace(name, static_cast<int32_t>(entry_.names.size()));
    if (fresh) entry_.names.push_back(name);
    i.name = known->second;
    entry_.code.push_back(i);
  }

  void note_granule(const Instruction& i) {
    const bool copies = i.op == Op::kCpAsync;
    const bool accesses =
        i.op == Op::kLd || i.op == Op::kSt || i.op == Op::kAtom || i.op == Op::kRed;
    if (!copies && !(accesses && (i.space == Space::kShared || i.space == Space::kGeneric))) return;
    const int bytes =
        copies ? static_cast<int>(entry_.constants[i.a[2].at]) : size_of(i.type) * i.n_vector;
    entry_.shared_granule = std::min(entry_.shared_granule, bytes);
  }

  void finish() {
    for (const auto& [at, label] : branches_) {
      const auto found = labels_.find(label);
      if (found == labels_.end()) fail("label " + label, entry_.code[at].line);
      entry_.code[at].target = static_cast<int32_t>(found->second);
    }
    entry_.dynamic_base = align_up(entry_.static_shared, 128);
  }

  Entry& entry_;
  const FileVariables& file_;
  std::vector<std::map<std::string, Register>> scopes_;
  std::map<std::string, Operand> specials_;
  std::map<std::string, uint64_t> variables_;
  std::map<std::string, int32_t> names_;  ///< of instructions
  std::map<std::string, std::size_t> labels_;
  std::vector<std::pair<std::size_t, std::string>> branches_;
  uint32_t n_predicates_ = 0, predicates_at_ = 0;
  bool dynamic_used_ = false;
};

/// Reads what stands outside of entries.
class ModuleParser {
 public:
  ModuleParser(Module& module, const std::string& text)
      : module_(module), text_(without_comments(text)) {}

  void parse() {
    std::string statement;
    for (std::size_t p = 0; p < text_.size();) {
      const char c = text_[p];
      line_ += c == '\n';
      if (c == '\n' && is_header(trim(statement))) statement.clear();
      if (c == ';') {
        add_variable(trim(statement));
        statement.clear();
      } else if (c == '{' && statement.find('=') == std::string::npos) {
        p = add_function(trim(statement), p + 1);
        statement.clear();
        continue;
      } else {
        statement += c;
      }
      ++p;
    }
  }

 private:
  static bool is_header(const std::string& s) {
    return s.rfind(".version", 0) == 0 || s.rfind(".target", 0) == 0 ||
           s.rfind(".address_size", 0) == 0;
  }

  std::size_t add_function(const std::string& head, std::size_t p) {
    const std::size_t at = head.find(".entry");
    if (at == std::string::npos) return skip(p);  // .func: calls are unsupported
    const std::size_t open = head.find('('), close = head.find(')');
    auto entry = std::make_unique<Entry>();
    entry->name = trim(head.substr(at + 6, open - at - 6));
    EntryParser parser(*entry, file_);
    if (open != std::string::npos) {
      std::istringstream in(head.substr(open + 1, close - open - 1));
      for (std::string param; std::getline(in, param, ',');)
        if (!trim(param).empty()) parser.add_param(param);
    }
    const std::size_t end = parser.body(text_, p, &line_);
    module_.entries_[entry->name] = std::move(entry);
    return end;
  }

  std::size_t skip(std::size_t p) {
    for (int depth = 1; p < text_.size() && depth > 0; ++p) {
      line_ += text_[p] == '\n';
      depth += (text_[p] == '{') - (text_[p] == '}');
    }
    return p;
  }

  void add_variable(const std::string& s) {
    const bool shared = s.find(".shared") != std::string::npos;
    const bool array =
        s.find(".const") != std::string::npos || s.find(".global") != std::string::npos;
    if (!shared && !array) return;  // prototypes
    const Declaration d = read_declaration(s);
    if (shared && d.unsized) {
      file_.dynamic.push_back(d.name);
    } else if (shared) {
      file_.shared.push_back(d);
    } else {
      const std::size_t bytes = align_up(d.bytes(), 8);
      module_.storage_.push_back(std::make_unique<uint64_t[]>(bytes / 8 + 16));
      const auto base = reinterpret_cast<uintptr_t>(module_.storage_.back().get());
      const uintptr_t address = align_up(base, std::max<std::size_t>(d.align, 8));
      if (d.align > 128) fail("alignment of " + d.name, line_);
      initialise(d, reinterpret_cast<unsigned char*>(address));
      module_.arrays_.emplace_back(address, d.bytes());
      file_.addresses[d.name] = address;
    }
  }

  void initialise(const Declaration& d, unsigned char* to) const {
    std::string values = d.initial;
    std::replace_if(
        values.begin(), values.end(), [](char c) { return c == '{' || c == '}'; }, ' ');
    std::istringstream in(values);
    const auto size = static_cast<std::size_t>(size_of(d.type));
    std::size_t k = 0;
    for (std::string value; std::getline(in, value, ','); ++k) {
      value = trim(value);
      if (value.empty()) continue;
      if (k >= d.count) fail("too many values for " + d.name, line_);
      if (!std::isdigit(static_cast<unsigned char>(value[0])) && value[0] != '-')
        fail("initial value " + value + " of " + d.name, line_);
      const bool hexadecimal = value.size() > 2 && value[0] == '0' && std::strchr("fFdD", value[1]);
      const uint64_t bits = hexadecimal       ? std::stoull(value.substr(2), nullptr, 16)
                            : value[0] == '-' ? static_cast<uint64_t>(std::stoll(value, nullptr, 0))
                                              : std::stoull(value, nullptr, 0);
      std::memcpy(to + k * size, &bits, size);
    }
  }

  Module& module_;
  const std::string text_;
  FileVariables file_;
  int line_ = 1;
};

Module::Module(const std::string& text) { ModuleParser(*this, text).parse(); }

const Entry* Module::find(const std::string& name) const {
  const auto found = entries_.find(name);
  return found == entries_.end() ? nullptr : found->second.get();
}

}  // namespace million::ptx
