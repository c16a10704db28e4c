// In place of libcuda.so.1 and of CUDA's runtime: a device that loads any machine code, runs none of it, and counts what it is asked for.
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

// What the CUDA kernels of fastmeta._C take of the runtime.
int cudaLaunchKernelExC(const Config* config, const void* function, void** arguments) {
  launches++;
  stream = config->stream;
  return 0;
}
int cudaGetDevice(int* device) { return *device = 0; }
int cudaDeviceGetAttribute(int* value, int attribute, int device) {
  *value = attribute == 16 ? 132 : attribute == 97 ? 227 * 1024 : attribute == 81 ? 228 * 1024 : 1024;  // an H100's
  return 0;
}
const char* cudaGetErrorString(int error) { return "an error"; }
void** __cudaRegisterFatBinary(void* binary) { return &stream; }
DOES_NOTHING(cudaFuncSetAttribute)
DOES_NOTHING(cudaGetLastError)
DOES_NOTHING(cudaSetDevice)
DOES_NOTHING(__cudaGetKernel)
DOES_NOTHING(__cudaLaunchKernel)
DOES_NOTHING(__cudaPopCallConfiguration)
DOES_NOTHING(__cudaRegisterFatBinaryEnd)
DOES_NOTHING(__cudaRegisterFunction)
DOES_NOTHING(__cudaUnregisterFatBinary)

// DLPack's functions as torch has them, for which every tensor lies on the device.
typedef struct {
  void* data;
  int32_t device_type, device_id;
} View;
typedef struct {
  void *version, *previous, *allocator, *from_object, *to_object;
  int (*view)(void* object, View* out);
  int (*stream)(int32_t device_type, int32_t device_id, void** out);
} Exchange;
static Exchange torchs, ours;

static int view_on_device(void* object, View* out) {
  const int error = torchs.view(object, out);
  out->device_type = 2;
  return error;
}
static int no_stream(int32_t type, int32_t device, void** out) {
  *out = 0;
  return 0;
}
void* stub_exchange(const Exchange* given) {
  torchs = ours = *given;
  ours.view = view_on_device;
  ours.stream = no_stream;
  return &ours;
}
