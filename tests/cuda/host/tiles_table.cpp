// Prints the table of persistent kernels, a line for each row and pass, for tests to read.
#include <cstdio>
#include <initializer_list>

#include "cuda/tiles.h"

int main() {
  using namespace fusedrnn;
  using namespace fusedrnn::cuda;
  for (int i = 0; i < kTileCount; ++i) {
    const Tile& t = kTiles[i];
    const char* const cell = t.cell == Cell::kLstm ? "LSTM" : t.cell == Cell::kGru ? "GRU" : "RNN";
    for (const bool forward : {true, false}) {
      const Shape s = forward ? forward_shape(t) : backward_shape(t);
      std::printf("%d %s %s %d %d %d %d %d %lld %d %d\n", i, forward ? "forward" : "backward", cell,
                  t.hidden, t.cluster, t.rows, s.threads, s.registers(),
                  static_cast<long long>(s.shared_bytes),
                  forward ? t.forward.lanes : t.backward.lanes, s.outputs);
    }
  }
}
