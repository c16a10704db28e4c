// See mlp_gram.h.
#include "inner/cpu/mlp_gram.h"

#include <vector>

#include "runtime/cpu/transpose.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

template <class R>
struct Step {
  R *e, *before;  // -alpha d; E_k = the sum of those of the steps before: [S, out]
  MlpPass<R> pass;
};

template <class R>
struct Work {
  Work(const MlpMetaLoss<R>& c, const MlpLayout<R>& layout, Scratch& scratch)
      : S(c.support.count),
        Q(c.query.count),
        ld_in(layout.ld[0]),
        ldo(layout.ld[1]),
        ldS(padded<R>(S)),
        network(layout, most(S, Q), S, scratch),
        query(network, Q, true, false, scratch),
        rates(layout, c.rates, c.steps, scratch),
        drates(layout, c.drates, c.steps, scratch) {
    for (int64_t k = 0; k < c.steps; k++) {
      R *e = scratch.take<R>(S * ldo), *before = scratch.take<R>(S * ldo);
      steps.push_back({e, before, MlpPass<R>(network, S, false, false, scratch)});
    }
    theta = scratch.take<R>(layout.size), adapted = scratch.take<R>(layout.size), v = scratch.take<R>(layout.gradient);
    room = scratch.take<R>(S * ld_in), dx = scratch.take<R>(S * ld_in);
    gram = scratch.take<R>(S * ldS), to_support = scratch.take<R>(S * ldS);
    moved = scratch.take<R>(S * ldo), u = scratch.take<R>(S * ldo), rd_sum = scratch.take<R>(S * ldo);
    moved_flipped = scratch.take<R>(ldo * ldS), flipped = scratch.take<R>(ldo * ldS);
    bias = scratch.take<R>(ldo), row = scratch.take<R>(ldo);
    bias_v = layout.layer[0].bias >= 0 ? v + layout.layer[0].bias : nullptr;
  }

  int64_t S, Q, ld_in, ldo, ldS;
  MlpNetwork<R> network;
  MlpPass<R> query;
  ExampleGrads<R> query_grads;  // of the task
  InnerRates<R, MlpShape> rates;
  RateGradients<R, MlpShape> drates;
  Loader<R, MlpShape> loader;
  std::vector<Step<R>> steps;
  const R* a;              // the support's features
  R *theta, *adapted, *v;  // blocks: W_0, W_K, v
  R *room, *dx, *gram;
  R *moved, *u, *rd_sum;       // E_K; A v'; the sum of rd
  R *moved_flipped, *flipped;  // E' [out, S]; scratch
  R* to_support;               // dx = to_support A + ...
  R *bias, *row;               // what the steps moved b by; scratch
  R* bias_v;                   // in v, null without b
};

// out = factor * x + (base or 0)
template <class R>
void scale_add(const R* x, R factor, const R* base, int64_t count, R* out) {
  for (int64_t i = 0; i < count; i++) out[i] = factor * x[i] + (base ? base[i] : R(0));
}

