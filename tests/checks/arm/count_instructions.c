/* A plugin of QEMU's user mode that counts the instructions of a program.

   Whenever the program calls getppid, the number of instructions that it has executed
   until then goes to a file, as a line of text:

       cc -shared -fPIC -O2 -o count.so count_instructions.c
       qemu-aarch64 -plugin file=/path/to/count.so,out=counts.txt PROGRAM

   One thread only: the threads of a program would count together. What is used of
   QEMU's interface, version 1, is declared here, as not every package has its header. */

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#define GETPPID 173 /* Of 64-bit ARM. */
#define ADD_U64 0

struct qemu_plugin_tb;
typedef void (*translated_t)(uint64_t, struct qemu_plugin_tb *);
typedef void (*syscall_t)(uint64_t, unsigned int, int64_t, uint64_t, uint64_t,
                          uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t, translated_t);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *,
                                              uint64_t);
void qemu_plugin_register_vcpu_syscall_cb(uint64_t, syscall_t);

int qemu_plugin_version = 1;

static uint64_t count;
static FILE *out;

static void on_translated(uint64_t id, struct qemu_plugin_tb *block) {
  (void)id;
  qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &count,
                                           qemu_plugin_tb_n_insns(block));
}

static void on_syscall(uint64_t id, unsigned int cpu, int64_t number, uint64_t a,
                       uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f,
                       uint64_t g, uint64_t h) {
  (void)id, (void)cpu, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f;
  (void)g, (void)h;
  if (number == GETPPID) {
    fprintf(out, "%" PRIu64 "\n", count);
    fflush(out);
  }
}

int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv) {
  (void)info;
  if (argc != 1 || strncmp(argv[0], "out=", 4) || !(out = fopen(argv[0] + 4, "w"))) {
    fprintf(stderr, "count_instructions: expected out=FILE\n");
    return 1;
  }
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translated);
  qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
  return 0;
}
