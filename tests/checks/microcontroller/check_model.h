#ifndef CHECK_MODEL_H_
#define CHECK_MODEL_H_

// Returns null if all is well, else what is not.
const char* CheckModel();

#endif  // CHECK_MODEL_H_