template <class R>
void evaluate(const MlpMetaLoss<R>& c, const MlpLayout<R>& layout, Work<R>& w, int64_t t) {
  const Layer& head = layout.layer[0];
  const int64_t S = w.S, D = head.in, ldo = w.ldo;
  const Targets<R> y = targets_of(c.shape, c.support, t);
  const R* inputs = c.support.x + t * S * D;
  w.a = w.ld_in == D ? inputs : w.room;
  if (w.a == w.room) load_rows(inputs, S, D, w.room, w.ld_in);
  dots(w.gram, w.ldS, w.a, w.ld_in, w.a, w.ld_in, S, S, D, false);
  std::memset(w.moved, 0, size_t(S * ldo) * sizeof(R));
  std::memset(w.bias, 0, size_t(ldo) * sizeof(R));
  for (int64_t k = 0; k < c.steps; k++) {
    Step<R>& step = w.steps[size_t(k)];
    R* z = step.pass.x[1];
    step.pass.n = S, step.pass.inputs = w.a;
    if (!k) w.network.forward(w.theta, step.pass);
    w.network.loss(y, step.pass);
    const R *d = step.pass.d[1], alpha = w.rates.of_tensor(k, 0), beta = w.bias_v ? w.rates.of_tensor(k, 1) : R(0);
    std::memcpy(step.before, w.moved, size_t(S * ldo) * sizeof(R));
    scale_add<R>(d, -alpha, nullptr, S * ldo, step.e);
    scale_add<R>(step.e, 1, w.moved, S * ldo, w.moved);
    column_sums(d, ldo, S, ldo, w.row);
    scale_add<R>(w.row, -beta, nullptr, ldo, w.row);
    scale_add<R>(w.row, 1, w.bias, ldo, w.bias);
    if (k + 1 < c.steps)
      products<R>({w.steps[size_t(k + 1)].pass.x[1], ldo, z, ldo}, S, ldo,
                  {{{w.gram, w.ldS, 1}, step.e, ldo, S}, {{&kOne<R>, 0, 0}, w.row, ldo, 1}});
  }
  const R* W = w.theta + head.rows;
  products<R>({w.adapted + head.rows, w.ld_in, W, w.ld_in}, head.out, D, {{{w.moved, 1, ldo}, w.a, w.ld_in, S}});
  if (head.bias >= 0) scale_add<R>(w.bias, 1, w.theta + head.bias, ldo, w.adapted + head.bias);
  w.query.load(w.network, c.query.x + t * w.Q * D, w.Q);
  w.network.forward(w.adapted, w.query);
  c.loss[t] = w.network.loss(targets_of(c.shape, c.query, t), w.query, w.query_grads.dweights);
  store_outputs(c, t, w.query.outputs(), w.network.layout.padded_outputs());
}

template <class R>
void add_rates(const Layer& head, Work<R>& w, int64_t k) {
  const R* d = w.steps[size_t(k)].pass.d[1];
  R of_weight = 0, of_bias = 0;
  for (int64_t i = 0; i < w.S; i++)
    for (int64_t j = 0; j < head.out; j++) {
      of_weight -= d[i * w.ldo + j] * w.u[i * w.ldo + j];
      of_bias -= w.bias_v ? d[i * w.ldo + j] * w.bias_v[j] : R(0);
    }
  w.drates.add(k, 0, of_weight);
  w.drates.add(k, 1, of_bias);
}

template <class R>
void run_chain_by_gram(const MlpMetaLoss<R>& c, const MlpLayout<R>& layout, Work<R>& w, const Targets<R>& y, R* dweights) {
  const int64_t S = w.S, ldo = w.ldo, out = layout.layer[0].out;
  std::memset(w.rd_sum, 0, size_t(S * ldo) * sizeof(R));
  std::memset(w.to_support, 0, size_t(S * w.ldS) * sizeof(R));
  for (int64_t k = c.steps - 1; k >= 0; k--) {
    const Step<R>& step = w.steps[size_t(k)];
    if (w.drates.asked()) add_rates(layout.layer[0], w, k);
    if (c.first_order) continue;
    R* rz = w.network.output_directions();
    const R alpha = w.rates.of_tensor(k, 0), beta = w.bias_v ? w.rates.of_tensor(k, 1) : R(0);
    for (int64_t i = 0; i < S; i++)
      for (int64_t j = 0; j < ldo; j++) rz[i * ldo + j] = -alpha * w.u[i * ldo + j] - (w.bias_v ? beta * w.bias_v[j] : R(0));
    w.network.output_tangent(step.pass, y);
    if (dweights) w.network.add_weight_tangents(step.pass, y, dweights);
    const R* rd = w.network.output_tangents();
    if (c.support_grads.dx) {
      transpose(S, out, step.before, ldo, w.moved_flipped, w.ldS);
      transpose(S, out, w.rd_sum, ldo, w.flipped, w.ldS);
      products<R>({w.to_support, w.ldS, w.to_support, w.ldS}, S, S,
                  {{{rd, ldo, 1}, w.moved_flipped, w.ldS, out}, {{step.e, ldo, 1}, w.flipped, w.ldS, out}});
    }
    scale_add<R>(rd, 1, w.rd_sum, S * ldo, w.rd_sum);
    products<R>({w.u, ldo, w.u, ldo}, S, ldo, {{{w.gram, w.ldS, 1}, rd, ldo, S}});
    if (w.bias_v) column_sums(rd, ldo, S, ldo, w.bias_v, true);
  }
}

