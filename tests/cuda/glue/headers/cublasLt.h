// Stands before cuBLASLt's header of this name on the include path: what csrc/ops/cuda/product.cpp
// uses of it, multiplying in float64 on the host, operands rounded to TF32 where that was asked
// for. Refuses what cuBLASLt would: rows that overlap, a bias that was not announced, an algorithm
// chosen for other shapes, types or alignments, and a workspace of another stream.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <vector>

#include "streams.h"

enum cublasStatus_t {
  CUBLAS_STATUS_SUCCESS = 0,
  CUBLAS_STATUS_INVALID_VALUE = 7,
  CUBLAS_STATUS_NOT_SUPPORTED = 15,
};
enum cublasComputeType_t {
  CUBLAS_COMPUTE_32F = 68,
  CUBLAS_COMPUTE_64F = 70,
  CUBLAS_COMPUTE_32F_FAST_TF32 = 77,
};
enum cudaDataType_t { CUDA_R_32F = 0, CUDA_R_64F = 1 };
enum cublasOperation_t { CUBLAS_OP_N, CUBLAS_OP_T };
enum cublasLtEpilogue_t { CUBLASLT_EPILOGUE_DEFAULT = 1, CUBLASLT_EPILOGUE_BIAS = 4 };
enum cublasLtMatmulDescAttributes_t {
  CUBLASLT_MATMUL_DESC_TRANSA,
  CUBLASLT_MATMUL_DESC_TRANSB,
  CUBLASLT_MATMUL_DESC_EPILOGUE,
  CUBLASLT_MATMUL_DESC_BIAS_POINTER,
};
enum cublasLtMatmulPreferenceAttributes_t {
  CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
};

using cublasLtHandle_t = void*;
struct cublasLtMatmulDescOpaque_t {
  cublasComputeType_t compute;
  cudaDataType_t scale;
  cublasOperation_t first, second;
  cublasLtEpilogue_t epilogue;
  const void* bias;
};
struct cublasLtMatrixLayoutOpaque_t {  // column-major
  cudaDataType_t type;
  int64_t rows, columns, ld;
};
struct cublasLtMatmulPreferenceOpaque_t {
  uint64_t workspace;
  uint32_t alignments[4];
};
struct cublasLtMatmulAlgo_t {
  std::array<int64_t, 20> made_for;
};
struct cublasLtMatmulHeuristicResult_t {
  cublasLtMatmulAlgo_t algo;
  cublasStatus_t state;
};

