// Runs a model with the real library: reads its only input from a file, writes its
// only output to another. Compiled behind the usage comment of the model's header.

#include <cstdio>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fputs("usage: interpreter INPUT OUTPUT\n", stderr);
    return 2;
  }
  std::vector<int8_t> input(model_input_0_size), output(model_output_0_size);
  std::FILE* file = std::fopen(argv[1], "rb");
  if (!file || std::fread(input.data(), 1, input.size(), file) != input.size()) {
    std::fputs("cannot read the input\n", stderr);
    return 2;
  }
  std::fclose(file);
  if (!model_setup() || !model_run(input.data(), output.data())) {
    std::fputs("the interpreter refused\n", stderr);
    return 1;
  }
  file = std::fopen(argv[2], "wb");
  if (!file || std::fwrite(output.data(), 1, output.size(), file) != output.size()) {
    std::fputs("cannot write the output\n", stderr);
    return 2;
  }
  return std::fclose(file);
}
