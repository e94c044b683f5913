// Stands in for TensorFlow Lite's header of this name: only what the usage comment
// of a generated header touches, with the same names and types.

#ifndef TENSORFLOW_LITE_C_COMMON_H_
#define TENSORFLOW_LITE_C_COMMON_H_

#include <cstddef>
#include <cstdint>

enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };

union TfLitePtrUnion {
  bool* b;
  float* f;
  int8_t* int8;
  int16_t* i16;
  int32_t* i32;
  int64_t* i64;
  uint8_t* uint8;
  void* data;
};

struct TfLiteTensor {
  TfLitePtrUnion data;
  size_t bytes;
};

#endif  // TENSORFLOW_LITE_C_COMMON_H_
