// Runs the CPU kernels on saved problems, without Python and torch: `driver file`. tools/arm/problems.py writes them, in the order of
// what is read here. Prints what is wrong, and how many problems were right.
#include "arm/optimiser_steps.h"
#include "arm/saved.h"
#include "runtime/cpu/kernels.h"

using namespace fastmeta;

namespace {

template <class R>
void prototypes(Saved& s) {
  Prototypes<R> p;
  for (int64_t* each : {&p.T, &p.S, &p.N, &p.D}) *each = s.integer();
  p.support = s.array<R>(), p.labels = s.array<int64_t>(), p.prototypes = s.result<R>();
  cpu<R>().prototypes_fwd(p);
  p.dprototypes = s.array<R>(), p.dsupport = s.result<R>();
  cpu<R>().prototypes_bwd(p);
}

template <class R>
void read(Saved& s, ProtoProblem<R>& p) {
  for (int64_t* each : {&p.T, &p.Q, &p.N, &p.D, &p.prototypes_stride}) *each = s.integer();
  p.metric = Metric(s.integer()), p.temperature = s.number();
  p.query = s.array<R>(), p.prototypes = s.array<R>();
}
template <class R>
void read_gradients(Saved& s, ProtoProblem<R>& p) {
  p.dquery = s.result<R>(), p.dprototypes = s.result<R>(), p.dtemperature = s.result<double>();
}

template <class R>
void proto_loss(Saved& s) {
  ProtoLoss<R> p;
  read(s, p);
  p.ignore_index = kIgnoreIndex;
  p.targets = s.array<int64_t>(), p.task_weight = s.array<double>(), p.task_loss = s.result<R>();
  read_gradients(s, p);
  cpu<R>().proto_loss(p);
}

// Forward and backward, from the distances that forward kept.
template <class R, class P>
void scores(Saved& s, P& p, void (*forward)(const P&), void (*backward)(const P&)) {
  p.distances = s.array<R>();  // room
  p.log_probs = s.result<R>();
  forward(p);
  p.kept_distances = p.distances, p.distances = nullptr;
  p.dlog_probs = s.array<R>();
  read_gradients(s, p);
  backward(p);
}
template <class R>
void proto_log_softmax(Saved& s) {
  ProtoLogSoftmax<R> p;
  read(s, p);
  scores<R>(s, p, cpu<R>().proto_log_softmax_fwd, cpu<R>().proto_log_softmax_bwd);
}
template <class R>
void matching_log_probs(Saved& s) {
  MatchingLogProbs<R> p;
  read(s, p);
  p.ways = s.integer(), p.labels = s.array<int64_t>();
  scores<R>(s, p, cpu<R>().matching_log_probs_fwd, cpu<R>().matching_log_probs_bwd);
}

template <class R>
void sgd_step(Saved& s) {
  typename SgdStep<R>::Item item{};
  bool not_finite = false;
  item.tasks = s.integer(), item.size = s.integer(), item.shared_param = s.integer(), item.rate_kind = int(s.integer());
  item.param = s.array<R>(), item.grad = s.array<R>(), item.rate = s.array<R>(), item.dout = s.array<R>();
  item.out = s.result<R>(), item.dparam = s.result<R>(), item.dgrad = s.result<R>(), item.drate = s.result<R>();
  const SgdStep<R> step{1, &item, item.rate_kind == 0, &not_finite};
  cpu<R>().sgd_step_fwd(step);
  cpu<R>().sgd_step_bwd(step);
}

MlpShape read_shape(Saved& s, MlpShape shape) {
  shape.layers = int(s.integer()), shape.activation = Activation(s.integer());
  for (int l = 0; l <= shape.layers; l++) shape.width[l] = s.integer();
  return shape;
}
ConvNet read_shape(Saved& s, ConvNet shape) {
  shape.blocks = int(s.integer()), shape.outputs = s.integer();
  for (int l = 0; l < shape.blocks; l++) {
    ConvBlock& b = shape.block[l];
    for (int64_t* each : {&b.in, &b.height, &b.width, &b.out, &b.stride, &b.padding, &b.groups, &b.pool, &b.kernel, &b.skip})
      *each = s.integer();
    b.norm = ConvNorm(s.integer()), b.relu = s.integer(), b.eps = s.number(), b.slope = s.number();
  }
  return shape;
}
int tensors_of(const MlpShape& shape) { return 2 * shape.layers; }
int tensors_of(const ConvNet& shape) { return 4 * shape.blocks + 2; }

template <class X>
void put(MlpParams<X>& to, int i, X* value, int64_t stride) {
  (i % 2 ? to.bias : to.weight)[i / 2] = value, (i % 2 ? to.bias_stride : to.weight_stride)[i / 2] = stride;
}
template <class X>
void put(ConvParams<X>& to, int i, X* value, int64_t stride) {
  to.value[i] = value, to.stride[i] = stride;
}

// What a call of a network is told, in the order of the file.
template <class R, class N>
struct Reader {
  Saved& s;
  N shape;

