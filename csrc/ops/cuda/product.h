// The matrix products around the recurrence, by cuBLASLt with torch's handle and workspace. They go
// by torch's switch for RNNs, as cuDNN's do, whatever the switch for matrix products says: torch's
// own operators cannot be told so for one call, since that switch is global to the process.
#pragma once

#include <c10/cuda/CUDAStream.h>

#include "ops/check.h"

namespace fusedrnn::ops {

enum class Precision {
  kTf32,     // float32 rounded to a mantissa of 10 bits, sums in float32
  kFloat32,  // as exact as float32 is
  kFloat64,
};

// A row-major matrix in device memory whose rows lie `ld` elements of `size` bytes apart; or its
// transpose, whose rows then are columns of memory.
struct Matrix {
  void* data;
  int64_t rows, columns, ld, size;
  bool transposed = false;

  Matrix t() const { return {data, columns, rows, ld, size, !transposed}; }
  // Both of a matrix that is not transposed.
  Matrix rows_at(int64_t first, int64_t count) const {
    return {static_cast<char*>(data) + first * ld * size, count, columns, ld, size};
  }
  Matrix columns_at(int64_t first, int64_t count) const {
    return {static_cast<char*>(data) + first * size, rows, count, ld, size};
  }
};

// A matrix that lies in a tensor from an element on; written to, or only read. The element may lie
// outside if the rows that are used do not.
inline Matrix target(const Tensor& tensor, int64_t element, int64_t rows, int64_t columns,
                     int64_t ld) {
  return {mutable_address(tensor, element), rows, columns, ld, int64_t(tensor.element_size())};
}
inline Matrix operand(const Tensor& tensor, int64_t element, int64_t rows, int64_t columns,
                      int64_t ld) {
  return {const_cast<void*>(address(tensor, element)), rows, columns, ld,
          int64_t(tensor.element_size())};
}
// A contiguous tensor of two dimensions.
inline Matrix operand(const Tensor& t) { return operand(t, 0, t.size(0), t.size(1), t.size(1)); }
inline Matrix target(const Tensor& t) { return target(t, 0, t.size(0), t.size(1), t.size(1)); }

// Products on one stream, for as long as a call of an operator lasts. They allocate nothing and
// wait for nothing, so that a stream that is being captured takes them.
class Products {
 public:
  Products(Precision precision, const c10::cuda::CUDAStream& stream);

  // out = a b, each of its rows plus `bias` where there is one.
  void set(const Matrix& out, const Matrix& a, const Matrix& b, const void* bias = nullptr) const {
    multiply(out, a, b, bias, false);
  }
  // out += a b.
  void add(const Matrix& out, const Matrix& a, const Matrix& b) const {
    multiply(out, a, b, nullptr, true);
  }

 private:
  void multiply(const Matrix& out, const Matrix& a, const Matrix& b, const void* bias,
                bool add) const;

  Precision precision_;
  int device_;
  void *stream_, *handle_, *workspace_;
  size_t workspace_bytes_;
};

}  // namespace fusedrnn::ops
