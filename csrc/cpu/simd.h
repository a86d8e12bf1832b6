// Vectors of T as wide as the instruction set of this translation unit, on GCC's vector
// extensions, so that one source serves SSE2, NEON, AVX2 and AVX-512.
//
// Included once for each variant (isa/kernels.h). Everything here lives in the variant's own
// namespace and has internal linkage: otherwise the linker would merge functions that were built
// for different machines.
#pragma once

namespace fusedrnn::cpu::FUSEDRNN_ISA {
namespace {

// GCC reads all of a C++ file before it acts on a target pragma, so __AVX512F__ says nothing here.
#define FUSEDRNN_AVX512 (FUSEDRNN_VECTOR_BYTES == 64)
#define FUSEDRNN_AVX2 (FUSEDRNN_VECTOR_BYTES == 32)

#define FUSEDRNN_INLINE inline __attribute__((always_inline))
// From here on the compiler does not know where a pointer points.
#define FUSEDRNN_OPAQUE(pointer) asm("" : "+r"(pointer))

template <class T>
struct Native;
template <>
struct Native<float> {
  using Bits = int32_t;
  typedef float Type __attribute__((vector_size(FUSEDRNN_VECTOR_BYTES)));
  typedef int32_t Ints __attribute__((vector_size(FUSEDRNN_VECTOR_BYTES)));
  typedef float Unaligned
      __attribute__((vector_size(FUSEDRNN_VECTOR_BYTES), aligned(4), may_alias));
};
template <>
struct Native<double> {
  using Bits = int64_t;
  typedef double Type __attribute__((vector_size(FUSEDRNN_VECTOR_BYTES)));
  typedef int64_t Ints __attribute__((vector_size(FUSEDRNN_VECTOR_BYTES)));
  typedef double Unaligned
      __attribute__((vector_size(FUSEDRNN_VECTOR_BYTES), aligned(8), may_alias));
};

template <class T>
constexpr int kLanes = FUSEDRNN_VECTOR_BYTES / sizeof(T);

template <class T>
struct Vec {
  using Type = typename Native<T>::Type;
  using Ints = typename Native<T>::Ints;
  using Bits = typename Native<T>::Bits;
  Type v;

  Vec() = default;
  FUSEDRNN_INLINE Vec(Type native) : v(native) {}
  FUSEDRNN_INLINE explicit Vec(T scalar) : v(scalar - Type{}) {}

  static FUSEDRNN_INLINE Vec load(const T* p) {
    return Vec(Type(*reinterpret_cast<const typename Native<T>::Unaligned*>(p)));
  }
  FUSEDRNN_INLINE void store(T* p) const {
    *reinterpret_cast<typename Native<T>::Unaligned*>(p) = v;
  }

  // The first n lanes; the others read as zero and are not touched in memory.
  static FUSEDRNN_INLINE Vec load(const T* p, int n) {
    if (n >= kLanes<T>) return load(p);
#if FUSEDRNN_AVX512
    if constexpr (sizeof(T) == 4) {
      return Vec(Type(_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p)));
    } else {
      return Vec(Type(_mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p)));
    }
#else
    alignas(FUSEDRNN_VECTOR_BYTES) T lanes[kLanes<T>] = {};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return load(lanes);
#endif
  }
  FUSEDRNN_INLINE void store(T* p, int n) const {
    if (n >= kLanes<T>) return store(p);
#if FUSEDRNN_AVX512
    if constexpr (sizeof(T) == 4) {
      _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), __m512(v));
    } else {
      _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), __m512d(v));
    }
#else
    for (int i = 0; i < n; ++i) p[i] = v[i];
#endif
  }
};

// Weights are stored as T, as bfloat16, or packed as two bfloat16 in a word: the lanes of an even
// vector in the low halves, those of the odd vector after it in the high halves. A bfloat16 is the
// upper half of a float.
struct BFloat16 {
  uint16_t bits;
};
struct BFloat16Pair {
  uint32_t bits;
};
struct Int8 {
  int8_t value;
};

FUSEDRNN_INLINE float widened(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}
FUSEDRNN_INLINE float widened(float x) { return x; }
FUSEDRNN_INLINE double widened(double x) { return x; }
// What was widened, as it was.
FUSEDRNN_INLINE BFloat16 narrowed(float x, BFloat16) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return {uint16_t(bits >> 16)};
}
FUSEDRNN_INLINE Int8 narrowed(float x, Int8) { return {int8_t(x)}; }
template <class T>
FUSEDRNN_INLINE T narrowed(T x, T) {
  return x;
}

