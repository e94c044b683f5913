// The check as a program for a Cortex-M4 without an operating system or a library:
// the table that the chip starts from, and calls to the emulator (semihosting).

#include "check_model.h"

extern "C" {
extern unsigned char board_stack_top;
extern unsigned int board_data_source, board_data_begin, board_data_end;
extern unsigned int board_bss_begin, board_bss_end;
void Start();
void Stop();
}

typedef void (*Handler)();

__attribute__((section(".vectors"), used)) const Handler kVectors[] = {
    reinterpret_cast<Handler>(&board_stack_top), Start, Stop, Stop, Stop, Stop, Stop,
};

static void Call(unsigned int operation, const void* argument) {
  register unsigned int r0 __asm__("r0") = operation;
  register const void* r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
}

static void Print(const char* text) { Call(0x04, text); }  // SYS_WRITE0

static void Exit(unsigned int status) {
  const unsigned int arguments[] = {0x20026, status};  // The application ended.
  Call(0x20, arguments);                               // SYS_EXIT_EXTENDED
  for (;;) {
  }
}

extern "C" void Stop() {
  Print("the program was stopped by a fault\n");
  Exit(2);
}

extern "C" void Start() {
  unsigned int* source = &board_data_source;
  for (unsigned int* to = &board_data_begin; to < &board_data_end;) *to++ = *source++;
  for (unsigned int* to = &board_bss_begin; to < &board_bss_end;) *to++ = 0;
  const char* problem = CheckModel();
  Print(problem ? problem : "the model is in place\n");
  Exit(problem ? 1 : 0);
}
