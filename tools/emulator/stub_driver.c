// In place of libcuda.so.1: a device that loads any machine code, runs none of it, and counts what it is asked for.
#include <stddef.h>
#include <stdint.h>

static int64_t launches, modules;
static void* stream;

int64_t stub_launches(void) { return launches; }
int64_t stub_modules(void) { return modules; }
void* stub_stream(void) { return stream; }

typedef struct {  // CUlaunchConfig, as far as it is read here
  unsigned grid[3], block[3], shared;
  void* stream;
} Config;

int cuLaunchKernelEx(const Config* config, void* function, void** arguments, void** extra) {
  launches++;
  stream = config->stream;
  return 0;
}

int cuModuleLoadData(void** module, void* image) {
  *module = (void*)++modules;
  return 0;
}
int cuModuleGetFunction(void** function, void* module, char* name) {
  *function = module;
  return 0;
}

int cuDeviceGetAttribute(int* value, int attribute, int device) {
  // compute capability 9.0, warps of 32 threads; of all else, shared memory among it, enough
  *value = attribute == 75 ? 9 : attribute == 76 ? 0 : attribute == 10 ? 32 : 228 * 1024;
  return 0;
}
int cuFuncGetAttribute(int* value, int attribute, void* function) {
  *value = attribute == 0 ? 1024 : 0;  // threads of a block
  return 0;
}
int cuPointerGetAttribute(uint64_t* value, int attribute, uint64_t pointer) {
  *value = pointer;
  return 0;
}

static int handle(void** value) {
  *value = (void*)1;
  return 0;
}
int cuCtxGetCurrent(void** context) { return handle(context); }
int cuGetErrorString(int error, char** text) { return handle((void**)text); }
int cuDeviceGet(int* device, int index) { return *device = 0; }
int cuCtxGetDevice(int* device) { return *device = 0; }
int cuStreamIsCapturing(void* of, int* capturing) { return *capturing = 0; }

#define DOES_NOTHING(name) \
  int name(void) { return 0; }
DOES_NOTHING(cuCtxGetLimit)
DOES_NOTHING(cuCtxSetCurrent)
DOES_NOTHING(cuCtxSetLimit)
DOES_NOTHING(cuDevicePrimaryCtxRetain)
DOES_NOTHING(cuDriverGetVersion)
DOES_NOTHING(cuFuncSetAttribute)
DOES_NOTHING(cuFuncSetCacheConfig)
DOES_NOTHING(cuModuleUnload)
DOES_NOTHING(cuPointerGetAttributes)
