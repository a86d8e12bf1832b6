// See product.h. cuBLASLt takes column-major matrices, as which a row-major one is its transpose:
// it is asked for out' = b' a', and the bias, which it adds to each column, has a row's length.
#include "ops/cuda/product.h"

#include <ATen/cuda/CUDAContextLight.h>
#include <c10/cuda/CUDAGuard.h>
#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <mutex>

namespace fusedrnn::ops {
namespace {

struct CublasTypes {
  const char* name;
  cublasComputeType_t compute;
  cudaDataType_t data;
};

CublasTypes cublas_types_of(Precision precision) {
  switch (precision) {
    case Precision::kTf32:
      return {"TF32", CUBLAS_COMPUTE_32F_FAST_TF32, CUDA_R_32F};
    case Precision::kFloat32:
      return {"float32", CUBLAS_COMPUTE_32F, CUDA_R_32F};
    case Precision::kFloat64:
      return {"float64", CUBLAS_COMPUTE_64F, CUDA_R_64F};
  }
  TORCH_INTERNAL_ASSERT(false, "no such precision");
}

// One product in cuBLASLt's terms. Its descriptors are plain memory: nothing is to be freed.
struct Description {
  cublasLtMatmulDescOpaque_t operation;
  cublasLtMatrixLayoutOpaque_t first, second, out;
};

// What the choice of an algorithm depends on: everything but the addresses, of which only the
// alignment counts.
using Key = std::array<int64_t, 9>;

// Largest power of two, up to 16, that divides the address. No load of a GPU's asks for more, and
// rows of one matrix then need few algorithms.
uint32_t alignment_of(const void* address) {
  const auto bits = reinterpret_cast<uintptr_t>(address) | 16;
  return uint32_t(bits & (~bits + 1));
}

// cuBLASLt takes tens of microseconds to choose an algorithm, so its choices are kept. They do not
// depend on what was multiplied before: same shapes, same bits.
class Choices {
 public:
  static Choices& all() {
    static auto* const choices = new Choices;  // threads may outlive static objects
    return *choices;
  }

  template <class Choose>
  cublasLtMatmulAlgo_t find(const Key& key, const Choose& choose) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (const auto known = algorithms_.find(key); known != algorithms_.end())
        return known->second;
    }
    const cublasLtMatmulAlgo_t algorithm = choose();
    const std::lock_guard<std::mutex> lock(mutex_);
    if (algorithms_.size() >= kMost) algorithms_.clear();
    algorithms_.emplace(key, algorithm);
    return algorithm;
  }

 private:
  static constexpr size_t kMost = 4096;  // of 140 bytes; packed batches bring new sizes forever
  std::mutex mutex_;
  std::map<Key, cublasLtMatmulAlgo_t> algorithms_;
};

template <class Value>
cublasStatus_t set(cublasLtMatmulDescOpaque_t& operation, cublasLtMatmulDescAttributes_t attribute,
                   const Value& value) {
  return cublasLtMatmulDescSetAttribute(&operation, attribute, &value, sizeof(value));
}

template <class Value>
cublasStatus_t set(cublasLtMatmulPreferenceOpaque_t& preference,
                   cublasLtMatmulPreferenceAttributes_t attribute, const Value& value) {
  return cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof(value));
}

// The first status that is not success.
cublasStatus_t first_of(std::initializer_list<cublasStatus_t> statuses) {
  for (const cublasStatus_t status : statuses) {
    if (status != CUBLAS_STATUS_SUCCESS) return status;
  }
  return CUBLAS_STATUS_SUCCESS;
}

cublasOperation_t operation_of(const Matrix& m) { return m.transposed ? CUBLAS_OP_T : CUBLAS_OP_N; }

// Memory as cuBLASLt sees it: a row of memory is a column.
cublasStatus_t describe(cublasLtMatrixLayoutOpaque_t& layout, const Matrix& m,
                        cudaDataType_t type) {
  return cublasLtMatrixLayoutInit(&layout, type, m.transposed ? m.rows : m.columns,
                                  m.transposed ? m.columns : m.rows, m.ld);
}

