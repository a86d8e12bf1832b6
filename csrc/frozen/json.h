// The part of JSON that the header of a safetensors file is made of, read strictly: objects,
// strings, and lists of whole numbers. Anything else is refused with the place where it stands.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace fusedrnn::frozen {

class Json {
 public:
  explicit Json(std::string_view text) : text_(text) {}

  // What comes next; each throws std::runtime_error where something else does.
  void object(const std::function<void(const std::string& key)>& member);  // reads its value
  std::string string();
  std::vector<int64_t> numbers();
  // Nothing is left but blanks.
  void end();

  [[noreturn]] void refuse(const std::string& what) const;

 private:
  char peek();  // past blanks; 0 at the end
  void take(char wanted);
  char next();  // blanks count
  bool take_if(char wanted);
  int64_t number();
  uint32_t hex();
  void escaped(std::string& to);

  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace fusedrnn::frozen