// The first n lanes, the others zeros.
template <class T>
FUSEDRNN_INLINE Vec<T> load_weights(const T* p, int n = kLanes<T>) {
  return Vec<T>::load(p, n);
}
FUSEDRNN_INLINE Vec<float> load_weights(const BFloat16* p, int n = kLanes<float>) {
  using V = Vec<float>;
  BFloat16 lanes[kLanes<float>];
  if (n < kLanes<float>) {
    for (int i = 0; i < kLanes<float>; ++i) lanes[i] = i < n ? p[i] : BFloat16{0};
    p = lanes;
  }
#if FUSEDRNN_AVX512
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return V::Type(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
#elif FUSEDRNN_AVX2
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return V::Type(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
#else
  V::Type x;
  for (int i = 0; i < kLanes<float>; ++i) x[i] = widened(p[i]);
  return x;
#endif
}

// Vector v of those that begin at p: a row of packed weights.
template <class T>
FUSEDRNN_INLINE Vec<T> packed_vector(const T* p, int v) {
  return Vec<T>::load(p + v * kLanes<T>);
}
FUSEDRNN_INLINE Vec<float> packed_vector(const BFloat16Pair* p, int v) {
  using V = Vec<float>;
  const auto words = V::Ints(V::load(reinterpret_cast<const float*>(p) + v / 2 * kLanes<float>).v);
  return V::Type(v % 2 ? words & int32_t(0xffff0000) : words << 16);
}
FUSEDRNN_INLINE void store_pair(Vec<float> even, Vec<float> odd, BFloat16Pair* p) {
  using V = Vec<float>;
  typedef uint32_t Words __attribute__((vector_size(FUSEDRNN_VECTOR_BYTES)));
  V(V::Type((Words(even.v) >> 16) | Words(odd.v))).store(reinterpret_cast<float*>(p));
}

template <class T>
FUSEDRNN_INLINE Vec<T> operator+(Vec<T> a, Vec<T> b) {
  return a.v + b.v;
}
template <class T>
FUSEDRNN_INLINE Vec<T> operator-(Vec<T> a, Vec<T> b) {
  return a.v - b.v;
}
template <class T>
FUSEDRNN_INLINE Vec<T> operator*(Vec<T> a, Vec<T> b) {
  return a.v * b.v;
}
template <class T>
FUSEDRNN_INLINE Vec<T> operator/(Vec<T> a, Vec<T> b) {
  return a.v / b.v;
}
// One rounding where the machine has FMA. By intrinsics, because GCC, left to itself, sometimes
// contracts a product in one kernel and not in its twin, and a row's bits would depend on its
// batch.
template <class T>
FUSEDRNN_INLINE Vec<T> madd(Vec<T> a, Vec<T> b, Vec<T> c) {
  using N = typename Vec<T>::Type;
#if FUSEDRNN_AVX512
  if constexpr (sizeof(T) == 4) {
    return N(_mm512_fmadd_ps(a.v, b.v, c.v));
  } else {
    return N(_mm512_fmadd_pd(a.v, b.v, c.v));
  }
#elif FUSEDRNN_AVX2
  if constexpr (sizeof(T) == 4) {
    return N(_mm256_fmadd_ps(a.v, b.v, c.v));
  } else {
    return N(_mm256_fmadd_pd(a.v, b.v, c.v));
  }
#elif defined(__aarch64__)
  if constexpr (sizeof(T) == 4) {
    return N(vfmaq_f32(float32x4_t(c.v), float32x4_t(a.v), float32x4_t(b.v)));
  } else {
    return N(vfmaq_f64(float64x2_t(c.v), float64x2_t(a.v), float64x2_t(b.v)));
  }
#else
  return N(a.v * b.v + c.v);
#endif
}
// sum += a * b with the result in sum's own register: GCC may put it where b was, and then moves it
// back.
template <class T>
FUSEDRNN_INLINE void add_product(typename Vec<T>::Type& sum, typename Vec<T>::Type a,
                                 typename Vec<T>::Type b) {
#if FUSEDRNN_AVX2 || (FUSEDRNN_AVX512 && !defined(FUSEDRNN_BY_LANE))
  // v: any of AVX-512's 32 registers
  if constexpr (sizeof(T) == 4) {
    asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  } else {
    asm("vfmadd231pd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  }
#else
  sum = madd(Vec<T>(a), Vec<T>(b), Vec<T>(sum)).v;
#endif
}
// A comparison with nan is false, so that nan passes through at_least, at_most, relu and
// where_positive. x86's max and min give their second operand then, so x comes second.
FUSEDRNN_INLINE Vec<float> at_least(Vec<float> x, Vec<float> low) {
#if FUSEDRNN_AVX512
  return Vec<float>::Type(_mm512_max_ps(low.v, x.v));
#elif FUSEDRNN_AVX2
  return Vec<float>::Type(_mm256_max_ps(low.v, x.v));
#else
  return x.v < low.v ? low.v : x.v;
#endif
}
FUSEDRNN_INLINE Vec<float> at_most(Vec<float> x, Vec<float> high) {
#if FUSEDRNN_AVX512
  return Vec<float>::Type(_mm512_min_ps(high.v, x.v));
#elif FUSEDRNN_AVX2
  return Vec<float>::Type(_mm256_min_ps(high.v, x.v));
#else
  return x.v > high.v ? high.v : x.v;
#endif
}
template <class T>
FUSEDRNN_INLINE Vec<T> relu(Vec<T> x) {
  return x.v < 0 ? typename Vec<T>::Type{} : x.v;
}
template <class T>
FUSEDRNN_INLINE Vec<T> zero_below(Vec<T> x, Vec<T> low, Vec<T> value) {
  return x.v < low.v ? typename Vec<T>::Type{} : value.v;
}
template <class T>
FUSEDRNN_INLINE Vec<T> where_positive(Vec<T> x, Vec<T> value) {
  return x.v <= 0 ? typename Vec<T>::Type{} : value.v;
}

// The five divisions of a cell would wait for the divider (10 cycles a vector). With AVX-512 it is
// a 14-bit reciprocal and one Newton step on the quotient.
FUSEDRNN_INLINE Vec<float> divide(Vec<float> a, Vec<float> b) {
#if FUSEDRNN_AVX512
  const Vec<float>::Type r = _mm512_rcp14_ps(b.v), q = a.v * r;
  return madd(Vec<float>(r), Vec<float>(a.v - b.v * q), Vec<float>(q));
#else
  return a.v / b.v;
#endif
}
FUSEDRNN_INLINE Vec<float> as_exponent(Vec<float> x) {
  using V = Vec<float>;
  return V::Type(V::Ints(x.v) << 23);
}
FUSEDRNN_INLINE Vec<float> abs(Vec<float> x) {
  using V = Vec<float>;
  return V::Type(V::Ints(x.v) & 0x7fffffff);
}
FUSEDRNN_INLINE Vec<float> copy_sign(Vec<float> magnitude, Vec<float> sign) {
  using V = Vec<float>;
  return V::Type(V::Ints(magnitude.v) | (V::Ints(sign.v) & int32_t(0x80000000)));
}

// float64 is for gradcheck and science, where the last digit counts more than speed.
FUSEDRNN_INLINE Vec<double> sigmoid(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x.v[i] = 1.0 / (1.0 + std::exp(-x.v[i]));
  return x;
}
FUSEDRNN_INLINE Vec<double> tanh(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x.v[i] = std::tanh(x.v[i]);
  return x;
}

// Lanes I of a and b, in this order; those of b count on from a's.
template <class T, size_t... I>
FUSEDRNN_INLINE typename Native<T>::Type shuffle(typename Native<T>::Type a,
                                                 typename Native<T>::Type b) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, I...);
#else
  const typename Native<T>::Ints mask = {typename Native<T>::Bits(I)...};
  return __builtin_shuffle(a, b, mask);
#endif
}

// Interleaves the low (high) halves of a and b. log2(lanes) rounds of this perfect shuffle over
// rows i and i + lanes/2 transpose a square of vectors.
template <class T, bool kHigh, size_t... I>
FUSEDRNN_INLINE typename Native<T>::Type interleave(typename Native<T>::Type a,
                                                    typename Native<T>::Type b,
                                                    std::index_sequence<I...>) {
  return shuffle<T, (I >> 1) + (I & 1) * kLanes<T> + (kHigh ? kLanes<T> / 2 : 0)...>(a, b);
}

template <class T, size_t... I>
FUSEDRNN_INLINE typename Native<T>::Type swap_halves(typename Native<T>::Type a,
                                                     std::index_sequence<I...>) {
  return shuffle<T, (I + kLanes<T> / 2) % kLanes<T>...>(a, a);
}

template <class T>
FUSEDRNN_INLINE void transpose(Vec<T> (&m)[kLanes<T>]) {
  constexpr int n = kLanes<T>;
  constexpr auto lanes = std::make_index_sequence<n>();
  for (int round = 1; round < n; round *= 2) {
    Vec<T> next[n];
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; ++i) {
      next[2 * i] = interleave<T, false>(m[i].v, m[i + n / 2].v, lanes);
      next[2 * i + 1] = interleave<T, true>(m[i].v, m[i + n / 2].v, lanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) m[i] = next[i];
  }
}

}  // namespace
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA
