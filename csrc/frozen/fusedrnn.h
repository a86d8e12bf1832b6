/* fusedrnn from C: recurrent layers that were frozen and saved in Python, run as streams on a CPU.
 *
 * In Python:  fusedrnn.freeze(lstm, torch.int8).save("lstm.safetensors")
 * In C:       cc program.c $(python -m fusedrnn --cflags --libs)
 *
 * The library, libfusedrnn_cpu.so, needs neither Python nor torch. It gives the same bits as the
 * frozen layer in Python on the same machine, and chooses its kernels by the processor it runs on;
 * the environment variable FUSEDRNN_CPU_ISA=baseline, avx2 or avx512 chooses in its place.
 *
 * Sizes: I is the size of an input, H that of the hidden state, P that of h and of an output (H, or
 * proj_size of an LSTM that has one), L the number of layers, B that of a stream's rows. Arrays are
 * float, row-major and contiguous, of any alignment that float may have.
 *
 * Errors: functions that return int return 0, or -1 where they refuse; those that return a pointer
 * return NULL then. What was refused is unchanged, and fusedrnn_error() says why. No function ends
 * the process or throws.
 *
 * Threads: a model never changes, and any number of threads, and processes after fork(), may use
 * it at once. A stream is one thread's at a time: fusedrnn_step, fusedrnn_run and what changes rows
 * or states refuse where another thread is in it. Calls run on the calling thread; the library
 * starts none.
 */
#ifndef FUSEDRNN_H
#define FUSEDRNN_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define FUSEDRNN_API __attribute__((visibility("default")))
#else
#define FUSEDRNN_API
#endif

#define FUSEDRNN_VERSION "0.2.0.dev0"

typedef struct fusedrnn_model fusedrnn_model;
typedef struct fusedrnn_stream fusedrnn_stream;

/* The version of the library, as FUSEDRNN_VERSION is that of this header. */
FUSEDRNN_API const char* fusedrnn_version(void);

/* Why the last call that this thread made and that was refused was; "" where none was. It stays
 * until this thread's next refused call. At most 511 bytes. */
FUSEDRNN_API const char* fusedrnn_error(void);

/* --- models */

/* Reads a file that save() wrote, and packs its weights for this machine. Refused: no file, one
 * that is damaged or of another kind, a bidirectional layer (the second direction begins at a
 * sequence's end), and a float64 layer. Any bytes are safe to try; while it reads, the file is in
 * memory as a whole. */
FUSEDRNN_API fusedrnn_model* fusedrnn_load(const char* path);

/* Lets a model go. Streams keep the weights that they use. NULL is allowed. */
FUSEDRNN_API void fusedrnn_free(fusedrnn_model* model);

/* I, P, H and L. The model must not be NULL. */
FUSEDRNN_API int64_t fusedrnn_input_size(const fusedrnn_model* model);
FUSEDRNN_API int64_t fusedrnn_output_size(const fusedrnn_model* model);
FUSEDRNN_API int64_t fusedrnn_hidden_size(const fusedrnn_model* model);
FUSEDRNN_API int64_t fusedrnn_num_layers(const fusedrnn_model* model);

/* "LSTM", "GRU", "MGU", "RNN_TANH" or "RNN_RELU"; and what the weights were frozen as: "float32",
 * "bfloat16", "float16" or "int8". They live as long as the model. */
FUSEDRNN_API const char* fusedrnn_mode(const fusedrnn_model* model);
FUSEDRNN_API const char* fusedrnn_dtype(const fusedrnn_model* model);

/* Bytes of the packed weights. */
FUSEDRNN_API int64_t fusedrnn_bytes(const fusedrnn_model* model);

/* --- streams */

/* `rows` sequences that advance together, in states of zeros; 0 or more, at most 2^31 - 1. */
FUSEDRNN_API fusedrnn_stream* fusedrnn_stream_new(const fusedrnn_model* model, int64_t rows);

/* Ends a stream. NULL is allowed. */
FUSEDRNN_API void fusedrnn_stream_free(fusedrnn_stream* stream);

/* B, the rows there are now. The stream must not be NULL. */
FUSEDRNN_API int64_t fusedrnn_rows(const fusedrnn_stream* stream);

/* Advances all rows by one step: x [B, I], y [B, P], which must not overlap. The first step,
 * and the first after rows have joined or left, allocates memory; the others do not. */
FUSEDRNN_API int fusedrnn_step(fusedrnn_stream* stream, const float* x, float* y);

/* Advances all rows by `steps` steps: x [steps, B, I], y [steps, B, P]. The bits are those of as
 * many calls of fusedrnn_step, in less time. Memory is kept for calls of equally many steps. */
FUSEDRNN_API int fusedrnn_run(fusedrnn_stream* stream, const float* x, float* y, int64_t steps);

/* Sets the states of row `row`, from 0, or of all rows (-1) to zeros. */
FUSEDRNN_API int fusedrnn_reset(fusedrnn_stream* stream, int64_t row);

/* `count` further rows join, after the others, in states of zeros. */
FUSEDRNN_API int fusedrnn_join(fusedrnn_stream* stream, int64_t count);

/* Row `row` leaves; those after it move up by one. */
FUSEDRNN_API int fusedrnn_leave(fusedrnn_stream* stream, int64_t row);

/* Copies the states out, or sets them: h [L, B, P], and c [L, B, H] of an LSTM. Other layers have
 * no c, and it must be NULL. */
FUSEDRNN_API int fusedrnn_get_state(const fusedrnn_stream* stream, float* h, float* c);
FUSEDRNN_API int fusedrnn_set_state(fusedrnn_stream* stream, const float* h, const float* c);

#ifdef __cplusplus
}
#endif

#endif /* FUSEDRNN_H */
