// Files of frozen layers, as FrozenLSTM.save writes them: safetensors, whose header says in
// strings under __metadata__ what the layer is (fusedrnn/_ops/frozen_file.py has the list).
#pragma once

#include <string>
#include <vector>

#include "frozen/frozen.h"

namespace fusedrnn::frozen {

struct File {
  Shape shape;
  std::string dtype;             // of W_ih and W_hh in the file: float16 is widened when it is read
  std::vector<Weights> weights;  // what Stack takes; they point into what follows
  std::vector<char> bytes;
  std::vector<std::vector<char>> made;
};

// A file's bytes, or those at a path. Whatever the bytes are: std::runtime_error says what is
// wrong.
File parsed(std::vector<char> bytes);
File read(const std::string& path);

}  // namespace fusedrnn::frozen
