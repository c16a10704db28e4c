// What the kernels of prototypes, proto_log_softmax, proto_loss, matching_log_probs and sgd_step are told.
// Sizes: T tasks, S support examples, Q queries, N ways (classes), D features. All tensors are contiguous.
#pragma once
#include "runtime/stored.h"

namespace fastmeta {

enum class Metric : int { euclidean, sqeuclidean, cosine };
enum class Reduction : int { mean, sum, none };

template <class R>
struct Prototypes {  // mean of each class; in backward dsupport from dprototypes
  int64_t T, S, N, D;
  Stored<const R> support;  // [T, S, D]
  const int64_t* labels;    // [T, S], any values
  Stored<R> prototypes;     // [T, N, D]
  Stored<const R> dprototypes;
  Stored<R> dsupport;
};

template <class R>
struct ProtoProblem {  // distances of queries to prototypes, and the gradients that a backward writes
  int64_t T, Q, N, D;
  Metric metric;
  double temperature;
  Stored<const R> query;       // [T, Q, D]
  Stored<const R> prototypes;  // [T, N, D], or [N, D] for all tasks with stride 0
  int64_t prototypes_stride;
  Stored<R> dquery, dprototypes;      // [T, Q, D] and [T, N, D]; null: not asked for
  double* dtemperature = nullptr;     // [T]; null: not asked for
  double* column_sums = nullptr;      // [T, N], of the gradients to the logits, over the queries; null: not asked for
  R* distances = nullptr;             // [T, Q, N], written by forward; null: not kept
  const R* kept_distances = nullptr;  // the same in backward; null: compute them again
  bool kept_by_prototypes = false;    // kept as [T, N, Q], by a forward that had the queries for prototypes
};

template <class R>
struct ProtoLogSoftmax : ProtoProblem<R> {
  Stored<R> log_probs;  // [T, Q, N]
  Stored<const R> dlog_probs;
};

template <class R>
struct ProtoLoss : ProtoProblem<R> {  // losses, and the gradients of sum_q weight_q loss_q in the same pass
  int64_t ignore_index;
  const int64_t* targets;              // [T, Q], any values; null: soft_targets
  Stored<const R> soft_targets;        // [T, Q, N], shares of the prototypes
  Stored<R> dsoft_targets;             // [T, Q, N]; null: not asked for
  const int64_t* exclude = nullptr;    // [T, Q]: a prototype that does not count, -1: none; null: none of any
  const R* target_distance = nullptr;  // [T, Q], in place of the target's; null: its own
  R* dtarget_distance = nullptr;       // [T, Q]; null: not asked for
  double margin = 0;                   // off the target's logit
  const R* bias = nullptr;             // [T, N], or [N] as the prototypes: added to the logits; its gradient is column_sums
  const int64_t* classes = nullptr;    // likewise: those of the target's class are its prototypes, together; null: prototype n is class n
  double smoothing = 0;                // the share of the loss that is the mean over all that count
  R* hits = nullptr;                   // [T, Q]: 1 where the largest logit is the target's, without the margin, else 0; null: not asked for
  const double* task_weight = nullptr;       // [T]: weight_q of all queries of a task; null: query_weight
  const R* query_weight = nullptr;           // [T, Q]; for gradients only
  R *nearest = nullptr, *log_sum = nullptr;  // [T, Q] of each query's softmax, complete; null: not asked for
  const R *others_nearest = nullptr,
          *others_log_sum = nullptr;  // [T, N], those of each prototype's over the queries: its loss joins; or null
  R* task_loss = nullptr;             // [T], sum_q weight_q loss_q; null: not asked for
  R* query_loss = nullptr;            // [T, Q]; null: not asked for
};

template <class R>
struct ProtoLossLoo {  // distances of examples to the means of the others of their classes, and what their gradients add
  int64_t T, S, N, D;
  Metric metric;
  const int64_t *start, *members;  // [T, N + 1], [T, S]: members[start[n], start[n + 1]) are the examples of class n, two or more
  const R *x, *centres;            // [T, S, D], [T, N, D]
  R* inverse_norms;                // [T, S, 2], with "cosine": 1 / |x|, 1 / |mean of the others|, 0 for a zero vector
  R* distances;                    // [T, S]
  const R* ddistances;             // [T, S]
  R *dcentres, *dx;                // [T, N, D], [T, S, D]: added to, then each example gets its share of its centre's
};

template <class R>
struct MatchingLogProbs : ProtoProblem<R> {  // the prototypes are the support, N = S
  int64_t ways;
  const int64_t* labels;  // [T, S], or [S] where the support is shared; any values
  Stored<R> log_probs;    // [T, Q, ways]
  Stored<const R> dlog_probs;
};

template <class R>
struct SgdStep {  // out = param - rate * grad for each of `count` tensors
  struct Item {
    int64_t tasks, size;  // grad, out: [tasks, size]; tasks = 1 where nothing is shared by tasks
    bool shared_param;    // param is [size]
    int rate_kind;        // 0: one number; 1: [size]; 2: [tasks, size]
    Stored<const R> param, grad, rate, dout;
    Stored<R> out, dgrad, dparam, drate;  // null: not asked for; dparam only where the param is shared
  };
  int64_t count;
  const Item* items;
  bool one_rate;               // one number for all items: its gradient, summed over them, goes to the first item's drate
  bool* not_finite = nullptr;  // set by forward where a rate of an element is NaN or infinite
};

}  // namespace fastmeta
