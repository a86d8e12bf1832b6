/* Runs a frozen layer over frames that come one at a time, as sound does: reads float32 frames of
 * the layer's input size from standard input, and writes its output for each as soon as it is known.
 *
 *     cc -O2 -o stream stream.c $(python -m fusedrnn --cflags --libs)
 *     ./stream layer.safetensors < frames.f32 > outputs.f32
 *
 * layer.safetensors is what fusedrnn.freeze(layer).save("layer.safetensors") wrote.
 */
#include <fusedrnn.h>
#include <stdio.h>
#include <stdlib.h>

/* What a frame took and gave, both on the heap. */
struct frame {
  float *in, *out;
};

static long follow(fusedrnn_stream* stream, struct frame frame, size_t inputs, size_t outputs) {
  long frames = 0;
  while (fread(frame.in, sizeof(float), inputs, stdin) == inputs) {
    if (fusedrnn_step(stream, frame.in, frame.out) != 0) return -1;
    if (fwrite(frame.out, sizeof(float), outputs, stdout) != outputs) return -1;
    if (fflush(stdout) != 0) return -1;
    ++frames;
  }
  return frames;
}

int main(int argc, char** argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: %s layer.safetensors < frames.f32 > outputs.f32\n", argv[0]);
    return 2;
  }
  fusedrnn_model* model = fusedrnn_load(argv[1]);
  if (!model) {
    fprintf(stderr, "%s\n", fusedrnn_error());
    return 1;
  }
  const size_t inputs = (size_t)fusedrnn_input_size(model);
  const size_t outputs = (size_t)fusedrnn_output_size(model);
  fprintf(stderr, "%s of %d layers, %s, %zu numbers in, %zu out\n", fusedrnn_mode(model),
          (int)fusedrnn_num_layers(model), fusedrnn_dtype(model), inputs, outputs);

  struct frame frame = {malloc(inputs * sizeof(float)), malloc(outputs * sizeof(float))};
  fusedrnn_stream* stream = fusedrnn_stream_new(model, 1); /* one sequence */
  fusedrnn_free(model); /* the stream keeps the weights */
  const long frames =
      stream && frame.in && frame.out ? follow(stream, frame, inputs, outputs) : -1;
  if (frames < 0) {
    fprintf(stderr, "it stopped: %s\n", fusedrnn_error());
  } else {
    fprintf(stderr, "%ld frames\n", frames);
  }
  fusedrnn_stream_free(stream);
  free(frame.in);
  free(frame.out);
  return frames < 0;
}
