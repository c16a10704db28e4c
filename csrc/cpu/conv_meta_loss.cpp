// conv_meta_loss: one task on a thread, from the inner steps through the query loss to its whole meta-gradient, by the chain of
// Hessian-vector products v_k = v_{k+1} - H_k (alpha_k * v_{k+1}). What the steps leave is kept where it is small (kKeptBytes), else
// computed again on the way back: memory grows with the steps by their parameters alone.
#include "../parallel.h"
#include "conv_task.h"
#include "inner_rates.h"
#include "kernels.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

constexpr int64_t kKeptBytes = 16 << 20;

template <class R>
struct Work {
  Work(const ConvMetaLoss<R>& c, const ConvLayout<R>& layout, Scratch& scratch)
      : call(c),
        task(layout, most(c.support.count, c.query.count), c.with_grads && !c.first_order && c.steps ? c.support.count : 0, scratch),
        rates(layout, c.rates, c.steps, scratch),
        drates(layout, c.drates, c.steps, scratch) {
    const int64_t before = scratch.used();
    support.emplace_back(layout, task.shapes, c.support.count, scratch);
    const int64_t of_pass = scratch.used() - before;
    kept = c.with_grads && !c.first_order && of_pass * c.steps <= kKeptBytes;
    for (int64_t k = 1; kept && k < c.steps; k++) support.emplace_back(layout, task.shapes, c.support.count, scratch);
    query.emplace_back(layout, task.shapes, c.query.count, scratch);
    for (int64_t k = 0; k <= (c.with_grads ? c.steps : least(c.steps, 1)); k++) theta.push_back(scratch.take<R>(layout.size));
    for (int64_t k = 0; k < (c.with_grads && drates.asked() ? c.steps : 1); k++) grads.push_back(scratch.take<R>(layout.gradient));
    v = c.with_grads ? scratch.take<R>(layout.size) : nullptr;
    direction = c.with_grads ? scratch.take<R>(layout.size) : nullptr;
  }

  ConvPass<R>& pass(int64_t k) { return support[size_t(kept ? k : 0)]; }
  R* params(int64_t k) { return theta[size_t(theta.size() > 2 || !k ? k : 1)]; }
  R* grad(int64_t k) { return grads[size_t(grads.size() > 1 ? k : 0)]; }
  const void* targets(const MlpExamples<R>& examples, int64_t t) const { return targets_of(call.net.loss, call.net.outputs, examples, t); }
  const R* images(const MlpExamples<R>& examples, int64_t t) const {
    const ConvBlock& b = call.net.block[0];
    return examples.x + t * examples.count * b.in * b.height * b.width;
  }

  void gradient(int64_t k, const void* y) {
    task.forward(params(k), pass(k));
    task.loss(y, pass(k));
    task.backward(params(k), pass(k), grad(k));
  }

  void adapt(int64_t t) {
    if (!loaded) load_block(task.layout, call.params, 0, params(0));
    loaded = true;
    for (ConvPass<R>& each : support) each.load(task.layout, task.shapes, images(call.support, t));
    for (int64_t k = 0; k < call.steps; k++) {
      gradient(k, targets(call.support, t));
      rates.descend(k, params(k), grad(k), params(k + 1));
      flip(task.layout, params(k + 1));
    }
  }

  void run_chain(int64_t t) {
    const void* y = targets(call.support, t);
    drates.clear();
    for (int64_t k = call.steps - 1; k >= 0; k--) {
      if (drates.asked()) drates.add(k, grad(k), v);
      if (call.first_order) continue;
      if (!kept && k + 1 < call.steps) gradient(k, y);
      rates.descend(k, nullptr, v, direction);
      flip(task.layout, direction);
      task.curvature(params(k), direction, pass(k), y, v);
    }
  }

  void run(int64_t t) {
    adapt(t);
    ConvPass<R>& pass = query[0];
    pass.load(task.layout, task.shapes, images(call.query, t));
    task.forward(params(call.steps), pass);
    if (call.outputs)
      for (int64_t i = 0; i < pass.n; i++)
        std::memcpy(call.outputs + (t * pass.n + i) * call.net.outputs, pass.outputs + i * task.layout.outputs,
                    size_t(call.net.outputs) * sizeof(R));
    if (!call.loss) return;
    call.loss[t] = task.loss(targets(call.query, t), pass);
    if (!call.with_grads) return;
    task.backward(params(call.steps), pass, v);
    run_chain(t);
    drates.store(t);
    store_block(task.layout, v, call.dparams, t);
  }

  const ConvMetaLoss<R>& call;
  ConvTask<R> task;
  InnerRates<R, ConvLayout<R>> rates;
  RateGradients<R, ConvLayout<R>> drates;
  std::vector<ConvPass<R>> support, query;
  std::vector<R*> theta, grads;
  R *v, *direction;
  bool kept, loaded = false;
};

}  // namespace

template <class R>
void conv_meta_loss(const ConvMetaLoss<R>& c) {
  const ConvLayout<R> layout(c.net, c.params);
  Scratch measure(nullptr);
  const Work<R> sizes(c, layout, measure);
  parallel_for(c.net.tasks, 1, [&](int64_t begin, int64_t end) {
    Scratch scratch(thread_arena(size_t(measure.used())));
    Work<R> work(c, layout, scratch);
    for (int64_t t = begin; t < end; t++) work.run(t);
  });
}

template void conv_meta_loss(const ConvMetaLoss<float>&);
template void conv_meta_loss(const ConvMetaLoss<double>&);

}  // namespace fastmeta::FASTMETA_ISA