cublasStatus_t describe(Description& d, const CublasTypes& types, const Matrix& out,
                        const Matrix& a, const Matrix& b, const void* bias) {
  const cublasStatus_t plain = first_of({
      cublasLtMatmulDescInit(&d.operation, types.compute, types.data),
      set(d.operation, CUBLASLT_MATMUL_DESC_TRANSA, operation_of(b)),
      set(d.operation, CUBLASLT_MATMUL_DESC_TRANSB, operation_of(a)),
      describe(d.first, b, types.data),
      describe(d.second, a, types.data),
      describe(d.out, out, types.data),
  });
  if (!bias || plain != CUBLAS_STATUS_SUCCESS) return plain;
  return first_of({
      set(d.operation, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS),
      set(d.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias),
  });
}

cublasStatus_t choose(cublasLtHandle_t handle, Description& d, const Matrix& out, const Matrix& a,
                      const Matrix& b, size_t workspace_bytes, cublasLtMatmulAlgo_t* algorithm) {
  cublasLtMatmulPreferenceOpaque_t preference;
  cublasLtMatmulHeuristicResult_t result{};
  int found = 0;
  const uint64_t most = workspace_bytes;
  const uint32_t of_out = alignment_of(out.data);
  const cublasStatus_t status = first_of({
      cublasLtMatmulPreferenceInit(&preference),
      set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, most),
      set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(b.data)),
      set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(a.data)),
      set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, of_out),
      set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, of_out),
      cublasLtMatmulAlgoGetHeuristic(handle, &d.operation, &d.first, &d.second, &d.out, &d.out,
                                     &preference, 1, &result, &found),
  });
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  if (found == 0) return CUBLAS_STATUS_NOT_SUPPORTED;
  *algorithm = result.algo;
  return result.state;
}

}  // namespace

Products::Products(Precision precision, const c10::cuda::CUDAStream& stream)
    : precision_(precision), device_(stream.device_index()), stream_(stream.stream()) {
  // torch keeps a workspace for each stream: products that run at once must not share one.
  const c10::cuda::CUDAStreamGuard guard(stream);
  handle_ = at::cuda::getCurrentCUDABlasLtHandle();
  workspace_bytes_ = at::cuda::getCUDABlasLtWorkspaceSize();
  workspace_ = at::cuda::getCUDABlasLtWorkspace();
}

void Products::multiply(const Matrix& out, const Matrix& a, const Matrix& b, const void* bias,
                        bool add) const {
  TORCH_INTERNAL_ASSERT(a.columns == b.rows && out.rows == a.rows && out.columns == b.columns &&
                        !out.transposed && !(bias && add));
  const CublasTypes types = cublas_types_of(precision_);
  const auto handle = static_cast<cublasLtHandle_t>(handle_);
  const auto check = [&](cublasStatus_t status, const char* what) {
    TORCH_CHECK(status == CUBLAS_STATUS_SUCCESS, "fusedrnn: cuBLASLt ", what, " a ", types.name,
                " product of (", a.rows, ", ", a.columns, ") and (", b.rows, ", ", b.columns, ")",
                bias ? " with a bias" : "", ", rows ", a.ld, ", ", b.ld, " and ", out.ld,
                " elements apart: ", cublasLtGetStatusString(status), " (", int(status), ")");
  };
  Description d;
  check(describe(d, types, out, a, b, bias), "cannot describe");

  const int64_t flags = int64_t(precision_) | a.transposed << 2 | b.transposed << 3 |
                        (bias != nullptr) << 4 | int64_t(alignment_of(a.data)) << 5 |
                        int64_t(alignment_of(b.data)) << 10 | int64_t(alignment_of(out.data)) << 15;
  const Key key{out.rows, out.columns, a.columns,
                a.ld,     b.ld,        out.ld,
                flags,    device_,     int64_t(workspace_bytes_)};
  const cublasLtMatmulAlgo_t algorithm = Choices::all().find(key, [&] {
    cublasLtMatmulAlgo_t chosen;
    check(choose(handle, d, out, a, b, workspace_bytes_, &chosen), "has no algorithm for");
    return chosen;
  });

  const float one = 1, beta = add ? 1 : 0;
  const double one64 = 1, beta64 = beta;
  const bool wide = precision_ == Precision::kFloat64;
  check(
      cublasLtMatmul(handle, &d.operation, wide ? static_cast<const void*>(&one64) : &one, b.data,
                     &d.first, a.data, &d.second, wide ? static_cast<const void*>(&beta64) : &beta,
                     out.data, &d.out, out.data, &d.out, &algorithm, workspace_, workspace_bytes_,
                     static_cast<cudaStream_t>(stream_)),
      "did not start");
}

}  // namespace fusedrnn::ops
