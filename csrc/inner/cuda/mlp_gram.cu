// mlp_meta_loss of a linear head [N, D], S + Q examples of D features a task. Inner steps move the weights by combinations of the
// support's rows, W_k = W_0 + C_k' X, so that they need D in two places only:
//
//   dots       P = [X; Xq] [X; W_0]', in slices of kSlice features, a block each: (S + Q) (S + N) D multiply-adds
//   steps      a block for a task: z_k = X W_0' + X X' C_k + b_k and C_{k+1} = C_k - alpha d_k; the query's loss and its dq; back through
//              the chain with v = Xq' dq + X' E, E -= rd, of which it needs only u = X v' = (Xq X')' dq + X X' E
//   weights    dW_0 = dq' Xq + E' X, a block for a slice of features: N (S + Q) D
//
// The parts of P are summed in the order of the slices, whatever the number of multiprocessors.
#include "inner/cuda/mlp_gram.h"

#include "inner/cuda/mlp_output.cuh"

namespace fastmeta::cuda {
namespace {

constexpr int kSlice = 128;          // features of a block
constexpr int64_t kFeatures = 1024;  // from which it pays
constexpr int64_t kExamples = 2048;  // of a task, at most: S + Q + N

template <class R>
struct Gram {
  MlpMetaLoss<R> c;
  R *parts, *found;  // [T, slices, S + Q, S + N]; E and dq, [T, S + Q, N]

  __host__ __device__ int S() const { return int(c.support.count); }
  __host__ __device__ int Q() const { return int(c.query.count); }
  __host__ __device__ int N() const { return int(c.shape.width[1]); }
  __host__ __device__ int64_t D() const { return c.shape.width[0]; }
  __host__ __device__ int slices() const { return int((D() + kSlice - 1) / kSlice); }
  __host__ __device__ int columns() const { return S() + N(); }
  __host__ __device__ int64_t part() const { return int64_t(S() + Q()) * columns(); }
};

// Where a block's slice of features begins, and how many it has.
template <class R>
struct Slice {
  int64_t task, begin;
  int size;

  __device__ explicit Slice(const Gram<R>& p)
      : task(blockIdx.x / p.slices()),
        begin(int64_t(blockIdx.x % p.slices()) * kSlice),
        size(int(p.D() - begin < kSlice ? p.D() - begin : kSlice)) {}
};

template <class R>
__global__ void __launch_bounds__(kMaxThreads, 2) dots_kernel(const __grid_constant__ Gram<R> p) {
  const Slice<R> slice(p);
  const int S = p.S(), columns = p.columns(), D = int(p.D());
  R* part = p.parts + blockIdx.x * p.part();
  for (int which = 0; which < 4; which++) {
    const bool of_query = which / 2, of_weight = which % 2;
    const R* rows = (of_query ? p.c.query.x + slice.task * p.Q() * p.D() : p.c.support.x + slice.task * S * p.D()) + slice.begin;
    const R* other = (of_weight ? tensor_of(p.c.params, 0, slice.task) : p.c.support.x + slice.task * S * p.D()) + slice.begin;
    R* to = part + (of_query ? S * columns : 0) + (of_weight ? S : 0);
    multiply<R, Terms::value, true>(of_query ? p.Q() : S, of_weight ? p.N() : S, slice.size, {rows, other, nullptr, nullptr, D, 1, 1, D},
                                    [=] { return [=](int i, int j, R value, R) { to[i * columns + j] = value; }; });
  }
}

// The arrays of one task in shared memory; z, d of every step lie one after the other.
template <class R>
struct Small {
  R *dots, *z, *d, *rz, *rd, *moved, *query_z, *dq, *u, *E, *bias, *vb, *row;

