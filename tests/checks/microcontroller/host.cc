// The check as a program of the computer that compiles it.

#include <cstdio>

#include "check_model.h"

int main() {
  const char* problem = CheckModel();
  std::fputs(problem ? problem : "the model is in place\n", stdout);
  return problem ? 1 : 0;
}
