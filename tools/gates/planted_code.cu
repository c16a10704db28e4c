// Small kernels for the tests of what is read from machine code: each has something to find.

// Keeps more numbers than a thread of such a large block has registers for.
extern "C" __global__ void __launch_bounds__(1024) spills(float* x, int n) {
  float v[96];
#pragma unroll
  for (int i = 0; i < 96; i++) v[i] = x[i * 1024 + threadIdx.x];
  for (int k = 0; k < n; k++)
#pragma unroll
    for (int i = 0; i < 96; i++) v[i] = v[i] * v[(i + 1) % 96] + 1;
#pragma unroll
  for (int i = 0; i < 96; i++) x[i * 1024 + threadIdx.x] = v[i];
}

// Indexes an array that then lies in local memory.
extern "C" __global__ void __launch_bounds__(128) indexes(float* x, int n) {
  float v[16];
  for (int i = 0; i < 16; i++) v[i] = x[i];
  for (int k = 0; k < n; k++) v[int(x[k]) % 16] += 1;
  for (int i = 0; i < 16; i++) x[i] = v[i];
}

// 16 bytes a thread, through 2 KiB of shared memory.
extern "C" __global__ void __launch_bounds__(128) wide(const float4* x, float4* y) {
  __shared__ float4 row[128];
  row[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = row[127 - threadIdx.x];
}

// 4 bytes a thread.
extern "C" __global__ void __launch_bounds__(64) narrow(const float* x, float* y) { y[threadIdx.x] = 2 * x[threadIdx.x]; }

// 16 x 8 x 8 on a tensor core.
extern "C" __global__ void __launch_bounds__(32) multiplies(const unsigned* x, float* y) {
  float c[4] = {};
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(x[4]), "r"(x[5]));
  y[threadIdx.x] = c[0] + c[1] + c[2] + c[3];
}