  explicit Reader(Saved& saved) : s(saved), shape{} {
    shape.tasks = s.integer(), shape.loss = Loss(s.integer());
    shape = read_shape(s, shape);
  }
  ParamsOf<const R, N> params(bool shared = false) {
    ParamsOf<const R, N> found;
    for (int i = 0; i < tensors_of(shape); i++) {
      const R* value = s.array<R>();
      put(found, i, value, shared ? 0 : s.length() / shape.tasks);
    }
    return found;
  }
  ParamsOf<R, N> results() {
    ParamsOf<R, N> found;
    for (int i = 0; i < tensors_of(shape); i++) {
      R* value = s.result<R>();
      put(found, i, value, s.length() / shape.tasks);
    }
    return found;
  }
  Examples<R> examples() {
    Examples<R> found{s.integer(), s.array<R>()};
    if (shape.loss == Loss::mse) found.y = s.array<R>();
    else found.y = s.array<int64_t>();
    return found;
  }
  ExampleGrads<R> example_grads() { return {s.result<R>(), s.result<R>()}; }
  RatesOf<const R, N> rates() {
    RatesOf<const R, N> found;
    for (bool* each : {&found.shared, &found.per_element, &found.per_step}) *each = s.integer();
    for (int i = 0; i < (found.shared ? 1 : tensors_of(shape)); i++) found.value[i] = s.array<R>();
    return found;
  }
  RatesOf<R, N> rate_results(const RatesOf<const R, N>& rates) {
    RatesOf<R, N> found{{}, rates.shared, rates.per_element, rates.per_step};
    for (int i = 0; i < (rates.shared ? 1 : tensors_of(shape)); i++) found.value[i] = s.result<R>();
    return found;
  }
};

template <class R, class N>
void network(Saved& s, const NetworkOnCpu<R, N>& kernels) {
  Reader<R, N> r(s);
  const bool shared = s.integer();
  const ParamsOf<const R, N> params = r.params(shared);
  const Examples<R> support = r.examples(), query = r.examples();

  ForwardCall<R, N> forward{r.shape, support.count, params, support.x};
  forward.out = s.result<R>();
  kernels.forward_fwd(forward);
  forward.dout = s.array<R>(), forward.dparams = r.results(), forward.dx = s.result<R>();
  kernels.forward_bwd(forward);

  LossCall<R, N> loss{r.shape, params, support};
  loss.loss = s.result<R>(), loss.dparams = r.results(), loss.grads = r.example_grads();
  kernels.loss(loss);

  CurvatureCall<R, N> curvature{r.shape, params, r.params(), support};
  curvature.dloss = s.array<R>(), curvature.dparams = r.results(), curvature.grads = r.example_grads();
  kernels.hvp(curvature);
  curvature.dloss = nullptr, curvature.grads = {}, curvature.gauss_newton = true, curvature.dparams = r.results();
  kernels.hvp(curvature);

  const int64_t steps = s.integer();
  const bool first_order = s.integer();
  const RatesOf<const R, N> rates = r.rates();
  AdaptCall<R, N> adapt{r.shape, steps, first_order, params, rates, support};
  adapt.adapted = r.results();
  kernels.adapt_fwd(adapt);
  adapt.dadapted = r.params(), adapt.dparams = r.results(), adapt.drates = r.rate_results(rates);
  adapt.support_grads = r.example_grads();
  kernels.adapt_bwd(adapt);

  MetaLossCall<R, N> meta{r.shape, steps, first_order, true, params, rates, support, query};
  meta.loss = s.result<R>(), meta.outputs = s.result<R>(), meta.dparams = r.results(), meta.drates = r.rate_results(rates);
  meta.support_grads = r.example_grads(), meta.query_grads = r.example_grads();
  kernels.meta_loss(meta);
}
template <class R>
void mlp(Saved& s) {
  network(s, cpu<R>().mlp);
}
template <class R>
void conv(Saved& s) {
  network(s, cpu<R>().conv);
}

template <class R>
void conv_features(Saved& s) {
  Reader<R, ConvNet> r(s);
  ConvFeatures<R> c;
  ConvFeaturesSizes sizes;
  c.shape = r.shape, c.keeps = true, c.sizes = &sizes, c.count = s.integer();
  c.params = r.params(), c.x = s.array<R>();
  const auto run = [&](void (*kernel)(const ConvFeatures<R>&)) {
    cpu<R>().conv_features_sizes(c);
    std::vector<R> work(size_t(sizes.work), std::numeric_limits<R>::quiet_NaN());
    c.work = work.data();
    kernel(c);
  };
  cpu<R>().conv_features_sizes(c);
  std::vector<R> kept(size_t(c.shape.tasks * sizes.kept), std::numeric_limits<R>::quiet_NaN());
  c.kept = kept.data(), c.out = s.result<R>(), c.mean = s.result<R>(), c.var = s.result<R>();
  run(cpu<R>().conv_features_fwd);
  c.dout = s.array<R>(), c.dparams = r.results(), c.dx = s.result<R>();
  run(cpu<R>().conv_features_bwd);
}

struct Family {  // in the order of FAMILIES in problems.py
  const char* name;
  void (*float32)(Saved&);
  void (*float64)(Saved&);
};
#define FAMILY(NAME) {#NAME, NAME<float>, NAME<double>}
const Family families[] = {FAMILY(prototypes), FAMILY(proto_log_softmax), FAMILY(proto_loss), FAMILY(matching_log_probs),
                           FAMILY(sgd_step),   FAMILY(momentum_step),     FAMILY(adam_step),  FAMILY(mlp),
                           FAMILY(conv),       FAMILY(conv_features)};

}  // namespace

int main(int, char** arguments) {
  Saved s(arguments[1]);
  int problems = 0, wrong = 0;
  for (; !s.done(); problems++) {
    const Family& family = families[s.integer()];
    const bool single = s.integer() == 4;
    for (int64_t draws = s.integer(); draws > 0; draws--) {
      (single ? family.float32 : family.float64)(s);
      s.end_draw();
    }
    const int found = s.wrong(single);
    if (found) std::printf("%s of %s, problem %d: %d results are wrong\n", family.name, single ? "float32" : "float64", problems, found);
    wrong += found > 0;
  }
  std::printf("%d of %d problems are right\n", problems - wrong, problems);
  return wrong > 0;
}
