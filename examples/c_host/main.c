/* Runs the digits network without Python and without TVM: real images in, scores out.

   usage: host CONSTANTS < IMAGES

   CONSTANTS is the artifact's device/constants-*.bin. IMAGES are float32 [N, 1, 8, 8] in this machine's
   byte order; for each, one line is printed: the digit, then the ten integer scores. */

#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "network.h"

#define ALIGNMENT 64

static void *aligned(int64_t size)
{
    void *memory = aligned_alloc(ALIGNMENT, ((size_t)size + ALIGNMENT) / ALIGNMENT * ALIGNMENT);
    if (memory == NULL) {
        fprintf(stderr, "host: out of memory\n");
        exit(1);
    }
    return memory;
}

static void *read_constants(const char *path, int64_t size)
{
    void *constants = aligned(size);
    FILE *file = fopen(path, "rb");
    if (file == NULL || fread(constants, 1, (size_t)size, file) != (size_t)size) {
        fprintf(stderr, "host: %s is not the file of constants\n", path);
        exit(1);
    }
    fclose(file);
    return constants;
}

/* Linux gives a process AMX's tiles on request; only libraries for amx need them. */
static void request_amx(void)
{
#ifdef __x86_64__
    syscall(SYS_arch_prctl, 0x1023, 18);
#endif
}

static int quantized(const float *image, uint8_t *codes)
{
    int32_t nan;
    quantize_uint8(image, codes, QCC_DIGITS_IMAGE_SIZE, 1.0 / QCC_DIGITS_IMAGE_SCALE,
                   QCC_DIGITS_IMAGE_MIN - QCC_DIGITS_IMAGE_ZERO, QCC_DIGITS_IMAGE_MAX - QCC_DIGITS_IMAGE_ZERO,
                   QCC_DIGITS_IMAGE_ZERO, &nan);
    return !nan;
}

static void print_scores(const int32_t *logits)
{
    int best = 0;
    for (int i = 1; i < QCC_DIGITS_LOGITS_SIZE; i++)
        if (logits[i] > logits[best]) best = i;
    printf("%d", best);
    for (int i = 0; i < QCC_DIGITS_LOGITS_SIZE; i++) printf(" %d", (int)logits[i]);
    putchar('\n');
}

int main(int count, char **arguments)
{
    if (count != 2) {
        fprintf(stderr, "usage: host CONSTANTS < IMAGES\n");
        return 2;
    }
    request_amx();
    int64_t constant_bytes, arena_bytes;
    qcc_sizes(&constant_bytes, &arena_bytes);
    const void *constants = read_constants(arguments[1], constant_bytes);
    void *arena = aligned(arena_bytes);
    float image[QCC_DIGITS_IMAGE_SIZE];
    uint8_t codes[QCC_DIGITS_IMAGE_SIZE];
    int32_t logits[QCC_DIGITS_LOGITS_SIZE];
    while (fread(image, sizeof image, 1, stdin) == 1) {
        if (!quantized(image, codes)) {
            fprintf(stderr, "host: an image holds NaN\n");
            return 1;
        }
        qcc_network(codes, logits, constants, arena);
        print_scores(logits);
    }
    return 0;
}