template <class R>
void differentiate(const MlpMetaLoss<R>& c, const MlpLayout<R>& layout, Work<R>& w, int64_t t) {
  const Layer& head = layout.layer[0];
  const int64_t S = w.S, Q = w.Q, D = head.in, out = head.out, ldo = w.ldo, ld_in = w.ld_in;
  const R* W = w.theta + head.rows;
  R* v = w.v + head.rows;
  const ExampleGrads<R>&query = w.query_grads, support = cleared(c.shape, c.support_grads, t * S, S);
  w.network.backward(w.adapted, w.query, w.v, query.dx);
  if (query.dy) subtract_rows(w.query.doutputs(), Q, out, ldo, query.dy);
  std::memset(w.u, 0, size_t(S * ldo) * sizeof(R));
  dots<R>(w.u, ldo, w.a, ld_in, v, ld_in, S, out, D, false);
  w.drates.clear();
  run_chain_by_gram(c, layout, w, targets_of(c.shape, c.support, t), support.dweights);
  w.drates.store(t);
  if (support.dy) subtract_rows(w.rd_sum, S, out, ldo, support.dy);
  if (support.dx && !c.first_order) {
    R* dx = ld_in == D ? support.dx : w.dx;
    products<R>({dx, ld_in}, S, D,
                {{{w.rd_sum, ldo, 1}, W, ld_in, out}, {{w.to_support, w.ldS, 1}, w.a, ld_in, S}, {{w.moved, ldo, 1}, v, ld_in, out}});
    if (dx == w.dx) store_rows(dx, S, D, support.dx, ld_in);
  }
  products<R>({v, ld_in, v, ld_in}, out, D, {{{w.rd_sum, 1, ldo}, w.a, ld_in, S}});
  store_block(layout, w.v, c.dparams, t);
}

}  // namespace

template <class R>
bool gram_pays(const MlpMetaLoss<R>& c, const MlpLayout<R>& layout) {
  if (layout.layers > 1 || layout.shape.residual_norm || !layout.layer[0].dots || c.rates.per_element || c.batch_per_step || c.optimiser)
    return false;
  const int64_t S = c.support.count, in = layout.layer[0].in, out = layout.layer[0].out;
  const int64_t grads = c.with_grads, dx = c.support_grads.dx ? 1 : 0;
  const int64_t steps = c.steps * S * in * out * (2 + 2 * grads + 2 * dx);
  const int64_t gram = S * in * (S + out * (2 + 2 * grads) + dx * (2 * out + S)) + c.steps * S * S * out * (1 + grads + 2 * dx);
  return gram < steps;
}

template <class R>
void mlp_meta_loss_by_gram(const MlpMetaLoss<R>& c, const MlpLayout<R>& layout) {
  for_each_task<Work<R>>(
      c.shape, most(c.support.count, c.query.count),
      [&](Work<R>& w, int64_t t) {
        w.loader.load(layout, c.params, t, w.theta);
        w.query_grads = cleared(c.shape, c.query_grads, t * w.Q, w.Q);
        evaluate(c, layout, w, t);
        if (c.with_grads) differentiate(c, layout, w, t);
      },
      c, layout);
}

#define INSTANTIATE(R)                                                    \
  template bool gram_pays<R>(const MlpMetaLoss<R>&, const MlpLayout<R>&); \
  template void mlp_meta_loss_by_gram<R>(const MlpMetaLoss<R>&, const MlpLayout<R>&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastmeta::FASTMETA_ISA
