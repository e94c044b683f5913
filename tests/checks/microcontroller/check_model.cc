// Checks, on whatever it is compiled for, that a generated array is the file.

#include "check_model.h"

#include "model.h"

// FNV-1a, which needs no library.
static unsigned int Checksum(const unsigned char* bytes, unsigned int count) {
  unsigned int sum = 2166136261u;
  for (unsigned int i = 0; i < count; ++i) {
    sum = (sum ^ bytes[i]) * 16777619u;
  }
  return sum;
}

const char* CheckModel() {
  if (model_len != EXPECTED_LENGTH) {
    return "wrong length\n";
  }
  if (reinterpret_cast<__UINTPTR_TYPE__>(model) % 16 != 0) {
    return "not aligned\n";
  }
  if (Checksum(model, model_len) != EXPECTED_CHECKSUM) {
    return "wrong bytes\n";
  }
  if (model_arena_bytes == 0 || model_arena_bytes % 16 != 0) {
    return "wrong memory size\n";
  }
  return nullptr;
}
