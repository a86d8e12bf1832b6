// See file.h. The file is read as a whole, so that nobody can change it while it is packed; the
// sizes in the header are believed only after they agree with how many bytes there are.
#include "frozen/file.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string_view>

#include "frozen/json.h"

namespace fusedrnn::frozen {
namespace {

constexpr const char* kVersion = "1";
constexpr int64_t kMostHeader = 100'000'000;  // as the package safetensors has it
constexpr int64_t kMostSize = int64_t(1) << 30;

[[noreturn]] void refuse(const std::string& what) { throw std::runtime_error(what); }

struct Entry {
  std::string dtype;
  std::vector<int64_t> shape, offsets;
  const char* data = nullptr;

  int64_t bytes() const { return offsets[1] - offsets[0]; }
};

using Metadata = std::map<std::string, std::string>;
struct Header {
  Metadata metadata;
  std::map<std::string, Entry> tensors;
};

int64_t element_of(const std::string& name, const std::string& dtype) {
  if (dtype == "F64") return 8;
  if (dtype == "F32") return 4;
  if (dtype == "BF16" || dtype == "F16") return 2;
  if (dtype == "I8") return 1;
  refuse("tensor '" + name + "' is of dtype '" + dtype + "'");
}

std::string shown(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i ? ", " : "") + std::to_string(shape[i]);
  }
  return text + "]";
}

Entry entry_of(Json& json) {
  Entry entry;
  int seen = 0;
  json.object([&](const std::string& key) {
    if (key == "dtype" && !(seen & 1)) {
      seen |= 1;
      entry.dtype = json.string();
    } else if (key == "shape" && !(seen & 2)) {
      seen |= 2;
      entry.shape = json.numbers();
    } else if (key == "data_offsets" && !(seen & 4)) {
      seen |= 4;
      entry.offsets = json.numbers();
    } else {
      json.refuse("a tensor has dtype, shape and data_offsets once, got '" + key + "'");
    }
  });
  if (seen != 7) json.refuse("a tensor without dtype, shape or data_offsets");
  return entry;
}

Header header_of(std::string_view text) {
  Header header;
  Json json(text);
  bool described = false;
  json.object([&](const std::string& name) {
    if (name == "__metadata__") {
      if (described) json.refuse("a second __metadata__");
      described = true;
      json.object([&](const std::string& key) {
        if (!header.metadata.emplace(key, json.string()).second) {
          json.refuse("a second '" + key + "'");
        }
      });
    } else if (!header.tensors.emplace(name, entry_of(json)).second) {
      json.refuse("a second tensor '" + name + "'");
    }
  });
  json.end();
  return header;
}

// Where each tensor lies; they fill the data, each byte being one tensor's.
void place(Header& header, const char* data, int64_t bytes) {
  std::map<int64_t, int64_t> parts;
  for (auto& [name, entry] : header.tensors) {
    if (entry.offsets.size() != 2 || entry.offsets[0] >= entry.offsets[1]) {
      refuse("tensor '" + name + "' has no beginning and end");
    }
    const int64_t begin = entry.offsets[0], end = entry.offsets[1];
    if (end > bytes) {
      refuse("the file is cut off: tensor '" + name + "' ends at byte " + std::to_string(end) +
             " of the data, of which there are " + std::to_string(bytes));
    }
    int64_t left = (end - begin) / element_of(name, entry.dtype);
    bool fits = left * element_of(name, entry.dtype) == end - begin;
    for (const int64_t size : entry.shape) {
      fits = fits && size > 0 && left % size == 0;
      if (fits) left /= size;
    }
    if (!fits || left != 1) {
      refuse("tensor '" + name + "' " + shown(entry.shape) + " does not take " +
             std::to_string(end - begin) + " bytes");
    }
    if (!parts.emplace(begin, end).second) refuse("tensor '" + name + "' lies on another");
    entry.data = data + begin;
  }
  int64_t at = 0;
  for (const auto& [begin, end] : parts) {
    if (begin != at) refuse("the tensors do not follow one another");
    at = end;
  }
  if (at != bytes) {
    refuse("the tensors take " + std::to_string(at) + " bytes, and there are " +
           std::to_string(bytes));
  }
}

// --- what the layer is

const std::string& text_of(const Metadata& metadata, const std::string& key) {
  const auto found = metadata.find(key);
  if (found == metadata.end()) refuse("it says nothing of " + key);
  return found->second;
}

bool flag_of(const Metadata& metadata, const std::string& key) {
  const std::string& text = text_of(metadata, key);
  if (text != "true" && text != "false") {
    refuse(key + " must be 'true' or 'false', got '" + text + "'");
  }
  return text == "true";
}

int64_t number_of(const Metadata& metadata, const std::string& key, int64_t least) {
  const std::string& text = text_of(metadata, key);
  int64_t value = text.empty() ? -1 : 0;
  for (const char digit : text) {
    const bool fits = digit >= '0' && digit <= '9' && value >= 0 && value <= kMostSize;
    value = fits ? value * 10 + (digit - '0') : -1;
  }
  if (value < least || value > kMostSize) {
    refuse(key + " must be a number from " + std::to_string(least) + ", got '" + text + "'");
  }
  return value;
}

Cell cell_of(const std::string& mode) {
  for (int i = 0; i < kCellCount; ++i) {
    if (kCells[i].name == mode) return Cell(i);
  }
  refuse("mode '" + mode + "' is unknown");
}

DType stored_as(const std::string& dtype) {
  if (dtype == "float32" || dtype == "float16") return DType::kFloat32;
  if (dtype == "float64") return DType::kFloat64;
  if (dtype == "bfloat16") return DType::kBFloat16;
  if (dtype == "int8") return DType::kInt8;
  refuse("dtype '" + dtype + "' is unknown");
}

Shape shape_of(const Metadata& metadata) {
  const auto version = metadata.find("fusedrnn_frozen");
  if (version == metadata.end()) refuse("it is not a frozen layer of fusedrnn");
  if (version->second != kVersion) {
    refuse("it is of version '" + version->second + "', and this library reads version " +
           kVersion);
  }
  Shape s{};
  s.cell = cell_of(text_of(metadata, "mode"));
  s.L = number_of(metadata, "num_layers", 1);
  s.D = flag_of(metadata, "bidirectional") ? 2 : 1;
  s.I = number_of(metadata, "input_size", 1);
  s.H = number_of(metadata, "hidden_size", 1);
  const int64_t projection = number_of(metadata, "proj_size", 0);
  s.projected = projection > 0;
  s.P = s.projected ? projection : s.H;
  if (s.projected && (s.P >= s.H || !spec(s.cell).has_c)) {
    refuse("proj_size is for an LSTM and less than hidden_size");
  }
  s.stored = stored_as(text_of(metadata, "dtype"));
  s.computed = s.stored == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  return s;
}

// --- its weights

