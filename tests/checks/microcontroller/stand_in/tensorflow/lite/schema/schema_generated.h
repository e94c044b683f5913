// Stands in for TensorFlow Lite's header of this name, see ../c/common.h.

#ifndef TENSORFLOW_LITE_SCHEMA_SCHEMA_GENERATED_H_
#define TENSORFLOW_LITE_SCHEMA_SCHEMA_GENERATED_H_

namespace tflite {

struct Model;

const Model* GetModel(const void* bytes);

}  // namespace tflite

#endif  // TENSORFLOW_LITE_SCHEMA_SCHEMA_GENERATED_H_
