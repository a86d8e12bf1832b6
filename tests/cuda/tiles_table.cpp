// Prints the table of persistent kernels as the compiler sees it: for each row and pass a line of
// JSON, which tests/support/tiles.py reads.
#include <cstdio>

#include "cuda/tiles.h"

int main() {
  using namespace fusedrnn;
  using namespace fusedrnn::cuda;
  for (const Tile& tile : kTiles) {
    for (const bool forward : {true, false}) {
      const Shape s = forward ? forward_shape(tile) : backward_shape(tile);
      const Cut& cut = forward ? tile.forward : tile.backward;
      std::printf(
          "{\"row\": %d, \"direction\": \"%s\", \"mode\": \"%s\", \"gates\": %d, \"hidden\": %d, "
          "\"cluster\": %d, \"rows\": %d, \"lanes\": %d, \"held\": %d, ",
          int(&tile - kTiles), forward ? "forward" : "backward", spec(tile.cell).name,
          spec(tile.cell).gates, tile.hidden, tile.cluster, tile.rows, cut.lanes, cut.registers);
      std::printf(
          "\"threads\": %d, \"registers\": %d, \"shared_bytes\": %lld, \"units\": %d, "
          "\"units_of_thread\": %d, \"outputs\": %d, \"quads\": %d, \"shared_quads\": %d}\n",
          s.threads, s.registers(), static_cast<long long>(s.shared_bytes), s.units,
          forward ? units_of_thread(tile.cell) : 8, s.outputs, s.quads, s.shared_quads);
    }
  }
}