namespace glue {

using Layout = cublasLtMatrixLayoutOpaque_t;

constexpr size_t kWorkspaceBytes = 4096;

inline void* handle() {
  static char it;
  return &it;
}
inline void* workspace_of(const void* stream) {
  static auto& all = *new std::map<const void*, std::vector<char>>;
  std::vector<char>& own = all[stream];
  own.resize(kWorkspaceBytes);
  return own.data();
}

// For tests: what was asked for, and a product that is to fail.
struct Counts {
  int64_t products = 0, choices = 0, tf32 = 0, fail_at = -1;
};
inline Counts& counts() {
  static Counts all;
  return all;
}

inline int64_t bytes_of(const Layout& m) {
  return ((m.columns - 1) * m.ld + m.rows) * (m.type == CUDA_R_64F ? 8 : 4);
}

inline std::array<int64_t, 20> signature(const cublasLtMatmulDescOpaque_t& d, const Layout& a,
                                         const Layout& b, const Layout& c) {
  return {d.compute, d.scale, d.first,   d.second, d.epilogue, d.bias != nullptr,
          a.type,    a.rows,  a.columns, a.ld,     b.type,     b.rows,
          b.columns, b.ld,    c.type,    c.rows,   c.columns,  c.ld};
}

// Whether the descriptors fit together.
inline bool fits(const cublasLtMatmulDescOpaque_t& d, const Layout& a, const Layout& b,
                 const Layout& c) {
  for (const Layout& m : {a, b, c}) {
    if (m.rows < 1 || m.columns < 1 || m.ld < m.rows || m.type != d.scale) return false;
  }
  const bool at = d.first == CUBLAS_OP_T, bt = d.second == CUBLAS_OP_T;
  return (at ? a.columns : a.rows) == c.rows && (bt ? b.rows : b.columns) == c.columns &&
         (at ? a.rows : a.columns) == (bt ? b.columns : b.rows) &&
         (d.compute == CUBLAS_COMPUTE_64F) == (d.scale == CUDA_R_64F) &&
         (d.epilogue == CUBLASLT_EPILOGUE_BIAS) == (d.bias != nullptr);
}

// To the nearest of 10 bits of mantissa, away from zero where two are as near.
inline float tf32(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (std::isfinite(value)) bits = (bits + 0x1000) & ~0x1fffu;
  std::memcpy(&value, &bits, 4);
  return value;
}

// The rows of op(m) one after the other, or its columns.
template <class Real>
std::vector<double> gathered(const void* memory, const Layout& m, bool columns, bool rounded) {
  const auto* from = static_cast<const Real*>(memory);
  const int64_t vectors = columns ? m.columns : m.rows, length = columns ? m.rows : m.columns;
  std::vector<double> to(vectors * length);
  for (int64_t v = 0; v < vectors; ++v) {
    for (int64_t i = 0; i < length; ++i) {
      const Real value = columns ? from[v * m.ld + i] : from[i * m.ld + v];
      to[v * length + i] = rounded ? tf32(float(value)) : value;
    }
  }
  return to;
}

template <class Real>
void multiply(const cublasLtMatmulDescOpaque_t& d, const void* a, const Layout& la, const void* b,
              const Layout& lb, double alpha, double beta, void* out, const Layout& lo) {
  const bool at = d.first == CUBLAS_OP_T, bt = d.second == CUBLAS_OP_T;
  const bool rounded = d.compute == CUBLAS_COMPUTE_32F_FAST_TF32;
  const std::vector<double> rows = gathered<Real>(a, la, at, rounded);
  const std::vector<double> columns = gathered<Real>(b, lb, !bt, rounded);
  const int64_t inner = at ? la.rows : la.columns;
  const auto* bias = static_cast<const Real*>(d.bias);
  for (int64_t j = 0; j < lo.columns; ++j) {
    for (int64_t i = 0; i < lo.rows; ++i) {
      double sum = 0;
      for (int64_t k = 0; k < inner; ++k) sum += rows[i * inner + k] * columns[j * inner + k];
      Real& to = static_cast<Real*>(out)[j * lo.ld + i];
      to = Real(alpha * sum + (beta != 0 ? beta * to : 0) + (bias ? bias[i] : 0));
    }
  }
}

}  // namespace glue