  __host__ __device__ static Small lay_out(const Gram<R>& p, Arena& arena) {
    const int64_t SN = int64_t(p.S()) * p.N(), QN = int64_t(p.Q()) * p.N(), N = p.N();
    Small s;
    s.dots = arena.take<R>(p.part());
    s.z = arena.take<R>((p.c.steps + 1) * SN);
    s.d = arena.take<R>(p.c.steps * SN);
    for (R** array : {&s.rz, &s.rd, &s.moved, &s.u, &s.E}) *array = arena.take<R>(SN);
    s.query_z = arena.take<R>(QN), s.dq = arena.take<R>(QN);
    for (R** array : {&s.bias, &s.vb, &s.row}) *array = arena.take<R>(N);
    return s;
  }
};

// out = base + scale * x y + (shift of the column or 0): x [rows, inner] in strides, y [inner, N]. Ends with a barrier.
template <class R>
__device__ __forceinline__ void combine(R* out, int ld_base, const R* base, R scale, const R* x, int by_row, int by_inner, const R* y,
                                        const R* shift, int rows, int inner, int N) {
  multiply<R, Terms::value, false>(rows, N, inner, {x, y, nullptr, nullptr, by_row, by_inner, N, 1}, [=] {
    return [=](int i, int j, R value, R) {
      out[i * N + j] = (base ? base[i * ld_base + j] : R(0)) + scale * value + (shift ? shift[j] : R(0));
    };
  });
  __syncthreads();
}

// out = base + scale * the sums of the columns of d [n, N]. Ends with a barrier.
template <class R>
__device__ __forceinline__ void add_column_sums(R* out, const R* base, R scale, const R* d, int n, int N) {
  for (int j = threadIdx.x; j < N; j += blockDim.x) {
    R total = 0;
    for (int i = 0; i < n; i++) total += d[i * N + j];
    out[j] = (base ? base[j] : R(0)) + scale * total;
  }
  __syncthreads();
}

// The rate of W (tensor 0) or b (1) at a step.
template <class R>
__device__ __forceinline__ R rate(const Gram<R>& p, int tensor, int64_t step) {
  const R* alpha = rates_of(p.c.rates, tensor, 1, step, p.c.steps, 0);
  return alpha ? *alpha : number_of(p.c.rates, tensor);
}

// What output_gradient reads and writes: logits a, d, with tangents ra, rd. Ends with a barrier.
template <class R>
__device__ __forceinline__ void set_output(Task<R>& s, const Gram<R>& p, const Examples<R>& examples, int64_t t, R* a, R* d, R* ra, R* rd) {
  if (threadIdx.x == 0) {
    Layer<R>& y = s.layer[0];
    y.out = p.N(), y.a = a, y.d = d, y.ra = ra, y.rd = rd;
    s.layers = 1, s.n = int(examples.count), s.loss = p.c.shape.loss;
    s.y = targets_of(s, examples.y, examples.count, t);
    set_weights(s, examples.weights, static_cast<R*>(nullptr), false, examples.count, t);
  }
  __syncthreads();
}

// The gradients of the rates of one step: dalpha -= d u, dbeta -= d vb; of both in one where all share it.
template <class R>
__device__ void add_rates(Task<R>& s, const Gram<R>& p, const Small<R>& a, const R* d, int64_t step, int64_t t) {
  const MlpRates<R>& drates = p.c.drates;
  if (!drates.value[0] && !drates.value[1]) return;
  const int N = p.N(), count = p.S() * N;
  R of_weight = 0, of_bias = 0;
  for (int e = threadIdx.x; e < count; e += blockDim.x) {
    of_weight -= d[e] * a.u[e];
    if (p.c.params.bias[0]) of_bias -= d[e] * a.vb[e % N];
  }
  of_weight = block_sum(s.partial, of_weight);
  of_bias = block_sum(s.partial, of_bias);
  if (threadIdx.x) return;
  const bool first = step == p.c.steps - 1 || drates.per_step;
  R* dalpha = rates_of(drates, 0, 1, step, p.c.steps, t);
  R* dbeta = drates.shared ? nullptr : rates_of(drates, 1, 1, step, p.c.steps, t);
  const R sum = drates.shared ? of_weight + of_bias : of_weight;
  if (dalpha) *dalpha = first ? sum : *dalpha + sum;
  if (dbeta) *dbeta = first ? of_bias : *dbeta + of_bias;
}

template <class R>
__device__ void run_back(Task<R>& s, const Gram<R>& p, const Small<R>& a, int64_t t) {
  const int S = p.S(), N = p.N(), columns = p.columns(), SN = S * N;
  const bool has_bias = p.c.params.bias[0];
  const R* query_dots = a.dots + S * columns;
  add_column_sums(a.vb, static_cast<const R*>(nullptr), R(1), a.dq, p.Q(), N);
  combine(a.u, 0, static_cast<const R*>(nullptr), R(1), query_dots, 1, columns, a.dq, static_cast<const R*>(nullptr), S, p.Q(), N);
  for (int e = threadIdx.x; e < SN; e += blockDim.x) a.E[e] = 0;
  for (int64_t k = p.c.steps - 1; k >= 0; k--) {
    add_rates(s, p, a, a.d + k * SN, k, t);
    if (p.c.first_order) continue;
    const R alpha = rate(p, 0, k), beta = has_bias ? rate(p, 1, k) : R(0);
    for (int e = threadIdx.x; e < SN; e += blockDim.x) a.rz[e] = alpha * a.u[e] + beta * (has_bias ? a.vb[e % N] : R(0));
    set_output(s, p, p.c.support, t, a.z + k * SN, a.d + k * SN, a.rz, a.rd);
    output_gradient(s, true);
    for (int e = threadIdx.x; e < SN; e += blockDim.x) a.E[e] -= a.rd[e];
    add_column_sums(a.vb, static_cast<const R*>(a.vb), R(-1), a.rd, S, N);
    combine(a.u, N, static_cast<const R*>(a.u), R(-1), static_cast<const R*>(a.dots), columns, 1, a.rd, static_cast<const R*>(nullptr), S,
            S, N);
  }
  R* found = p.found + t * int64_t(S + p.Q()) * N;
  copy(found, static_cast<const R*>(a.E), SN);
  copy(found + SN, static_cast<const R*>(a.dq), int64_t(p.Q()) * N);
  if (R* dbias = tensor_of(p.c.dparams, 1, t)) copy(dbias, static_cast<const R*>(a.vb), N);
}

// For two blocks of a multiprocessor sm_100 would spill four registers of float64 (nvcc 13.0, 2026-11-30).
template <class R>
__global__ void __launch_bounds__(kMaxThreads, sizeof(R) == 8 ? 1 : 2)
    steps_kernel(const __grid_constant__ Gram<R> p, const int64_t shared_bytes) {
  FASTMETA_DYNAMIC_SHARED(shared);
  FASTMETA_SHARED(Task<R>, s);
  Arena arena{shared, nullptr, shared_bytes, 0, 0};
  const Small<R> a = Small<R>::lay_out(p, arena);
  const int64_t t = blockIdx.x, steps = p.c.steps;
  const int S = p.S(), Q = p.Q(), N = p.N(), columns = p.columns(), SN = S * N;
  const R* bias = tensor_of(p.c.params, 1, t);
  const R* none = nullptr;
  for (int64_t e = threadIdx.x; e < p.part(); e += blockDim.x) {
    R total = 0;
    for (int i = 0; i < p.slices(); i++) total += p.parts[(t * p.slices() + i) * p.part() + e];
    a.dots[e] = total;
  }
  for (int j = threadIdx.x; j < N; j += blockDim.x) a.bias[j] = bias ? bias[j] : R(0);
  for (int e = threadIdx.x; e < SN; e += blockDim.x) a.moved[e] = 0;
  __syncthreads();
  for (int e = threadIdx.x; e < SN; e += blockDim.x) a.z[e] = a.dots[e / N * columns + S + e % N] + a.bias[e % N];
  for (int64_t k = 0; k < steps; k++) {
    R *z = a.z + k * SN, *d = a.d + k * SN;
    const R alpha = rate(p, 0, k), beta = bias ? rate(p, 1, k) : R(0);
    set_output(s, p, p.c.support, t, z, d, static_cast<R*>(nullptr), static_cast<R*>(nullptr));
    output_gradient(s);
    for (int e = threadIdx.x; e < SN; e += blockDim.x) a.moved[e] -= alpha * d[e];
    add_column_sums(a.row, none, -beta, d, S, N);
    for (int j = threadIdx.x; j < N; j += blockDim.x) a.bias[j] += a.row[j];
    combine(z + SN, N, static_cast<const R*>(z), -alpha, static_cast<const R*>(a.dots), columns, 1, d, static_cast<const R*>(a.row), S, S,
            N);
  }
  const R* query_dots = a.dots + S * columns;
  combine(a.query_z, columns, query_dots + S, R(1), query_dots, columns, 1, static_cast<const R*>(a.moved), static_cast<const R*>(a.bias),
          Q, S, N);
  set_output(s, p, p.c.query, t, a.query_z, a.dq, static_cast<R*>(nullptr), static_cast<R*>(nullptr));
  const R loss = output_gradient(s);
  if (threadIdx.x == 0) p.c.loss[t] = loss;
  if (p.c.with_grads) run_back(s, p, a, t);
}

template <class R>
__global__ void __launch_bounds__(kMaxThreads, 2) weights_kernel(const __grid_constant__ Gram<R> p) {
  const Slice<R> slice(p);
  const int S = p.S(), Q = p.Q(), N = p.N(), D = int(p.D());
  const R* found = p.found + slice.task * int64_t(S + Q) * N;
  R* to = tensor_of(p.c.dparams, 0, slice.task) + slice.begin;
  for (int which = 0; which < 2; which++) {  // the same thread has an element both times
    const bool of_query = which == 0;
    const R* x = (of_query ? p.c.query.x + slice.task * Q * p.D() : p.c.support.x + slice.task * S * p.D()) + slice.begin;
    multiply<R, Terms::value, false>(
        N, slice.size, of_query ? Q : S, {found + (of_query ? S * N : 0), x, nullptr, nullptr, 1, N, D, 1},
        [=] { return [=](int j, int e, R value, R) { to[int64_t(j) * D + e] = of_query ? value : to[int64_t(j) * D + e] + value; }; });
  }
}

template <class R>
int64_t shared_bytes(const Gram<R>& p) {
  Arena arena{nullptr, nullptr, 0, 0, 0};
  Small<R>::lay_out(p, arena);
  return arena.slow_used;
}

constexpr int64_t kOwnShared = 2048;  // at least a Task

}  // namespace

template <class R>
bool gram_pays(const MlpMetaLoss<R>& c) {
  const bool asks_examples = c.support_grads.dx || c.support_grads.dy || c.support_grads.dweights || c.query_grads.dx || c.query_grads.dy ||
                             c.query_grads.dweights;
  const int64_t T = c.shape.tasks, S = c.support.count, Q = c.query.count, N = c.shape.width[c.shape.layers], K = c.steps;
  if (c.shape.layers > 1 || c.rates.per_element || asks_examples || !S || !Q || !K || c.shape.width[0] < kFeatures) return false;
  if (S + Q + N > kExamples || c.shape.width[0] * (S + Q + N) > 0x7fffffff || K > kExamples) return false;
  const DeviceLimits device = device_limits();
  const Gram<R> p{c, nullptr, nullptr};
  if (shared_bytes(p) > device.shared_per_block - kOwnShared) return false;
  const int64_t idle = T ? device.multiprocessors / T : 0, blocks = idle < p.slices() ? idle : p.slices();
  const int64_t of_step = 2 * S + (c.with_grads ? (c.first_order ? 2 : 4) * S : 0);
  const int64_t direct = N * (K * of_step + (c.with_grads ? 2 : 1) * Q), gram = (S + Q) * (S + N + (c.with_grads ? N : 0));
  return 4 * gram < direct * blocks;  // estimated: tools/gpu.md
}

template <class R>
void by_gram(const MlpMetaLoss<R>& c, Queue& queue) {
  Gram<R> p{c, nullptr, nullptr};
  const int64_t T = c.shape.tasks, bytes = shared_bytes(p);
  p.parts = queue.arena().take<R>(T * p.slices() * p.part());
  p.found = queue.arena().take<R>(T * (p.S() + p.Q()) * p.N());
  queue.launch(dots_kernel<R>, T * p.slices(), kMaxThreads, {}, p);
  queue.launch(steps_kernel<R>, T, kMaxThreads, {size_t(bytes), size_t(device_limits().shared_per_block - kOwnShared)}, p, bytes);
  if (c.with_grads && c.dparams.weight[0]) queue.launch(weights_kernel<R>, T * p.slices(), kMaxThreads, {}, p);
}

template bool gram_pays(const MlpMetaLoss<float>&);
template bool gram_pays(const MlpMetaLoss<double>&);
template void by_gram(const MlpMetaLoss<float>&, Queue&);
template void by_gram(const MlpMetaLoss<double>&, Queue&);

}  // namespace fastmeta::cuda
