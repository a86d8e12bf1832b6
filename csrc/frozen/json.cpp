// See json.h.
#include "frozen/json.h"

#include <limits>
#include <stdexcept>

namespace fusedrnn::frozen {
namespace {

void append_utf8(std::string& to, uint32_t code) {
  const auto byte = [&](uint32_t value) { to += char(value); };
  const auto rest = [&](int shift) { byte(0x80 | (code >> shift & 0x3f)); };
  if (code < 0x80) {
    byte(code);
  } else if (code < 0x800) {
    byte(0xc0 | code >> 6);
    rest(0);
  } else if (code < 0x10000) {
    byte(0xe0 | code >> 12);
    rest(6);
    rest(0);
  } else {
    byte(0xf0 | code >> 18);
    rest(12);
    rest(6);
    rest(0);
  }
}

}  // namespace

void Json::refuse(const std::string& what) const {
  throw std::runtime_error(what + " at byte " + std::to_string(at_) + " of the header");
}

char Json::peek() {
  while (at_ < text_.size() &&
         (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t')) {
    ++at_;
  }
  return at_ < text_.size() ? text_[at_] : '\0';
}

void Json::take(char wanted) {
  if (!take_if(wanted)) refuse(std::string("expected '") + wanted + "'");
}

bool Json::take_if(char wanted) {
  const bool there = peek() == wanted && at_ < text_.size();
  if (there) ++at_;
  return there;
}

char Json::next() {
  if (at_ == text_.size()) refuse("the header ends");
  return text_[at_++];
}

void Json::object(const std::function<void(const std::string&)>& member) {
  take('{');
  if (take_if('}')) return;
  do {
    const std::string key = string();
    take(':');
    member(key);
  } while (take_if(','));
  take('}');
}

std::string Json::string() {
  take('"');
  std::string read;
  for (char letter = next(); letter != '"'; letter = next()) {
    if (static_cast<unsigned char>(letter) < 0x20) refuse("a control character in a string");
    if (letter == '\\') {
      escaped(read);
    } else {
      read += letter;
    }
  }
  return read;
}

uint32_t Json::hex() {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) {
    const char digit = next();
    value <<= 4;
    if (digit >= '0' && digit <= '9') {
      value |= uint32_t(digit - '0');
    } else if (digit >= 'a' && digit <= 'f') {
      value |= uint32_t(digit - 'a' + 10);
    } else if (digit >= 'A' && digit <= 'F') {
      value |= uint32_t(digit - 'A' + 10);
    } else {
      refuse("expected a hexadecimal digit");
    }
  }
  return value;
}

void Json::escaped(std::string& to) {
  constexpr std::string_view kNames = "\"\\/bfnrt", kLetters = "\"\\/\b\f\n\r\t";
  const char name = next();
  if (const size_t known = kNames.find(name); known != kNames.npos) {
    to += kLetters[known];
    return;
  }
  if (name != 'u') refuse("an unknown escape");
  uint32_t code = hex();
  if (code >= 0xd800 && code < 0xdc00) {  // the first half of a pair
    if (next() != '\\' || next() != 'u') refuse("half of a surrogate pair");
    const uint32_t low = hex();
    if (low < 0xdc00 || low > 0xdfff) refuse("half of a surrogate pair");
    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
  } else if (code >= 0xdc00 && code <= 0xdfff) {
    refuse("half of a surrogate pair");
  }
  append_utf8(to, code);
}

int64_t Json::number() {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  const char first = peek();
  if (first < '0' || first > '9') refuse("expected a whole number");
  int64_t value = 0;
  while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') {
    const int64_t digit = text_[at_] - '0';
    if (value > (kMost - digit) / 10) refuse("a number that is too large");
    value = value * 10 + digit;
    ++at_;
  }
  return value;
}

std::vector<int64_t> Json::numbers() {
  std::vector<int64_t> read;
  take('[');
  if (take_if(']')) return read;
  do {
    read.push_back(number());
  } while (take_if(','));
  take(']');
  return read;
}

void Json::end() {
  if (peek() != '\0' || at_ != text_.size()) refuse("expected the end");
}

}  // namespace fusedrnn::frozen