inline cublasStatus_t cublasLtMatmulDescInit(cublasLtMatmulDescOpaque_t* desc,
                                             cublasComputeType_t compute, cudaDataType_t scale) {
  *desc = {compute, scale, CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT, nullptr};
  return CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDescOpaque_t* desc,
                                                     cublasLtMatmulDescAttributes_t attribute,
                                                     const void* value, size_t bytes) {
  void* to = attribute == CUBLASLT_MATMUL_DESC_TRANSA     ? static_cast<void*>(&desc->first)
             : attribute == CUBLASLT_MATMUL_DESC_TRANSB   ? static_cast<void*>(&desc->second)
             : attribute == CUBLASLT_MATMUL_DESC_EPILOGUE ? static_cast<void*>(&desc->epilogue)
                                                          : static_cast<void*>(&desc->bias);
  if (bytes != (attribute == CUBLASLT_MATMUL_DESC_BIAS_POINTER ? sizeof(void*) : 4))
    return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(to, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasLtMatrixLayoutInit(cublasLtMatrixLayoutOpaque_t* layout,
                                               cudaDataType_t type, uint64_t rows, uint64_t columns,
                                               int64_t ld) {
  *layout = {type, int64_t(rows), int64_t(columns), ld};
  return CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasLtMatmulPreferenceInit(cublasLtMatmulPreferenceOpaque_t* preference) {
  *preference = {0, {256, 256, 256, 256}};
  return CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasLtMatmulPreferenceSetAttribute(
    cublasLtMatmulPreferenceOpaque_t* preference, cublasLtMatmulPreferenceAttributes_t attribute,
    const void* value, size_t bytes) {
  const bool workspace = attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
  if (bytes != (workspace ? 8 : 4)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(workspace ? static_cast<void*>(&preference->workspace)
                        : preference->alignments + (attribute - 1),
              value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t handle, cublasLtMatmulDescOpaque_t* desc, cublasLtMatrixLayoutOpaque_t* a,
    cublasLtMatrixLayoutOpaque_t* b, cublasLtMatrixLayoutOpaque_t* c,
    cublasLtMatrixLayoutOpaque_t* d, cublasLtMatmulPreferenceOpaque_t* preference, int wanted,
    cublasLtMatmulHeuristicResult_t* results, int* found) {
  ++glue::counts().choices;
  if (handle != glue::handle() || wanted != 1 || !glue::fits(*desc, *a, *b, *d) || c != d)
    return CUBLAS_STATUS_INVALID_VALUE;
  results->algo.made_for = glue::signature(*desc, *a, *b, *d);
  int64_t alignments = 0;
  for (const uint32_t alignment : preference->alignments) alignments = alignments << 10 | alignment;
  results->algo.made_for[18] = alignments;
  results->algo.made_for[19] = int64_t(preference->workspace);
  results->state = CUBLAS_STATUS_SUCCESS;
  *found = 1;
  return CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDescOpaque_t* desc,
                                     const void* alpha, const void* a,
                                     cublasLtMatrixLayoutOpaque_t* la, const void* b,
                                     cublasLtMatrixLayoutOpaque_t* lb, const void* beta,
                                     const void* c, cublasLtMatrixLayoutOpaque_t* lc, void* d,
                                     cublasLtMatrixLayoutOpaque_t* ld,
                                     const cublasLtMatmulAlgo_t* algo, void* workspace,
                                     size_t workspace_bytes, void* stream) {
  glue::Counts& counts = glue::counts();
  if (counts.products++ == counts.fail_at) return CUBLAS_STATUS_NOT_SUPPORTED;
  counts.tf32 += desc->compute == CUBLAS_COMPUTE_32F_FAST_TF32;
  auto made_for = glue::signature(*desc, *la, *lb, *ld);
  made_for[18] = algo->made_for[18];
  made_for[19] = int64_t(workspace_bytes);
  bool right = handle == glue::handle() && glue::fits(*desc, *la, *lb, *ld) && c == d && lc == ld &&
               made_for == algo->made_for && workspace == glue::workspace_of(stream) &&
               workspace_bytes == glue::kWorkspaceBytes;
  int64_t alignments = algo->made_for[18];
  for (const void* address : {static_cast<const void*>(d), c, b, a}) {
    right = right && reinterpret_cast<uintptr_t>(address) % (alignments & 1023) == 0;
    alignments >>= 10;
  }
  if (!right) return CUBLAS_STATUS_INVALID_VALUE;
  const bool wide = desc->scale == CUDA_R_64F;
  const auto scalar = [&](const void* at) {
    return wide ? *static_cast<const double*>(at) : *static_cast<const float*>(at);
  };
  const std::vector<glue::Access> accesses = {{a, glue::bytes_of(*la), false},
                                              {b, glue::bytes_of(*lb), false},
                                              {d, glue::bytes_of(*ld), true},
                                              {workspace, int64_t(workspace_bytes), true}};
  glue::Streams::all().issue(stream, "a product", accesses,
                             [wide, desc = *desc, a, la = *la, b, lb = *lb, alpha = scalar(alpha),
                              beta = scalar(beta), d, ld = *ld] {
                               (wide ? glue::multiply<double> : glue::multiply<float>)(desc, a, la,
                                                                                       b, lb, alpha,
                                                                                       beta, d, ld);
                             });
  return CUBLAS_STATUS_SUCCESS;
}

inline const char* cublasLtGetStatusString(cublasStatus_t status) {
  return status == CUBLAS_STATUS_INVALID_VALUE   ? "CUBLAS_STATUS_INVALID_VALUE"
         : status == CUBLAS_STATUS_NOT_SUPPORTED ? "CUBLAS_STATUS_NOT_SUPPORTED"
                                                 : "CUBLAS_STATUS_SUCCESS";
}