float widened_half(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, exponent = half >> 10 & 31;
  const uint32_t fraction = half & 0x3ff;
  uint32_t bits;
  if (exponent == 0) {  // fraction * 2^-24, exact
    const float value = float(fraction) * 0x1p-24f;
    std::memcpy(&bits, &value, sizeof bits);
  } else {
    bits = (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
  }
  bits |= sign;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

float widened_bfloat16(uint16_t half) {
  const uint32_t bits = uint32_t(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// What a kind of tensor may be of; those of 2 bytes become float32 where it says so.
struct Kind {
  std::vector<std::string> dtypes;
  bool widened;
};

// Hands out the tensors of a file, each once.
class Tensors {
 public:
  Tensors(Header& header, File& file) : left_(header.tensors), file_(file) {}

  const void* take(const std::string& name, const std::vector<int64_t>& shape, const Kind& kind) {
    const auto found = left_.find(name);
    if (found == left_.end()) refuse("tensor '" + name + "' is missing");
    const Entry entry = found->second;
    left_.erase(found);
    if (entry.shape != shape) {
      refuse("tensor '" + name + "' must be " + shown(shape) + ", got " + shown(entry.shape));
    }
    if (std::find(kind.dtypes.begin(), kind.dtypes.end(), entry.dtype) == kind.dtypes.end()) {
      refuse("tensor '" + name + "' must be of dtype " + kind.dtypes.front() + ", got " +
             entry.dtype);
    }
    const int64_t element = element_of(name, entry.dtype);
    if (element == 2 && kind.widened) return widened(entry);
    // Kernels read whole elements.
    if (reinterpret_cast<uintptr_t>(entry.data) % uintptr_t(element) == 0) return entry.data;
    file_.made.emplace_back(entry.data, entry.data + entry.bytes());
    return file_.made.back().data();
  }

  void end() const {
    if (!left_.empty()) refuse("it has no place for tensor '" + left_.begin()->first + "'");
  }

 private:
  const void* widened(const Entry& entry) {
    const auto widen = entry.dtype == "F16" ? widened_half : widened_bfloat16;
    std::vector<char>& made = file_.made.emplace_back(2 * entry.bytes());
    for (int64_t i = 0; i < entry.bytes() / 2; ++i) {
      uint16_t half;
      std::memcpy(&half, entry.data + 2 * i, sizeof half);
      const float value = widen(half);
      std::memcpy(made.data() + 4 * i, &value, sizeof value);
    }
    return made.data();
  }

  std::map<std::string, Entry>& left_;
  File& file_;
};

Kind kind_of_matrices(const std::string& dtype) {
  if (dtype == "float64") return {{"F64"}, false};
  if (dtype == "bfloat16") return {{"BF16"}, false};
  if (dtype == "float16") return {{"F16"}, true};
  if (dtype == "int8") return {{"I8"}, false};
  return {{"F32"}, false};
}

void take_weights(File& file, Tensors& tensors, bool biases) {
  const Shape& s = file.shape;
  const Kind matrices = kind_of_matrices(file.dtype);
  const Kind others =
      s.computed == DType::kFloat64 ? Kind{{"F64"}, false} : Kind{{"F32", "BF16", "F16"}, true};
  for (int64_t i = 0; i < s.L * s.D; ++i) {
    const int64_t layer = i / s.D;
    const std::string ending = "_l" + std::to_string(layer) + (i % s.D ? "_reverse" : "");
    const auto take = [&](const char* name, const std::vector<int64_t>& shape, const Kind& kind) {
      return tensors.take(name + ending, shape, kind);
    };
    const auto scale = [&](const char* name) -> const float* {
      if (s.stored != DType::kInt8) return nullptr;
      const std::string full = name + ending + "_scale";
      return static_cast<const float*>(tensors.take(full, {s.rows()}, {{"F32"}, false}));
    };
    Weights w{};
    w.w_ih = take("weight_ih", {s.rows(), s.inputs_of(layer)}, matrices);
    w.w_hh = take("weight_hh", {s.rows(), s.P}, matrices);
    w.s_ih = scale("weight_ih");
    w.s_hh = scale("weight_hh");
    if (biases) {
      w.b_ih = take("bias_ih", {s.rows()}, others);
      w.b_hh = take("bias_hh", {s.rows()}, others);
    }
    if (s.projected) w.w_hr = take("weight_hr", {s.P, s.H}, others);
    file.weights.push_back(w);
  }
  tensors.end();
}

}  // namespace

File parsed(std::vector<char> bytes) {
  File file;
  file.bytes = std::move(bytes);
  const auto size = int64_t(file.bytes.size());
  uint64_t length = 0;
  for (int64_t i = 0; i < 8 && i < size; ++i) {
    length |= uint64_t(static_cast<unsigned char>(file.bytes[i])) << (8 * i);
  }
  if (size < 8 || length > uint64_t(size - 8)) refuse("it is cut off, or no safetensors file");
  if (length > uint64_t(kMostHeader)) refuse("its header is longer than 100 MB");
  Header header = header_of({file.bytes.data() + 8, size_t(length)});
  place(header, file.bytes.data() + 8 + length, size - 8 - int64_t(length));
  file.shape = shape_of(header.metadata);
  file.dtype = text_of(header.metadata, "dtype");
  Tensors tensors(header, file);
  take_weights(file, tensors, flag_of(header.metadata, "bias"));
  return file;
}

File read(const std::string& path) {
  const auto refuse_path = [&](const std::string& what) {
    refuse("cannot read " + path + ": " + what);
  };
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) refuse_path("there is no such file");
  if (!std::filesystem::is_regular_file(status)) refuse_path("it is not a regular file");
  const auto size = int64_t(std::filesystem::file_size(path, error));
  std::ifstream stream(path, std::ios::binary);
  if (error || !stream) refuse_path("it cannot be opened");
  std::vector<char> bytes(size);
  if (!stream.read(bytes.data(), size)) refuse_path("it ended early");
  try {
    return parsed(std::move(bytes));
  } catch (const std::runtime_error& wrong) {
    refuse_path(wrong.what());
    throw;
  }
}

}  // namespace fusedrnn::frozen
