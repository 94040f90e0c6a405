/* The part of NVIDIA's driver that the runtime calls, without a GPU: memory is the host's, kernels do nothing.
   Compiled with INIT (what cuInit answers), DEVICES, MAJOR, MINOR and MEMORY (bytes of device memory). */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef void *handle;
static size_t used;
int fake_kernels, fake_graphs, fake_blocks;

int cuInit(unsigned flags) { return INIT; }
int cuGetErrorString(int status, const char **text) {
  *text = status == 2 ? "out of memory" : status == 100 ? "no CUDA-capable device is detected" : "unknown error";
  return 0;
}
int cuDriverGetVersion(int *version) { *version = 12090; return 0; }
int cuDeviceGetCount(int *count) { *count = DEVICES; return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Fake GPU", size); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? MAJOR : MINOR; return 0; }
int cuDevicePrimaryCtxRetain(handle *context, int device) { *context = &used; return 0; }
int cuCtxSetCurrent(handle context) { return context == &used ? 0 : 201; }
int cuModuleLoadData(handle *module, const void *image) { *module = (handle)image; return memcmp(image, "\177ELF", 4) ? 200 : 0; }
int cuModuleGetFunction(handle *function, handle module, const char *name) { *function = strdup(name); return 0; }
int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) { *free_bytes = MEMORY - used; *total = MEMORY; return 0; }
int cuMemAlloc_v2(uint64_t *place, size_t size) {
  if (used + size > MEMORY) return 2;
  used += size, ++fake_blocks;
  *place = (uint64_t)(uintptr_t)calloc(size, 1);
  return 0;
}
int cuMemFree_v2(uint64_t place) { free((void *)(uintptr_t)place); return --fake_blocks, 0; }
int cuGraphExecDestroy(handle run) { return run != &fake_graphs; }
int cuModuleUnload(handle module) { return module == 0; }
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t size) { memcpy((void *)(uintptr_t)to, from, size); return 0; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, handle s) { return cuMemcpyHtoD_v2(to, from, size); }
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, handle s) { memcpy(to, (void *)(uintptr_t)from, size); return 0; }
int cuEventCreate(handle *event, unsigned flags) { *event = &fake_kernels; return 0; }
int cuEventRecord(handle event, handle stream) { return event != &fake_kernels; }
int cuEventSynchronize(handle event) { return event != &fake_kernels; }
int cuEventElapsedTime(float *milliseconds, handle before, handle after) { *milliseconds = 6; return 0; }
int cuEventDestroy_v2(handle event) { return event != &fake_kernels; }
int cuStreamCreate(handle *stream, unsigned flags) { *stream = &fake_graphs; return 0; }
int cuStreamSynchronize(handle stream) { return 0; }
int cuStreamBeginCapture_v2(handle stream, int mode) { return 0; }
int cuStreamEndCapture(handle stream, handle *graph) { *graph = &fake_graphs; return 0; }
int cuGraphInstantiateWithFlags(handle *run, handle graph, unsigned long long flags) { *run = graph; return 0; }
int cuGraphDestroy(handle graph) { return 0; }
int cuGraphLaunch(handle run, handle stream) { return ++fake_graphs, 0; }
int cuLaunchKernel(handle function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, handle stream, void **arguments, void **extra) {
  return ++fake_kernels, gx * gy * gz && bx * by * bz <= 1024 && arguments ? 0 : 1;
}
